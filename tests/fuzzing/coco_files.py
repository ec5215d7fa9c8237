"""COCO files in any encoding: the rows that JSON has, masks of their size, or an error."""

import gzip
import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from input_pipeline.common import places, untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.masks import row_index
from input_pipeline.masks.coco import CocoAnnotations
from input_pipeline.proposers.coco import CocoProposer
from input_pipeline.proposers.results import ResultsProposer

COVERED = (
  "input_pipeline/common/untrusted_files.py",
  "input_pipeline/masks/row_index.py",
  "input_pipeline/masks/coco.py",
  "input_pipeline/proposers/coco.py",
  "input_pipeline/proposers/results.py",
)
MAX_BYTES = 2048
_FOLDER = pathlib.Path(tempfile.mkdtemp())
_MAX_SIDE = 500


def seeds(realdata: pathlib.Path) -> Iterator[bytes]:
  """Yields annotations and results in several encodings, with ids of every kind."""
  del realdata
  square = [[2, 3, 12, 3, 12, 13, 2, 13]]
  runs = {"size": [20, 30], "counts": [45, 10, 545]}
  for number, (image_id, ann_id) in enumerate(((1, 7), (1.0, "7"), ("a", "b"), ("01", 7.0))):
    image = {"id": image_id, "file_name": f"x/{number}.jpg", "height": 20, "width": 30}
    row = {"id": ann_id, "image_id": image_id, "category_id": 1, "segmentation": square}
    crowd = row | {"id": 9, "iscrowd": 1, "segmentation": runs, "area": float("nan")}
    content = {"images": [image], "annotations": [row, crowd], "categories": [{"id": 1}]}
    results = [row | {"score": 0.5, "file_name": f"{number}.jpg"}, crowd | {"score": 1}]
    for value in (content, results, {"predictions": results, "images": [image]}):
      text = json.dumps(value)
      yield text.encode()
      yield text.encode("utf-16")
      yield gzip.compress(text.encode())


def one_input(data: bytes) -> None:
  """Reads the bytes as a file of annotations and of results."""
  path = _FOLDER / "file.json"
  path.write_bytes(data)
  expected = _by_json(path)
  index = None
  try:
    if row_index.first_character(str(path)) == "[":
      index = row_index.RowIndex(str(path), {"rows": "item"})
  except InputError:
    pass
  if index is not None and isinstance(expected, list) and "\\u" not in json.dumps(expected):
    rows = [row if isinstance(row, dict) else None for row in expected]
    assert [_without_ids(row) for row in index.rows("rows")] == [_without_ids(row) for row in rows]
  _propose(CocoProposer, str(path), expected)
  _propose(ResultsProposer, str(path), expected)
  for cached in places.cache_folder().glob("*.sqlite"):
    cached.unlink()


def _by_json(path: pathlib.Path) -> Any:
  try:
    data = untrusted_files.read_text(str(path), "it", 1 << 20)
    return json.loads(data, parse_constant=lambda word: None)
  except (ValueError, RecursionError):
    return None


def _without_ids(row: dict[str, Any] | None) -> dict[str, Any]:
  return {key: value for key, value in (row or {}).items() if key not in ("id", "image_id")}


def _propose(kind: Any, path: str, expected: Any) -> None:
  try:
    proposer = kind(path)
    for name in ("x/0.jpg", "1.jpg", "a.png"):
      entry = proposer.find_image(name)
      size = (20, 30)
      if kind is CocoProposer:
        size = CocoAnnotations(path).size(entry)
        if max(size) > _MAX_SIDE:
          return
      instances = proposer.propose([np.zeros((*size, 3), np.uint8)], [entry])[0]
      assert instances.masks.shape[1:] == size and instances.masks.dtype == bool
      assert len(instances.masks) == len(instances.scores) == len(instances.categories)
      if isinstance(expected, list):
        # Every row is a mask, or a note says why not.
        left_out = sum("left out" in note and "part" not in note for note in instances.notes)
        assert len(instances.masks) + left_out <= len(expected)
  except InputError as error:
    assert str(error).strip()
