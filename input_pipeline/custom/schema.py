"""The line format of custom data: allowed keys, the types of their values, and what a violation is.

docs/reference/formats.md describes the format for users.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeGuard

from input_pipeline import preprocess
from input_pipeline.common import untrusted_json
from input_pipeline.common.errors import InputError

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
"""A mask has exactly one of these."""
INSTANCE_KEYS = ("score", "category")
DEFAULT_SPLIT = "train"
MAX_LINE = 64 << 20
"""Bytes."""
_MAX_ID = 2**63
_SPLIT = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# TFDS's name for all splits together.
_RESERVED_SPLITS = ("all",)

# Other tools' names of each key, in lower-case letters only.
_OTHER_NAMES = {
  "image": "imagepath imagefile imagefilename imagename imageurl img imgpath imgname imgfile "
  "filename file filepath path photo picture",
  "sentences": "sentence caption captions text texts expression expressions phrase phrases query "
  "queries question questions prompt prompts prefix description descriptions referringexpression "
  "referringexpressions refexp sent sents raw",
  "target": "mask masks maskpath maskfile gtmask segmentation segmentations bbox bboxes box boxes "
  "polygon polygons rle png annid annids groundtruth suffix",
  "instances": "objects proposals detections candidates regions anns",
  "split": "subset set partition phase",
  "category": "categoryid class classid",
  "score": "confidence conf",
}
_MASK_NAMES = (
  "mask maskpath maskfile path file filename image segmentation segmentations polygon points "
  "segments bbox box bboxes boxes size counts runlengths"
)
_HOLDS = {
  "image": ", a path",
  "sentences": ', such as ["the red cup"]',
  "target": ', a mask such as {"polygons": [[x, y, x, y, ...]]} or {"png": "mask.png"}',
  "instances": ", a list of masks",
}
_MASKS = (
  'a mask is {"polygons": [[x, y, x, y, ...]]}, {"rle": {"size": [height, width], "counts": ...}}, '
  '{"png": "mask.png"} or {"ann_id": ...}; a box is a polygon of its four corners'
)

Mask = dict[str, Any]
"""A mask as in the line: one of MASK_KEYS; `value` beside `png`; INSTANCE_KEYS of instances."""


@dataclasses.dataclass(frozen=True, order=True)
class Problem:
  """An error in a file of annotations, or a warning."""

  line: int
  """Line number, from 1; 0 is the file itself."""
  kind: str
  """What similar problems have in common, such as `image is missing`."""
  message: str
  warning: bool = False
  """Whether the line can be used anyway."""

  def __str__(self) -> str:
    """Returns the message with its line number."""
    return f"line {self.line}: {self.message}" if self.line else self.message


class LineError(ValueError):
  """An error in one part of a line: the kind and message of a `Problem`."""

  def __init__(self, kind: str, message: str):
    """Sets the fields that the problem will have.

    Args:
      kind: as in `Problem`.
      message: as in `Problem`.
    """
    super().__init__(message)
    self.kind = kind

  def at(self, line: int, field: str = "") -> Problem:
    """Returns the error as a problem of a line, or of a field in it."""
    return Problem(line, self.kind, f"{field}: {self}" if field else str(self))


@dataclasses.dataclass(frozen=True)
class Annotation:
  """A valid line: all fields have the right types."""

  number: int
  """Line number, from 1."""
  image: str
  """Path below the folder of images."""
  sentences: tuple[str, ...]
  target: tuple[Mask, ...]
  """The target is the union of these masks; empty if the expressions refer to nothing."""
  split: str
  instances: tuple[Mask, ...] | None
  """None if the line has no such key."""
  ref_id: int | None
  image_id: int | None
  annotations: str | None
  """The COCO file that `ann_id` refers to, relative to the file of annotations."""


def parse(
  number: int, data: str | bytes, *, targets: bool = True
) -> tuple[Annotation | None, list[Problem]]:
  """Parses a line.

  Args:
    number: line number, for the problems.
    data: the JSON text.
    targets: whether `target` is required; prediction does not need it.

  Returns:
    The annotation, or None if the line has an error; and all problems.
  """
  try:
    fields = untrusted_json.loads(data, "the line", max_bytes=MAX_LINE)
  except InputError as error:
    return None, [Problem(number, "invalid JSON", str(error))]
  if not isinstance(fields, dict):
    message = f"expected a JSON object, got {type(fields).__name__}"
    return None, [Problem(number, "invalid JSON", message)]
  problems: list[Problem] = []
  values: dict[str, Any] = {}
  required = ("image", "sentences", "target") if targets else ("image", "sentences")
  for error in _check_keys(fields, KEYS, required):
    problems.append(error.at(number))
  for key, check in _CHECKS.items():
    if key not in fields:
      values[key] = _DEFAULTS.get(key)
      continue
    errors: list[LineError] = []
    values[key] = check(fields[key], errors)
    problems += [error.at(number, key) for error in errors]
  return (None if problems else Annotation(number=number, **values)), problems


def _check_keys(
  fields: Mapping[str, Any], known: Collection[str], required: Collection[str]
) -> Iterator[LineError]:
  renamed = set()
  for key in fields:
    if key in known:
      continue
    right = _right_name(key, known)
    renamed.add(right)
    hint = f"allowed keys: {', '.join(known)}"
    if right is not None:
      hint = f"did you mean {right!r}{_HOLDS.get(right, '')}?"
    elif "rle" in known and _letters(key) in _MASK_NAMES.split():
      hint = _MASKS
    yield LineError("unknown key", f"unknown key {_shorten(key)}; {hint}")
  for key in required:
    if key not in fields and key not in renamed:
      hint = "; use null if the expressions refer to nothing" if key == "target" else ""
      yield LineError("missing key", f"missing key {key!r}{hint}")


def _right_name(key: str, known: Collection[str]) -> str | None:
  """Returns the key that another tool's key, or a misspelled one, corresponds to."""
  for right in known:
    if _letters(key) in (_letters(right), *_OTHER_NAMES.get(right, "").split()):
      return right
  return next(iter(difflib.get_close_matches(key, known, 1, 0.75)), None)


def _letters(key: str) -> str:
  return re.sub(r"[^a-z]", "", key.lower())


def _check_path(value: Any, errors: list[LineError]) -> str:
  if not isinstance(value, str) or not value:
    errors.append(LineError("wrong type", f"must be a path, not {_shorten(value)}"))
    return ""
  return value


def _check_sentences(value: Any, errors: list[LineError]) -> tuple[str, ...]:
  if not isinstance(value, list) or not value:
    kind = "empty expression" if value == [] else "wrong type"
    message = 'must be a non-empty list of expressions, such as ["the red cup"]'
    errors.append(LineError(kind, f"{message}, not {_shorten(value)}"))
    return ()
  for number, expression in enumerate(value):
    if not isinstance(expression, str):
      message = f"number {number + 1} must be a string, not {_shorten(expression)}"
      errors.append(LineError("wrong type", message))
      continue
    try:
      preprocess.normalise_text(expression)
    except InputError as error:
      errors.append(LineError("empty expression", f"number {number + 1}: {error}"))
  return tuple(expression for expression in value if isinstance(expression, str))


def _check_target(value: Any, errors: list[LineError]) -> tuple[Mask, ...]:
  masks = [] if value is None else value if isinstance(value, list) else [value]
  for number, mask in enumerate(masks):
    where = f"number {number + 1}: " if isinstance(value, list) else ""
    _check_mask(mask, (), where, errors)
  return tuple(mask for mask in masks if isinstance(mask, dict))


def _check_instances(value: Any, errors: list[LineError]) -> tuple[Mask, ...]:
  if not isinstance(value, list):
    errors.append(LineError("wrong type", f"must be a list of masks, not {_shorten(value)}"))
    return ()
  for number, mask in enumerate(value):
    where = f"number {number + 1}: "
    _check_mask(mask, INSTANCE_KEYS, where, errors)
    if not isinstance(mask, dict):
      continue
    if "ann_ids" in mask:
      message = f"{where}an instance is a single object; use 'ann_id'"
      errors.append(LineError("invalid mask", message))
    if not _is_number(mask.get("score", 1.0)):
      message = f"{where}score must be a number, not {_shorten(mask['score'])}"
      errors.append(LineError("wrong type", message))
    category = mask.get("category", 0)
    if not _is_integer(category) or not 0 <= category < 2**31:
      message = f"{where}category must be a non-negative integer, not {_shorten(category)}"
      errors.append(LineError("wrong type", message))
  return tuple(mask for mask in value if isinstance(mask, dict))


def _check_mask(mask: Any, optional: tuple[str, ...], where: str, errors: list[LineError]) -> None:
  if not isinstance(mask, dict):
    message = 'a mask is an object such as {"polygons": [[x, y, x, y, ...]]} or {"png": "m.png"}'
    errors.append(LineError("invalid mask", f"{where}{message}, not {_shorten(mask)}"))
    return
  unknown = list(_check_keys(mask, (*MASK_KEYS, "value", *optional), ()))
  errors += [LineError(error.kind, f"{where}{error}") for error in unknown]
  formats = [key for key in MASK_KEYS if key in mask]
  if unknown and not formats:
    return
  if len(formats) != 1:
    present = " and ".join(formats) or "none"
    message = f"a mask needs exactly one of {', '.join(MASK_KEYS)}; this one has {present}"
    errors.append(LineError("invalid mask", where + message))
    return
  for error in _CHECK_MASK[formats[0]](mask[formats[0]]):
    errors.append(LineError(error.kind, f"{where}{formats[0]} {error}"))
  if "value" in mask and (formats[0] != "png" or not _is_integer(mask["value"])):
    message = "'value' must be an integer, and is only allowed with 'png': it selects the pixels"
    errors.append(LineError("invalid mask", f"{where}{message} of that value"))


def _check_rle(value: Any) -> Iterator[LineError]:
  if not isinstance(value, dict) or set(value) != {"size", "counts"}:
    yield LineError("invalid RLE", "must have 'size' and 'counts', as in COCO")


def _check_polygons(value: Any) -> Iterator[LineError]:
  # `read_segmentation` checks the points once the size of the image is known.
  if not isinstance(value, list) or not value:
    yield LineError("invalid polygon", "must be a list of polygons, each a list x, y, x, y, ...")


def _check_png(value: Any) -> Iterator[LineError]:
  if not isinstance(value, str) or not value:
    yield LineError("wrong type", f"must be the path of a file, not {_shorten(value)}")


def _check_ann_id(value: Any) -> Iterator[LineError]:
  if not _is_integer(value):
    yield LineError("wrong type", f"must be an integer, not {_shorten(value)}")


def _check_ann_ids(value: Any) -> Iterator[LineError]:
  if not isinstance(value, list) or not value or not all(map(_is_integer, value)):
    yield LineError("wrong type", f"must be a list of integers, not {_shorten(value)}")


def _check_split(value: Any, errors: list[LineError]) -> str:
  if not isinstance(value, str) or not _SPLIT.fullmatch(value) or value in _RESERVED_SPLITS:
    message = f"must be a name of letters, digits and _, such as 'val', not {_shorten(value)}"
    errors.append(LineError("invalid split", message))
    return DEFAULT_SPLIT
  return value


def is_id(value: Any) -> TypeGuard[int]:
  """Returns whether a value can be the `image_id` or `ann_id` of a line: 64 bits, not negative."""
  return _is_integer(value) and 0 <= value < _MAX_ID


def _check_id(value: Any, errors: list[LineError]) -> int | None:
  if is_id(value):
    return value
  errors.append(LineError("wrong type", f"must be a non-negative integer, not {_shorten(value)}"))
  return None


def _is_integer(value: Any) -> bool:
  return type(value) is int


def _is_number(value: Any) -> bool:
  return type(value) is int or (type(value) is float and math.isfinite(value))


def _shorten(value: Any) -> str:
  text = "an empty list" if value == [] else repr(value)
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
