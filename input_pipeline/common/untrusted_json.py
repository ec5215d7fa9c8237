"""Untrusted JSON: strict, with limits; errors are one line."""

import json
import math
import os
import re
from typing import Any

from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError

MAX_DEPTH = 100
MAX_BYTES = 1 << 30

# A number too large for a float has an exponent of three digits or hundreds of digits. Only text
# with such a number has all its numbers checked, which takes twice as long.
_LARGE = re.compile(r"[eE]\+?[0-9]{3}|[0-9]{300}")
_LARGE_BYTES = re.compile(_LARGE.pattern.encode())


def loads(
  data: str | bytes,
  name: str,
  *,
  max_depth: int = MAX_DEPTH,
  max_bytes: int = MAX_BYTES,
  nan_as_none: bool = False,
) -> Any:
  """Parses JSON text.

  Args:
    data: the text.
    name: of the text, for error messages.
    max_depth: nesting limit of objects and lists.
    max_bytes: longer text is refused unread.
    nan_as_none: whether NaN and Infinity become None, since pandas writes them for missing values.

  Raises:
    InputError: invalid JSON, a duplicate key in an object, NaN, Infinity or a number beyond a
      float's range, or a limit is exceeded.
  """
  if len(data) > max_bytes:
    raise InputError(untrusted_files.too_large(name, len(data), max_bytes))
  large = _LARGE_BYTES.search(data) if isinstance(data, bytes) else _LARGE.search(data)
  try:
    value = json.loads(
      data,
      object_pairs_hook=_unique,
      parse_constant=_none if nan_as_none else _no_constant,
      parse_float=_finite if large else None,
    )
  except RecursionError as error:
    raise InputError(f"{name}: nested deeper than {max_depth}") from error
  except ValueError as error:
    raise InputError(f"{name}: invalid JSON ({error})") from error
  if is_deeper(value, max_depth):
    raise InputError(f"{name}: nested deeper than {max_depth}")
  return value


def load_file(
  path: str | os.PathLike,
  *,
  max_depth: int = MAX_DEPTH,
  max_bytes: int = MAX_BYTES,
  nan_as_none: bool = False,
) -> Any:
  """Parses a JSON file in any encoding, gzipped or not; see `loads`."""
  data = untrusted_files.read_text(path, str(path), max_bytes)
  return loads(data, str(path), max_depth=max_depth, max_bytes=len(data), nan_as_none=nan_as_none)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    seen: set[str] = set()
    duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))
    raise ValueError(f"duplicate key {duplicate[:40]!r}")
  return fields


def _none(word: str) -> None:
  del word


def _no_constant(word: str) -> Any:
  raise ValueError(f"{word} is not a number")


def _finite(digits: str) -> float:
  number = float(digits)
  if math.isinf(number):
    raise ValueError(f"number {digits[:40]} is out of range")
  return number


def is_deeper(value: Any, max_depth: int) -> bool:
  """Returns whether lists and objects are nested deeper, layer by layer, without recursion."""
  layer = [value] if isinstance(value, dict | list) else []
  for _ in range(max_depth):
    layer = [
      inner
      for items in layer
      for inner in (items.values() if isinstance(items, dict) else items)
      if isinstance(inner, dict | list)
    ]
    if not layer:
      return False
  return bool(layer)
