"""The refs of RefCOCO, + and g on the Hugging Face Hub, as their authors lay them out.

jxu124's tables have a row per ref, with all its fields and COCO's annotation of its object
(`raw_anns`), but not the image's other objects, of which proposals from `instances.json` consist:
COCO's own file takes its place, and must agree.
"""

import json
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.common import untrusted_files, untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.masks.row_index import RowIndex
from input_pipeline.sources import refer

_FIELDS = ("ref_id", "ann_id", "category_id", "image_id", "split", "file_name", "sentences")
_ANNOTATION = "raw_anns"
_COLUMNS = (*_FIELDS, _ANNOTATION)
_SENTENCE = ("raw", "sent", "sent_id", "tokens")
# The Hub's names of splits.
_SPLITS = {"validation": "val", "test": "testA"}
# Rows held in memory.
_BATCH = 64


def convert(tables: Sequence[pathlib.Path], coco: str, dataset: str, path: str) -> None:
  """Writes a refs file in JSON.

  Args:
    tables: parquet files, one or more per split.
    coco: COCO's `instances_train2014.json`.
    dataset: a key of `refer.LAYOUTS`.
    path: of the new file.

  Raises:
    InputError: a table is damaged, has other columns, or differs from COCO's annotations.
  """
  splits = refer.LAYOUTS[dataset].splits or ()
  index = RowIndex(coco, {"annotations": "annotations.item"})
  with open(path, "w", encoding="utf-8") as file:
    separator = "["
    for table in tables:
      for row in _rows(table):
        _check_annotation(row, index, f"{table}: ref {row['ref_id']}")
        file.write(separator + json.dumps(_ref(row, splits)))
        separator = ",\n"
    file.write("]")


def _rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  import pyarrow
  from pyarrow import parquet

  with untrusted_files.open_file(path, str(path)) as file:
    try:
      table = parquet.ParquetFile(file)
      if missing := [name for name in _COLUMNS if name not in table.schema_arrow.names]:
        raise InputError(f"{path}: no column {missing[0]}; is it another table?")
      for batch in table.iter_batches(_BATCH, columns=list(_COLUMNS)):
        for row in batch.to_pylist():
          yield row | {_ANNOTATION: _object(row[_ANNOTATION], f"{path}: {_ANNOTATION}")}
    except (pyarrow.ArrowException, OSError, TypeError) as error:
      raise InputError(f"{path}: damaged ({str(error).splitlines()[0]:.200})") from error


def _object(text: str, where: str) -> dict[str, Any]:
  value = untrusted_json.loads(text, where)
  if not isinstance(value, dict):
    raise InputError(f"{where}: expected an object of COCO's, got {type(value).__name__}")
  return value


def _ref(row: Mapping[str, Any], splits: Collection[str]) -> dict[str, Any]:
  """Returns a ref as in the authors' files."""
  ref = {name: row[name] for name in _FIELDS}
  split = ref["split"]
  ref["split"] = split if split in splits else _SPLITS.get(split, split)
  ref["sentences"] = [
    {key: sentence[key] for key in _SENTENCE if key in sentence} for sentence in row["sentences"]
  ]
  return ref


def _check_annotation(row: Mapping[str, Any], index: RowIndex, where: str) -> None:
  expected = index.row("annotations", row["ann_id"])
  if expected is None or expected.get("segmentation") != row["raw_anns"].get("segmentation"):
    difference = "is not in" if expected is None else "has another segmentation in"
    raise InputError(f"{where}: annotation {row['ann_id']} {difference} {index.path}")
