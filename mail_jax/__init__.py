"""Referring image segmentation with one transformer over masks, image and language."""

__version__ = "0.1.0"
