"""Files from outside: only files are opened, and read whole only up to a size."""

import os
import stat
from typing import BinaryIO

from .errors import InputError

# Opening a pipe must not wait for whoever writes to it.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_file(path: str | os.PathLike, name: str) -> BinaryIO:
  """Opens a file to read bytes.

  A pipe may never end and a device never be empty, so whatever is no file is refused.

  Args:
    path: of the file.
    name: what to call it in errors.

  Raises:
    InputError: there is no such file (its cause is then a FileNotFoundError), it cannot be read, or is none.
  """
  try:
    file = os.fdopen(os.open(path, _FLAGS), "rb")
  except OSError as error:
    raise InputError(f"{name}: {error.strerror or error}") from error
  except ValueError as error:  # a NUL, or half of a surrogate pair
    raise InputError(f"{name!a}: no name that a file can have ({error})") from error
  if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    file.close()
    raise InputError(f"{name}: it is no file but a pipe, a device or the like")
  return file


def read(path: str | os.PathLike, name: str, max_bytes: int) -> bytes:
  """Returns the bytes of a file; see `open_file`.

  Raises:
    InputError: it cannot be opened or read, or has more than `max_bytes`.
  """
  with open_file(path, name) as file:
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
      raise InputError(too_long(name, size, max_bytes))
    try:
      return file.read(max_bytes)
    except OSError as error:
      raise InputError(f"{name}: {error.strerror or error}") from error


def too_long(name: str, size: int, max_bytes: int) -> str:
  """What is said of something of too many bytes."""
  return f"{name}: {size:,} bytes, and {max_bytes:,} are the most that is read"
