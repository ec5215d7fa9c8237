"""Commands about proposals: `report` measures them, `clean_split` cleans training data."""
