"""A COCO file of any tool: regions with masks of the declared size, or what is wrong with it."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from input_pipeline.common import untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.custom import schema
from input_pipeline.custom.converters import coco
from input_pipeline.custom.converters.collect import TEXT_KEYS, Export, Options, make_lines
from input_pipeline.masks.segmentation import decode_segmentation

COVERED = (
  "input_pipeline/custom/converters/coco.py",
  "input_pipeline/custom/converters/collect.py",
)
MAX_BYTES = 4096
_OPTIONS = (Options(), Options(("category", "x"), "|", boxes=True))


def seeds(realdata: pathlib.Path) -> Iterator[bytes]:
  """Yields a file for each way in which tools write masks, texts, ids and images."""
  del realdata
  runs = {"size": [20, 30], "counts": [100, 50, 450]}
  square = [2, 3, 12, 3, 12, 13, 2, 13]
  rows = [
    {"segmentation": [square], "caption": "x", "iscrowd": 0},
    {"segmentation": square, "attributes": {"Expression": "x", "occluded": False}},
    {"segmentation": [[[2, 3], [12, 3], [12, 13]]], "metadata": {"text": "x\ny"}},
    {"segmentation": runs, "iscrowd": 1, "sentences": [{"raw": "X", "sent": "x"}]},
    {"segmentation": [runs, square], "description": "x", "phrase": "y"},
    {"segmentation": runs | {"counts": "b'abc'"}, "caption": "x"},
    {"segmentation": [], "bbox": [1.0, 2, 5, 6], "caption": "x", "isbbox": True},
  ]
  names = [
    {"file_name": "COCO_train2014_000000000004.jpg", "height": 20, "width": 30},
    {"coco_url": "http://x.org/000000000004.jpg", "height": 0, "width": None},
    {"path": "C:\\a.jpg", "height": "20", "width": 30.0},
  ]
  for number, row in enumerate(rows):
    image_id = (4, 4.0, "4", "a")[number % 4]
    content = {
      "images": [{"id": image_id} | names[number % 3]],
      "annotations": [{"id": number, "image_id": image_id, "category_id": 1} | row],
      "categories": [{"id": 1, "name": "mug"}],
    }
    yield json.dumps(content).encode()


def one_input(data: bytes) -> None:
  """Reads the file with and without options."""
  try:
    content = untrusted_json.loads(data, "x.json", nan_as_none=True)
  except InputError:
    return
  for options in _OPTIONS:
    try:
      export = coco.read_content(content, "x.json", options, Export())
    except InputError:
      continue
    check(export, options.text_keys == TEXT_KEYS)


def check(export: Export, instances: bool) -> None:
  """Checks that every region has a mask of its size, and that its lines are valid."""
  for line in export.report():
    assert line
  for region in export.regions:
    if region.mask is not None and region.size is not None:
      assert decode_segmentation(_segmentation(region.mask), *region.size).any()
  paths = {region.image: "a.png" for region in export.regions}
  for number, line in enumerate(make_lines(export.regions, paths, {}, instances), 1):
    _, problems = schema.parse(number, json.dumps(line).encode())
    assert not problems, problems


def _segmentation(mask: dict[str, Any]) -> Any:
  return mask.get("polygons", mask.get("rle"))
