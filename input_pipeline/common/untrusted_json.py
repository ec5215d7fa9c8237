"""JSON from outside: what is wrong with it is told in one line, and nothing in it can surprise the reader."""

import json
import math
import os
import re
from typing import Any

from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError

MAX_DEPTH = 100
MAX_BYTES = 1 << 30

# What a number that is too large for a float has: an exponent of three digits or hundreds of digits. Only where there
# is such a thing every number is looked at, which takes twice as long.
_LARGE = re.compile(r"[eE]\+?[0-9]{3}|[0-9]{300}")
_LARGE_BYTES = re.compile(_LARGE.pattern.encode())


def loads(
  data: str | bytes, name: str, *, max_depth: int = MAX_DEPTH, max_bytes: int = MAX_BYTES
) -> Any:
  """Reads JSON text.

  Args:
    data: the text.
    name: what to call it in errors.
    max_depth: of objects and lists inside each other.
    max_bytes: longer text is refused unread.

  Raises:
    InputError: it is no JSON, has a key twice in an object, has NaN, Infinity or a number as large, or is beyond a
      limit.
  """
  if len(data) > max_bytes:
    raise InputError(untrusted_files.too_long(name, len(data), max_bytes))
  large = _LARGE_BYTES.search(data) if isinstance(data, bytes) else _LARGE.search(data)
  try:
    found = json.loads(
      data,
      object_pairs_hook=_unique,
      parse_constant=_no_constant,
      parse_float=_finite if large else None,
    )
  except RecursionError as error:
    raise InputError(f"{name}: nested deeper than {max_depth}") from error
  except ValueError as error:
    raise InputError(f"{name}: not JSON ({error})") from error
  if is_deeper(found, max_depth):
    raise InputError(f"{name}: nested deeper than {max_depth}")
  return found


def load_file(
  path: str | os.PathLike, *, max_depth: int = MAX_DEPTH, max_bytes: int = MAX_BYTES
) -> Any:
  """Reads a JSON file; see `loads`."""
  data = untrusted_files.read(path, str(path), max_bytes)
  return loads(data, str(path), max_depth=max_depth, max_bytes=max_bytes)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))
    raise ValueError(f"the key {twice[:40]!r} is there twice")
  return found


def _no_constant(word: str) -> Any:
  raise ValueError(f"{word} is no number")


def _finite(digits: str) -> float:
  number = float(digits)
  if math.isinf(number):
    raise ValueError(f"{digits[:40]} is too large a number")
  return number


def is_deeper(value: Any, most: int) -> bool:
  """Whether lists and objects are nested deeper; layer by layer, so that no depth is too deep to tell."""
  layer = [value] if isinstance(value, dict | list) else []
  for _ in range(most):
    layer = [
      inner
      for items in layer
      for inner in (items.values() if isinstance(items, dict) else items)
      if isinstance(inner, dict | list)
    ]
    if not layer:
      return False
  return bool(layer)
