"""An on-disk index of the rows of a large JSON file, so that memory does not grow with the file.

The index of a file is written once to the user's cache folder (`$XDG_CACHE_HOME/mail_jax`, by
default `~/.cache/mail_jax`), under the file's fingerprint. It may be deleted at any time.
"""

import collections
import io
import itertools
import json
import numbers
import pathlib
import re
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

import ijson

from input_pipeline.common import (
  atomic_files,
  fingerprint,
  image_names,
  places,
  untrusted_files,
  untrusted_json,
)
from input_pipeline.common.errors import InputError

Id = int | str
"""Id of an image or an annotation: an integer, in any notation, or other text."""

# Format of the index; a new number invalidates all indices.
_FORMAT = 2
# Bytes; a chunk of this size contains few brackets.
_CHUNK = 1 << 14
# ijson handled 10,000 nested lists, and crashed at 100,000.
_SAFE_DEPTH = 5_000
_INTEGER = re.compile(r"(-?[0-9]{1,18})(\.0*)?")
_WORDS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|NaN|-?Infinity', re.DOTALL)
# Up to the start of a string that continues in the next bytes.
_WHOLE = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_NOT_FINITE = re.compile(rb"NaN|Infinity")


def whole_number(value: Any) -> int | None:
  """Returns an integer that may be written as 1, 1.0, "1" or "1.0"; None for anything else."""
  if isinstance(value, numbers.Integral) and not isinstance(value, bool):
    return int(value)
  if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
    return int(value)
  if isinstance(value, str) and (match := _INTEGER.fullmatch(value)):
    return int(match[1])
  return None


def first_character(path: str) -> str:
  """Returns the first character of a JSON file, which distinguishes objects from lists.

  Raises:
    InputError: the file cannot be read.
  """
  with untrusted_files.open_text(path, path) as file:
    return file.read(_CHUNK).lstrip()[:1].decode("ascii", "replace")


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
    arrays = "-".join(f"{name}={place}" for name, place in sorted(sections.items()))
    key = f"{fingerprint.of_file(path)}-{arrays}-{_FORMAT}"
    self._index = places.cache_folder() / f"{key}.sqlite"
    self._connection: sqlite3.Connection | None = None
    if not self._index.is_file():
      with atomic_files.whole_file(self._index) as temporary:
        _fill(temporary, path, sections)

  def __getstate__(self) -> dict[str, Any]:
    """Returns everything except the connection, which belongs to one process."""
    return self.__dict__ | {"_connection": None}

  def row(self, section: str, row_id: Id) -> dict[str, Any] | None:
    """Returns the row with that `id`, or None."""
    return next(self._rows("section = ? AND id = ?", section, row_id), None)

  def of_image(self, section: str, image_id: Id) -> list[dict[str, Any]]:
    """Returns the rows with that `image_id`, in the file's order."""
    return list(self._rows("section = ? AND image_id = ?", section, image_id))

  def rows(self, section: str) -> Iterator[dict[str, Any]]:
    """Yields all rows of an array, in the file's order."""
    return self._rows("section = ?", section)

  def image_ids(self, section: str) -> set[Id]:
    """Returns every `image_id` of an array."""
    query = "SELECT DISTINCT image_id FROM rows WHERE section = ? AND image_id IS NOT NULL"
    return {image_id for (image_id,) in self._connected().execute(query, [section])}

  def without_image(self, section: str) -> int:
    """Returns how many rows of an array have no `image_id`."""
    query = "SELECT count(*) FROM rows WHERE section = ? AND image_id IS NULL"
    return self._connected().execute(query, [section]).fetchone()[0]

  def first_of_images(self, section: str) -> Iterator[dict[str, Any]]:
    """Yields the first row of each image, in the file's order."""
    first = "SELECT min(number) FROM rows WHERE section = ? AND image_id IS NOT NULL"
    return self._rows(f"number IN ({first} GROUP BY image_id)", section)

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


def _fill(index: pathlib.Path, path: str, sections: Mapping[str, str]) -> None:
  connection = sqlite3.connect(index)
  try:
    with connection:
      connection.execute("PRAGMA journal_mode = OFF")
      connection.execute("PRAGMA synchronous = OFF")
      connection.execute(
        "CREATE TABLE rows (number INTEGER PRIMARY KEY, section TEXT, id, image_id, content TEXT)"
      )
      for section, prefix in sections.items():
        connection.executemany(
          "INSERT INTO rows (section, id, image_id, content) VALUES (?, ?, ?, ?)",
          _read(path, section, prefix),
        )
      connection.execute("CREATE INDEX by_image ON rows (section, image_id)")
      connection.execute("CREATE INDEX by_id ON rows (section, id)")
      twice = connection.execute(
        "SELECT section, id FROM rows WHERE id IS NOT NULL GROUP BY section, id "
        "HAVING count(*) > 1 LIMIT 1"
      ).fetchone()
      if twice is not None:
        query = "SELECT content FROM rows WHERE section = ? AND id = ? ORDER BY number LIMIT 2"
        rows = [json.loads(content) for (content,) in connection.execute(query, twice)]
        section, row_id = twice
        raise InputError(f"{path}: {_same_id(section, row_id, rows)}")
  except (sqlite3.Error, OverflowError) as error:
    raise InputError(f"the index of {path} cannot be written to {index.parent}: {error}") from error
  finally:
    connection.close()


def _same_id(section: str, row_id: Id, rows: list[dict[str, Any]]) -> str:
  """Returns the error message for two rows with the same id."""
  names = [image_names.name_of_row(row) or f"a row of image {row.get('image_id')}" for row in rows]
  return (
    f"`{section}` has two rows with the id {row_id!r} ({names[0]} and {names[1]}); if files were "
    "merged, renumber the ids"
  )


class _Shallow:
  """A file that stops reading before nesting gets so deep that ijson would overflow the stack."""

  def __init__(self, file: io.BufferedReader, path: str):
    self._file, self._path = file, path
    self._depth, self._checked = 0, False
    self.recent = b""
    """The last bytes, in which a parser found an error."""

  def read(self, size: int = -1) -> bytes:
    """Reads up to `size` bytes.

    Raises:
      RecursionError: the file is nested deeper than allowed.
    """
    data = self._file.read(size)
    self.recent = self.recent[-_CHUNK:] + data
    if not self._checked:
      opened = data.count(b"[") + data.count(b"{")
      # Brackets in strings are counted as well, so this only tells when a closer look is needed.
      if self._depth + opened > _SAFE_DEPTH:
        _check_depth(self._path)
        self._checked = True
      self._depth += opened - data.count(b"]") - data.count(b"}")
    return data


class _NanAsNull:
  """A JSON file in which NaN and Infinity, as written by Python, are replaced with null."""

  def __init__(self, file: "io.BufferedReader | _Shallow"):
    self._file, self._rest = file, b""

  def read(self, size: int = -1) -> bytes:
    """Reads about `size` bytes; returns none only at the end."""
    while True:
      # More than the rest, so that a long string takes linear time.
      data = self._file.read(max(size, len(self._rest)) if size >= 0 else -1)
      text, self._rest = self._rest + data, b""
      if data:
        whole = _WHOLE.match(text)
        assert whole is not None
        end = whole.end()
        # A word may continue as well; outside strings, few letters occur.
        end = min(end, len(text[:end].rstrip(b"-NaInfity")))
        text, self._rest = text[:end], text[end:]
      if text or not data:
        if _NOT_FINITE.search(text) is None:
          return text
        return _WORDS.sub(lambda m: m[0] if m[0].startswith(b'"') else b"null", text)


def _check_depth(path: str) -> None:
  depth = 0
  with untrusted_files.open_text(path, path) as file:
    for event, _ in ijson.basic_parse(_NanAsNull(file), use_float=True):
      depth += event.startswith("start_") - event.startswith("end_")
      if depth > untrusted_json.MAX_DEPTH:
        raise RecursionError


def _read(path: str, section: str, prefix: str) -> Iterator[tuple[str, Any, Any, str]]:
  done = 0
  try:
    for row in _parse(path, section, prefix, nan_as_null=False):
      yield row
      done += 1
  except _NotFinite:
    yield from itertools.islice(_parse(path, section, prefix, nan_as_null=True), done, None)


class _NotFinite(Exception):
  """The file has NaN or Infinity, which ijson does not support."""


def _parse(
  path: str, section: str, prefix: str, *, nan_as_null: bool
) -> Iterator[tuple[str, Any, Any, str]]:
  where = f"{path}: {section}"
  shallow = None
  try:
    with untrusted_files.open_text(path, path) as file:
      shallow = _Shallow(file, path)
      source = _NanAsNull(shallow) if nan_as_null else shallow
      for row in ijson.items(source, prefix, use_float=True, buf_size=_CHUNK):
        row = _normal(row, where)
        content = json.dumps(row, separators=(",", ":"), allow_nan=False)
        # Few rows have as many brackets. Python 3.12 and later serialise any depth.
        brackets = content.count("[") + content.count("{")
        if brackets > untrusted_json.MAX_DEPTH and untrusted_json.is_deeper(
          row, untrusted_json.MAX_DEPTH
        ):
          raise RecursionError
        yield section, row.get("id"), row.get("image_id"), content
  except InputError:
    raise
  except RecursionError as error:
    raise InputError(f"{where} has a row nested too deeply") from error
  except (ijson.JSONError, ValueError) as error:
    if not nan_as_null and shallow is not None and _NOT_FINITE.search(shallow.recent):
      raise _NotFinite from error
    # Later lines of the message quote the file, which may be confidential. For bytes that are not
    # UTF-8, the message is the string form of bytes.
    reason = re.split(r"\n|\\n", str(error))[0].removeprefix("b'")
    raise InputError(f"{path}: invalid or truncated JSON ({reason})") from error


def _normal(row: Any, where: str) -> dict[str, Any]:
  """Returns a row with normalised ids.

  Raises:
    InputError: the row is not an object, or an id is neither an integer nor text.
  """
  if not isinstance(row, dict):
    raise InputError(f"{where}: expected an object, got {type(row).__name__}")
  for key in ("id", "image_id"):
    value = row.get(key)
    if value is None or type(value) is int:
      continue
    number = whole_number(value)
    if number is None and not (isinstance(value, str) and value):
      raise InputError(f"{where}: {key} is {value!r:.60}; it must be an integer or text")
    row = row | {key: value if number is None else number}
  return row


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
      if not isinstance(rows, list):
        raise InputError(f"`{name}` must be a list of objects")
      self._sections[name] = [_normal(row, f"`{name}`") for row in rows]
      counts = collections.Counter(row.get("id") for row in self._sections[name])
      for row_id, count in counts.items():
        if row_id is not None and count > 1:
          twice = [row for row in self._sections[name] if row.get("id") == row_id]
          raise InputError(_same_id(name, row_id, twice))

  def row(self, section: str, row_id: Id) -> dict[str, Any] | None:
    """Returns the row with that `id`, or None."""
    return next((row for row in self._sections[section] if row.get("id") == row_id), None)

  def of_image(self, section: str, image_id: Id) -> list[dict[str, Any]]:
    """Returns the rows with that `image_id`, in their order."""
    return [row for row in self._sections[section] if row.get("image_id") == image_id]

  def rows(self, section: str) -> Iterator[dict[str, Any]]:
    """Yields all rows of an array, in their order."""
    return iter(self._sections[section])
