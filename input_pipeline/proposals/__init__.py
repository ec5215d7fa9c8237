"""Commands about proposals: `report` measures them, `clean_split` cleans detectors' training data."""
