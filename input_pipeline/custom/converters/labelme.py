"""Reads the JSON files of LabelMe, X-AnyLabeling and ReasonSeg, one per image.

A file has `shapes`; their free text is in `description` or, in X-AnyLabeling, in `attributes`.
Shapes with the same label and `group_id` are one object (github.com/labelmeai/labelme,
github.com/CVHub520/X-AnyLabeling). Coordinates are for the image as rotated by EXIF. ReasonSeg
(github.com/dvlab-research/LISA) has sentences for all shapes labelled `target` in `text`.
"""

import base64
import math
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.custom.converters import geometry
from input_pipeline.custom.converters.collect import NEEDS_BOXES, Export, Options, rows_in
from input_pipeline.custom.converters.gather import (
  MALFORMED,
  Gatherer,
  Photo,
  Shape,
  photo_path,
)
from input_pipeline.custom.schema import Mask

# Shapes without an area.
_LINES = ("point", "points", "line", "linestrip")
_NOT_TEXT = ("shape_type", "points", "mask", "flags", "attributes")
_BOXES = ("rectangle", "rotation", "oriented_rectangle")


def read(path: str, options: Options) -> Export:
  """Reads an export.

  Args:
    path: of a file, or of a folder or zip of such files, at any depth.
    options: how it is read.

  Raises:
    InputError: the file is missing, or no shape has an expression.
  """
  gatherer = Gatherer(path, options)
  missing = "no LabelMe file (JSON with the list `shapes`)"
  for name, content in gatherer.json_files(is_labelme, missing):
    _read_photo(content, name, gatherer)
  return gatherer.finish()


def is_labelme(content: Any) -> bool:
  """Returns whether parsed JSON looks like a LabelMe file."""
  return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def _read_photo(content: Mapping[str, Any], name: str, gatherer: Gatherer) -> None:
  image = content.get("imagePath")
  reasoning = not image and content.get("text")
  if not isinstance(image, str) or not image:
    # ReasonSeg: 123.json is for 123.jpg.
    image = posixpath.basename(name)[: -len(".json")] + ".jpg"
  try:
    size = geometry.size_of(content.get("imageHeight"), content.get("imageWidth"))
  except ValueError as error:
    gatherer.export.skip(f"file with an invalid image size ({error})", name)
    return
  photo = Photo(photo_path(image, posixpath.dirname(name)), size, True)
  try:
    photo = _with_pixels(photo, content.get("imageData"), name, gatherer)
  except ValueError as error:
    gatherer.export.skip(f"file with unusable imageData ({error})", name)
    return
  for row in rows_in(content["shapes"]):
    kind = row.get("shape_type") or "polygon"
    label = str(row.get("label") or "")
    if kind in _LINES:
      gatherer.export.skip(f"{kind}: has no area")
      continue
    if kind in _BOXES and not gatherer.options.boxes:
      gatherer.export.skip(NEEDS_BOXES)
      continue
    if reasoning and label != "target":
      gatherer.export.skip(f"area labelled {label!r:.20}: not a target")
      continue
    try:
      mask = _mask(kind, row, size)
    except MALFORMED as error:
      gatherer.export.skip(f"invalid {kind!s:.20} ({error})")
      continue
    attributes = row.get("attributes")
    texts = {key: value for key, value in row.items() if key not in _NOT_TEXT}
    fields = [texts, attributes if isinstance(attributes, dict) else {}]
    if reasoning:
      fields.append({"text": content["text"]})
    gatherer.add(photo, mask, Shape(fields, label, group=_group(row)))


def _with_pixels(photo: Photo, data: Any, name: str, gatherer: Gatherer) -> Photo:
  """Returns an image after writing it out if only the annotation file has it.

  Raises:
    ValueError: the image in the file is damaged or has another size.
  """
  images = gatherer.options.images
  if images is None or not isinstance(data, str) or gatherer.has_photo(photo.name):
    return photo
  try:
    pixels = base64.b64decode(data, validate=True)
  except ValueError as error:
    raise ValueError("not base64") from error
  written = images.add(pixels, photo.name, f"{name}: imageData")
  if photo.size and photo.size != written.size:
    sizes = [f"{width} x {height}" for height, width in (written.size, photo.size)]
    raise ValueError(f"it is {sizes[0]}, but the file says {sizes[1]}")
  gatherer.export.embedded.add(written.path)
  gatherer.export.note("image missing in --images, taken from imageData", name)
  return Photo(written.path, written.size, True)


def _group(row: Mapping[str, Any]) -> int | str | None:
  group = row.get("group_id")
  return group if type(group) in (int, str) else None


def _mask(kind: str, row: Mapping[str, Any], size: geometry.Size | None) -> Mask:
  points: Sequence[Any] = row["points"]
  if kind == "mask":
    (left, top), (right, bottom) = ([geometry.whole(value) for value in point] for point in points)
    pixels = geometry.decode_png(row["mask"])
    # Both corner pixels are part of the bitmap.
    if pixels.shape != (bottom - top + 1, right - left + 1):
      raise ValueError(
        f"the bitmap of {pixels.shape[1]} x {pixels.shape[0]} pixels does not fit the corners "
        f"({left}, {top}) and ({right}, {bottom})"
      )
    return geometry.bitmap(pixels, left, top, size)
  if kind == "circle":
    (x, y), (a, b) = ([geometry.number(value) for value in point] for point in points)
    radius = math.hypot(a - x, b - y)
    return geometry.clip(geometry.ellipse((x, y), (radius, radius)), size)
  if kind in _BOXES and len(points) == 2:
    (x, y), (a, b) = ([geometry.number(value) for value in point] for point in points)
    return geometry.polygon([(x, y), (a, y), (a, b), (x, b)])
  if kind in ("polygon", *_BOXES):
    return geometry.polygon(points)
  raise ValueError("unknown kind of shape")
