"""Weights that others trained, as parameters of ours."""
