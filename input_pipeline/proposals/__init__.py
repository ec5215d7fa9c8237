"""Commands about proposals: judge them, and clean the data of detectors."""
