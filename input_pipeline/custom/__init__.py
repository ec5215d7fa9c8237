"""A user's own data: photos, sentences and what they mean, a line of JSON each (docs/guides/custom-data.md).

`lines.py` says what a line may hold, `masks.py` what its masks mean, `check.py` what is wrong with one and `scan.py`
with a whole file; `converters/` write such files from what annotation tools export; `example.py` makes one.
"""
