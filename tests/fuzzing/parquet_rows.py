"""Parquet files from the Hub: valid lines and their photos, or what is wrong with the file.

The input is a parquet file or, in JSON, rows that are written as one.
"""

import base64
import io
import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import mdetr
import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet as files

from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters import collect, embedded, parquet

COVERED = (
  "input_pipeline/custom/converters/parquet.py",
  "input_pipeline/custom/converters/embedded.py",
)
MAX_BYTES = 4096
_HEIGHT, _WIDTH = 20, 30


def seeds(realdata: pathlib.Path) -> Iterator[bytes]:
  """Yields rows of each known data set, as JSON and as files."""
  del realdata
  file = io.BytesIO()
  Image.fromarray(np.zeros((_HEIGHT, _WIDTH, 3), np.uint8)).save(file, "PNG")
  image = {"bytes": base64.b64encode(file.getvalue()).decode(), "path": None}
  name = "COCO_train2014_000000000009.jpg"
  polygon = [2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]
  mask = {"counts": "R2:Z1", "size": [_HEIGHT, _WIDTH]}
  sample = {"id": 1, "image_id": 9, "sentences": ["a cup"], "mask": mask, "bbox": [2, 3, 10, 10]}
  annotation = {"id": 7, "image_id": 9, "segmentation": [polygon], "bbox": [2, 3, 10, 10]}
  info = {"id": 9, "file_name": name, "height": _HEIGHT, "width": _WIDTH}
  rows: list[dict[str, Any]] = [
    {"image": image, "image_id": 9, "file_name": name, "samples": [sample]},
    {
      "question_id": "7",
      "image": image,
      "answer": ["a cup", "mug"],
      "segmentation": polygon,
      "bbox": [2.0, 3.0, 10.0, 10.0],
      "file_name": name.replace(".jpg", "_3.jpg"),
    },
    {
      "ref_id": 1,
      "ann_id": 7,
      "image_id": 9,
      "split": "testA",
      "sentences": [{"raw": "A cup", "sent": "a cup"}],
      "raw_anns": json.dumps(annotation),
      "raw_image_info": json.dumps(info),
      "image_path": f"coco/train2014/{name}",
    },
    {
      "id": 1,
      "caption": "a cup",
      "bbox": [2.0, 3.0, 10.0, 10.0],
      "bbox_area": 100.0,
      "height": _HEIGHT,
      "width": _WIDTH,
      "file_name": name,
    },
  ]
  for row in rows:
    yield json.dumps([row, row]).encode()
    table = pyarrow.Table.from_pylist([_with_bytes(row)])
    written = io.BytesIO()
    files.write_table(table, written)
    yield written.getvalue()


def one_input(data: bytes) -> None:
  """Converts the file, and checks the lines as `validate` does."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "val.parquet"
    if data.startswith(b"PAR1"):
      path.write_bytes(data)
    else:
      try:
        rows = [_with_bytes(row) for row in json.loads(data)]
        files.write_table(pyarrow.Table.from_pylist(rows), path)
      except Exception:
        return
    for boxes in (False, True):
      try:
        with embedded.written_to(f"{folder}/images", overwrite=True) as images:
          export = parquet.read(str(path), collect.Options(boxes=boxes, images=images))
      except InputError as error:
        assert str(path.name) in str(error) and "\n" not in str(error), str(error)
        continue
      for name in export.embedded:
        assert (pathlib.Path(folder) / name).is_file()
      mdetr.check_lines(export)


def _with_bytes(row: dict[str, Any]) -> dict[str, Any]:
  image = row.get("image")
  if not isinstance(image, dict) or not isinstance(image.get("bytes"), str):
    return row
  return row | {"image": image | {"bytes": base64.b64decode(image["bytes"])}}
