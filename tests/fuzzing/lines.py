"""A line of a user's own data, and the names in it.

A line, or what is wrong with it; its masks are masks, or what is wrong with them; its image is
found among files under its own name, or under none.
"""

import json
import pathlib
from collections.abc import Iterator

from input_pipeline.common import image_names
from input_pipeline.custom import masks, schema
from input_pipeline.custom.schema import LineError

COVERED = (
  "input_pipeline/custom/schema.py",
  "input_pipeline/custom/masks.py",
  "input_pipeline/common/image_names.py",
  "input_pipeline/common/untrusted_json.py",
)
MAX_BYTES = 2048
_SIZE = (60, 80)
_PATHS = masks.PathResolver("photos-that-are-not-there")
_FILES = image_names.ImageNames(
  ["photos/a.jpg", "b/a.jpg", "B/A.JPG", "k\u00e4se 1.png", "000000000009.jpg", "c%20d.png"], "here"
)
_NAMES = (
  "photos\\\\a.jpg",
  "https://host/b/a.jpg?t=1",
  "ka\u0308se%201.png",
  "COCO_val2014_000000000009.jpg",
  "/data/upload/1/0123abcd-kse_1.png",
  "/data/local-files/?d=photos/a.jpg",
  "C:/../a.jpg",
)


def seeds(realdata: pathlib.Path) -> Iterator[bytes]:
  """Yields lines with every key and every kind of mask."""
  runs = {"size": list(_SIZE), "counts": [100, 50, 4650]}
  parts = [
    {"rle": runs},
    {"rle": {**runs, "counts": "T3b1ZT4"}},
    {"polygons": [[1, 2, 30, 2.5, 30, 50]]},
    {"png": "masks/a.png", "value": 3},
    {"ann_id": 5},
    {"ann_ids": [5, 6]},
  ]
  line = {
    "image": "photos/a.jpg",
    "sentences": ["the left cup", "Tasse"],
    "split": "val",
    "ref_id": 7,
    "image_id": 9,
  }
  for part in parts:
    yield json.dumps(line | {"target": part, "meta": {"by": ["me"]}}).encode()
    yield json.dumps(
      line | {"target": [part], "instances": [part | {"score": 0.5, "category": 2}]}
    ).encode()
  for name in _NAMES:
    yield json.dumps(line | {"image": name, "target": None}).encode()
  dialects = [
    [1, 2, 30, 2, 30, 50],
    [[[1, 2], [30, 2], [30, 50]]],
    [[0.1, 0.2, 0.5, 0.2, 0.5, 0.9]],
    [[1, 2, 82, 2, 30, 50], [1, 1, 2, 2], None],
    [runs],
  ]
  for dialect in dialects:
    yield json.dumps(line | {"target": {"polygons": dialect}}).encode()
  yield json.dumps(
    {"image": "a.jpg", "sentences": "x", "target": None, "annotations": "c.json"}
  ).encode()
  path = realdata / "coco/annotations/instances_train2014.json"
  rows = json.loads(path.read_text())["annotations"] if path.exists() else []
  for row in rows[:: max(1, len(rows) // 10)]:
    if isinstance(row["segmentation"], list):
      text = json.dumps(line | {"target": {"polygons": row["segmentation"]}}).encode()
      if len(text) < MAX_BYTES:
        yield text


def one_input(data: bytes) -> None:
  """Parses the line and rasterises its masks."""
  line, problems = schema.parse(1, data)
  assert (line is None) == bool(problems)
  for problem in problems:
    str(problem)
  if line is None:
    return
  _find(line.image)
  for mask in (*line.target, *(line.instances or ())):
    try:
      for part in masks.resolve(mask, line.image, _PATHS):
        pixels, warnings = masks.read(part, *_SIZE)
        assert pixels.shape == _SIZE and all(str(warning) for warning in warnings)
    except LineError:
      pass


def _find(name: str) -> None:
  image_names.coco_number(name)
  try:
    found = _FILES.find(name)
  except (image_names.ImageNotFound, image_names.AmbiguousImage):
    return
  assert image_names.same_image(found, name) and image_names.same_image(name, found)
