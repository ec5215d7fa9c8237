"""Where records lie in a TFRecord file, and which of them are damaged.

A record is its length (8 bytes), a checksum of the length (4), its bytes, and a checksum of these (4). TensorFlow's
reader stops at the first that is wrong; here reading goes on behind it, as long as its length is right. The format is
that of TensorFlow's `record_writer.h`: checksums are CRC-32C, rotated by 15 bits, plus a constant.
"""

import dataclasses
import struct
from collections.abc import Iterator, Sequence

import tensorflow as tf

from input_pipeline.tf import pipelines

_HEADER, _FOOTER = 12, 4


@dataclasses.dataclass(frozen=True)
class Damage:
  """A record that cannot be used."""

  path: str
  position: int
  """Of the record in its file, from 0."""
  offset: int | None
  """Of its first byte in the file; None where the bytes are sound and what they say is not."""
  reason: str
  image: str = ""
  """Which it is, in words, as far as it can be known."""
  count: int = 1
  """Records that are lost from there on: more than 1 where nothing behind it can be found."""

  def __str__(self) -> str:
    records = f"record {self.position}"
    if self.count > 1:
      records = f"records {self.position} to {self.position + self.count - 1}"
    at = f", from byte {self.offset}" if self.offset is not None else ""
    image = f"; {self.image}" if self.image else ""
    return f"{records} of {self.path}{at}: {self.reason}{image}"


@dataclasses.dataclass(frozen=True)
class Run:
  """Sound records that follow each other: the position of the first, and how many."""

  position: int
  count: int


def stored(path: str, skip: int, take: int) -> tf.data.Dataset:
  """Returns serialised records of a file, to be read at once."""
  records = tf.data.TFRecordDataset(path).skip(skip).take(take)
  return records.with_options(pipelines.options(threads=1))


def walk(path: str, expected: int) -> Iterator[Run | Damage]:
  """Yields what a file consists of, from its beginning to its end.

  Args:
    path: of the file.
    expected: records that were written to it.
  """
  position, offset = 0, 0
  while position < expected:
    count, end, reason = _read_run(path, position, offset, expected)
    if count:
      yield Run(position, count)
    position, offset = position + count, end
    if position < expected:
      behind, image = _behind(path, offset)
      lost = expected - position if behind is None else 1
      yield Damage(path, position, offset, reason, image, lost)
      position, offset = position + lost, behind or 0


def _read_run(path: str, position: int, offset: int, expected: int) -> tuple[int, int, str]:
  """Reads sound records: how many, where the next begins, and what is wrong with that one."""
  count = 0
  try:
    # What is skipped is not compared with its checksum.
    for record in stored(path, position, expected - position):
      count, offset = count + 1, offset + _HEADER + len(record.numpy()) + _FOOTER
  except tf.errors.DataLossError as error:
    if "truncated" not in str(error.message):
      return count, offset, "its bytes do not match their checksum"
  return count, offset, "the file ends early"


def _behind(path: str, offset: int) -> tuple[int | None, str]:
  """Where the record after a damaged one begins, None where nobody knows, and which image that probably was."""
  with tf.io.gfile.GFile(path, "rb") as file:
    size = file.size()
    file.seek(offset)
    header = file.read(_HEADER)
    if len(header) < _HEADER or _masked_crc(header[:8]) != struct.unpack("<I", header[8:])[0]:
      return None, ""
    (length,) = struct.unpack("<Q", header[:8])
    end = offset + _HEADER + length + _FOOTER
    return (end if end < size else None), _image_of(file.read(min(length, size)))


def _image_of(data: bytes) -> str:
  """Which image a damaged record was of: the fields that name it are most probably not those that are damaged."""
  try:
    feature = tf.train.Example.FromString(data).features.feature
    (image_id,) = feature["image_id"].int64_list.value
    (name,) = feature["file_name"].bytes_list.value
    return f"probably image {name.decode()} (image_id {image_id})"
  except Exception:  # whatever the parser makes of damaged bytes
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
  """Returns the first damage in files of records, if there is one; files are path, records to skip and to take."""
  for path, skip, take in files:
    for found in walk(path, skip + take):
      if isinstance(found, Damage) and found.position + found.count > skip:
        return found
  return None
