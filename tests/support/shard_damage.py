"""Damages record files as disks and copies do."""

import pathlib
import struct
from collections.abc import Callable


def spans(shard: pathlib.Path) -> list[tuple[int, int]]:
  """Returns where each record of an intact file begins and ends, in bytes."""
  data, found, start = shard.read_bytes(), [], 0
  while start < len(data):
    (length,) = struct.unpack_from("<Q", data, start)
    found.append((start, start + 12 + length + 4))
    start = found[-1][1]
  return found


def flip(path: pathlib.Path, offset: int, bit: int = 0) -> None:
  """Flips a bit of a file."""
  with path.open("r+b") as file:
    file.seek(offset)
    (byte,) = file.read(1)
    file.seek(offset)
    file.write(bytes([byte ^ (1 << bit)]))


def truncate(path: pathlib.Path, size: int) -> None:
  """Truncates a file."""
  with path.open("r+b") as file:
    file.truncate(size)


def replace(shard: pathlib.Path, position: int, change: Callable[[bytes], bytes]) -> None:
  """Replaces a record by another one, with valid checksums."""
  import tensorflow as tf

  stored = [record.numpy() for record in tf.data.TFRecordDataset(str(shard))]
  stored[position] = change(stored[position])
  with tf.io.TFRecordWriter(str(shard)) as writer:
    for record in stored:
      writer.write(record)


def without_field(record: bytes, name: str) -> bytes:
  """Returns a record that lacks a field."""
  import tensorflow as tf

  example = tf.train.Example.FromString(record)
  del example.features.feature[name]
  return example.SerializeToString()
