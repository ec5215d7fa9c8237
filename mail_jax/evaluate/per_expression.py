"""What an evaluation found of every sentence, one row each: JSON lines that `evaluate --per_expression` writes."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline import preprocess
from input_pipeline.common import atomic_files
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
  "chosen": int,
  "chosen_iou": float,
  "oracle_iou": float,
  "cut": bool,
}
"""The keys of a row, in their order, and the types of the values; `chosen` may be null (docs/reference/formats.md)."""
_BOUNDARY: dict[str, type] = {
  "boundary_intersection": int,
  "boundary_union": int,
  "boundary_iou": float,
}
OPTIONAL: dict[str, type] = {**_BOUNDARY, "no_target_probability": float, "raw_union": int}
"""Keys that rows have where the protocol compares outlines, and where the model says such a thing."""

_SHARES = ("iou", "boundary_iou", "chosen_iou", "oracle_iou", "no_target_probability")
_MAY_BE_NEGATIVE = ("image_id", "ref_id")
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def make(
  data: str,
  counted: Mapping[str, np.ndarray],
  meta: Sequence[Mapping[str, Any]],
  protocol: Protocol,
  max_instances: int,
) -> list[Row]:
  """Joins what was counted on the device with what is known of the sentences.

  Args:
    data: DATASET/SPLIT.
    counted: a value a sentence of what `segmentation.count` returns, in the order of the data.
    meta: what the loader says of the same sentences, in the same order.
    protocol: by which they were counted.
    max_instances: K; `chosen` is null where it is that.
  """
  found = {name: values.tolist() for name, values in counted.items()}
  for prefix in ("", "boundary_"):
    if f"{prefix}union" in counted:
      pair = (counted[f"{prefix}{name}"].astype(np.int64) for name in ("intersection", "union"))
      found[f"{prefix}iou"] = protocol.iou(*pair).tolist()
  found["chosen"] = [None if slot == max_instances else slot for slot in found["chosen"]]
  names = [name for name in (*FIELDS, *OPTIONAL) if name in found]
  rows = []
  for position, known in enumerate(meta):
    row = {"data": data, "protocol": protocol.name, **known}
    row["words"] = len(preprocess.normalise_text(known["expression"]).split())
    row |= {name: found[name][position] for name in names}
    rows.append({name: row[name] for name in (*FIELDS, *OPTIONAL) if name in row})
  return rows


def columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
  """The numbers of the rows, an array a key; `chosen`, texts and what only some of them have are left out."""
  kinds = {**FIELDS, **OPTIONAL}
  numbers = [
    name
    for name in rows[0]
    if name in kinds and kinds[name] is not str and name != "chosen"
    if name in FIELDS or all(name in row for row in rows)
  ]
  return {name: np.array([row[name] for row in rows], kinds[name]) for name in numbers}


def breakdowns(columns: Columns, summary: Summary) -> dict[str, dict[str, dict[str, Any]]]:
  """Summarises the sentences of each kind; a kind without sentences is left out.

  Args:
    columns: a value a sentence; `area` is that of the target in pixels of the photo, `words` how many the sentence has.
    summary: of sentences, given their columns.

  Returns:
    `by_size` (COCO's sizes, and `none` where nothing is meant) and `by_words`, each from a kind to its metrics.
  """
  groups = {"by_size": _by_size(columns["area"]), "by_words": _by_words(columns["words"])}
  return {
    name: {
      kind: dict(summary({key: values[chosen] for key, values in columns.items()}))
      for kind, chosen in kinds
      if chosen.any()
    }
    for name, kinds in groups.items()
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
  """Writes a row a line.

  Raises:
    InputError: the file cannot be written.
  """
  text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  atomic_files.write_whole(path, text)


def read(path: str | os.PathLike) -> list[Row]:
  """Reads what `write` wrote; keys that it does not know stay.

  Raises:
    InputError: no such file, no row in it, or a line that is no such row.
  """
  try:
    with open(path, encoding="utf-8") as file:
      rows = [_parse(line, f"{path}, line {number}") for number, line in enumerate(file, 1)]
  except OSError as error:
    raise InputError(
      f"{path}: {error.strerror}; `evaluate --per_expression` writes such files"
    ) from error
  except UnicodeDecodeError as error:
    raise InputError(
      f"{path}: it is no text; `evaluate --per_expression` writes such files"
    ) from error
  if not rows:
    raise InputError(
      f"{path}: there is no row in it; `evaluate --per_expression` writes such files"
    )
  return rows


def _parse(line: str, where: str) -> Row:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise InputError(
      f"{where}: it is no JSON ({getattr(error, 'msg', error)}); write the file again with `evaluate --per_expression`"
    ) from error
  if not isinstance(row, dict):
    raise InputError(
      f"{where}: it is no JSON object; `evaluate --per_expression` writes one a line"
    )
  for name, kind in FIELDS.items():
    if name not in row:
      raise InputError(
        f"{where}: there is no {name!r}; write the file again with `evaluate --per_expression`"
      )
    _check(row[name], name, kind, where)
  # Rows of before boundaries were counted have none of them.
  needed = _BOUNDARY if any(name in row for name in _BOUNDARY) else {}
  for name, kind in OPTIONAL.items():
    if name in row:
      _check(row[name], name, kind, where)
    elif name in needed:
      raise InputError(
        f"{where}: there is no {name!r}; write the file again with `evaluate --per_expression`"
      )
  if row["protocol"] not in PROTOCOLS:
    raise InputError(
      f"{where}: protocol {row['protocol']!r}: the protocols are {', '.join(PROTOCOLS)}"
    )
  _check_pair(row, "", where)
  if needed:
    _check_pair(row, "boundary_", where)
  return row


def _check_pair(row: Row, prefix: str, where: str) -> None:
  intersection, union = row[f"{prefix}intersection"], row[f"{prefix}union"]
  if intersection > union:
    what = "intersection of the boundaries" if prefix else "intersection"
    raise InputError(f"{where}: the {what}, {intersection}, is larger than the union, {union}")


def _check(value: Any, name: str, kind: type, where: str) -> None:
  if name == "chosen" and value is None:
    return
  kinds = (int, float) if kind is float else kind
  if not isinstance(value, kinds) or (kind is not bool and isinstance(value, bool)):
    raise InputError(f"{where}: {name} is {value!r}, which is not {_WORDS[kind]}")
  if name in _SHARES and not 0 <= value <= 1:
    raise InputError(f"{where}: {name} is {value}; it must be between 0 and 1")
  if kind is int and abs(value) >= 2**63:
    raise InputError(f"{where}: {name} is larger than any number that is written there")
  if kind is int and name not in _MAY_BE_NEGATIVE and value < 0:
    raise InputError(f"{where}: {name} is {value}; it cannot be negative")
