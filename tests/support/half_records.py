"""A small data set of two-coloured pictures, in which every row of a batch can be identified.

The left half of each picture is red, and its green identifies the record. The refs are its left
and its right half; the first instance is the left half.
"""

import io
from typing import ClassVar

import numpy as np
from PIL import Image

from input_pipeline import records
from input_pipeline.sources.source import TaskResult
from input_pipeline.tf import builder

NAME = "refcoco_unc"
SIZE = 32
TEXT = {"left": "the left half", "right": "the right half"}


def _coloured(height: int, width: int, image_id: int) -> np.ndarray:
  """Returns a dark image whose left half is red; its green is the number of the record."""
  image = np.zeros((height, width, 3), np.uint8)
  image[..., 1] = 10 * image_id
  image[:, : width // 2, 0] = 200
  return image


def _half(height: int, width: int, side: str) -> np.ndarray:
  mask = np.zeros((height, width), bool)
  mask[:, slice(width // 2) if side == "left" else slice(width // 2, None)] = True
  return mask


def _record(image_id: int) -> records.ImageRecord:
  """Returns a record with refs for both halves; its first instance is the left half."""
  height, width = (SIZE, SIZE) if image_id % 3 == 0 else (40 + 4 * image_id, 50 + 2 * image_id)
  buffer = io.BytesIO()
  Image.fromarray(_coloured(height, width, image_id)).save(buffer, "PNG")
  count = (0, 1, 18)[image_id % 3]
  masks = np.random.default_rng(image_id).random((count, height, width)) < 0.5
  if count:
    masks[0] = _half(height, width, "left")
  instances = records.Instances(
    masks, np.linspace(1, 0, count, dtype=np.float32), np.zeros(count, np.int32), "test"
  )
  refs = tuple(
    records.Ref(
      ref_id=10 * image_id + number,
      ann_ids=(number,),
      target=_half(height, width, side),
      sentences=tuple(f"{TEXT[side].title()} {image_id} {n}" for n in range(1 + number * 2)),
    )
    for number, side in enumerate(("left", "right")[: 1 + image_id % 2])
  )
  name = f"picture_{image_id}.png"
  return records.ImageRecord(buffer.getvalue(), image_id, name, height, width, instances, refs)


class _Records:
  """Records as a source for the builder."""

  workers = 1
  provenance: ClassVar = {}

  def __init__(self, **splits: list[dict]):
    self._splits = splits
    self.splits = {split: len(rows) for split, rows in splits.items()}
    self.coco_ids = {split: {} for split in splits}

  def tasks(self, split):
    yield {"split": split}

  def make(self, task):
    return TaskResult(self._splits[task["split"]])


RECORDS = [_record(image_id) for image_id in range(1, 10)]
REFS = sum(len(record.refs) for record in RECORDS)


def write(data_dir: str) -> None:
  """Writes the records as the splits train and val, and as testA with one truncated image."""
  fields = [records.encode_record(record) for record in RECORDS]
  broken = [row | {"image": row["image"][: 60 if row["image_id"] == 6 else None]} for row in fields]
  builder.write_dataset(data_dir, NAME, _Records(train=fields, val=fields, testA=broken), {})


def ref_of(row: dict) -> tuple[int, bool]:
  """Returns which record a row is of, and whether its target is the red half."""
  image_id = round(int(row["image"][0, 0, 1]) / 10)
  red = row["image"][SIZE // 2, :, 0] > 100
  return image_id, bool((row["target"][SIZE // 2] == red).mean() > 0.5)


def rows_of(batches: list[dict]) -> list[dict]:
  """Yields the rows of batches."""
  return [
    {key: batch[key][row] for key in batch}
    for batch in batches
    for row in range(len(batch["image"]))
  ]
