"""A line of a user's own data.

A line, or what is wrong with it; its masks are masks, or what is wrong with them.
"""

import json
import pathlib
from collections.abc import Iterator

from input_pipeline.custom import masks, schema
from input_pipeline.custom.schema import LineError

COVERED = (
  "input_pipeline/custom/schema.py",
  "input_pipeline/custom/masks.py",
  "input_pipeline/common/untrusted_json.py",
)
MAX_BYTES = 2048
_SIZE = (60, 80)
_PATHS = masks.PathResolver("photos-that-are-not-there")


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
  for mask in (*line.target, *(line.instances or ())):
    try:
      for part in masks.resolve(mask, line.image, _PATHS):
        assert masks.rasterise(part, *_SIZE).shape == _SIZE
    except LineError:
      pass
