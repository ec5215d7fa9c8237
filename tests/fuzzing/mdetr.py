"""MDETR's and GREC's JSON: lines that are valid and whose masks are, or what is wrong with it."""

import json
import pathlib
from collections.abc import Iterator

from input_pipeline.common import untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.custom import masks, schema
from input_pipeline.custom.converters import collect, mdetr

COVERED = ("input_pipeline/custom/converters/mdetr.py",)
MAX_BYTES = 4096
_SIZE = (20, 30)


def seeds(realdata: pathlib.Path) -> Iterator[bytes]:
  """Yields files with every kind of annotation."""
  del realdata
  shared = {"file_name": "COCO_train2014_000000000009.jpg", "height": 20, "width": 30}
  image = shared | {"id": 0, "original_id": 9, "caption": "the cup", "dataset_name": "grefcoco"}
  row = {"id": 1, "image_id": 0, "category_id": 1, "original_id": 7, "bbox": [2, 3, 10, 10]}
  polygon = [2, 3, 12, 3, 12, 13, 2, 13]
  empty = row | {"empty": True, "category_id": -1, "original_id": -1, "bbox": [0, 0, 0, 0]}
  for annotations in (
    [row],
    [row | {"segmentation": [polygon], "tokens_positive": [[0, 3]]}],
    [
      row | {"segmentation": [polygon]},
      row | {"segmentation": {"size": [20, 30], "counts": [600]}},
    ],
    [row | {"segmentation": [polygon]}, row | {"segmentation": [polygon], "tokens_positive": []}],
    [empty],
    [],
  ):
    yield json.dumps({"images": [image], "annotations": annotations}).encode()
    second = image | {"id": 1, "caption": "a mug", "dataset_name": "refcoco"}
    yield json.dumps({"images": [image, second], "annotations": annotations}).encode()


def one_input(data: bytes) -> None:
  """Converts the file, and checks the lines as `validate` does."""
  try:
    content = untrusted_json.loads(data, "f.json")
  except InputError:
    return
  for boxes in (False, True):
    try:
      export = mdetr.read_content(content, "f.json", collect.Options(boxes=boxes))
    except InputError as error:
      assert "f.json" in str(error) and "\n" not in str(error)
      continue
    check_lines(export)


def check_lines(export: collect.Export) -> None:
  """Checks that the lines of an export are valid, and its masks those of their images."""
  list(export.report())
  for region in export.regions:
    for part in [region.mask] if region.mask else []:
      assert masks.rasterise(part, *(region.size or _SIZE)) is not None
  paths = {region.image: "a.jpg" for region in export.regions}
  for line in collect.make_lines(export.regions, paths, {}, True):
    _, problems = schema.parse(1, json.dumps(line))
    assert not problems, problems
