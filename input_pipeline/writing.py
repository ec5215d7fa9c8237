"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from input_pipeline.errors import InputError


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
    raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
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
