"""Segmentations in the formats of COCO and PhraseCut, as masks."""
