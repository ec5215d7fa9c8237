"""The manifest of a checkpoint: size and SHA-256 of every file, and notes such as its metrics.

Orbax stores arrays as Zarr and OCDBT, neither of which detects a flipped byte in a value. So the
manifest is written before a checkpoint gets its name, and checked before the checkpoint is read.
"""

import concurrent.futures
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from input_pipeline.common import untrusted_files

FILE = "manifest.json"
# Orbax writes these after the manifest; nothing is restored from them.
_NOT_LISTED = ("_CHECKPOINT_METADATA", "commit_success.txt")
# Hashing releases the GIL.
_THREADS = 8


class DamagedError(ValueError):
  """A checkpoint is damaged; the message names the file and the problem."""


def write(folder: epath.Path, about: dict[str, Any]) -> None:
  """Writes the manifest of a folder whose files are all written.

  Args:
    folder: of the checkpoint.
    about: notes, as JSON.
  """
  all_names = sorted(names(folder))
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    entries = pool.map(lambda name: _size_and_sha256(folder / name), all_names)
    _write(folder, {"files": dict(zip(all_names, entries, strict=True)), "about": about})


def replace_about(folder: epath.Path, about: dict[str, Any]) -> None:
  """Replaces the notes, atomically: the checkpoint stays intact at all times."""
  _write(folder, _read(folder) | {"about": about})


def read_about(folder: epath.Path) -> dict[str, Any]:
  """Returns the notes; empty if they cannot be read."""
  try:
    return _read(folder)["about"]
  except DamagedError:
    return {}


def check(folder: epath.Path, part: int = 0, parts: int = 1) -> None:
  """Checks that the files of a checkpoint are those that were written.

  Args:
    folder: of the checkpoint.
    part: check every `parts`-th file, starting with this one.
    parts: number of processes that share the work.

  Raises:
    DamagedError: a file is missing, has changed or cannot be read.
  """
  expected = sorted(_files(_read(folder)).items())[part::parts]
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    list(pool.map(lambda item: _check_file(folder, *item), expected))


def _files(content: dict[str, Any]) -> dict[str, Any]:
  """Returns the files of a manifest after checking that all are inside the checkpoint."""
  files = content.get("files")
  if not isinstance(files, dict):
    raise DamagedError(f"{FILE} lists no files")
  for name, expected in files.items():
    if not untrusted_files.stays_inside(name):
      raise DamagedError(f"{FILE} lists {name!r}, which is outside the checkpoint")
    if not isinstance(expected, list) or len(expected) != 2:
      raise DamagedError(f"{FILE} has no size and SHA-256 of {name}")
  return files


def _check_file(folder: epath.Path, name: str, expected: Sequence[Any]) -> None:
  path = folder / name
  try:
    size = path.stat().length
    if size != expected[0]:
      raise DamagedError(f"{name} has {size} bytes instead of {expected[0]}")
    if _size_and_sha256(path) != list(expected):
      raise DamagedError(f"{name} has changed")
  except FileNotFoundError as error:
    raise DamagedError(f"{name} is missing") from error
  except OSError as error:
    raise DamagedError(f"{name} cannot be read: {error.strerror or error}") from error


def names(folder: epath.Path, prefix: str = "") -> Iterator[str]:
  """Yields the paths of a checkpoint's files, without the manifest."""
  for path in folder.iterdir():
    if path.is_dir():
      yield from names(path, f"{prefix}{path.name}/")
    elif prefix or path.name not in (FILE, *_NOT_LISTED):
      yield prefix + path.name


def _size_and_sha256(path: epath.Path) -> list[Any]:
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    return [file.tell(), digest]


def _write(folder: epath.Path, content: dict[str, Any]) -> None:
  """Writes the manifest, with the SHA-256 of its own content, atomically."""
  text = json.dumps({"content": content, "sha256": _sha256(content)}, indent=1)
  if "://" in str(folder):
    (folder / FILE).write_text(text)  # Objects in buckets appear complete.
    return
  new = folder / f".{FILE}"
  new.write_text(text)
  new.replace(folder / FILE)


def _read(folder: epath.Path) -> dict[str, Any]:
  try:
    stored = json.loads((folder / FILE).read_text())
    if stored["sha256"] == _sha256(stored["content"]):
      return stored["content"]
  except FileNotFoundError as error:
    raise DamagedError(f"{FILE} is missing") from error
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise DamagedError(f"{FILE} cannot be read: {error}") from error
  raise DamagedError(f"{FILE} has changed")


def _sha256(content: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
