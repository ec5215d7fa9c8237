"""Where each record of a split lies, so that records can be read in any order.

A TFRecord file has no index, but before each record it says how long it is (`record_frames`), so
that one pass over the headers finds them all.
"""

import functools
import os
import shutil
import struct
import tempfile

import numpy as np
import tensorflow as tf

from input_pipeline.common import buckets, fingerprint, places
from input_pipeline.common.errors import InputError
from input_pipeline.tf.record_frames import FOOTER, HEADER

_COPIES = functools.cache(lambda: tempfile.TemporaryDirectory(prefix="mail_jax_records_"))


@functools.lru_cache(maxsize=4096)
def frames(path: str, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the offsets of the first records of a file and of their end, and their checksums.

  Args:
    path: of a file on this machine.
    count: records to find.

  Raises:
    tf.errors.DataLossError: the file ends before, or a length in it is damaged.
  """
  offsets, checksums = np.zeros(count + 1, np.int64), np.zeros(count, np.uint32)
  with open(path, "rb") as file:
    size, header = os.fstat(file.fileno()).st_size, os.pread(file.fileno(), HEADER, 0)
    for i in range(count):
      length = struct.unpack("<Q", header[:8])[0] if len(header) == HEADER else size
      end = int(offsets[i]) + HEADER + length
      if end + FOOTER > size:
        raise tf.errors.DataLossError(None, None, f"{path}: record {i} is cut off")
      tail = os.pread(file.fileno(), FOOTER + HEADER, end)
      (checksums[i],), header = struct.unpack("<I", tail[:FOOTER]), tail[FOOTER:]
      offsets[i + 1] = end + FOOTER
  return offsets, checksums


def fingerprint_of(files: tuple[tuple[str, int, int], ...]) -> str:
  """Returns a fingerprint of what records contain, from their checksums; empty if one is damaged.

  Args:
    files: path of a file on this machine, records to skip, records to take.
  """
  parts = []
  try:
    for path, skip, take in files:
      offsets, checksums = frames(path, skip + take)
      parts += [np.diff(offsets)[skip:].tobytes(), checksums[skip:].tobytes()]
  except tf.errors.DataLossError:
    return ""
  return fingerprint.of_bytes(b"".join(parts))


def read_at(path: tf.Tensor, offset: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
  """Reads one serialised record; its checksum is verified.

  Args:
    path: of a file.
    offset: of the record's first byte.
    length: of the record with its frame, in bytes.
  """
  variant = tf.raw_ops.TFRecordDatasetV2(
    filenames=path[None], compression_type="", buffer_size=length, byte_offsets=offset[None]
  )
  records = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
  return records.take(1).get_single_element()


def on_this_machine(path: str) -> str:
  """Returns the path of a copy, which is removed at the end, of a file in a bucket.

  Records are read in any order, for which a bucket is too slow, and TensorFlow cannot read from
  every one. A local file is not copied.

  Raises:
    InputError: the file cannot be read, or its copy does not fit on the disk.
  """
  if not buckets.is_remote(path):
    return path
  size, version = places.describe(path)
  return _copy(path, size or 0, version)


@functools.lru_cache(maxsize=4096)
def _copy(path: str, size: int, version: str) -> str:
  del version
  folder = _COPIES().name
  free = shutil.disk_usage(folder).free
  if size > free:
    raise InputError(
      f"{path}: a copy needs {size / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left; set "
      "TMPDIR to a larger disk"
    )
  copy = os.path.join(folder, f"{len(os.listdir(folder))}-{os.path.basename(path)}")
  places.download(path, copy, path)
  return copy
