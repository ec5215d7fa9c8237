"""Untrusted files: only regular ones, up to a size limit; and paths that stay inside a folder."""

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


def resolve_inside(root: str, path: str, name: str) -> str:
  """Returns the real path of `path` inside `root`; it need not exist.

  Args:
    root: a folder.
    path: relative to it.
    name: of the path, for error messages.

  Raises:
    InputError: the path is absolute, leaves the folder by `..` or through a link, or is not a valid
      file name.
  """
  if not path or "\0" in path or os.path.isabs(path) or not _is_encodable(path):
    raise InputError(f"{name} {path!r}: write a path relative to {root}")
  real_root = os.path.realpath(root)
  real = os.path.realpath(os.path.join(real_root, path))
  if os.path.commonpath([real_root, real]) != real_root:
    raise InputError(f"{name} {path!r} leaves the folder {root}")
  return real


def stays_inside(path: str) -> bool:
  """Tells from a path's text alone whether it stays inside the folder that it is relative to.

  For buckets, and for folders that may have links: Hugging Face's caches consist of them.
  """
  parts = path.replace("\\", "/").split("/")
  return (
    bool(path) and "\0" not in path and ".." not in parts and bool(parts[0]) and ":" not in parts[0]
  )


def _is_encodable(path: str) -> bool:
  try:
    os.fsencode(path)
  except UnicodeEncodeError:
    return False
  return True
