"""JSON from outside: what is wrong with it is told in one line, and nothing in it can surprise the reader."""

import json
from typing import Any

from input_pipeline.errors import InputError

MAX_DEPTH = 100
MAX_BYTES = 1 << 30


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
    InputError: it is no JSON, has a key twice in an object, has NaN or Infinity, or is beyond a limit.
  """
  if len(data) > max_bytes:
    raise InputError(f"{name}: {len(data):,} bytes, and {max_bytes:,} are the most that is read")
  try:
    found = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
  except (ValueError, RecursionError) as error:
    raise InputError(f"{name}: not JSON ({error})") from error
  if _depth(found, max_depth) > max_depth:
    raise InputError(f"{name}: nested deeper than {max_depth}")
  return found


def load_file(path: str, *, max_depth: int = MAX_DEPTH, max_bytes: int = MAX_BYTES) -> Any:
  """Reads a JSON file; see `loads`."""
  try:
    with open(path, "rb") as file:
      data = file.read(max_bytes + 1)
  except OSError as error:
    raise InputError(f"{path}: {error.strerror}") from error
  return loads(data, path, max_depth=max_depth, max_bytes=max_bytes)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f"the key {twice!r} is there twice")
  return found


def _no_constant(word: str) -> Any:
  raise ValueError(f"{word} is no number")


def _depth(value: Any, most: int) -> int:
  layer, depth = [value], 0
  while layer and depth <= most:
    inner = [x.values() if isinstance(x, dict) else x for x in layer if isinstance(x, dict | list)]
    layer = [item for items in inner for item in items]
    depth += bool(inner)
    if not inner:
      break
  return depth
