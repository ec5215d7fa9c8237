"""Untrusted files: only regular ones, up to a size limit; and paths that stay inside a folder.

They may have addresses, such as gs://bucket/file, which `places` opens.
"""

import codecs
import gzip
import io
import json
import os
import stat
import zlib
from collections.abc import Iterator
from typing import Any

from .errors import InputError

MAX_UNPACKED = 1 << 36
"""Default limit of a decompressed text in bytes."""

_CHUNK = 1 << 16
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# Opening a pipe must not wait for a writer.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_file(path: str | os.PathLike, name: str) -> io.BufferedReader:
  """Opens a regular file to read bytes.

  Pipes and devices are refused, since reading them may never end.

  Args:
    path: of the file, or its address.
    name: of the file, for error messages.

  Raises:
    InputError: there is no such file (its cause is then a FileNotFoundError), it cannot be read, or
      it is not a regular file.
  """
  if _is_address(path):
    return _places(name).open_file(os.fspath(path), name)
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
  if _is_address(path):
    data = _places(name).read(os.fspath(path), name, max_bytes + 1)
    if len(data) > max_bytes:
      raise InputError(f"{name}: exceeds the limit of {max_bytes:,} bytes")
    return data
  with open_file(path, name) as file:
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
      raise InputError(too_large(name, size, max_bytes))
    try:
      # Python allocates all that is asked for. Some files of the system say that they are empty.
      return file.read(size or max_bytes)
    except OSError as error:
      raise InputError(f"{name}: {error.strerror or error}") from error


def open_text(
  path: str | os.PathLike, name: str, max_bytes: int | None = None
) -> io.BufferedReader:
  """Opens a text file to read it as UTF-8 without a byte order mark.

  UTF-16 and UTF-32 (as written on Windows) and gzip are recognised by the first bytes rather than
  the extension, since browsers decompress and rename files.

  Args:
    path: of the file; from an address, it is copied to this machine first.
    name: of the file, for error messages.
    max_bytes: size limit after decompression; by default MAX_UNPACKED if compressed, else none.

  Raises:
    InputError: it cannot be opened, is a zip archive, or has more than `max_bytes`. Reading raises
      it for a damaged file.
  """
  if _is_address(path):
    path = _places(name).local_copy(os.fspath(path), name)
  file = open_file(path, name)
  try:
    size = os.fstat(file.fileno()).st_size
    if max_bytes is not None and size > max_bytes:
      raise InputError(too_large(name, size, max_bytes))
    head = file.read(4)
    file.seek(0)
    if head == b"PK\x03\x04":
      raise InputError(f"{name}: a zip archive; unpack it and use the file inside")
    if head.startswith(b"\x1f\x8b"):
      chunks = _unpack(file, name, MAX_UNPACKED if max_bytes is None else max_bytes)
    elif (encoding := json.detect_encoding(head)).startswith("utf-8"):
      file.seek(len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0)
      return file
    else:
      chunks = iter(lambda: file.read(_CHUNK), b"")
  except BaseException as error:
    file.close()
    if isinstance(error, OSError):
      raise InputError(f"{name}: {error.strerror or error}") from error
    raise
  return io.BufferedReader(_Stream(_recode(chunks, name), file), _CHUNK)


def read_text(path: str | os.PathLike, name: str, max_bytes: int) -> bytes:
  """Returns the bytes of a text file as UTF-8; see `open_text`.

  Raises:
    InputError: it cannot be read, is damaged, or has more than `max_bytes`.
  """
  with open_text(path, name, max_bytes) as file:
    try:
      return file.read()
    except OSError as error:
      raise InputError(f"{name}: {error.strerror or error}") from error


def check_pulled(path: str | os.PathLike, name: str) -> None:
  """Checks that a file is not what Git LFS leaves in its place; see `check_no_pointer`."""
  with open_file(path, name) as file:
    check_no_pointer(file.read(len(_LFS_POINTER)), name)


def check_no_pointer(data: bytes, name: str) -> None:
  """Raises an `InputError` if a file, by its first bytes, is a pointer of Git LFS."""
  if data.startswith(_LFS_POINTER):
    raise InputError(
      f"{name}: a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder"
    )


def _unpack(file: io.BufferedReader, name: str, max_bytes: int) -> Iterator[bytes]:
  left = max_bytes
  try:
    with gzip.GzipFile(fileobj=file) as packed:
      # The decompressed size may be a thousand times larger.
      while data := packed.read(_CHUNK):
        left -= len(data)
        if left < 0:
          raise InputError(f"{name}: exceeds the limit of {max_bytes:,} bytes when unpacked")
        yield data
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise InputError(f"{name}: damaged gzip file ({error}); is it complete?") from error


def _recode(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
  """Converts text in any encoding of JSON to UTF-8."""
  first = next(chunks, b"")
  encoding = json.detect_encoding(first[:4])
  if encoding.startswith("utf-8"):
    yield first.removeprefix(codecs.BOM_UTF8)
    yield from chunks
    return
  decoder = codecs.getincrementaldecoder(encoding)()
  try:
    yield decoder.decode(first).encode()
    for data in chunks:
      yield decoder.decode(data).encode()
    yield decoder.decode(b"", final=True).encode()
  except UnicodeError as error:
    raise InputError(f"{name}: invalid {encoding} ({error}); is the file complete?") from error


class _Stream(io.RawIOBase):
  """A file object (typing.BinaryIO) over chunks of bytes."""

  mode, name = "rb", ""

  def __init__(self, chunks: Iterator[bytes], file: io.BufferedReader):
    self._chunks, self._file, self._rest = chunks, file, b""

  def readable(self) -> bool:
    """Returns True."""
    return True

  def readinto(self, buffer: memoryview | bytearray) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
    """Reads up to `len(buffer)` bytes."""
    while not self._rest:
      data = next(self._chunks, None)
      if data is None:
        return 0
      self._rest = data
    count = min(len(buffer), len(self._rest))
    buffer[:count] = self._rest[:count]
    self._rest = self._rest[count:]
    return count

  def close(self) -> None:
    """Closes the underlying file."""
    self._file.close()
    super().close()


def too_large(name: str, size: int, max_bytes: int) -> str:
  """Returns the message for input of too many bytes."""
  return f"{name}: {size:,} bytes; the limit is {max_bytes:,}"


def resolve_inside(root: str, path: str, name: str, *, follow_links: bool = False) -> str:
  """Returns the real path of `path` inside `root`; it need not exist.

  Args:
    root: a folder.
    path: relative to it.
    name: of the path, for error messages.
    follow_links: whether the user's links may lead out of the folder; the returned path is then
      inside the folder.

  Raises:
    InputError: the path is absolute, leaves the folder by `..` or through a link, or is not a valid
      file name.
  """
  if not path or "\0" in path or os.path.isabs(path) or not _is_encodable(path):
    raise InputError(f"{name} {path!r}: write a path relative to {root}")
  real_root = os.path.realpath(root)
  inside = os.path.normpath(os.path.join(real_root, path))
  real = inside if follow_links else os.path.realpath(os.path.join(real_root, path))
  if os.path.commonpath([real_root, real]) != real_root:
    by_text = os.path.commonpath([real_root, inside]) != real_root
    raise InputError(f"{name} {path!r} leaves the folder {root}{'' if by_text else ' by a link'}")
  return real


def stays_inside(path: str) -> bool:
  """Returns whether a relative path stays inside its folder, judging by its text alone.

  For buckets, and for folders that may have links: Hugging Face's caches consist of them.
  """
  parts = path.replace("\\", "/").split("/")
  return (
    bool(path) and "\0" not in path and ".." not in parts and bool(parts[0]) and ":" not in parts[0]
  )


def _is_address(path: str | os.PathLike) -> bool:
  return "://" in os.fspath(path)


def _places(name: str) -> Any:
  """Returns the module that opens addresses, which exported folders lack."""
  try:
    from . import places
  except ImportError as error:
    raise InputError(f"{name}: an address; download the file and use its path") from error
  return places


def _is_encodable(path: str) -> bool:
  try:
    os.fsencode(path)
  except UnicodeEncodeError:
    return False
  return True
