"""Custom data: images, expressions and masks of a user's own, one JSON object per line.

`schema.py` parses a line, `masks.py` rasterises its masks, `check.py` checks a line and `scan.py` a
whole file; `converters/` reads the exports of annotation tools.
"""
