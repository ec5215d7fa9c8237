"""An on-disk index of the rows of a large JSON file, so that memory does not grow with the file.

The index of a file is written once to the user's cache folder (`$XDG_CACHE_HOME/mail_jax`, by
default `~/.cache/mail_jax`), under the file's fingerprint. It may be deleted at any time.
"""

import atexit
import functools
import json
import os
import pathlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import ijson

from input_pipeline.common import atomic_files, fingerprint, untrusted_json
from input_pipeline.common.errors import InputError

# Format of the index; a new number invalidates all indices.
_FORMAT = 1
# Bytes; a chunk of this size contains few brackets.
_CHUNK = 1 << 14
# ijson handled 10,000 nested lists, and crashed at 100,000.
_SAFE_DEPTH = 5_000


class RowIndex:
  """Rows of JSON arrays, looked up by `id` or `image_id`.

  An index can be pickled for another process; only its paths are.
  """

  def __init__(self, path: str, sections: Mapping[str, str]):
    """Opens the index of a file, and writes it first if there is none.

    Args:
      path: a JSON file.
      sections: a name for each array and its location in ijson's notation: `annotations.item` is
        the array under the key `annotations`, `item` the file itself.

    Raises:
      InputError: the file is missing or malformed, or the index cannot be written.
    """
    self.path = path
    key = f"{fingerprint.of_file(path)}-{'-'.join(sorted(sections))}-{_FORMAT}"
    self._index = _cache_folder() / f"{key}.sqlite"
    self._connection: sqlite3.Connection | None = None
    if not self._index.is_file():
      with atomic_files.whole_file(self._index) as temporary:
        _fill(temporary, path, sections)

  def __getstate__(self) -> dict[str, Any]:
    """Returns everything except the connection, which belongs to one process."""
    return self.__dict__ | {"_connection": None}

  def row(self, section: str, row_id: int) -> dict[str, Any] | None:
    """Returns the row with that `id`, or None."""
    return next(self._rows("section = ? AND id = ?", section, row_id), None)

  def of_image(self, section: str, image_id: int) -> list[dict[str, Any]]:
    """Returns the rows with that `image_id`, in the file's order."""
    return list(self._rows("section = ? AND image_id = ?", section, image_id))

  def rows(self, section: str) -> Iterator[dict[str, Any]]:
    """Yields all rows of an array, in the file's order."""
    return self._rows("section = ?", section)

  def image_ids(self, section: str) -> set[int]:
    """Returns every `image_id` of an array."""
    query = "SELECT DISTINCT image_id FROM rows WHERE section = ? AND image_id IS NOT NULL"
    return {image_id for (image_id,) in self._connected().execute(query, [section])}

  def _rows(self, where: str, *values: Any) -> Iterator[dict[str, Any]]:
    query = f"SELECT content FROM rows WHERE {where} ORDER BY number"
    for (content,) in self._connected().execute(query, values):
      yield json.loads(content)

  def _connected(self) -> sqlite3.Connection:
    if self._connection is None:
      # The index is complete, so it needs no lock, which some file systems lack.
      self._connection = sqlite3.connect(
        f"{self._index.as_uri()}?immutable=1", uri=True, check_same_thread=False
      )
    return self._connection


@functools.cache
def _cache_folder() -> pathlib.Path:
  base = os.environ.get("XDG_CACHE_HOME") or os.path.join(pathlib.Path.home(), ".cache")
  folder = pathlib.Path(base) / "mail_jax"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
      return folder
  except OSError:
    pass
  # The home folder is not writable, as in some containers: use a folder of this process.
  temporary = tempfile.mkdtemp(prefix="mail_jax-")
  atexit.register(shutil.rmtree, temporary, ignore_errors=True)
  return pathlib.Path(temporary)


def _fill(index: pathlib.Path, path: str, sections: Mapping[str, str]) -> None:
  connection = sqlite3.connect(index)
  try:
    with connection:
      connection.execute("PRAGMA journal_mode = OFF")
      connection.execute("PRAGMA synchronous = OFF")
      connection.execute(
        "CREATE TABLE rows (number INTEGER PRIMARY KEY, section TEXT, id INTEGER, image_id "
        "INTEGER, content TEXT)"
      )
      for section, prefix in sections.items():
        connection.executemany(
          "INSERT INTO rows (section, id, image_id, content) VALUES (?, ?, ?, ?)",
          _read(path, section, prefix),
        )
      connection.execute("CREATE UNIQUE INDEX by_id ON rows (section, id)")
      connection.execute("CREATE INDEX by_image ON rows (section, image_id)")
  except sqlite3.IntegrityError as error:
    raise InputError(
      f"{path}: two rows of an array have the same id; is the file damaged?"
    ) from error
  except (sqlite3.Error, OverflowError) as error:
    raise InputError(f"the index of {path} cannot be written to {index.parent}: {error}") from error
  finally:
    connection.close()


class _Shallow:
  """A file that stops reading before nesting gets so deep that ijson would overflow the stack."""

  def __init__(self, file: BinaryIO, path: str):
    self._file, self._path = file, path
    self._depth, self._checked = 0, False

  def read(self, size: int = -1) -> bytes:
    """Reads up to `size` bytes.

    Raises:
      RecursionError: the file is nested deeper than allowed.
    """
    data = self._file.read(size)
    if not self._checked:
      opened = data.count(b"[") + data.count(b"{")
      # Brackets in strings are counted as well, so this only tells when a closer look is needed.
      if self._depth + opened > _SAFE_DEPTH:
        _check_depth(self._path)
        self._checked = True
      self._depth += opened - data.count(b"]") - data.count(b"}")
    return data


def _check_depth(path: str) -> None:
  depth = 0
  with open(path, "rb") as file:
    for event, _ in ijson.basic_parse(file, use_float=True):
      depth += event.startswith("start_") - event.startswith("end_")
      if depth > untrusted_json.MAX_DEPTH:
        raise RecursionError


def _read(path: str, section: str, prefix: str) -> Iterator[tuple[str, Any, Any, str]]:
  try:
    with open(path, "rb") as file:
      for row in ijson.items(_Shallow(file, path), prefix, use_float=True, buf_size=_CHUNK):
        if not isinstance(row, dict):
          raise InputError(f"{path}: {section} contains a {type(row).__name__}, expected an object")
        ids = [row.get(key) for key in ("id", "image_id")]
        if any(value is not None and type(value) is not int for value in ids):
          raise InputError(f"{path}: {section} has the ids {ids}; ids must be integers")
        content = json.dumps(row, separators=(",", ":"), allow_nan=False)
        # Few rows have as many brackets. Python 3.12 and later serialise any depth.
        brackets = content.count("[") + content.count("{")
        if brackets > untrusted_json.MAX_DEPTH and untrusted_json.is_deeper(
          row, untrusted_json.MAX_DEPTH
        ):
          raise RecursionError
        yield section, ids[0], ids[1], content
  except InputError:
    raise
  except RecursionError as error:
    raise InputError(f"{path}: {section} has a row that is nested too deeply") from error
  except (ijson.JSONError, ValueError) as error:
    raise InputError(f"{path}: invalid or truncated JSON ({error})") from error


class RowsInMemory:
  """The interface of `RowIndex` for data in memory."""

  def __init__(self, data: Mapping[str, Any], sections: Mapping[str, str]):
    """Checks the rows.

    Args:
      data: the content of a file: an object of arrays.
      sections: see `RowIndex`; only arrays under a top-level key.

    Raises:
      InputError: a section is not an array of objects.
    """
    if not isinstance(data, Mapping):
      raise InputError(f"expected an object of arrays, got {type(data).__name__}")
    self._sections = {}
    for name in sections:
      rows = data.get(name, [])
      if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"`{name}` must be a list of objects")
      self._sections[name] = rows

  def row(self, section: str, row_id: int) -> dict[str, Any] | None:
    """Returns the row with that `id`, or None."""
    return next((row for row in self._sections[section] if row.get("id") == row_id), None)

  def of_image(self, section: str, image_id: int) -> list[dict[str, Any]]:
    """Returns the rows with that `image_id`, in their order."""
    return [row for row in self._sections[section] if row.get("image_id") == image_id]

  def rows(self, section: str) -> Iterator[dict[str, Any]]:
    """Yields all rows of an array, in their order."""
    return iter(self._sections[section])
