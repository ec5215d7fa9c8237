"""The command that prepares a data set."""
