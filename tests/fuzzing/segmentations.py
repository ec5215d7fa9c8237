"""COCO's segmentations: the same mask as by NumPy, or a ValueError."""

import json
import pathlib
from collections.abc import Iterator

import numpy as np
from plain_masks import plain_decode, plain_lengths
from pycocotools import mask as coco_mask

from input_pipeline.masks.segmentation import decode_segmentation, read_segmentation

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
  square, runs = [1, 1, 9, 1, 9, 9, 1, 9], {"size": [20, 30], "counts": [45, 10, 545]}
  points = [[1, 1], [9, 1], [9, 9], [1, 9]]
  for value in (
    square,
    points,
    [points, square, None, [], [1, 2]],
    [runs, square, runs | {"counts": "]1:e`0"}],
    runs | {"counts": str(b"]1:e`0")},
    [[45, 10, 545, 0, 0]],
    [[0.1, 0.1, 0.9, 0.1, 0.9, 1]],
    [[-2, -2, 33, 4, 9, 22]],
  ):
    yield bytes([20, 30, 1]) + json.dumps(value).encode()
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
    read = read_segmentation(segmentation, height, width)
  except ValueError as error:
    assert str(error)
    return
  mask = read.mask()
  assert mask.shape == (height, width) and mask.dtype == bool
  assert len(read.parts) + len(read.notes) >= 1
  union = np.zeros((height, width), bool)
  for part in json.loads(json.dumps(read.parts)):
    union |= _by_itself(part, height, width)
  assert (mask == union).all()
  # What was read is read again, and is the same.
  (first, *others) = read.parts
  if "polygons" in first and not others:
    again = read_segmentation(first["polygons"], height, width)
    assert again.parts == read.parts and (again.mask() == mask).all()
  if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
    expected = plain_decode(segmentation["counts"], height, width)
    assert expected is not None and (mask == expected).all()


def _by_itself(part: dict, height: int, width: int) -> np.ndarray:
  """Returns the mask of a part by pycocotools for polygons, by NumPy for run lengths."""
  if "polygons" in part:
    (polygon,) = part["polygons"]
    assert len(polygon) >= 6 and len(polygon) % 2 == 0
    beyond = max(max(polygon[::2]) - width, max(polygon[1::2]) - height, -min(polygon))
    assert beyond <= max(3, 0.05 * max(height, width))
    runs = coco_mask.frPyObjects([polygon], height, width)
    return coco_mask.decode(runs)[..., 0].astype(bool)
  counts = part["rle"]["counts"]
  lengths = plain_lengths(counts.encode()) if isinstance(counts, str) else counts
  mask = plain_decode(lengths or [], height, width)
  assert mask is not None
  return mask


def _check_runs(text: bytes, height: int, width: int) -> None:
  lengths = plain_lengths(text) if len(text) < 1000 else None
  expected = plain_decode(lengths, height, width) if lengths is not None else None
  try:
    mask = decode_segmentation({"size": [height, width], "counts": text}, height, width)
  except ValueError:
    # Numbers longer than necessary are rejected although they could be read, and more runs, empty
    # ones, than an encoder writes.
    too_many = lengths is not None and len(lengths) > 2 * height * width + 2
    assert expected is None or min(height, width) < 1 or too_many or b"o" in text or b"P" in text
  else:
    if len(text) < 1000:
      assert expected is not None and (mask == expected).all()
