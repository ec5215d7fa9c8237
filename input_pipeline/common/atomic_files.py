"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from input_pipeline.common.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)  # of the disk, or of what the user may have of it
STAGING = ".incomplete-"  # how the folders begin in which something is being written


def refused(error: OSError, path: str | os.PathLike, needed: int = 0) -> str:
  """Why the system refuses to write, in words; on a full disk also how much is free and how much is needed.

  Args:
    error: what it said.
    path: what was to be written.
    needed: bytes, at least; 0 where nobody knows.
  """
  reason = error.strerror or str(error)
  return f"{reason}: {space(path, needed)}" if error.errno in FULL else reason


def space(path: str | os.PathLike, needed: int) -> str:
  """How much is free where a path is, or will be, and how much is needed."""
  place = pathlib.Path(path).absolute()
  while not place.exists():
    place = place.parent
  free = f"{_megabytes(shutil.disk_usage(place).free)} free"
  return f"{free}, at least {_megabytes(needed)} needed" if needed else free


def _megabytes(count: int) -> str:
  return f"{count / 1e6:.1f} MB"


def size_of(path: pathlib.Path) -> int:
  """Bytes of a file, or of all files in a folder; 0 where there is none."""
  files = path.rglob("*") if path.is_dir() else [path]
  return sum(file.stat().st_size for file in files if file.is_file())


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a temporary name to write to; what was written there gets its own name when the context ends well.

  The folder is made where it is missing.

  Raises:
    InputError: the system refuses it; what stood there before still does.
  """
  target = pathlib.Path(path)
  # The ending stays: it tells some writers what to write.
  temporary = target.with_name(f".{os.getpid()}.{target.name}")
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    os.replace(temporary, target)
  except OSError as error:
    written = 0
    with contextlib.suppress(OSError):  # where no file can be, none was written
      written = size_of(temporary)
      temporary.unlink(missing_ok=True)
    raise InputError(f"{path} cannot be written: {refused(error, path, written)}") from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


def check_folder(path: str | os.PathLike) -> None:
  """Looks whether a file can be put where it is wanted, before anything takes long.

  Raises:
    InputError: there is no such folder, it is not to be written to, or the name is that of a folder.
  """
  target = pathlib.Path(path)
  if not target.parent.is_dir():
    raise InputError(f"{path}: the folder {target.parent} does not exist")
  if target.is_dir():
    raise InputError(f"{path} is a folder; name a file in it")
  if not os.access(target.parent, os.W_OK):
    raise InputError(f"{path}: the folder {target.parent} cannot be written to; choose another")


def write_whole(path: str | os.PathLike, data: str | bytes) -> None:
  """Writes text or bytes; see `whole_file`."""
  with whole_file(path) as temporary:
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[pathlib.Path]:
  """Gives a folder to write to, which gets its own name when the context ends well.

  After an error or an interrupt nothing of it is left. What a killed process left is removed by the next one.

  Args:
    path: of the folder; its parents are made where they are missing.
    overwrite: replaces what stands there, at the very end.

  Raises:
    InputError: something stands there already, or the system refuses it; what stood there before still does.
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
    raise InputError(f"{path} cannot be written: {refused(error, path, written)}") from error
  finally:
    shutil.rmtree(staging, ignore_errors=True)


def check_free(path: str | os.PathLike, overwrite: bool = False) -> None:
  """Looks whether a folder can be put where it is wanted, before anything takes long.

  Raises:
    InputError: something stands there, and is not to be replaced.
  """
  target = pathlib.Path(path)
  if target.exists() and not target.is_dir():
    raise InputError(f"{path} is a file; name a folder")
  if target.exists() and not overwrite and any(target.iterdir()):
    raise InputError(f"{path} is there already; add --overwrite to replace it")


@contextlib.contextmanager
def locked(folder: str) -> Iterator[bool]:
  """Holds a folder's lock, which the system drops with the process; yields whether it was free."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
      yield True
    except BlockingIOError:
      yield False
  finally:
    os.close(handle)


def remove_abandoned(parent: str) -> None:
  """Removes what killed processes left in a folder; a staging folder whose writer lives is locked."""
  for path in pathlib.Path(parent).glob(STAGING + "*"):
    with contextlib.suppress(FileNotFoundError), locked(str(path)) as free:
      if free:
        shutil.rmtree(path, ignore_errors=True)
