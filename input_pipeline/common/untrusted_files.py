"""Untrusted files: only regular files are opened, and read up to a size limit."""

import os
import stat
from typing import BinaryIO

from .errors import InputError

# Opening a pipe must not wait for a writer.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_file(path: str | os.PathLike, name: str) -> BinaryIO:
  """Opens a regular file to read bytes.

  Pipes and devices are refused, since reading them may never end.

  Args:
    path: of the file.
    name: of the file, for error messages.

  Raises:
    InputError: there is no such file (its cause is then a FileNotFoundError), it cannot be read, or
      it is not a regular file.
  """
  try:
    file = os.fdopen(os.open(path, _FLAGS), "rb")
  except OSError as error:
    raise InputError(f"{name}: {error.strerror or error}") from error
  except ValueError as error:  # a NUL, or half of a surrogate pair
    raise InputError(f"{name!a}: not a valid file name ({error})") from error
  if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    file.close()
    raise InputError(f"{name}: not a regular file but a pipe, a device or the like")
  return file


def read(path: str | os.PathLike, name: str, max_bytes: int) -> bytes:
  """Returns the bytes of a file; see `open_file`.

  Raises:
    InputError: it cannot be opened or read, or has more than `max_bytes`.
  """
  with open_file(path, name) as file:
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
      raise InputError(too_large(name, size, max_bytes))
    try:
      return file.read(max_bytes)
    except OSError as error:
      raise InputError(f"{name}: {error.strerror or error}") from error


def too_large(name: str, size: int, max_bytes: int) -> str:
  """Returns the message for input of too many bytes."""
  return f"{name}: {size:,} bytes; the limit is {max_bytes:,}"
