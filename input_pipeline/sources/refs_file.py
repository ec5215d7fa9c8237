"""Reads refs files of github.com/lichengunc/refer and of data sets that adopted its layout.

They are pickles or JSON: a list of refs with the annotations that form the target, a split and
sentences. In gRefCOCO and Ref-ZOM a ref has several annotations or none; in R-RefCOCO some of a
ref's sentences have no target.
"""

import dataclasses
import re
import reprlib
from collections.abc import Collection
from typing import Any

from input_pipeline import preprocess
from input_pipeline.common import untrusted_files, untrusted_json, untrusted_pickle
from input_pipeline.common.errors import InputError
from input_pipeline.masks.row_index import Id, whole_number

NO_TARGET = -1
"""The only annotation of a ref without a target."""

NO_SENTENCES = "refs without sentences"
EMPTY_SENTENCES = "refs with only empty sentences"
EMPTY_SENTENCE = "empty sentences"

_SPLIT = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# Including white space, byte order marks and gzip. No pickle starts with these.
_JSON_STARTS = b"[{ \t\r\n\xef\xff\xfe\x1f\0"
# TFDS's name for the union of all splits.
_RESERVED_SPLITS = ("all",)


@dataclasses.dataclass(frozen=True)
class Row:
  """A checked ref of a file."""

  ref_id: int
  ann_ids: tuple[Id, ...]
  """Annotations that form the target; empty without a target."""
  categories: tuple[int, ...]
  """Their categories according to the ref; empty if not given."""
  image_id: int
  split: str
  sentences: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Refs:
  """The content of a refs file."""

  rows: list[Row]
  """In the file's order."""
  left_out: dict[str, list[int]]
  """Ref ids by what was left out: NO_SENTENCES, EMPTY_SENTENCES or EMPTY_SENTENCE."""
  divided: list[int]
  """Ids of refs with sentences both with and without a target; the latter form the ref -1 - id."""


@dataclasses.dataclass(frozen=True)
class Rules:
  """The rules for the refs of a data set."""

  dataset: str
  splits: Collection[str] | None
  """Allowed splits; None for any."""
  generalised: bool
  """Whether a ref may have several annotations or none."""


def read(path: str, rules: Rules) -> Refs:
  """Reads a file and checks it, except for its annotations.

  Args:
    path: of a pickle or JSON.
    rules: of the data set.

  Raises:
    InputError: the file or a ref is invalid, or no ref has a sentence.
  """
  loaded = _load(path)
  if not isinstance(loaded, list) or not loaded:
    raise InputError(f"{path}: not a list of refs; check that this is the refs file")
  reader = _Reader(path, rules)
  for number, fields in enumerate(loaded):
    reader.add(number, fields)
  if not reader.refs.rows:
    raise InputError(f"{path}: no ref has a sentence; is the file complete?")
  return reader.refs


def is_int64(value: Any) -> bool:
  """Returns whether a value is a 64-bit integer, as stored in records."""
  return type(value) is int and -(1 << 63) <= value < 1 << 63


def _load(path: str) -> Any:
  """Returns the content of a file; its first byte distinguishes pickles from JSON."""
  with untrusted_files.open_file(path, path) as file:
    first = file.read(1)
  is_json = first in _JSON_STARTS if first else path.endswith(".json")
  try:
    return (
      untrusted_json.load_file(path, nan_as_none=True) if is_json else untrusted_pickle.load(path)
    )
  except InputError as error:
    hint = "" if "docs/" in str(error) else "; docs/guides/datasets.md lists the sources"
    raise InputError(f"{error}{hint}") from error


class _Reader:
  """Checks refs one by one."""

  def __init__(self, path: str, rules: Rules):
    self.refs = Refs([], {}, [])
    self._path, self._rules = path, rules

  def add(self, number: int, fields: Any) -> None:
    where = f"{self._path}, ref number {number}"
    if not isinstance(fields, dict):
      raise InputError(
        f"{where}: expected a dict, got {type(fields).__name__}; is it another file?"
      )
    ref_id = _integer(where, "ref_id", fields.get("ref_id"))
    where = f"{self._path}, ref {ref_id}"
    present, absent = self._sentences(where, ref_id, fields.get("sentences"))
    if not present and not absent:
      return
    ann_ids = self._ann_ids(where, fields) if present else ()
    if ann_ids and absent:
      self.refs.divided.append(ref_id)
      self._add_row(where, -1 - ref_id, (), fields, absent)
      absent = []
    if not present and fields.get("no_target") in (False, 0):
      raise InputError(
        f"{where}: no_target is {fields['no_target']}, but `exist` is false for all sentences; is "
        "the file damaged?"
      )
    self._add_row(where, ref_id, ann_ids, fields, present + absent)

  def _add_row(
    self,
    where: str,
    ref_id: int,
    ann_ids: tuple[Id, ...],
    fields: dict[str, Any],
    sentences: list[str],
  ) -> None:
    image_id = _integer(where, "image_id", fields.get("image_id"))
    split = self._split(where, fields.get("split"))
    categories = self._categories(where, fields) if ann_ids else ()
    self.refs.rows.append(Row(ref_id, ann_ids, categories, image_id, split, tuple(sentences)))

  def _sentences(self, where: str, ref_id: int, rows: Any) -> tuple[list[str], list[str]]:
    """Returns the expressions with and without a target."""
    if rows is not None and not isinstance(rows, list):
      raise InputError(f"{where}: sentences is {reprlib.repr(rows)}, not a list")
    sentences: tuple[list[str], list[str]] = [], []
    for index, row in enumerate(rows or ()):
      if text := _expression(f"{where}, sentence {index}", row):
        exists = _exists(f"{where}, sentence {index}", row) if self._rules.generalised else True
        sentences[not exists].append(text)
    read = len(sentences[0]) + len(sentences[1])
    if not rows:
      self._leave_out(NO_SENTENCES, ref_id)
    elif not read:
      self._leave_out(EMPTY_SENTENCES, ref_id)
    else:
      for _ in range(len(rows) - read):
        self._leave_out(EMPTY_SENTENCE, ref_id)
    return sentences

  def _leave_out(self, what: str, ref_id: int) -> None:
    self.refs.left_out.setdefault(what, []).append(ref_id)

  def _ann_ids(self, where: str, fields: dict[str, Any]) -> tuple[Id, ...]:
    value = fields.get("ann_id")
    if not self._rules.generalised:
      return (_integer(where, "ann_id", value),)
    # Ref-ZOM lists annotations even for refs without a target; its authors ignore them.
    if fields.get("source") == "zero":
      return ()
    no_target = fields.get("no_target")
    if no_target and value in (None, []):
      return ()
    values = value if isinstance(value, list) else [value]
    ids = tuple(_id(where, "ann_id", item) for item in values)
    empty = ids == (NO_TARGET,)
    if not ids or (NO_TARGET in ids and not empty) or len(set(ids)) < len(ids):
      raise InputError(
        f"{where}: ann_id is {reprlib.repr([*ids])}; it must be distinct annotations, or [-1] for "
        "no target"
      )
    if no_target is not None and no_target != empty:
      raise InputError(
        f"{where}: no_target is {reprlib.repr(no_target)}, but ann_id is "
        f"{reprlib.repr([*ids])}; is the file damaged?"
      )
    return () if empty else ids

  def _categories(self, where: str, fields: dict[str, Any]) -> tuple[int, ...]:
    value = fields.get("category_id", [])
    values = value if isinstance(value, list) and self._rules.generalised else [value]
    numbers = tuple(number for item in values if (number := whole_number(item)) is not None)
    if len(numbers) < len(values) and self._rules.splits is not None:
      kind = "a list of integers" if self._rules.generalised else "an integer"
      raise InputError(
        f"{where}: category_id is {reprlib.repr(value)}, not {kind}; is this the refs file of "
        "another data set?"
      )
    return numbers if len(numbers) == len(values) else ()

  def _split(self, where: str, split: Any) -> str:
    known = self._rules.splits
    valid = isinstance(split, str) and _SPLIT.fullmatch(split) and split not in _RESERVED_SPLITS
    if known is not None and not (valid and split in known):
      raise InputError(
        f"{where}: split {reprlib.repr(split)}, but {self._rules.dataset} has {', '.join(known)}; "
        "is this the refs file of another data set? --dataset refer:FOLDER:SPLITBY reads any"
      )
    if not valid:
      raise InputError(
        f"{where}: split {reprlib.repr(split)}; it must be a name of letters, digits and _, such "
        "as 'val'"
      )
    return str(split)


def _expression(where: str, fields: Any) -> str:
  """Returns the raw expression or, if that is empty, the authors' cleaned one."""
  if not isinstance(fields, dict):
    raise InputError(f"{where}: expected a dict, got {type(fields).__name__}")
  for text in (fields.get("raw"), fields.get("sent")):
    if text is not None and not isinstance(text, str):
      raise InputError(
        f"{where} (sent_id {reprlib.repr(fields.get('sent_id'))}): {reprlib.repr(text)} is not a "
        "string; correct it or remove it from the file"
      )
    if text and preprocess.is_expression(text):
      return text
  return ""


def _exists(where: str, fields: dict[str, Any]) -> bool:
  """Returns whether there is a target, which R-RefCOCO specifies per sentence."""
  exists = fields.get("exist", True)
  if exists not in (False, True):
    raise InputError(f"{where}: exist is {reprlib.repr(exists)}; expected true or false")
  return bool(exists)


def _id(where: str, key: str, value: Any) -> Id:
  number = whole_number(value)
  if not is_int64(number) and not (number is None and isinstance(value, str) and value):
    raise InputError(
      f"{where}: {key} is {reprlib.repr(value)}, not an id; is this the refs file of another "
      "project?"
    )
  return value if number is None else number


def _integer(where: str, key: str, value: Any) -> int:
  number = whole_number(value)
  if number is None or not is_int64(number):
    raise InputError(
      f"{where}: {key} is {reprlib.repr(value)}, not an integer; is this a refs file of another "
      "project (gRefCOCO has several ann_id per ref)?"
    )
  return number
