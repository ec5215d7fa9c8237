"""A line of a user's own data: which keys it may have, and what they hold (docs/guides/custom-data.md)."""

import dataclasses
import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from input_pipeline import preprocess
from input_pipeline.common import untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.custom.problems import Problem, Wrong

KEYS = (
  "image",
  "sentences",
  "target",
  "split",
  "instances",
  "ref_id",
  "image_id",
  "annotations",
  "meta",
)
MASK_KEYS = ("rle", "polygons", "png", "ann_id", "ann_ids")
"""A mask has exactly one of them."""
INSTANCE_KEYS = ("score", "category")
DEFAULT_SPLIT = "train"
MAX_LINE = 64 << 20  # bytes
_MAX_ID = 2**63
_SPLIT = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_RESERVED_SPLITS = ("all",)  # TFDS's word for all of them together

Mask = dict[str, Any]
"""As the line has it: one of MASK_KEYS, `value` beside `png`, and INSTANCE_KEYS of an instance."""


@dataclasses.dataclass(frozen=True)
class Line:
  """A line, each of its fields of the right type."""

  number: int
  """In the file, from 1."""
  image: str
  """Path below the folder of images."""
  sentences: tuple[str, ...]
  target: tuple[Mask, ...]
  """What the sentences mean is the union; none of them, and nothing is meant."""
  split: str
  instances: tuple[Mask, ...] | None
  """None where the line says nothing of them."""
  ref_id: int | None
  image_id: int | None
  annotations: str | None
  """The COCO file that `ann_id` looks into, relative to the file of lines."""


def parse(
  number: int, data: str | bytes, *, targets: bool = True
) -> tuple[Line | None, list[Problem]]:
  """Reads a line.

  Args:
    number: of the line, for its problems.
    data: its text, JSON.
    targets: whether it must have `target`; to predict, it need not.

  Returns:
    The line, None where something is wrong with it; and everything that is.
  """
  try:
    fields = untrusted_json.loads(data, "it", max_bytes=MAX_LINE)
  except InputError as error:
    return None, [Problem(number, "not JSON", str(error))]
  if not isinstance(fields, dict):
    text = f"a line is an object in braces, and this is a {type(fields).__name__}"
    return None, [Problem(number, "not JSON", text)]
  found: list[Problem] = []
  values: dict[str, Any] = {}
  required = ("image", "sentences", "target") if targets else ("image", "sentences")
  for wrong in _check_keys(fields, KEYS, required):
    found.append(wrong.at(number))
  for key, check in _CHECKS.items():
    if key not in fields:
      values[key] = _DEFAULTS.get(key)
      continue
    wrongs: list[Wrong] = []
    values[key] = check(fields[key], wrongs)
    found += [wrong.at(number, key) for wrong in wrongs]
  return (None if found else Line(number=number, **values)), found


def _check_keys(
  fields: Mapping[str, Any], known: Collection[str], required: Collection[str]
) -> Iterator[Wrong]:
  for key in fields:
    if key not in known:
      near = difflib.get_close_matches(key, known, 1, 0.6)
      hint = f"did you mean {near[0]!r}?" if near else f"the known ones are {', '.join(known)}"
      yield Wrong("unknown key", f"unknown key {key!r}; {hint}")
  for key in required:
    if key not in fields:
      more = "; null says that nothing is meant" if key == "target" else ""
      yield Wrong("missing key", f"the key {key!r} is missing{more}")


def _check_path(value: Any, wrongs: list[Wrong]) -> str:
  if not isinstance(value, str) or not value:
    wrongs.append(Wrong("wrong type", f"must be a path, not {_short(value)}"))
    return ""
  return value


def _check_sentences(value: Any, wrongs: list[Wrong]) -> tuple[str, ...]:
  if not isinstance(value, list) or not value:
    what = "an empty list" if value == [] else _short(value)
    kind = "empty sentence" if value == [] else "wrong type"
    wrongs.append(Wrong(kind, f'must be a list of sentences, such as ["the red cup"], not {what}'))
    return ()
  for number, sentence in enumerate(value):
    if not isinstance(sentence, str):
      wrongs.append(Wrong("wrong type", f"number {number + 1} is {_short(sentence)}, not text"))
      continue
    try:
      preprocess.normalise_text(sentence)
    except InputError as error:
      wrongs.append(Wrong("empty sentence", f"number {number + 1}: {error}"))
  return tuple(sentence for sentence in value if isinstance(sentence, str))


def _check_target(value: Any, wrongs: list[Wrong]) -> tuple[Mask, ...]:
  masks = [] if value is None else value if isinstance(value, list) else [value]
  for number, mask in enumerate(masks):
    where = f"number {number + 1}: " if isinstance(value, list) else ""
    _check_mask(mask, (), where, wrongs)
  return tuple(mask for mask in masks if isinstance(mask, dict))


def _check_instances(value: Any, wrongs: list[Wrong]) -> tuple[Mask, ...]:
  if not isinstance(value, list):
    wrongs.append(Wrong("wrong type", f"must be a list of masks, not {_short(value)}"))
    return ()
  for number, mask in enumerate(value):
    where = f"number {number + 1}: "
    _check_mask(mask, INSTANCE_KEYS, where, wrongs)
    if not isinstance(mask, dict):
      continue
    if "ann_ids" in mask:
      wrongs.append(Wrong("wrong mask", f"{where}an instance is one thing: give its 'ann_id'"))
    if not _is_number(mask.get("score", 1.0)):
      wrongs.append(
        Wrong("wrong type", f"{where}score must be a number, not {_short(mask['score'])}")
      )
    category = mask.get("category", 0)
    if not _is_whole(category) or not 0 <= category < 2**31:
      text = f"category must be a whole number from 0, not {_short(category)}"
      wrongs.append(Wrong("wrong type", where + text))
  return tuple(mask for mask in value if isinstance(mask, dict))


def _check_mask(mask: Any, more: tuple[str, ...], where: str, wrongs: list[Wrong]) -> None:
  if not isinstance(mask, dict):
    text = f'a mask is an object such as {{"polygons": [[x, y, x, y, ...]]}}, not {_short(mask)}'
    wrongs.append(Wrong("wrong mask", where + text))
    return
  for wrong in _check_keys(mask, (*MASK_KEYS, "value", *more), ()):
    wrongs.append(Wrong(wrong.kind, f"{where}{wrong}"))
  kinds = [key for key in MASK_KEYS if key in mask]
  if len(kinds) != 1:
    text = f"has {' and '.join(kinds) or 'none'} of {', '.join(MASK_KEYS)}; a mask has exactly one"
    wrongs.append(Wrong("wrong mask", where + text))
    return
  for wrong in _CHECK_MASK[kinds[0]](mask[kinds[0]]):
    wrongs.append(Wrong(wrong.kind, f"{where}{kinds[0]} {wrong}"))
  if "value" in mask and (kinds[0] != "png" or not _is_whole(mask["value"])):
    text = "'value' is a whole number beside 'png': the pixels that have it are meant"
    wrongs.append(Wrong("wrong mask", where + text))


def _check_rle(value: Any) -> Iterator[Wrong]:
  if not isinstance(value, dict) or set(value) != {"size", "counts"}:
    yield Wrong("wrong RLE", "must have 'size' and 'counts', as COCO's have")
    return
  size, counts = value["size"], value["counts"]
  if not isinstance(size, list) or len(size) != 2 or not all(map(_is_whole, size)):
    yield Wrong("wrong RLE", f"has the size {_short(size)}; it must be [height, width]")
  if isinstance(counts, list):
    if not all(map(_is_whole, counts)):
      yield Wrong("wrong RLE", "has counts that are no whole numbers")
  elif not isinstance(counts, str):
    yield Wrong("wrong RLE", f"has the counts {_short(counts)}; they are COCO's string, or a list")


def _check_polygons(value: Any) -> Iterator[Wrong]:
  if not isinstance(value, list) or not value or not all(isinstance(p, list) for p in value):
    yield Wrong("wrong polygon", "must be a list of polygons, each a list x, y, x, y, ...")
    return
  for number, polygon in enumerate(value):
    where = f"number {number + 1} has"
    if not all(map(_is_number, polygon)):
      odd = next(x for x in polygon if not _is_number(x))
      yield Wrong("wrong polygon", f"{where} {_short(odd)}, which is no number")
    elif len(polygon) % 2:
      yield Wrong("wrong polygon", f"{where} {len(polygon)} coordinates; an x or a y is missing")
    elif len(polygon) < 6:
      yield Wrong("wrong polygon", f"{where} {len(polygon) // 2} points; it needs 3 or more")


def _check_png(value: Any) -> Iterator[Wrong]:
  if not isinstance(value, str) or not value:
    yield Wrong("wrong type", f"must be the path of a file, not {_short(value)}")


def _check_ann_id(value: Any) -> Iterator[Wrong]:
  if not _is_whole(value):
    yield Wrong("wrong type", f"must be a whole number, not {_short(value)}")


def _check_ann_ids(value: Any) -> Iterator[Wrong]:
  if not isinstance(value, list) or not value or not all(map(_is_whole, value)):
    yield Wrong("wrong type", f"must be a list of whole numbers, not {_short(value)}")


def _check_split(value: Any, wrongs: list[Wrong]) -> str:
  if not isinstance(value, str) or not _SPLIT.fullmatch(value) or value in _RESERVED_SPLITS:
    text = f"must be a name of letters, digits and _, such as 'val', not {_short(value)}"
    wrongs.append(Wrong("wrong split", text))
    return DEFAULT_SPLIT
  return value


def _check_id(value: Any, wrongs: list[Wrong]) -> int | None:
  if _is_whole(value) and 0 <= value < _MAX_ID:
    return value
  wrongs.append(Wrong("wrong type", f"must be a whole number from 0, not {_short(value)}"))
  return None


def _is_whole(value: Any) -> bool:
  return type(value) is int


def _is_number(value: Any) -> bool:
  return type(value) is int or (type(value) is float and math.isfinite(value))


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else text[:37] + "..."


_CHECK_MASK = {
  "rle": _check_rle,
  "polygons": _check_polygons,
  "png": _check_png,
  "ann_id": _check_ann_id,
  "ann_ids": _check_ann_ids,
}
_CHECKS = {
  "image": _check_path,
  "sentences": _check_sentences,
  "target": _check_target,
  "split": _check_split,
  "instances": _check_instances,
  "ref_id": _check_id,
  "image_id": _check_id,
  "annotations": _check_path,
}
_DEFAULTS = {"split": DEFAULT_SPLIT, "target": ()}
