"""Lists of images and COCO files: the ids of a plain reading of the JSON, or an InputError."""

import contextlib
import io
import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from input_pipeline import image_hashes
from input_pipeline.common import image_names
from input_pipeline.common.errors import InputError
from input_pipeline.proposals import clean_split
from input_pipeline.proposers import image_lists

COVERED = (
  "input_pipeline/common/json_rows.py",
  "input_pipeline/proposers/image_lists.py",
  "input_pipeline/proposals/clean_split.py",
  "input_pipeline/image_hashes.py",
)
MAX_BYTES = 2048

_FOLDER = pathlib.Path(tempfile.mkdtemp())


def seeds(realdata: pathlib.Path) -> Iterator[bytes]:
  """Yields lists in every format, COCO files and hashes."""
  del realdata
  named = [{"id": i, "file_name": f"COCO_train2014_{i + 90:012}.jpg"} for i in range(3)]
  lvis = [{"id": "7", "coco_url": "http://images.cocodataset.org/train2017/000000000007.jpg"}]
  rows = [{"id": 1, "image_id": 2.0, "area": None, "segmentation": [[1, 2, 3, 4, 5, 6]]}]
  for content in (
    [1, 2.0, "3"],
    ["000000000009.jpg", "a/COCO_val2014_000000000008.jpg"],
    [{"image_id": 5}, {"image_id": "6", "file_name": "000000000007_jpg.rf.0123456789.jpg"}],
    {"refs": [{"image_id": 5}]},
    {"info": {"images": [1]}, "images": named, "annotations": rows, "categories": []},
    {"annotations": [], "images": [*lvis, {"id": 4}, {"id": 5, "file_name": "b.png"}]},
  ):
    yield json.dumps(content).encode()
    yield json.dumps(content, indent=1).encode("utf-16")
  yield b"1\n000000000002.jpg\nx.jpg\n"
  hashes = [image_hashes.ImageHash(1, "0" * 15 + "7", "f" * 64)]
  yield image_hashes.to_bytes({"a/train": image_hashes.ImageSet.of(hashes, {1: 2})})


def one_input(data: bytes) -> None:
  """Reads the bytes as a list of images, as annotations and as hashes."""
  path = _FOLDER / "list.json"
  path.write_bytes(data)
  _check_ids(str(path), data)
  _check_annotations(str(path), data)
  with contextlib.suppress(InputError):
    for images in image_hashes.from_bytes(data, "hashes").values():
      assert images.looks.shape == (len(images.contents), 4)
      image_hashes.find_seen({"a/train": images}, images)


def _check_ids(path: str, data: bytes) -> None:
  try:
    with contextlib.redirect_stderr(io.StringIO()):
      ids = image_lists.read_ids(path)
  except InputError as error:
    assert "\n" not in str(error)
    return
  rows = _images(data)
  if rows is not None:
    numbers = {image_names.coco_number(name) for row in rows if (name := _name(row))} - {None}
    own = {int(float(row["id"])) for row in rows if not numbers or not _name(row)}
    assert ids == numbers | own, (ids, numbers, own)


def _check_annotations(path: str, data: bytes) -> None:
  out = _FOLDER / "clean.json"
  try:
    annotations = clean_split.Annotations(path)
    removed = sorted(i for i in annotations.coco_ids.values() if i is not None)[:1]
    with contextlib.redirect_stderr(io.StringIO()):
      annotations.write_without(removed, str(out))
  except InputError as error:
    assert "\n" not in str(error)
    return
  gone = {own for own, number in annotations.coco_ids.items() if number in removed}
  before, after = json.loads(data), json.loads(out.read_bytes())
  for section, key in (("images", "id"), ("annotations", "image_id")):
    kept = [row for row in before[section] if int(float(row[key])) not in gone]
    assert repr(after.pop(section)) == repr(kept)
    del before[section]
  assert repr(after) == repr(before)


def _images(data: bytes) -> list[dict[str, Any]] | None:
  """Returns the rows of a COCO file that has nothing unusual; None for another file."""
  try:
    content = json.loads(data)
    rows = content["images"]
    if "refs" in content or not all(isinstance(row, dict) for row in rows):
      return None
    for row in rows:
      float(row["id"])
    return rows
  except (ValueError, TypeError, KeyError, RecursionError):
    return None


def _name(row: dict[str, Any]) -> str | None:
  return image_names.name_of_row(row)
