"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import filelock

from input_pipeline.common.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk or an exhausted quota."""

STAGING = ".incomplete-"
"""Prefix of folders that are being written."""

LOCK = ".lock"
"""Name of the lock file in a folder that is being written."""


def describe_error(error: OSError, path: str | os.PathLike, needed: int = 0) -> str:
  """Returns why the system refuses to write; for a full disk, also the free and needed space.

  Args:
    error: what the system raised.
    path: what was to be written.
    needed: bytes, at least; 0 if unknown.
  """
  reason = error.strerror or str(error)
  return f"{reason}: {describe_space(path, needed)}" if error.errno in FULL else reason


def describe_space(path: str | os.PathLike, needed: int) -> str:
  """Returns the free space where a path is or will be, and the needed space."""
  parent = pathlib.Path(path).absolute()
  while not parent.exists():
    parent = parent.parent
  free = f"{_megabytes(shutil.disk_usage(parent).free)} free"
  return f"{free}, at least {_megabytes(needed)} needed" if needed else free


def _megabytes(count: int) -> str:
  return f"{count / 1e6:.1f} MB"


def size_of(path: pathlib.Path) -> int:
  """Returns the bytes of a file, or of all files in a folder; 0 if it does not exist."""
  files = path.rglob("*") if path.is_dir() else [path]
  return sum(file.stat().st_size for file in files if file.is_file())


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, parents: bool = True) -> Iterator[pathlib.Path]:
  """Yields a temporary path; the file gets its final name when the context ends without error.

  Args:
    path: of the file.
    parents: creates its folder if it is missing.

  Raises:
    InputError: the system refuses to write; an earlier file of that name is unchanged.
  """
  target = pathlib.Path(path)
  # Keeps the extension, by which some writers choose a format.
  temporary = target.with_name(f".{os.getpid()}.{target.name}")
  try:
    if parents:
      target.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    os.replace(temporary, target)
  except OSError as error:
    written = 0
    with contextlib.suppress(OSError):  # where there can be no file, none was written
      written = size_of(temporary)
      temporary.unlink(missing_ok=True)
    raise InputError(f"{path} cannot be written: {describe_error(error, path, written)}") from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


def check_folder(path: str | os.PathLike) -> None:
  """Checks that a file can be written to a path, before any long work.

  Raises:
    InputError: its folder does not exist or is not writable, or the path is a folder.
  """
  target = pathlib.Path(path)
  if not target.parent.is_dir():
    raise InputError(f"{path}: the folder {target.parent} does not exist")
  if target.is_dir():
    raise InputError(f"{path} is a folder; name a file in it")
  if not os.access(target.parent, os.W_OK):
    raise InputError(f"{path}: the folder {target.parent} is not writable; choose another")


def write_whole(path: str | os.PathLike, data: str | bytes, parents: bool = True) -> None:
  """Writes text or bytes; see `whole_file`."""
  with whole_file(path, parents) as temporary:
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[pathlib.Path]:
  """Yields a temporary folder, which gets its final name when the context ends without error.

  After an error or an interrupt nothing is left of it. The leftovers of a killed process are
  removed by the next one.

  Args:
    path: of the folder; missing parents are created.
    overwrite: replaces an existing folder, at the very end.

  Raises:
    InputError: the folder exists, or the system refuses to write; an earlier folder is unchanged.
  """
  target = pathlib.Path(path)
  check_free(target, overwrite)
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = pathlib.Path(tempfile.mkdtemp(prefix=STAGING, dir=target.parent))
  except OSError as error:
    raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
  try:
    with locked(str(staging)):
      remove_abandoned(str(target.parent))
      new = staging / "new"
      new.mkdir()
      yield new
      if target.exists():
        check_free(target, overwrite)
        target.rename(staging / "replaced")
      new.rename(target)
  except OSError as error:
    written = size_of(staging / "new")
    shutil.rmtree(staging, ignore_errors=True)
    raise InputError(f"{path} cannot be written: {describe_error(error, path, written)}") from error
  finally:
    shutil.rmtree(staging, ignore_errors=True)


def check_free(path: str | os.PathLike, overwrite: bool = False) -> None:
  """Checks that a folder can be written to a path, before any long work.

  Raises:
    InputError: something exists there and must not be replaced.
  """
  target = pathlib.Path(path)
  if target.exists() and not target.is_dir():
    raise InputError(f"{path} is a file; name a folder")
  if target.exists() and not overwrite and any(target.iterdir()):
    raise InputError(f"{path} already exists; add --overwrite to replace it")


@contextlib.contextmanager
def locked(folder: str) -> Iterator[bool]:
  """Locks a folder for as long as the process lives; yields whether it was free.

  Raises:
    OSError: the folder cannot be written to.
  """
  lock = filelock.FileLock(os.path.join(folder, LOCK))
  try:
    lock.acquire(blocking=False)
  except filelock.Timeout:
    yield False
    return
  try:
    yield True
  finally:
    pathlib.Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def remove_folder(path: str | os.PathLike) -> None:
  """Removes a folder that other processes may still write to: its name is gone at once."""
  gone = f"{path}-removed"
  try:
    os.rename(path, gone)
  except OSError:
    gone = path
  shutil.rmtree(gone, ignore_errors=True)


def remove_abandoned(parent: str) -> None:
  """Removes what killed processes left in a folder; staging folders of live writers are locked.

  Those of other users, in a folder that several share, are left to them.
  """
  for path in pathlib.Path(parent).glob(STAGING + "*"):
    with contextlib.suppress(OSError), locked(str(path)) as free:
      if free:
        shutil.rmtree(path, ignore_errors=True)
