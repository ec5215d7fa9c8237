"""Data sets as sources of examples: every one keeps to the protocol in `source.py`."""
