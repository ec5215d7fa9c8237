"""What annotation tools export, as lines of own data: `coco.py` and `label_studio.py` read, `collect.py` writes."""

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
"""Where expressions are looked up, unless the user names a place."""
CATEGORY = "category"
"""What `--text` may also name: the name of the category is the expression."""


@dataclasses.dataclass(frozen=True)
class Region:
  """A part of a photo that somebody marked."""

  image: str
  """As the export names the file."""
  mask: Mask | None
  """None where nothing is meant."""
  texts: tuple[str, ...]
  category: int = 0
  crowd: bool = False
  image_id: int | None = None


@dataclasses.dataclass
class Export:
  """What was found in an export."""

  regions: list[Region]
  left_out: collections.Counter[str]
  """How many things could not be taken over, by the reason."""


@dataclasses.dataclass(frozen=True)
class Options:
  """How an export is read."""

  text_keys: Sequence[str] = TEXT_KEYS
  separator: str = "\n"
  """What stands between several expressions in one text."""
  boxes: bool = False
  """Whether a box is a mask."""
  no_target: str = ""
  """Label Studio: the `name` of the text field whose expressions mean nothing."""


def texts_in(value: Any, separator: str) -> tuple[str, ...]:
  """Returns the expressions in what a field holds: text, a list, or rows as refs have them."""
  if isinstance(value, str):
    return tuple(part.strip() for part in value.split(separator) if part.strip())
  if isinstance(value, list):
    return tuple(text for item in value for text in texts_in(item, separator))
  if isinstance(value, dict):
    found = next((value[key] for key in ("raw", "sent", *TEXT_KEYS) if value.get(key)), None)
    return texts_in(found, separator) if isinstance(found, str) else ()
  return ()


def box(x: float, y: float, width: float, height: float) -> Mask:
  """Returns a box as a mask."""
  right, low = x + width, y + height
  return {"polygons": [[x, y, right, y, right, low, x, low]]}


def rows_in(value: Any) -> list[dict[str, Any]]:
  """Returns the objects in a list; none where it is no list."""
  return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def id_in(row: Mapping[str, Any], key: str) -> int | str | None:
  """Returns an id, None where there is none or something else."""
  value = row.get(key)
  return value if type(value) in (int, str) else None
