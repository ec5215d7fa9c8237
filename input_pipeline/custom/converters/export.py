"""What the readers of exports share: regions with expressions, and options."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.custom.schema import Mask

TEXT_KEYS = (
  "sentences",
  "sentence",
  "captions",
  "caption",
  "expressions",
  "expression",
  "referring_expression",
  "referring expression",
  "phrase",
  "description",
  "text",
)
"""Keys that are searched for expressions by default."""
CATEGORY = "category"
"""A value of `--text`: the name of the category is the expression."""


@dataclasses.dataclass(frozen=True)
class Region:
  """An annotated region of an image."""

  image: str
  """File name as in the export."""
  mask: Mask | None
  """None if the expressions refer to nothing."""
  texts: tuple[str, ...]
  category: int = 0
  crowd: bool = False
  image_id: int | None = None


@dataclasses.dataclass
class Export:
  """The content of an export."""

  regions: list[Region]
  skipped: collections.Counter[str]
  """How many items could not be converted, by reason."""


@dataclasses.dataclass(frozen=True)
class Options:
  """How an export is read."""

  text_keys: Sequence[str] = TEXT_KEYS
  separator: str = "\n"
  """Separates several expressions in one text."""
  boxes: bool = False
  """Whether a box without a mask is used as one."""
  no_target: str = ""
  """Label Studio: the `name` of the text field whose expressions refer to nothing."""


def texts_in(value: Any, separator: str) -> tuple[str, ...]:
  """Returns the expressions in a field: a string, a list, or objects like those in refs files."""
  if isinstance(value, str):
    return tuple(part.strip() for part in value.split(separator) if part.strip())
  if isinstance(value, list):
    return tuple(text for item in value for text in texts_in(item, separator))
  if isinstance(value, dict):
    text = next((value[key] for key in ("raw", "sent", *TEXT_KEYS) if value.get(key)), None)
    return texts_in(text, separator) if isinstance(text, str) else ()
  return ()


def box(x: float, y: float, width: float, height: float) -> Mask:
  """Returns a box as a mask."""
  right, bottom = x + width, y + height
  return {"polygons": [[x, y, right, y, right, bottom, x, bottom]]}


def rows_in(value: Any) -> list[dict[str, Any]]:
  """Returns the objects in a list; empty if the value is not a list."""
  return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def id_in(row: Mapping[str, Any], key: str) -> int | str | None:
  """Returns an id, or None if it is missing or of another type."""
  value = row.get(key)
  return value if type(value) in (int, str) else None
