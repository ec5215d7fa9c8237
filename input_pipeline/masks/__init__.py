"""Masks from segmentations in the formats of COCO and PhraseCut."""
