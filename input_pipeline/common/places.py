"""Files and folders by path or address: on this machine, in buckets, on web servers.

Files that users name are opened by `untrusted_files`, which comes here for an address. Lists
(annotations, refs, lines) are copied to this machine once; photos are read directly.
"""

import atexit
import functools
import hashlib
import importlib.util
import io
import os
import pathlib
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from input_pipeline.common import atomic_files, buckets
from input_pipeline.common.errors import InputError

Answer = TypeVar("Answer")

# Larger files are copied to the disk, and not into memory.
_IN_MEMORY = 64 << 20
# Of web servers, whose errors fsspec does not try again; buckets' packages do.
_PAUSES = (1.0, 4.0)
# What servers tell about the version of a file, in the words of fsspec's file systems.
_VERSION = ("ETag", "etag", "Last-Modified", "LastModified", "mtime", "updated", "generation")
_MISSING = (403, 404, 410)


def is_file(path: str) -> bool:
  """Returns whether there is a file.

  Raises:
    InputError: a server does not answer, or refuses.
  """
  if not buckets.is_remote(path):
    return os.path.isfile(path)
  return (info := _info(path)) is not None and info["type"] == "file"


def is_folder(path: str) -> bool:
  """Returns whether there is a folder; True for one on a web server, which does not say.

  Raises:
    InputError: a server does not answer, or refuses.
  """
  if not buckets.is_remote(path):
    return os.path.isdir(path)
  if buckets.on_site(path):
    buckets.locate(path, "the folder")
    return True
  return (info := _info(path.rstrip("/"))) is not None and info["type"] == "directory"


def absolute(path: str) -> str:
  """Returns the absolute path of a local path; an address already is one."""
  return path.rstrip("/") if buckets.is_remote(path) else os.path.abspath(path)


def join(folder: str, name: str) -> str:
  """Returns the path or address of a file in a folder.

  Args:
    folder: a path or an address.
    name: relative to it, as it is spelled there; on a web server it is quoted.
  """
  if not buckets.is_remote(folder):
    return os.path.join(folder, name)
  quoted = urllib.parse.quote(name) if buckets.on_site(folder) else name
  return f"{folder.rstrip('/')}/{quoted}"


def name_in(path: str) -> str:
  """Returns the name of a file without its folder."""
  name = path.rpartition("/")[2]
  return urllib.parse.unquote(name) if buckets.on_site(path) else name


def relative(path: str, folder: str) -> str:
  """Returns the name of a file in a folder as `join` was given it, or a relative path."""
  name = os.path.relpath(path, folder)
  return urllib.parse.unquote(name) if buckets.on_site(path) else name


def names_below(address: str) -> Iterator[str]:
  """Yields the names of all files below a folder in a bucket, relative to it.

  Raises:
    InputError: the bucket does not answer, or refuses.
  """
  files, root = buckets.locate(address, "the folder")
  for path in _ask(address, lambda: files.find(root)):
    yield path.removeprefix(root).lstrip("/")


def open_file(address: str, name: str) -> io.BufferedReader:
  """Opens a file at an address to read bytes, as `untrusted_files.open_file` does a local one.

  Raises:
    InputError: there is no such file (its cause is then a FileNotFoundError), or a server does not
      answer or refuses.
  """
  data = read(address, name, _IN_MEMORY + 1)
  if len(data) > _IN_MEMORY:
    return open(local_copy(address, name), "rb")
  return io.BufferedReader(io.BytesIO(data))  # pyright: ignore[reportArgumentType]


def read(address: str, name: str, max_bytes: int) -> bytes:
  """Returns the first bytes of a file at an address, at most `max_bytes`; see `open_file`."""
  files, path = buckets.locate(address, name)
  data: Any = _ask(name, lambda: files.cat_file(path, start=0, end=max_bytes))
  return bytes(data[:max_bytes])


def local_copy(path: str, name: str = "") -> str:
  """Returns the path of a copy of a file on this machine; a local file is not copied.

  A version of a file is copied once, to the cache folder. If its server tells no version, the copy
  is only for this process.

  Raises:
    InputError: as for `open_file`, or the disk is full.
  """
  return _copied(path, name or path) if buckets.is_remote(path) else path


def describe(address: str, name: str = "") -> tuple[int | None, str]:
  """Returns the bytes of a file at an address, None if unknown, and its version, empty if unknown.

  Raises:
    InputError: as for `open_file`.
  """
  info = _info(address)
  if info is None:
    raise InputError(f"{name or address}: no such file") from FileNotFoundError(address)
  version = [str(info[key]) for key in _VERSION if info.get(key)]
  return info.get("size"), "\n".join(version)


@functools.cache
def _copied(address: str, name: str) -> str:
  size, version = describe(address, name)
  if version:
    key = f"{address}\n{size}\n{version}"
    folder = cache_folder() / "copies" / hashlib.sha256(key.encode()).hexdigest()[:16]
  else:
    folder = _temporary_folder()
  copy = folder / name_in(address)
  if not copy.is_file():
    with atomic_files.whole_file(copy) as temporary:
      download(address, str(temporary), name)
  return str(copy)


def download(address: str, path: str, name: str) -> None:
  """Copies a file from an address to a path, a few megabytes at a time.

  Raises:
    InputError: as for `open_file`, or not all of the file came.
    OSError: it cannot be written.
  """
  files, there = buckets.locate(address, name)
  _ask(name, lambda: files.get_file(there, path))
  size, _ = describe(address, name)
  if size is not None and os.path.getsize(path) != size:
    raise InputError(f"{name}: only {os.path.getsize(path):,} of {size:,} bytes came; try again")


def upload(folder: str, address: str, last: str) -> None:
  """Copies a folder to a bucket, in place of what is there.

  Args:
    folder: on this machine.
    address: of the copy.
    last: the file that says that the folder is complete: it is removed first, and copied last.

  Raises:
    InputError: the bucket does not answer, or refuses.
  """
  files, root = buckets.locate(address, "--data_dir")
  names = [p.relative_to(folder).as_posix() for p in pathlib.Path(folder).rglob("*") if p.is_file()]

  def write() -> None:
    there = files.find(root)
    for path in sorted(there, key=lambda path: path != f"{root}/{last}"):
      files.rm_file(path)
    for name in sorted(names, key=lambda name: (name == last, name)):
      files.put_file(os.path.join(folder, name), f"{root}/{name}")

  _ask(f"--data_dir {address}", write)


@functools.cache
def cache_folder() -> pathlib.Path:
  """Returns the user's cache folder: `$XDG_CACHE_HOME/mail_jax`, by default `~/.cache/mail_jax`."""
  base = os.environ.get("XDG_CACHE_HOME") or os.path.join(pathlib.Path.home(), ".cache")
  folder = pathlib.Path(base) / "mail_jax"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
      return folder
  except OSError:
    pass
  # The home folder is not writable, as in some containers: use a folder of this process.
  return _temporary_folder()


def _temporary_folder() -> pathlib.Path:
  temporary = tempfile.mkdtemp(prefix="mail_jax-")
  atexit.register(shutil.rmtree, temporary, ignore_errors=True)
  return pathlib.Path(temporary)


def _info(address: str) -> dict[str, Any] | None:
  """Returns what a server says about a file or folder; None if there is none."""
  files, path = buckets.locate(address, "the file")
  try:
    return _ask(address, lambda: files.info(path))
  except InputError as error:
    if isinstance(error.__cause__, FileNotFoundError):
      return None
    raise


def _ask(name: str, request: Callable[[], Answer]) -> Answer:
  """Returns the answer to a request; every way to fail becomes an `InputError`."""
  for pause in (*_PAUSES, None):
    try:
      return request()
    except Exception as error:  # every file system has exceptions of its own
      if isinstance(error, OSError) and error.errno in atomic_files.FULL:
        raise
      cause = _reason(error)
      status = getattr(cause, "status", None)
      if isinstance(error, FileNotFoundError) and (cause is error or status in _MISSING):
        raise InputError(f"{name}: no such file") from FileNotFoundError(name)
      if pause is None or not _may_pass(cause):
        text = str(cause) or type(cause).__name__
        hint = "" if status else "; check the address and the credentials"
        raise InputError(f"{name} cannot be reached: {text}{hint}") from cause
    time.sleep(pause)
  raise AssertionError


def _reason(error: BaseException) -> BaseException:
  """Returns the error behind fsspec's, which says of any failure of a site that no file exists."""
  cause = error.__cause__
  return cause if isinstance(cause, _site_errors()) else error


def _may_pass(error: BaseException) -> bool:
  """Returns whether a request to a web server may succeed if it is made again."""
  status = getattr(error, "status", None)
  passing = status is None or status >= 500 or status == 429
  return isinstance(error, _site_errors()) and passing


def _site_errors() -> tuple[type[BaseException], ...]:
  if importlib.util.find_spec("aiohttp") is None:
    return ()
  import aiohttp  # pyright: ignore[reportMissingImports]

  return (aiohttp.ClientError, TimeoutError)
