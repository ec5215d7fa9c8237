"""Reads CVAT's exports: "CVAT for images 1.1", an XML file, and "COCO 1.0".

In the XML an image has shapes, and a shape has attributes, including free text
(docs.cvat.ai/docs/dataset_management/formats/format-cvat). Shapes with the same label and
`group_id` are one object. A mask's run lengths are row-major within its box and start with the
background.
"""

from collections.abc import Mapping
from xml.etree.ElementTree import Element

import numpy as np

from input_pipeline.common import untrusted_xml
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters import coco, export_files, geometry
from input_pipeline.custom.converters.collect import NEEDS_BOXES, Export, Options, split_in
from input_pipeline.custom.converters.gather import (
  MALFORMED,
  Gatherer,
  Photo,
  Shape,
  photo_path,
)
from input_pipeline.custom.schema import Mask


def read(path: str, options: Options) -> Export:
  """Reads an export: an XML file, or a folder or zip with one; otherwise, reads it as COCO.

  Args:
    path: of the export.
    options: how it is read.

  Raises:
    InputError: the file is missing or has neither format, or no shape has an expression.
  """
  gatherer = Gatherer(path, options)
  found = False
  with export_files.ExportFiles(path) as files:
    export_files.note_images(files, gatherer.export)
    for name in files.names:
      data = files.read(name) if name.lower().endswith(".xml") or files.whole else b""
      if not is_xml(data):
        continue
      found = True
      _read_file(data, files.full_name(name), gatherer)
  return gatherer.finish() if found else coco.read(path, options)


def is_xml(data: bytes) -> bool:
  """Returns whether a file looks like XML, in any encoding."""
  start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
  return start.startswith((b"<", b"\xff\xfe<", b"\xfe\xff\x00<"))


def _read_file(data: bytes, name: str, gatherer: Gatherer) -> None:
  elements = untrusted_xml.read_children(data, name)
  root = next(elements, None)
  if root is None or root.tag != "annotations":
    raise InputError(
      f"{name}: not a CVAT file: the root is <{root.tag if root is not None else ''}>, not "
      "<annotations>; export as CVAT for images 1.1 or as COCO 1.0"
    )
  for element in elements:
    if element.tag == "image":
      _read_image(element, gatherer)
    elif element.tag == "track":
      gatherer.export.skip(
        "track of a video (export as CVAT for images 1.1 or as COCO 1.0)",
        f"track {element.get('id')}",
      )


def _read_image(element: Element, gatherer: Gatherer) -> None:
  name = element.get("name")
  if not name:
    gatherer.export.skip("image without a name", f"image {element.get('id')}")
    return
  try:
    size = geometry.size_of(element.get("height"), element.get("width"))
  except ValueError as error:
    gatherer.export.skip(f"image with an invalid size ({error})", name)
    return
  # Only exports of projects have a subset.
  photo = Photo(photo_path(name), size, split=split_in(element.get("subset", "")))
  for row in element:
    if row.tag == "box" and not gatherer.options.boxes:
      gatherer.export.skip(NEEDS_BOXES, name)
    elif row.tag == "tag":
      gatherer.export.skip("tag of a whole image", name)
    elif row.tag not in _SHAPES:
      gatherer.export.skip(f"{row.tag:.20}: cannot be converted to a mask", name)
    else:
      try:
        mask = _SHAPES[row.tag](row.attrib, size)
      except MALFORMED as error:
        gatherer.export.skip(f"invalid {row.tag} ({error})", name)
        continue
      fields = {a.get("name", ""): a.text or "" for a in row.iter("attribute")}
      group = row.get("group_id")
      # 0 means no group.
      group = None if group == "0" else group
      gatherer.add(photo, mask, Shape([fields], row.get("label", ""), group=group))


def _box(row: Mapping[str, str], size: geometry.Size | None) -> Mask:
  corners = [geometry.number(row[key]) for key in ("xtl", "ytl", "xbr", "ybr")]
  angle = geometry.number(row.get("rotation", "0"))
  return geometry.clip(geometry.rotated_box(corners, angle), size)


def _polygon(row: Mapping[str, str], size: geometry.Size | None) -> Mask:
  return geometry.polygon([point.split(",") for point in row["points"].split(";")])


def _ellipse(row: Mapping[str, str], size: geometry.Size | None) -> Mask:
  x, y, a, b = (geometry.number(row[key]) for key in ("cx", "cy", "rx", "ry"))
  angle = geometry.number(row.get("rotation", "0"))
  return geometry.clip(geometry.ellipse((x, y), (a, b), angle), size)


def _mask(row: Mapping[str, str], size: geometry.Size | None) -> Mask:
  left, top, width, height = (geometry.whole(row[k]) for k in ("left", "top", "width", "height"))
  runs = [geometry.whole(run) for run in row["rle"].split(",")]
  if min(width, height) < 1 or size is None or width > size[1] or height > size[0]:
    raise ValueError(f"the bitmap of {width} x {height} pixels does not fit the image")
  if min(runs) < 0 or sum(runs) != width * height:
    raise ValueError(f"run lengths cover {sum(runs)} of {width * height} pixels")
  pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
  return geometry.bitmap(pixels, left, top, size)


_SHAPES = {"box": _box, "polygon": _polygon, "ellipse": _ellipse, "mask": _mask}
