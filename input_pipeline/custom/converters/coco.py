"""Reads COCO files with expressions in the annotations, as written by hand or by CVAT ("COCO 1.0").

CVAT puts attributes under `attributes` of each annotation, including `occluded` and the like. Boxes
have an empty segmentation. A group of shapes is a single annotation, with run lengths if any of
them is a mask.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.common import untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters import mdetr
from input_pipeline.custom.converters.collect import (
  CATEGORY,
  TEXT_KEYS,
  Export,
  Options,
  Region,
  box,
  id_in,
  rows_in,
  texts_in,
)
from input_pipeline.custom.schema import Mask

# Pixels.
_MAX_LENGTH = 1e6


def read(path: str, options: Options) -> Export:
  """Reads an export.

  Args:
    path: JSON with `images`, `annotations` and, for `category`, `categories`.
    options: how it is read.

  Raises:
    InputError: it is not a COCO file, or no annotation has an expression.
  """
  return read_content(untrusted_json.load_file(path), path, options)


def read_content(content: Any, path: str, options: Options) -> Export:
  """Reads an export from parsed JSON; see `read`."""
  if not is_coco(content):
    raise InputError(f"{path}: not a COCO file; it needs the lists `images` and `annotations`")
  images = {id_in(row, "id"): row for row in rows_in(content["images"])}
  names = {id_in(row, "id"): str(row.get("name", "")) for row in rows_in(content.get("categories"))}
  export = Export()
  for number, row in enumerate(content["annotations"]):
    if not isinstance(row, dict):
      raise InputError(f"{path}: annotation number {number + 1} is not an object")
    image_id = id_in(row, "image_id")
    image = None if image_id is None else images.get(image_id)
    if image is None or not isinstance(image.get("file_name"), str):
      export.skipped["annotation of an image that is not in the file"] += 1
      continue
    mask = _mask(row, options)
    texts = _texts(row, names, options)
    if mask is None:
      reason = "box without a mask (use --boxes to convert it)" if row.get("bbox") else "no mask"
      export.skipped[reason] += 1
      continue
    category = row.get("category_id", 0)
    export.regions.append(
      Region(
        image["file_name"],
        mask,
        texts,
        category if type(category) is int and category >= 0 else 0,
        bool(row.get("iscrowd")),
        image_id if isinstance(image_id, int) else None,
        _size(image),
      )
    )
  if not any(region.texts for region in export.regions):
    if options.text_keys == TEXT_KEYS and mdetr.is_mdetr(content):
      return mdetr.read_content(content, path, options)
    hint = f"; {mdetr.HINT}" if mdetr.has_captions(content) else ""
    raise InputError(f"{path}: {_no_text(content['annotations'], options)}{hint}")
  return export


def is_coco(content: Any) -> bool:
  """Returns whether parsed JSON looks like a COCO file."""
  return isinstance(content, dict) and all(
    isinstance(content.get(key), list) for key in ("images", "annotations")
  )


def _texts(row: Mapping[str, Any], names: Mapping[Any, str], options: Options) -> tuple[str, ...]:
  attributes = row.get("attributes")
  levels = (row, attributes if isinstance(attributes, dict) else {})
  for key in options.text_keys:
    if key == CATEGORY:
      return texts_in(names.get(id_in(row, "category_id"), ""), options.separator)
    for level in levels:
      if texts := texts_in(level.get(key), options.separator):
        return texts
  return ()


def _mask(row: Mapping[str, Any], options: Options) -> Mask | None:
  segmentation, bbox = row.get("segmentation"), row.get("bbox")
  if isinstance(segmentation, dict) and {"size", "counts"} <= set(segmentation):
    return {"rle": {key: segmentation[key] for key in ("size", "counts")}}
  if isinstance(segmentation, list) and segmentation:
    return {"polygons": segmentation}
  if options.boxes and isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_length, bbox)):
    return box(*map(float, bbox))
  return None


def _is_length(value: Any) -> bool:
  return type(value) in (int, float) and abs(value) <= _MAX_LENGTH


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
  """Returns the declared height and width; coco-annotator writes zeros if it knows none."""
  height, width = image.get("height"), image.get("width")
  if type(height) is int and type(width) is int and height > 0 and width > 0:
    return height, width
  return None


def _no_text(rows: Sequence[Mapping[str, Any]], options: Options) -> str:
  keys = sorted({key for row in rows for key in row})
  attributes = sorted({key for row in rows for key in row.get("attributes") or ()})
  nested = f", and under attributes: {', '.join(attributes)}" if attributes else ""
  return (
    f"no annotation with a mask has an expression under {', '.join(options.text_keys)}; the keys "
    f"of annotations are {', '.join(keys) or 'missing'}{nested}. Name the right one with --text "
    f"KEY, or use category names as expressions with --text {CATEGORY}"
  )
