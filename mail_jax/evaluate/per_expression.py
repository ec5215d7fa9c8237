"""Per-expression results, one row each: the JSON lines that `evaluate --per_expression` writes."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline import preprocess
from input_pipeline.common import atomic_files, untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.records import OBJECT_SIZES
from mail_jax.evaluate.protocols import PROTOCOLS, Protocol

Row = dict[str, Any]
Columns = Mapping[str, np.ndarray]
Summary = Callable[[Columns], Iterable[tuple[str, Any]]]
# Numbers of words, the smallest and the largest. They hold 36, 49, 14 and 1 % of the expressions of
# RefCOCO's val, and 2, 21, 51 and 26 % of those of RefCOCOg's (umd).
LENGTHS = {"1-2": (1, 2), "3-5": (3, 5), "6-10": (6, 10), "11+": (11, np.inf)}
FIELDS: dict[str, type] = {
  "data": str,
  "protocol": str,
  "index": int,
  "image_id": int,
  "file_name": str,
  "ref_id": int,
  "expression_index": int,
  "expression": str,
  "words": int,
  "height": int,
  "width": int,
  "area": int,
  "intersection": int,
  "union": int,
  "iou": float,
}
"""Keys of a row, in order, and the types of their values."""
_MODEL: dict[str, type] = {
  "selected": int,
  "selected_iou": float,
  "oracle_iou": float,
  "cut": bool,
}
_BOUNDARY: dict[str, type] = {
  "boundary_intersection": int,
  "boundary_union": int,
  "boundary_iou": float,
}
OPTIONAL: dict[str, type] = {
  **_MODEL,
  **_BOUNDARY,
  "no_target_probability": float,
  "raw_union": int,
}
"""Keys of rows if our model wrote them (`selected` may be null), if the protocol compares
boundaries, and if the model predicts missing targets."""

_SHARES = ("iou", "boundary_iou", "selected_iou", "oracle_iou", "no_target_probability")
_MAY_BE_NEGATIVE = ("image_id", "ref_id")
_TYPES = {str: "text", int: "an integer", float: "a number", bool: "true or false"}


def make(
  data: str,
  counted: Mapping[str, np.ndarray],
  meta: Sequence[Mapping[str, Any]],
  protocol: Protocol,
  max_instances: int = 0,
) -> list[Row]:
  """Joins the counts from the device with the expressions, one row each.

  Args:
    data: DATASET/SPLIT.
    counted: columns as `segmentation.count` returns them, in the order of the data; without those
      of instances if the masks are given.
    meta: the loader's description of the same expressions, in the same order.
    protocol: that the pixels were counted by.
    max_instances: K; a `selected` of K becomes null.
  """
  values = {name: column.tolist() for name, column in counted.items()}
  for prefix in ("", "boundary_"):
    if f"{prefix}union" in counted:
      pair = (counted[f"{prefix}{name}"].astype(np.int64) for name in ("intersection", "union"))
      values[f"{prefix}iou"] = protocol.iou(*pair).tolist()
  if "selected" in values:
    values["selected"] = [None if slot == max_instances else slot for slot in values["selected"]]
  names = [name for name in (*FIELDS, *OPTIONAL) if name in values]
  rows = []
  for position, known in enumerate(meta):
    row = {"data": data, "protocol": protocol.name, **known}
    row["words"] = len(preprocess.normalise_text(known["expression"]).split())
    row |= {name: values[name][position] for name in names}
    rows.append({name: row[name] for name in (*FIELDS, *OPTIONAL) if name in row})
  return rows


def columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
  """Returns one array per numeric key.

  `selected` and keys that are missing in some rows are left out.
  """
  types = {**FIELDS, **OPTIONAL}
  numbers = [
    name
    for name in rows[0]
    if name in types and types[name] is not str and name != "selected"
    if name in FIELDS or all(name in row for row in rows)
  ]
  return {name: np.array([row[name] for row in rows], types[name]) for name in numbers}


def breakdowns(columns: Columns, summary: Summary) -> dict[str, dict[str, dict[str, Any]]]:
  """Summarises groups of expressions; empty groups are left out.

  Args:
    columns: one value per expression; `area` is that of the target in pixels of the image, `words`
      the number of words of the expression.
    summary: yields the metrics of the expressions in the columns that it is given.

  Returns:
    `by_size` (COCO's sizes, and `none` for expressions without a target) and `by_words`, each from
    a group to its metrics.
  """
  groups = {"by_size": _by_size(columns["area"]), "by_words": _by_words(columns["words"])}
  return {
    name: {
      group: dict(summary({key: values[members] for key, values in columns.items()}))
      for group, members in by_group
      if members.any()
    }
    for name, by_group in groups.items()
  }


def _by_size(area: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
  yield "none", area == 0
  least = 1.0
  for name, limit in OBJECT_SIZES.items():
    yield name, (area >= least) & (area < limit)
    least = limit


def _by_words(words: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
  for name, (least, most) in LENGTHS.items():
    yield name, (words >= least) & (words <= most)


def write(path: str | os.PathLike, rows: Sequence[Row]) -> None:
  """Writes one row per line.

  Raises:
    InputError: the file cannot be written.
  """
  text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  atomic_files.write_whole(path, text)


def read(path: str | os.PathLike) -> list[Row]:
  """Reads a file that `write` wrote; unknown keys are kept.

  Raises:
    InputError: no such file, an empty file, or a line that is not such a row.
  """
  try:
    file = untrusted_files.open_text(path, str(path))
  except InputError as error:
    raise InputError(f"{error}; `evaluate --per_expression` writes such files") from error
  with file:
    rows = [_parse(line, f"{path}, line {number}") for number, line in enumerate(file, 1)]
  if not rows:
    raise InputError(f"{path}: the file is empty; `evaluate --per_expression` writes such files")
  return rows


def _parse(line: bytes, where: str) -> Row:
  try:
    row = json.loads(line)
  except UnicodeDecodeError as error:
    raise InputError(
      f"{where}: not a text file; `evaluate --per_expression` writes such files"
    ) from error
  except (ValueError, RecursionError) as error:
    raise InputError(
      f"{where}: invalid JSON ({getattr(error, 'msg', error)}); write the file again with "
      "`evaluate --per_expression`"
    ) from error
  if not isinstance(row, dict):
    raise InputError(f"{where}: not a JSON object; `evaluate --per_expression` writes one per line")
  for name, expected in FIELDS.items():
    if name not in row:
      raise InputError(
        f"{where}: missing key {name!r}; write the file again with `evaluate --per_expression`"
      )
    _check(row[name], name, expected, where)
  needed = [name for group in (_MODEL, _BOUNDARY) if group.keys() & row.keys() for name in group]
  for name, expected in OPTIONAL.items():
    if name in row:
      _check(row[name], name, expected, where)
    elif name in needed:
      raise InputError(
        f"{where}: missing key {name!r}; write the file again with `evaluate --per_expression`"
      )
  if row["protocol"] not in PROTOCOLS:
    raise InputError(
      f"{where}: unknown protocol {row['protocol']!r}; the protocols are {', '.join(PROTOCOLS)}"
    )
  _check_pair(row, "", where)
  if "boundary_union" in row:
    _check_pair(row, "boundary_", where)
  return row


def _check_pair(row: Row, prefix: str, where: str) -> None:
  intersection, union = row[f"{prefix}intersection"], row[f"{prefix}union"]
  if intersection > union:
    name = "intersection of the boundaries" if prefix else "intersection"
    raise InputError(f"{where}: the {name}, {intersection}, is larger than the union, {union}")


def _check(value: Any, name: str, expected: type, where: str) -> None:
  if name == "selected" and value is None:
    return
  types = (int, float) if expected is float else expected
  if not isinstance(value, types) or (expected is not bool and isinstance(value, bool)):
    raise InputError(f"{where}: {name} is {value!r}, which is not {_TYPES[expected]}")
  if name in _SHARES and not 0 <= value <= 1:
    raise InputError(f"{where}: {name} is {value}; it must be between 0 and 1")
  if expected is int and abs(value) >= 2**63:
    raise InputError(f"{where}: {name} does not fit into 64 bits")
  if expected is int and name not in _MAY_BE_NEGATIVE and value < 0:
    raise InputError(f"{where}: {name} is {value}; it cannot be negative")
