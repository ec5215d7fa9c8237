"""Command: from raw files to a table of results beside the published ones."""
