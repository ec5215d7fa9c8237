"""Predicts masks for images and expressions: the Python API and the command."""
