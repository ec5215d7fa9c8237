"""Reads COCO files whose annotations have expressions.

CVAT stores attributes, including `occluded` and the like, under `attributes` of each annotation;
coco-annotator stores them under `metadata`. Boxes have an empty segmentation, or `isbbox` and their
corners. A group of shapes in CVAT is a single annotation, as run lengths if one of them is a mask.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from input_pipeline.common import image_names
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters import export_files, mdetr
from input_pipeline.custom.converters.collect import (
  CATEGORY,
  NEEDS_BOXES,
  TEXT_KEYS,
  Export,
  Options,
  Region,
  box,
  box_in,
  id_in,
  read_mask,
  rows_in,
  size_of_runs,
  texts_under,
)
from input_pipeline.custom.schema import Mask, is_id
from input_pipeline.masks.coco import is_crowd

_NESTED = ("attributes", "metadata")
# The line format stores categories in 32 bits.
_MAX_CATEGORY = 2**31


def read(path: str, options: Options) -> Export:
  """Reads an export.

  Args:
    path: JSON with `images`, `annotations` and, for `category`, `categories`.
    options: how it is read.

  Raises:
    InputError: it is not a COCO file, an id is ambiguous, or no annotation has an expression.
  """
  export = Export()
  return read_content(export_files.load_json(path, export), path, options, export)


def read_content(
  content: Any, path: str, options: Options, export: Export, upright: bool | None = None
) -> Export:
  """Reads an export from parsed JSON into `export`; see `read`.

  Args:
    content: the JSON.
    path: of the file.
    options: how it is read.
    export: counts so far.
    upright: as in `Region`.
  """
  if not is_coco(content):
    raise InputError(f"{path}: not a COCO file; {_what_else(content)}")
  rows = content["annotations"]
  for number, row in enumerate(rows, 1):
    if not isinstance(row, dict):
      raise InputError(f"{path}: annotation number {number} is not an object")
  if (kind := _other_kind(rows)) and not any(row.get("segmentation") for row in rows):
    raise InputError(f"{path}: {kind}; convert instances_*.json, whose annotations have masks")
  file = _File(
    by_id(content["images"], f"{path}: image", image_names.name_of_row),
    _categories(content, path, options),
    options,
    export,
    upright,
  )
  seen: dict[int | str, dict[str, Any]] = {}
  for number, row in enumerate(rows, 1):
    row_id = id_in(row, "id")
    place = f"annotation {row_id if row_id is not None else f'number {number}'!s:.40}"
    other = row if row_id is None else seen.setdefault(row_id, row)
    if other is not row and other == row:
      export.skip("duplicate annotation", place)
      continue
    if other is not row:
      export.note("id shared by different annotations; all are read", place)
    region = file.region(row, place)
    if region is not None:
      export.regions.append(region)
  if not any(region.texts for region in export.regions):
    if options.text_keys == TEXT_KEYS and mdetr.is_mdetr(content):
      return mdetr.read_content(content, path, options)
    hint = f"; {mdetr.HINT}" if mdetr.has_captions(content) else ""
    reason = _no_text(rows, options) + hint if export.regions else _nothing_left(rows)
    raise InputError("; ".join([f"{path}: {reason}", *export.report()]))
  return export


def is_coco(content: Any) -> bool:
  """Returns whether parsed JSON looks like a COCO file."""
  return isinstance(content, dict) and all(
    isinstance(content.get(key), list) for key in ("images", "annotations")
  )


def by_id(
  rows: Any, what: str, name: Callable[[dict[str, Any]], Any]
) -> dict[int | str, dict[str, Any]]:
  """Returns the objects in a list by their ids.

  Args:
    rows: the list.
    what: the kind of the objects, for error messages.
    name: returns the name of an object.

  Raises:
    InputError: two objects of different names share an id.
  """
  found: dict[int | str, dict[str, Any]] = {}
  for row in rows_in(rows):
    row_id = id_in(row, "id")
    if row_id is None:
      continue
    other = found.setdefault(row_id, row)
    if name(other) != name(row):
      raise InputError(
        f"{what} id {row_id} is used for both {name(other)} and {name(row)}; if files were merged "
        "without renumbering, convert the original files instead"
      )
  return found


def _categories(content: Any, path: str, options: Options) -> dict[int | str, dict[str, Any]]:
  if CATEGORY not in options.text_keys:
    return {}
  return by_id(content.get("categories"), f"{path}: category", lambda row: row.get("name"))


@dataclasses.dataclass
class _File:
  """The state shared by the annotations of a file."""

  images: Mapping[int | str, dict[str, Any]]
  categories: Mapping[int | str, dict[str, Any]]
  options: Options
  export: Export
  upright: bool | None

  def region(self, row: Mapping[str, Any], place: str) -> Region | None:
    """Returns the region of an annotation, or None if it is left out."""
    image_id = id_in(row, "image_id")
    image = self.images.get(image_id) if image_id is not None else None
    if image is None:
      place = f"{place}, image_id {row.get('image_id')!r:.40}"
      return self.export.skip("annotation of an image that is not in the file", place)
    name = image_names.name_of_row(image)
    if name is None:
      return self.export.skip("annotation of an image without a file name", place)
    size = _size(image) or size_of_runs(row.get("segmentation"))
    texts = self._texts(row, place)
    mask = self._mask(row, size, place)
    if mask is None:
      if CATEGORY not in self.options.text_keys:
        self.export.lose(name, texts)
      return None
    category = self._category(row, place)
    number = image_id if is_id(image_id) else None
    # An object with an expression is never a crowd.
    named = bool(texts) and CATEGORY not in self.options.text_keys
    crowd = is_crowd(row, image_id, name) and not named
    if crowd:
      self.export.note("crowd not used as an instance", place)
    return Region(name, mask, texts, category, crowd, number, size, self.upright)

  def _texts(self, row: Mapping[str, Any], place: str) -> tuple[str, ...]:
    levels = [row, *(row[key] for key in _NESTED if isinstance(row.get(key), dict))]
    if CATEGORY in self.options.text_keys:
      category = self.categories.get(id_in(row, "category_id") or 0, {})
      levels.append({CATEGORY: category.get("name")})
    return texts_under(levels, self.options, self.export, place)

  def _category(self, row: Mapping[str, Any], place: str) -> int:
    category = id_in(row, "category_id")
    if isinstance(category, int) and 0 <= category < _MAX_CATEGORY:
      return category
    if category is not None:
      self.export.note("category id is not a number; written as 0", place)
    return 0

  def _mask(self, row: Mapping[str, Any], size: tuple[int, int] | None, place: str) -> Mask | None:
    segmentation, bbox = row.get("segmentation"), row.get("bbox")
    if row.get("isbbox") or _is_empty(segmentation):
      if not bbox:
        return self.export.skip("no mask", place)
      if not self.options.boxes:
        return self.export.skip(NEEDS_BOXES, place)
      sides = box_in(bbox)
      if sides is None:
        return self.export.skip("invalid box; expected [x, y, width, height]", place)
      segmentation = box(*sides)["polygons"]
    return read_mask(segmentation, size or _smallest_size(segmentation), self.export, place)


def _is_empty(segmentation: Any) -> bool:
  """Returns whether a segmentation is empty, as for a box: [], [[]], null and the like."""
  return not segmentation or (isinstance(segmentation, list) and not any(segmentation))


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
  """Returns the declared height and width; coco-annotator writes zeros for an unknown size."""
  height, width = id_in(image, "height"), id_in(image, "width")
  if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
    return height, width
  return None


def _smallest_size(segmentation: Any) -> tuple[int, int]:
  """Returns the smallest size that contains the polygons, for an image without a declared size."""
  side = math.ceil(max(2, *_numbers(segmentation), 2))
  return side, side


def _numbers(value: Any) -> Iterator[float]:
  if isinstance(value, list):
    for item in value:
      yield from _numbers(item)
  elif type(value) in (int, float):
    yield value


def _what_else(content: Any) -> str:
  """Returns a hint about the format of a file that is not a COCO file."""
  rows = rows_in(content)
  if any("data" in row for row in rows):
    return "it looks like Label Studio's JSON; use --from label-studio"
  if any("segmentation" in row or "bbox" in row for row in rows):
    return "it is a list of detections; convert human annotations instead"
  return "it needs the lists `images` and `annotations`"


def _other_kind(rows: list[dict[str, Any]]) -> str:
  """Returns which other kind of COCO file this is, or an empty string."""
  if any("segments_info" in row for row in rows):
    return "COCO's panoptic annotations, whose masks are in PNG files"
  if rows and all("caption" in row and "bbox" not in row for row in rows):
    return "COCO's captions, which describe whole images and have no masks"
  return ""


def _nothing_left(rows: list[dict[str, Any]]) -> str:
  if rows:
    return "no annotation is left"
  return "`annotations` is empty; export again with annotations"


def _no_text(rows: list[dict[str, Any]], options: Options) -> str:
  keys = sorted({key for row in rows for key in row})
  nested = collections.defaultdict(set)
  for row in rows:
    for key in _NESTED:
      if isinstance(row.get(key), dict):
        nested[key] |= set(row[key])
  under = "".join(f", and under {key}: {', '.join(sorted(inner))}" for key, inner in nested.items())
  return (
    f"no annotation with a mask has an expression under {', '.join(options.text_keys)}; the keys "
    f"of annotations are {', '.join(keys) or 'missing'}{under}. Name the right one with --text "
    f"KEY, or use category names as expressions with --text {CATEGORY}"
  )
