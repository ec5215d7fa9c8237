"""Referring image segmentation with one transformer over masks, image and language."""
