"""The rows of an evaluation: every expression of a split once, in a fixed order."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.tf import pipelines, record_reader
from input_pipeline.tf.record_reader import Fields, Shape, Source

# The canvas of original targets has sides of multiples of this: few shapes, few compilations.
_CANVAS_STEP = 64
# COCO's longest side. Photos of this size or less share one canvas, and no batch has more pixels
# than a full one of them, unless a photo alone has.
_COCO_SIDE = 640
# The sides of a canvas are at most this many times those of its smallest photo, if that is larger.
_GROWTH = 1.5


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
  """Expressions about photos of similar sizes, which share a canvas.

  Attributes:
    canvas: height and width that every photo fits into.
    batch_size: rows of a batch.
    numbers: of the expressions in the data, ascending.
  """

  canvas: tuple[int, int]
  batch_size: int
  numbers: np.ndarray


@functools.lru_cache(maxsize=16)
def buckets(
  source: Source, image_size: int, batch_size: int, multiple: int, total: int
) -> tuple[Bucket, ...]:
  """Returns the first `total` expressions by the size of their photo, the smallest first.

  A batch has fewer rows the larger its canvas, so that its memory does not grow with the photos.

  Args:
    source: all records.
    image_size: the model's, the least side of a canvas.
    batch_size: most rows of a batch.
    multiple: of rows, and the least number of them.
    total: how many expressions to take.
  """
  sizes = record_reader.scan(source)
  sides = np.stack([sizes.height, sizes.width], axis=1)
  least = max(_COCO_SIDE, image_size)
  limits = [least]
  while limits[-1] < sides.max():
    limits.append(int(limits[-1] * _GROWTH))
  kinds = np.searchsorted(limits, sides) @ [len(limits), 1]
  kind_of = np.repeat(kinds, sizes.expressions)[:total]
  found = []
  for kind in np.unique(kind_of):
    height, width = (_canvas(int(side), image_size) for side in sides[kinds == kind].max(0))
    fitting = batch_size // multiple * least**2 // (height * width)
    rows = multiple * max(1, min(fitting, batch_size // multiple))
    found.append(Bucket((height, width), rows, np.flatnonzero(kind_of == kind)))
  return tuple(sorted(found, key=lambda bucket: math.prod(bucket.canvas)))


@functools.lru_cache(maxsize=64)
def rows_dataset(
  source: Source, shape: Shape, bucket: Bucket, first: int, last: int, threads: int
) -> tf.data.Dataset:
  """Returns expressions number `first` to `last` of a bucket in batches; the last may not be full.

  Cached, because a pipeline takes longer to build than a small evaluation to read.
  """
  ends = np.cumsum(record_reader.scan(source).expressions)
  numbers = bucket.numbers[first:last]
  wanted = np.unique(np.searchsorted(ends, numbers, side="right"))
  skipped = int(numbers[0] - (ends[wanted[0] - 1] if wanted[0] else 0))
  records = record_reader.read(source).skip(wanted[0]).take(wanted[-1] + 1 - wanted[0])
  if len(wanted) <= wanted[-1] - wanted[0]:
    keep = np.zeros(wanted[-1] + 1 - wanted[0], bool)
    keep[wanted - wanted[0]] = True
    kept = tf.data.Dataset.from_tensor_slices(keep)
    records = tf.data.Dataset.zip(records, kept).filter(lambda _, keep: keep)
    records = records.map(lambda record, _: record)
  records = records.map(functools.partial(_decode, shape=shape), num_parallel_calls=threads)
  rows = records.flat_map(_repeat_per_expression).skip(skipped).take(last - first)
  rows = rows.map(functools.partial(_row, shape=shape), num_parallel_calls=threads)
  shapes = {name: spec.shape for name, spec in rows.element_spec.items()}
  shapes["original_target"] = tf.TensorShape(bucket.canvas)
  batches = rows.padded_batch(bucket.batch_size, shapes)
  return batches.prefetch(1).with_options(pipelines.options(threads))


def _decode(example: tf.Tensor, shape: Shape) -> Fields:
  record = record_reader.parse(example)
  count = record["count"]
  return (
    record
    | record_reader.decode_record(record, shape)
    | {
      "ref": tf.repeat(tf.range(tf.size(count)), count),
      "first": tf.cumsum(count, exclusive=True),
    }
  )


def _repeat_per_expression(record: Fields) -> tf.data.Dataset:
  """Repeats a record for each of its expressions, with the expression's index."""
  count = tf.size(record["ref"], out_type=tf.int64)
  # The tensors are shared.
  repeated = tf.data.Dataset.from_tensors(record).repeat(count)
  return tf.data.Dataset.zip(repeated, tf.data.Dataset.range(count))


def _row(record: Fields, index: tf.Tensor, shape: Shape) -> Fields:
  ref = record["ref"][index]
  target = record_reader.decode_target(record["target"][ref])
  return {
    "image": record["image"],
    "instances": record["instances"],
    "num_instances": record["num_instances"],
    "target": record_reader.resize_target(target, shape.image_size),
    "original_target": target,
    "original_size": tf.shape(target),
    "normalised": record["normalised"][index],
    "expression": record["sentences"][index],
    "expression_index": index - record["first"][ref],
    "ref_id": record["ref_id"][ref],
    "image_id": record["image_id"],
    "file_name": record["file_name"],
  }


def no_rows(shape: Shape, canvas: tuple[int, int]) -> Fields:
  """Returns a batch without rows, for a process that has no more of them."""
  size = shape.image_size
  return {
    "image": np.zeros((0, size, size, 3), np.uint8),
    "instances": np.zeros((0, shape.planes, size, size), np.uint16),
    "num_instances": np.zeros(0, np.int32),
    "target": np.zeros((0, size, size), bool),
    "original_target": np.zeros((0, *canvas), bool),
    "original_size": np.zeros((0, 2), np.int32),
  } | {
    key: []
    for key in ("normalised", "expression", "expression_index", "ref_id", "image_id", "file_name")
  }


def pop_meta(batch: Fields) -> list[dict[str, Any]]:
  """Removes the columns that are not numeric from a batch, and returns them row by row."""
  columns = ("image_id", "ref_id", "expression_index", "expression", "file_name")
  return [
    {
      "image_id": int(image_id),
      "ref_id": int(ref_id),
      "expression_index": int(expression_index),
      "expression": expression.decode(),
      "file_name": file_name.decode(),
    }
    for image_id, ref_id, expression_index, expression, file_name in zip(
      *(batch.pop(column) for column in columns), strict=True
    )
  ]


def pad(batch: Fields, bucket: Bucket) -> Fields:
  """Pads a batch of n rows, `meta` a list among them, with rows of zeros and weight 0."""
  meta, rows = batch.pop("meta"), bucket.batch_size
  padded = {key: _grow(array, (rows, *array.shape[1:])) for key, array in batch.items()}
  return padded | {
    "weight": (np.arange(rows) < len(meta)).astype(np.float32),
    "meta": meta + [None] * (rows - len(meta)),
  }


def number(batch: Fields, numbers: np.ndarray, total: int) -> Fields:
  """Adds the number of each row's expression, -1 for padding, and how many expressions there are.

  Args:
    batch: as `pad` returns it.
    numbers: of the expressions in its rows, without padding.
    total: expressions, over all processes.
  """
  index = np.full(len(batch["weight"]), -1, np.int32)
  index[: len(numbers)] = numbers
  return batch | {"index": index, "total": np.full(len(index), total, np.int32)}


def _canvas(side: int, image_size: int) -> int:
  return image_size if side <= image_size else -(-side // _CANVAS_STEP) * _CANVAS_STEP


def _grow(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  if array.shape == shape:
    return array
  grown = np.zeros(shape, array.dtype)
  grown[tuple(slice(length) for length in array.shape)] = array
  return grown
