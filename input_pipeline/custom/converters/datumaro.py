"""Reads Datumaro's format: a JSON file per subset in the folder `annotations`.

An item is an image; its annotations have a type, attributes and a group. Shapes with the same group
and label are one object; a caption in the group is an expression for it
(open-edge-platform.github.io/datumaro).
"""

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.custom.converters import geometry
from input_pipeline.custom.converters.collect import (
  NEEDS_BOXES,
  Export,
  Options,
  box,
  rows_in,
  split_in,
)
from input_pipeline.custom.converters.gather import (
  MALFORMED,
  Gatherer,
  Photo,
  Shape,
  photo_path,
  with_ending,
)
from input_pipeline.custom.schema import Mask


def read(path: str, options: Options) -> Export:
  """Reads an export.

  Args:
    path: of a file in `annotations`, or of a folder or zip with such files.
    options: how it is read.

  Raises:
    InputError: the file is missing, or no annotation has an expression.
  """
  gatherer = Gatherer(path, options)
  missing = "no Datumaro file (JSON with `categories` and `items`)"
  for name, content in gatherer.json_files(is_datumaro, missing):
    _read_subset(content, name, gatherer)
  return gatherer.finish()


def is_datumaro(content: Any) -> bool:
  """Returns whether parsed JSON looks like Datumaro's format."""
  return (
    isinstance(content, dict)
    and isinstance(content.get("items"), list)
    and isinstance(content.get("categories"), dict)
  )


def _read_subset(content: Mapping[str, Any], name: str, gatherer: Gatherer) -> None:
  labels = content["categories"].get("label")
  labels = rows_in(labels.get("labels")) if isinstance(labels, dict) else []
  names = [str(row.get("name", "")) for row in labels]
  # annotations/train.json is for images/train.
  folder, file = posixpath.split(name)
  subset = posixpath.splitext(file)[0]
  if posixpath.basename(folder) == "annotations":
    folder = posixpath.join(posixpath.dirname(folder), "images", subset)
  for item in rows_in(content["items"]):
    image = item.get("image")
    image = image if isinstance(image, dict) else {}
    path = image.get("path")
    if isinstance(path, str) and path:
      path = photo_path(path, folder)
    else:
      path = with_ending(photo_path(str(item.get("id", "")), folder), gatherer.photos)
    if not path:
      gatherer.export.skip("item without an image", f"item {item.get('id')}")
      continue
    try:
      size = geometry.size_of(*image["size"]) if image.get("size") else None
    except MALFORMED as error:
      gatherer.export.skip(f"item with an invalid image size ({error})", path)
      continue
    _read_item(
      rows_in(item.get("annotations")), Photo(path, size, split=split_in(subset)), names, gatherer
    )


def _read_item(
  rows: Sequence[Mapping[str, Any]],
  photo: Photo,
  names: Sequence[str],
  gatherer: Gatherer,
) -> None:
  for row in rows:
    kind = str(row.get("type"))
    # 0 means no group.
    group = row.get("group") or None
    group = group if type(group) is int else None
    if kind == "caption" and group is not None:
      gatherer.add_caption(photo, group, row.get("caption"))
    elif kind == "caption":
      gatherer.export.skip("caption of a whole image", photo.name)
    elif kind == "bbox" and not gatherer.options.boxes:
      gatherer.export.skip(NEEDS_BOXES, photo.name)
    elif kind not in _SHAPES:
      gatherer.export.skip(f"{kind:.20}: cannot be converted to a mask", photo.name)
    else:
      try:
        mask = _SHAPES[kind](row, photo.size)
      except MALFORMED as error:
        gatherer.export.skip(f"invalid {kind} ({error})", photo.name)
        continue
      category = row.get("label_id")
      if not isinstance(category, int) or not 0 <= category < len(names):
        category = None
      attributes = row.get("attributes")
      gatherer.add(
        photo,
        mask,
        Shape(
          [attributes if isinstance(attributes, dict) else {}],
          "" if category is None else names[category],
          category or 0,
          group,
        ),
      )


def _polygon(row: Mapping[str, Any], size: geometry.Size | None) -> Mask:
  return geometry.flat_polygon(row["points"])


def _mask(row: Mapping[str, Any], size: geometry.Size | None) -> Mask:
  rle = row["rle"]
  return {"rle": {"size": rle["size"], "counts": rle["counts"]}}


def _box(row: Mapping[str, Any], size: geometry.Size | None) -> Mask:
  x, y, width, height = (geometry.number(value) for value in row["bbox"])
  return box(x, y, width, height)


def _ellipse(row: Mapping[str, Any], size: geometry.Size | None) -> Mask:
  # Two corners of its bounding box.
  x0, y0, x1, y1 = (geometry.number(value) for value in row["points"])
  shape = geometry.ellipse(((x0 + x1) / 2, (y0 + y1) / 2), ((x1 - x0) / 2, (y1 - y0) / 2))
  return geometry.clip(shape, size)


_SHAPES = {"polygon": _polygon, "mask": _mask, "bbox": _box, "ellipse": _ellipse}
