"""Encoded records: bit planes and targets, or an `InputError` that names the record."""

import pathlib
from collections.abc import Iterator

import numpy as np

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import bit_planes

COVERED = ("input_pipeline/records.py", "input_pipeline/preprocess/bit_planes.py")
MAX_BYTES = 1024


def seeds(realdata: pathlib.Path) -> Iterator[bytes]:
  """Yields height, width, instances and length of the planes; then planes and target as PNGs."""
  del realdata
  for seed, count, height, width in ((0, 0, 4, 5), (1, 3, 9, 7), (2, 17, 12, 8), (3, 1, 1, 1)):
    masks = np.random.default_rng(seed).random((count, height, width)) < 0.2
    planes = bit_planes.encode_png(bit_planes.packbits(masks))
    target = records.encode_target(masks.any(axis=0))
    yield bytes([height, width, count]) + len(planes).to_bytes(2) + planes + target
    yield bytes([height, width, count]) + len(planes).to_bytes(2) + planes


def one_input(data: bytes) -> None:
  """Decodes a record with that size and those two PNGs."""
  if len(data) < 5:
    return
  height, width, count = data[:3]
  split = 5 + int.from_bytes(data[3:5])
  fields = {
    "image": b"", "image_id": 1, "file_name": "a.jpg", "height": height, "width": width,
    "instances": data[5:split], "instance_score": np.ones(count, np.float32),
    "instance_category": np.zeros(count, np.int64), "instances_from": "custom",
    "instances_trained_on": "",
    "refs": [{"ref_id": 1, "ann_ids": [1], "target": data[split:], "sentences": ["cup"]}],
  }  # fmt: skip
  try:
    record = records.decode_record(fields)
  except InputError as error:
    assert "a.jpg" in str(error)
    return
  assert record.instances.masks.shape == (count, height, width)
  assert record.refs[0].target.shape == (height, width)
