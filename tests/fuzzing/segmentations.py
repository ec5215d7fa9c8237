"""COCO's segmentations: the same mask as by NumPy, or a ValueError."""

import json
import pathlib
from collections.abc import Iterator

import numpy as np
from plain_masks import plain_decode, plain_lengths
from pycocotools import mask as coco_mask

from input_pipeline.masks.segmentation import decode_segmentation

COVERED = ("input_pipeline/masks/segmentation.py",)
MAX_BYTES = 2048


def seeds(realdata: pathlib.Path) -> Iterator[bytes]:
  """Yields height and width, then a string of run lengths, or JSON."""
  for seed, height, width in ((0, 4, 5), (1, 30, 40), (2, 1, 1), (3, 200, 3)):
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    yield bytes([height, width, 0]) + runs["counts"]
    as_json = {"size": [height, width], "counts": runs["counts"].decode()}
    yield bytes([height, width, 1]) + json.dumps(as_json).encode()
  yield bytes([4, 5, 1]) + json.dumps({"size": [4, 5], "counts": [3, 7, 10]}).encode()
  yield (
    bytes([60, 80, 1])
    + json.dumps([[1.5, 2, 30, 2.25, 30, 50.5], [0, 0, 9, 0, 9, 9, 0, 9]]).encode()
  )
  path = realdata / "coco/annotations/instances_train2014.json"
  rows = json.loads(path.read_text())["annotations"] if path.exists() else []
  for row in rows[:: max(1, len(rows) // 30)]:
    text = json.dumps(row["segmentation"]).encode()
    if len(text) < MAX_BYTES - 3:
      yield bytes([240, 255, 1]) + text


def one_input(data: bytes) -> None:
  """Decodes run lengths and any JSON for an image whose size is in the first bytes."""
  if len(data) < 3:
    return
  height, width, kind = data[0], data[1], data[2]
  if kind % 2 == 0:
    _check_runs(data[3:], height, width)
    return
  try:
    segmentation = json.loads(data[3:])
  except (ValueError, RecursionError):
    return
  try:
    mask = decode_segmentation(segmentation, height, width)
  except ValueError:
    return
  assert mask.shape == (height, width) and mask.dtype == bool
  if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
    expected = plain_decode(segmentation["counts"], height, width)
    assert expected is not None and (mask == expected).all()


def _check_runs(text: bytes, height: int, width: int) -> None:
  lengths = plain_lengths(text) if len(text) < 1000 else None
  expected = plain_decode(lengths, height, width) if lengths is not None else None
  try:
    mask = decode_segmentation({"size": [height, width], "counts": text}, height, width)
  except ValueError:
    # Numbers longer than necessary are rejected although they could be read.
    assert expected is None or min(height, width) < 1 or b"o" in text or b"P" in text
  else:
    if len(text) < 1000:
      assert expected is not None and (mask == expected).all()
