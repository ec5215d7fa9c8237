"""Where records are in a TFRecord file, and which of them are damaged.

A record is its length (8 bytes), a checksum of the length (4), its bytes, and a checksum of these
(4). TensorFlow's reader stops at the first damaged record; here reading continues after it, as long
as its length is intact. The format is that of TensorFlow's `record_writer.h`: checksums are
CRC-32C, rotated by 15 bits, plus a constant.
"""

import dataclasses
import struct
from collections.abc import Iterator, Sequence

import tensorflow as tf

from input_pipeline.tf import pipelines

HEADER, FOOTER = 12, 4


@dataclasses.dataclass(frozen=True)
class Damage:
  """A record that cannot be used."""

  path: str
  position: int
  """Of the record in its file, from 0."""
  offset: int | None
  """Of its first byte in the file; None if the bytes are intact but their content is not."""
  reason: str
  image: str = ""
  """Which image it is of, in words, as far as is known."""
  count: int = 1
  """Records that are lost from there on: more than 1 if the next one cannot be found."""

  def __str__(self) -> str:
    records = f"record {self.position}"
    if self.count > 1:
      records = f"records {self.position} to {self.position + self.count - 1}"
    start = f", from byte {self.offset}" if self.offset is not None else ""
    image = f"; {self.image}" if self.image else ""
    return f"{records} of {self.path}{start}: {self.reason}{image}"


@dataclasses.dataclass(frozen=True)
class Range:
  """Consecutive intact records."""

  position: int
  """Of the first record in its file, from 0."""
  count: int


def read_range(path: str, skip: int, take: int) -> tf.data.Dataset:
  """Returns serialised records of a file."""
  records = tf.data.TFRecordDataset(path).skip(skip).take(take)
  return records.with_options(pipelines.options(threads=1))


def walk(path: str, expected: int) -> Iterator[Range | Damage]:
  """Yields the intact ranges and the damaged records of a file, from beginning to end.

  Args:
    path: of the file.
    expected: records that were written to it.
  """
  position, offset = 0, 0
  while position < expected:
    count, end, reason = _read_intact(path, position, offset, expected)
    if count:
      yield Range(position, count)
    position, offset = position + count, end
    if position < expected:
      next_offset, image = _find_next(path, offset)
      lost = expected - position if next_offset is None else 1
      yield Damage(path, position, offset, reason, image, lost)
      position, offset = position + lost, next_offset or 0


def _read_intact(path: str, position: int, offset: int, expected: int) -> tuple[int, int, str]:
  """Reads intact records: their number, the offset after them, and what is wrong there."""
  count = 0
  try:
    # The checksums of skipped records are not verified.
    for record in read_range(path, position, expected - position):
      count, offset = count + 1, offset + HEADER + len(record.numpy()) + FOOTER
  except tf.errors.DataLossError as error:
    if "truncated" not in str(error.message):
      return count, offset, "its bytes do not match their checksum"
  return count, offset, "the file ends early"


def _find_next(path: str, offset: int) -> tuple[int | None, str]:
  """Returns the offset of the record after a damaged one, None if unknown, and its likely image."""
  with tf.io.gfile.GFile(path, "rb") as file:
    size = file.size()
    file.seek(offset)
    header = file.read(HEADER)
    if len(header) < HEADER or _masked_crc(header[:8]) != struct.unpack("<I", header[8:])[0]:
      return None, ""
    (length,) = struct.unpack("<Q", header[:8])
    end = offset + HEADER + length + FOOTER
    return (end if end < size else None), _image_of(file.read(min(length, size)))


def _image_of(data: bytes) -> str:
  """Returns which image a damaged record is of: the fields that name it are probably intact."""
  try:
    feature = tf.train.Example.FromString(data).features.feature
    (image_id,) = feature["image_id"].int64_list.value
    (name,) = feature["file_name"].bytes_list.value
    return f"probably image {name.decode()} (image_id {image_id})"
  except Exception:  # the parser may raise anything for damaged bytes
    return ""


def _masked_crc(data: bytes) -> int:
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
  crc ^= 0xFFFFFFFF
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def first_damage(files: Sequence[tuple[str, int, int]]) -> Damage | None:
  """Returns the first damage in files of (path, records to skip, records to take)."""
  for path, skip, take in files:
    for part in walk(path, skip + take):
      if isinstance(part, Damage) and part.position + part.count > skip:
        return part
  return None
