"""The command that writes a data set as TFRecords."""
