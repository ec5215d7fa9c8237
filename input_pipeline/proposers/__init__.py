"""Where proposals come from; a new proposer is a line in the table of `registry.py`."""
