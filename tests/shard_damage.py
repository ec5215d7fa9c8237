"""Damages files of records as disks and copies do."""

import pathlib
import struct


def spans(shard: pathlib.Path) -> list[tuple[int, int]]:
  """Where each record of a sound file begins and ends, in bytes, by the lengths in it."""
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
  """Cuts a file short."""
  with path.open("r+b") as file:
    file.truncate(size)
