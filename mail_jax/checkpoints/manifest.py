"""What is in a checkpoint: every file with its size and SHA-256, and what is told of it, such as its metrics.

Neither Zarr nor OCDBT, in which Orbax stores arrays, notices a flipped byte in a value. So whoever writes a checkpoint
notes what is in it before the checkpoint gets its name, and whoever reads one compares.
"""

import concurrent.futures
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from input_pipeline.common import untrusted_paths

FILE = "manifest.json"
# Orbax writes these last; nothing that is restored comes from them.
_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
_THREADS = 8  # hashing lets other threads run


class DamagedError(ValueError):
  """A checkpoint is not what was written; the message names the file and what is wrong with it."""


def write(folder: epath.Path, about: dict[str, Any]) -> None:
  """Notes the files of a folder, all of which are written by now, and what is told of them."""
  all_names = sorted(names(folder))
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    sums = pool.map(lambda name: _size_and_sum(folder / name), all_names)
    _write(folder, {"files": dict(zip(all_names, sums, strict=True)), "about": about})


def replace_about(folder: epath.Path, about: dict[str, Any]) -> None:
  """Tells something else of a checkpoint, which is whole before, after, and at any time between."""
  _write(folder, _read(folder) | {"about": about})


def read_about(folder: epath.Path) -> dict[str, Any]:
  """Returns what is told of a checkpoint; nothing where that cannot be read."""
  try:
    return _read(folder)["about"]
  except DamagedError:
    return {}


def check(folder: epath.Path, part: int = 0, parts: int = 1) -> None:
  """Compares the files of a checkpoint with what was written.

  Args:
    folder: of the checkpoint.
    part: look at every `parts`-th file, beginning with this one.
    parts: how many share the work.

  Raises:
    DamagedError: a file is missing, has another size or other bytes, or cannot be read.
  """
  expected = sorted(_files(_read(folder)).items())[part::parts]
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    list(pool.map(lambda item: _check_file(folder, *item), expected))


def _files(content: dict[str, Any]) -> dict[str, Any]:
  """The files of a manifest, whose names lead to nothing outside of the checkpoint."""
  files = content.get("files")
  if not isinstance(files, dict):
    raise DamagedError(f"{FILE} names no files")
  for name, expected in files.items():
    if not untrusted_paths.stays_inside(name):
      raise DamagedError(f"{FILE} names {name!r}, which leaves the checkpoint")
    if not isinstance(expected, list) or len(expected) != 2:
      raise DamagedError(f"{FILE} says nothing of {name}")
  return files


def _check_file(folder: epath.Path, name: str, expected: Sequence[Any]) -> None:
  path = folder / name
  try:
    size = path.stat().length
    if size != expected[0]:
      raise DamagedError(f"{name} has {size} bytes instead of {expected[0]}")
    if _size_and_sum(path) != list(expected):
      raise DamagedError(f"{name} has other bytes than were written")
  except FileNotFoundError as error:
    raise DamagedError(f"{name} is missing") from error
  except OSError as error:
    raise DamagedError(f"{name} cannot be read: {error.strerror or error}") from error


def names(folder: epath.Path, prefix: str = "") -> Iterator[str]:
  """Yields the paths, in a checkpoint's folder, of the files that belong to it, without the manifest."""
  for path in folder.iterdir():
    if path.is_dir():
      yield from names(path, f"{prefix}{path.name}/")
    elif prefix or path.name not in (FILE, *_LATER):
      yield prefix + path.name


def _size_and_sum(path: epath.Path) -> list[Any]:
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    return [file.tell(), digest]


def _write(folder: epath.Path, content: dict[str, Any]) -> None:
  """Writes the manifest with the sum of its own content, and puts it in its place in one go."""
  text = json.dumps({"content": content, "sha256": _sum(content)}, indent=1)
  if "://" in str(folder):
    (folder / FILE).write_text(text)  # an object appears whole
    return
  new = folder / f".{FILE}"
  new.write_text(text)
  new.replace(folder / FILE)


def _read(folder: epath.Path) -> dict[str, Any]:
  try:
    stored = json.loads((folder / FILE).read_text())
    if stored["sha256"] == _sum(stored["content"]):
      return stored["content"]
  except FileNotFoundError as error:
    raise DamagedError(f"{FILE} is missing") from error
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise DamagedError(f"{FILE} cannot be read: {error}") from error
  raise DamagedError(f"{FILE} has other bytes than were written")


def _sum(content: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
