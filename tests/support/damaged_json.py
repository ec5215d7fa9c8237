"""Damaged JSON: one value is replaced or removed."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

# Of every type, empty and not, and numbers that are not valid counts or measurements.
_OTHERS = (None, True, -1, 0, 10**30, 0.5, -1e308, "", "x", [], [[]], [7], {}, {"x": {"y": []}})
_GONE = object()


def variants(content: Any, every: int = 1) -> Iterator[tuple[str, Any]]:
  """Yields copies of the content with one value changed or removed, each with a description.

  Of lists, the first three elements are changed. `every` takes one of so many variants; an odd
  number takes all kinds of change in turn.
  """
  return itertools.islice(_variants(content), 0, None, every)


def _variants(content: Any) -> Iterator[tuple[str, Any]]:
  for path in _places(content):
    for other in (_GONE, *_OTHERS):
      if not path and other is _GONE:
        continue
      where = "/".join(map(str, path))
      yield f"{where}: {'gone' if other is _GONE else other!r}", _with(content, path, other)


def _places(content: Any, path: tuple = ()) -> Iterator[tuple]:
  yield path
  if isinstance(content, dict | list):
    for key, value in content.items() if isinstance(content, dict) else enumerate(content[:3]):
      yield from _places(value, (*path, key))


def _with(content: Any, path: tuple, other: Any) -> Any:
  if not path:
    return other
  changed = copy.deepcopy(content)
  inner = changed
  for key in path[:-1]:
    inner = inner[key]
  if other is _GONE:
    del inner[path[-1]]
  else:
    inner[path[-1]] = copy.deepcopy(other)
  return changed
