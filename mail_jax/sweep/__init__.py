"""Command: trains a recipe once for each combination of some settings."""
