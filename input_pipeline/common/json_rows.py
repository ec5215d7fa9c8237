"""Streams large JSON files: the objects of arrays one by one, and the text around them unchanged.

Memory only grows with the longest row, so that files such as LVIS's annotations can be read.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, BinaryIO

from input_pipeline.common import untrusted_json
from input_pipeline.common.errors import InputError

MAX_ROW = 256 << 20
"""Size limit of a row in bytes."""
_CHUNK = 1 << 20
# A string, a bracket, or the start of a string that ends in a later chunk.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]|"', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Row:
  """A row and the array that it is in."""

  section: str
  """Key of the array in the file's object; empty if the file is the array."""
  text: bytes

  def loads(self, name: str) -> dict[str, Any]:
    """Parses the row; NaN and Infinity become None.

    Args:
      name: of the file, for errors.

    Raises:
      InputError: invalid JSON.
    """
    return untrusted_json.loads(self.text, f"{name}: a row of {self}", nan_as_none=True)

  def __str__(self) -> str:
    return self.section or "the list"


def chunks(file: BinaryIO) -> Iterator[bytes]:
  """Yields the bytes of a file that is read as `untrusted_files.open_text` opens it."""
  return iter(lambda: file.read(_CHUNK), b"")


def split(text: Iterable[bytes], name: str, sections: Collection[str]) -> Iterator[Row | bytes]:
  """Yields the rows of arrays, and the text around these arrays, brackets included.

  Without the rows, that text is JSON with empty arrays. Only its completeness is checked.

  Args:
    text: JSON in UTF-8, in chunks of any size.
    name: of the file, for errors.
    sections: keys of the arrays: of the file's object, or "" if the file is an array.

  Raises:
    InputError: the file is truncated or nested too deeply, or an array contains non-objects.
  """
  return _Splitter(name, frozenset(sections)).run(text)


class _Splitter:
  def __init__(self, name: str, sections: frozenset[str]):
    self._name, self._sections = name, sections
    # Not yet yielded; the first `_at` bytes were searched for tokens.
    self._buffer, self._at = b"", 0
    self._depth, self._key = 0, ""
    # Of the array that the text is in: its name, and the depth of its rows.
    self._section, self._row_depth, self._is_first = None, 0, True

  def run(self, text: Iterable[bytes]) -> Iterator[Row | bytes]:
    for chunk in text:
      self._buffer += chunk
      yield from self._parts()
      if self._section is None and self._at:
        yield self._take(self._at)
      elif len(self._buffer) > MAX_ROW:
        raise InputError(f"{self._name}: a row of {self._section or 'the list'} is too long")
    if self._depth or self._at < len(self._buffer):
      raise InputError(f"{self._name}: invalid or truncated JSON; is the file complete?")

  def _parts(self) -> Iterator[Row | bytes]:
    # Rows are cut from the buffer once per chunk, not once per row.
    done = 0
    token = None
    for token in _TOKEN.finditer(self._buffer, self._at):
      kind, start, end = token[0], token.start(), token.end()
      if kind == b'"':
        self._at = start
        break
      if kind in (b"{", b"["):
        if self._section is not None and self._depth == self._row_depth:
          self._check_between(self._buffer[done:start], "," if not self._is_first else "")
          if kind == b"[":
            raise self._no_object()
          done, self._is_first = start, False
        elif kind == b"[" and self._section is None and self._opens_section():
          yield self._buffer[done:end]
          done, self._is_first = end, True
        self._depth += 1
        if self._depth > untrusted_json.MAX_DEPTH:
          raise InputError(f"{self._name}: nested deeper than {untrusted_json.MAX_DEPTH}")
      elif kind in (b"}", b"]"):
        self._depth -= 1
        if self._section is None:
          continue
        if self._depth == self._row_depth:
          yield Row(self._section, self._buffer[done:end])
          done = end
        elif self._depth < self._row_depth:
          self._check_between(self._buffer[done:start], "")
          done, self._section = start, None
      elif self._section is None:
        self._key = untrusted_json.loads(kind, self._name) if self._depth == 1 else self._key
      elif self._depth == self._row_depth:
        raise self._no_object()
    else:
      self._at = len(self._buffer)
    self._take(done)

  def _opens_section(self) -> bool:
    key = "" if self._depth == 0 else self._key
    if self._depth > 1 or key not in self._sections:
      return False
    self._section, self._row_depth = key, self._depth + 1
    return True

  def _take(self, end: int) -> bytes:
    taken, self._buffer = self._buffer[:end], self._buffer[end:]
    self._at -= end
    return taken

  def _check_between(self, text: bytes, expected: str) -> None:
    if text.strip() != expected.encode():
      if text.strip() in (b"", b","):
        raise InputError(f"{self._name}: invalid JSON: missing or extra comma")
      raise self._no_object()

  def _no_object(self) -> InputError:
    return InputError(
      f"{self._name}: {self._section or 'the list'} has a value that is not an object"
    )
