"""Reads the projects, JSON and CSV annotations of the VGG Image Annotator, versions 1 to 3.

Regions have `shape_attributes` and, for free text, `region_attributes` (github.com/ox-vgg/via).
Version 3 numbers the kinds of shapes. Image sizes are not stored: `size` is that of the file in
bytes.
"""

import csv
import io
import math
import os
from collections.abc import Mapping
from typing import Any

from input_pipeline.common import untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters import export_files, geometry
from input_pipeline.custom.converters.collect import CATEGORY, NEEDS_BOXES, Export, Options, rows_in
from input_pipeline.custom.converters.gather import (
  MALFORMED,
  Gatherer,
  Photo,
  Shape,
  photo_path,
)
from input_pipeline.custom.schema import Mask

CSV_COLUMN = "region_shape_attributes"
_VIA3 = ("project", "attribute", "file", "view", "metadata")
# Version 3's numbers; those without an area are left out.
_POINT, _RECTANGLE, _CIRCLE, _ELLIPSE, _LINE, _POLYLINE, _POLYGON, _EXTREME = range(1, 9)


def read(path: str, options: Options) -> Export:
  """Reads an export.

  Args:
    path: of a JSON or CSV file, or of a folder or zip of such files.
    options: how it is read.

  Raises:
    InputError: the file is missing, or no region has an expression.
  """
  gatherer = Gatherer(path, options)
  found = False
  with export_files.ExportFiles(path) as files:
    export_files.note_images(files, gatherer.export)
    for name in files.names:
      if name.lower().endswith(".csv"):
        content = _csv_content(files.read_text(name), files.full_name(name))
      elif files.whole or name.lower().endswith(".json"):
        content = files.read_json(name)
      else:
        continue
      if is_via(content):
        found = True
        _read_content(content, gatherer)
      elif not files.whole:
        gatherer.export.note("file in another format not read", name)
  if not found:
    raise InputError(
      f"{path}: no file of the VGG Image Annotator (images with `filename` and `regions`)"
    )
  return gatherer.finish()


def is_via(content: Any) -> bool:
  """Returns whether parsed JSON looks like a file of the VGG Image Annotator."""
  if not isinstance(content, dict) or not content:
    return False
  if "_via_img_metadata" in content:
    return True
  if all(isinstance(content.get(key), dict) for key in _VIA3):
    return True
  rows = content.values()
  return all(isinstance(row, dict) and {"filename", "regions"} <= set(row) for row in rows)


def _read_content(content: Mapping[str, Any], gatherer: Gatherer) -> None:
  if "_via_img_metadata" not in content and "metadata" in content and "view" in content:
    _read_project3(content, gatherer)
    return
  photos, attributes = content, {}
  if "_via_img_metadata" in content:
    photos = _object(content["_via_img_metadata"])
    attributes = _object(_object(content.get("_via_attributes")).get("region"))
  for row in photos.values():
    row = _object(row)
    if not isinstance(row.get("filename"), str) or not row["filename"]:
      gatherer.export.skip("image without `filename`")
      continue
    photo = Photo(photo_path(row["filename"]))
    _compare_bytes(photo.name, row.get("size"), gatherer)
    regions = row.get("regions")
    regions = list(regions.values()) if isinstance(regions, dict) else regions
    for region in rows_in(regions):
      shape = _object(region.get("shape_attributes"))
      kind = str(shape.get("name"))
      fields = {
        name: _chosen(value, attributes.get(name))
        for name, value in _object(region.get("region_attributes")).items()
      }
      _add(photo, kind, shape, fields, gatherer)


def _compare_bytes(name: str, size: Any, gatherer: Gatherer) -> None:
  """Notes an image whose file is not the annotated one: it may have been resized."""
  folder = gatherer.options.folder
  try:
    path = os.path.join(folder, gatherer.photos.find(name))
    actual = os.path.getsize(path)
  except (InputError, OSError):
    # Missing images are reported later.
    return
  if type(size) is int and size > 0 and size != actual:
    gatherer.export.note(
      "image file differs in size from the annotated one; if it was resized, use the original "
      "(check with `draw`)",
      f"{name}, {actual:,} instead of {size:,} bytes",
    )


def _add(
  photo: Photo,
  kind: str,
  shape: Mapping[str, Any],
  fields: Mapping[str, Any],
  gatherer: Gatherer,
) -> None:
  if kind == "rect" and not gatherer.options.boxes:
    gatherer.export.skip(NEEDS_BOXES)
  elif kind not in _SHAPES:
    gatherer.export.skip(f"{kind:.20}: cannot be converted to a mask")
  else:
    try:
      mask = _SHAPES[kind](shape)
    except MALFORMED as error:
      gatherer.export.skip(f"invalid {kind} ({error})")
      return
    label = fields.get(CATEGORY)
    gatherer.add(photo, mask, Shape([fields], label if isinstance(label, str) else ""))


def _polygon(shape: Mapping[str, Any]) -> Mask:
  return geometry.polygon(list(zip(shape["all_points_x"], shape["all_points_y"], strict=True)))


def _rectangle(shape: Mapping[str, Any]) -> Mask:
  x, y, w, h = (geometry.number(shape[key]) for key in ("x", "y", "width", "height"))
  return geometry.polygon([(x, y), (x + w, y), (x + w, y + h), (x, y + h)])


def _circle(shape: Mapping[str, Any]) -> Mask:
  x, y, radius = (geometry.number(shape[key]) for key in ("cx", "cy", "r"))
  return geometry.ellipse((x, y), (radius, radius))


def _ellipse(shape: Mapping[str, Any]) -> Mask:
  x, y, a, b = (geometry.number(shape[key]) for key in ("cx", "cy", "rx", "ry"))
  # `theta` is in radians.
  angle = math.degrees(geometry.number(shape.get("theta", 0)))
  return geometry.ellipse((x, y), (a, b), angle)


_SHAPES = {"polygon": _polygon, "rect": _rectangle, "circle": _circle, "ellipse": _ellipse}


def _chosen(value: Any, attribute: Any) -> Any:
  """Returns the text of an attribute: the names of checked boxes or of the selected option."""
  options = _object(_object(attribute).get("options"))
  chosen = [key for key, is_set in value.items() if is_set] if isinstance(value, dict) else [value]
  names = [options.get(key) or key if isinstance(key, str) else key for key in chosen]
  return names if isinstance(value, dict) else names[0]


def _object(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, dict) else {}


def _read_project3(content: Mapping[str, Any], gatherer: Gatherer) -> None:
  files, views, attributes = content["file"], content["view"], content["attribute"]
  for row in content["metadata"].values():
    row = _object(row)
    view = _object(views.get(str(row.get("vid"))))
    ids = view.get("fid_list")
    xy = row.get("xy")
    if not isinstance(ids, list) or len(ids) != 1:
      gatherer.export.skip("region of a view with several images")
    elif not isinstance(xy, list) or not xy:
      gatherer.export.skip("text of a whole image, without a region")
    elif row.get("z"):
      gatherer.export.skip("region of a video")
    else:
      file = _object(files.get(str(ids[0])))
      name = file.get("fname") or file.get("src")
      if not isinstance(name, str) or not name:
        gatherer.export.skip("image without `fname`")
        continue
      fields = {
        str(_object(attributes.get(key)).get("aname", key)): _chosen(value, attributes.get(key))
        for key, value in _object(row.get("av")).items()
      }
      kind, shape = _shape3(xy)
      _add(Photo(photo_path(name)), kind, shape, fields, gatherer)


def _shape3(xy: list[Any]) -> tuple[str, Mapping[str, Any]]:
  """Converts a shape of version 3 to version 2."""
  kind, *values = xy
  if kind == _RECTANGLE:
    return "rect", dict(zip(("x", "y", "width", "height"), values, strict=False))
  if kind == _CIRCLE:
    return "circle", dict(zip(("cx", "cy", "r"), values, strict=False))
  if kind == _ELLIPSE:
    return "ellipse", dict(zip(("cx", "cy", "rx", "ry"), values, strict=False))
  if kind == _POLYGON:
    return "polygon", {"all_points_x": values[::2], "all_points_y": values[1::2]}
  names = {_POINT: "point", _LINE: "line", _POLYLINE: "polyline", _EXTREME: "extreme rectangle"}
  return names.get(kind, "extreme circle") if isinstance(kind, int) else repr(kind), {}


def _csv_content(text: str, name: str) -> Mapping[str, Any]:
  """Returns the rows of a CSV in the form of the JSON export."""
  photos: dict[str, Any] = {}
  try:
    for row in csv.DictReader(io.StringIO(text, newline="")):
      file = row.get("filename") or row.get("#filename")
      shape, attributes = row.get(CSV_COLUMN), row.get("region_attributes")
      if not file or shape is None:
        return {}
      size = row.get("file_size") or ""
      size = int(size) if size.isdecimal() else None
      photo = photos.setdefault(file, {"filename": file, "size": size, "regions": []})
      if shape.strip() not in ("", "{}"):
        photo["regions"].append(
          {
            "shape_attributes": untrusted_json.loads(shape, name),
            "region_attributes": untrusted_json.loads(attributes or "{}", name),
          }
        )
  except csv.Error as error:
    raise InputError(f"{name}: invalid CSV ({error})") from error
  return photos
