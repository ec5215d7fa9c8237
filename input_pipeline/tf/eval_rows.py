"""The rows of an evaluation: every expression of a split once, in a fixed order."""

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.tf import pipelines, record_reader
from input_pipeline.tf.record_reader import Fields, Shape, Source

# The canvas of original targets has sides of multiples of this: few shapes, few compilations.
_CANVAS_STEP = 64


@functools.lru_cache(maxsize=8)
def rows_dataset(
  source: Source, shape: Shape, batch_size: int, first: int, last: int, threads: int
) -> tf.data.Dataset:
  """Returns expressions number `first` to `last` in batches; the last one may not be full.

  Cached, because a pipeline takes longer to build than a small evaluation to read.
  """
  expressions = np.cumsum(record_reader.scan(source).expressions)
  first_record = int(np.searchsorted(expressions, first, side="right"))
  last_record = int(np.searchsorted(expressions, last, side="left")) + 1
  skipped = first - (int(expressions[first_record - 1]) if first_record else 0)
  records = record_reader.read(source).skip(first_record).take(last_record - first_record)
  records = records.map(functools.partial(_decode, shape=shape), num_parallel_calls=threads)
  rows = records.flat_map(_repeat_per_expression).skip(skipped).take(last - first)
  rows = rows.map(functools.partial(_row, shape=shape), num_parallel_calls=threads)
  return rows.padded_batch(batch_size).prefetch(1).with_options(pipelines.options(threads))


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


def no_rows(shape: Shape) -> Fields:
  """Returns a batch without rows, for a process that has no more of them."""
  size = shape.image_size
  return {
    "image": np.zeros((0, size, size, 3), np.uint8),
    "instances": np.zeros((0, shape.planes, size, size), np.uint16),
    "num_instances": np.zeros(0, np.int32),
    "target": np.zeros((0, size, size), bool),
    "original_target": np.zeros((0, 1, 1), bool),
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


def pad(batch: Fields, batch_size: int, image_size: int, canvas: tuple[int, int]) -> Fields:
  """Pads a batch with rows of zeros and weight 0.

  Args:
    batch: arrays of n rows each, and `meta`, a list of n.
    batch_size: rows wanted.
    image_size: the model's.
    canvas: least height and width of the canvas of original targets.
  """
  meta = batch.pop("meta")
  padded = {key: _grow(array, (batch_size, *array.shape[1:])) for key, array in batch.items()}
  target = batch["original_target"]
  sides = (
    _canvas(max(side, least), image_size)
    for side, least in zip(target.shape[1:], canvas, strict=True)
  )
  return padded | {
    "original_target": _grow(target, (batch_size, *sides)),
    "weight": (np.arange(batch_size) < len(meta)).astype(np.float32),
    "meta": meta + [None] * (batch_size - len(meta)),
  }


def number(batch: Fields, first: int, total: int) -> Fields:
  """Adds the number of each row's expression, -1 for padding, and how many expressions there are.

  Args:
    batch: as `pad` returns it.
    first: number of its first row.
    total: expressions, over all processes.
  """
  counts = batch["weight"] > 0
  index = np.where(counts, first + np.arange(len(counts)), -1)
  return batch | {
    "index": index.astype(np.int32),
    "total": np.full(len(counts), total, np.int32),
  }


def _canvas(side: int, image_size: int) -> int:
  return image_size if side <= image_size else -(-side // _CANVAS_STEP) * _CANVAS_STEP


def _grow(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  if array.shape == shape:
    return array
  grown = np.zeros(shape, array.dtype)
  grown[tuple(slice(length) for length in array.shape)] = array
  return grown
