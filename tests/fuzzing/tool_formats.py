"""A file in a tool's own format: regions with masks of the declared size, or what is wrong with it.

The first byte chooses the format; the rest is the file.
"""

import atexit
import base64
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import coco_exports
import numpy as np
import tool_exports
from PIL import Image

from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters import (
  cvat,
  datumaro,
  labelme,
  recognise,
  supervisely,
  via,
  yolo,
)
from input_pipeline.custom.converters.collect import Options

COVERED = (
  "input_pipeline/common/untrusted_xml.py",
  *(
    f"input_pipeline/custom/converters/{name}.py"
    for name in (
      "cvat",
      "datumaro",
      "export_files",
      "gather",
      "geometry",
      "labelme",
      "recognise",
      "supervisely",
      "via",
      "yolo",
    )
  ),
)
MAX_BYTES = 4096
_FOLDER = pathlib.Path(
  tempfile.mkdtemp(dir="/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None)
)
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
# Where the file is, and the reader of what.
_FORMATS = (
  ("a.json", "a.json", labelme),
  ("a.json", "a.json", via),
  ("a.csv", "a.csv", via),
  ("a.xml", "a.xml", cvat),
  ("yolo/labels/a.txt", "yolo", yolo),
  ("names/data.yaml", "names", yolo),
  ("a.json", "a.json", supervisely),
  ("a.json", "a.json", datumaro),
  ("a.zip", "a.zip", labelme),
)


def _options(categories: bool) -> Options:
  keys = Options().text_keys if not categories else ("category", "tags", "caption")
  return Options(keys, boxes=categories, folder=str(_FOLDER / "photos"))


def _prepare() -> None:
  for folder in ("photos/images", "yolo/labels", "names/labels"):
    (_FOLDER / folder).mkdir(parents=True)
  Image.new("RGB", (30, 20)).save(_FOLDER / "photos/images/a.png")
  (_FOLDER / "yolo/data.yaml").write_text("names: {0: cup, 1: plate}")
  (_FOLDER / "names/labels/a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")


_prepare()


def seeds(realdata: pathlib.Path) -> Iterator[bytes]:
  """Yields a file of each format, and some with other shapes."""
  del realdata
  square = [(2.0, 3.0), (12.0, 3.0), (12.0, 13.0), (2.0, 13.0)]
  photo = tool_exports.Photo("a.png", 20, 30, [tool_exports.Drawn(square, "the square")])
  writers = (
    tool_exports.write_labelme,
    tool_exports.write_via,
    tool_exports.write_via_csv,
    tool_exports.write_cvat,
    tool_exports.write_yolo,
    tool_exports.write_yolo,
    tool_exports.write_supervisely,
    tool_exports.write_datumaro,
  )
  files = ("a.json", "*.json", "*.csv", "*.xml", "labels/*.txt", "*.yaml", "ann/*.json", "*/*.json")
  for number, (write, file) in enumerate(zip(writers, files, strict=True)):
    with tempfile.TemporaryDirectory() as folder:
      write(pathlib.Path(folder), [photo])
      (path,) = pathlib.Path(folder).glob(file)
      yield bytes([number]) + path.read_bytes()
      if number == 0:
        tool_exports.pack(pathlib.Path(folder), pathlib.Path(folder) / "a.zip")
        yield b"\x08" + (pathlib.Path(folder) / "a.zip").read_bytes()
  with tempfile.TemporaryDirectory() as folder:
    tool_exports.write_via3(pathlib.Path(folder), [photo])
    yield b"\1" + (pathlib.Path(folder) / "project.json").read_bytes()
  for number, content in _other_shapes():
    yield bytes([number]) + json.dumps(content).encode()
  shapes = "".join(
    f'<{row} label="a" z_order="0" group_id="1"><attribute name="text">x</attribute></{row[:4]}>'
    for row in (
      'mask rle="3, 3" left="1" top="2" width="3" height="2"',
      'box  xtl="1" ytl="2" xbr="9" ybr="9" rotation="30"',
    )
  ).replace("</box >", "</box>")
  yield (
    '\3<annotations><image name="a.png" width="30" height="20">'
    f'{shapes}<ellipse cx="9" cy="9" rx="30" ry="5" label="a"/></image></annotations>'
  ).encode()


def _other_shapes() -> Iterator[tuple[int, Any]]:
  """Yields files with the other shapes of a format, and its number."""
  mask = np.eye(4, dtype=bool)
  bitmap = base64.b64encode(tool_exports.png(mask)).decode()
  photo = tool_exports.Photo("a.png", 20, 30, [])
  shape = tool_exports.labelme_shape
  shapes = [
    shape([(5, 5), (9, 5)], "x", shape_type="circle", group_id=1),
    shape([(5, 5), (8, 8)], "", shape_type="mask", mask=bitmap, group_id=1),
    shape([(5, 5), (9, 9)], "y", shape_type="rectangle"),
    shape([(5, 5), (9, 9)], "y", shape_type="line"),
  ]
  yield 0, tool_exports.labelme_photo(photo, shapes)
  yield 0, {"text": ["x"], "shapes": [shape([(1, 1), (9, 1), (9, 9)], "", "target")]}
  kinds = [
    {"name": "circle", "cx": 9, "cy": 9, "r": 4},
    {"name": "ellipse", "cx": 9, "cy": 9, "rx": 4, "ry": 2, "theta": 0.5},
    {"name": "rect", "x": 5, "y": 5, "width": 4, "height": 4},
  ]
  regions = [
    {"shape_attributes": k, "region_attributes": {"text": "1", "b": {"1": True}}} for k in kinds
  ]
  options = {"text": {"options": {"1": "x"}}, "b": {"options": {"1": "y"}}}
  rows = {"a": {"filename": "a.png", "size": 5, "regions": regions}}
  yield 1, {"_via_img_metadata": rows, "_via_attributes": {"region": options}}
  objects = [
    {"geometryType": "bitmap", "bitmap": tool_exports.supervisely_bitmap(mask), "description": "x"},
    {"geometryType": "rectangle", "points": {"exterior": [[1, 1], [9, 9]]}, "description": "y"},
    tool_exports.supervisely_object(
      tool_exports.Drawn([(1, 1), (9, 1), (9, 9)], "z"), tags=[{"name": "a", "value": "b"}]
    ),
  ]
  objects[2]["points"]["interior"] = [[[3, 2], [5, 2], [5, 4]]]
  yield 6, {"size": {"height": 20, "width": 30}, "objects": objects}
  annotations = [
    {"type": "mask", "group": 1, "rle": {"size": [20, 30], "counts": [100, 50, 450]}},
    {"type": "caption", "group": 1, "caption": "x"},
    {"type": "ellipse", "points": [1, 1, 9, 9], "attributes": {"text": "y"}, "label_id": 0},
    {"type": "bbox", "bbox": [1, 1, 9, 9], "attributes": {"text": "z"}},
  ]
  item = {"id": "a", "image": {"size": [20, 30]}, "annotations": annotations}
  yield 7, {"items": [item], "categories": {"label": {"labels": [{"name": "a"}]}}}


def one_input(data: bytes) -> None:
  """Reads the file with and without options, and recognises it."""
  if not data:
    return
  file, export, reader = _FORMATS[data[0] % len(_FORMATS)]
  (_FOLDER / file).write_bytes(data[1:])
  path = str(_FOLDER / export)
  for categories in (False, True):
    try:
      read = reader.read(path, _options(categories))
    except InputError:
      continue
    coco_exports.check(read, not categories)
  recognise.recognise(path)
