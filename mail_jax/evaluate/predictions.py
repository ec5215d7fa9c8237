"""Masks of any model, from a file or a folder, for the expressions of splits.

docs/guides/evaluate.md describes the files. No path in a file is opened.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from input_pipeline.common import untrusted_files, untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted
from input_pipeline.masks.segmentation import EmptySegmentation, read_segmentation
from input_pipeline.preprocess import images

# What `predict` writes to its folder.
_ROWS = "predictions.jsonl"
# Under one of these keys, a JSON object has its list of predictions.
_LISTS = ("predictions", "annotations", "results")
_MASKS = ("mask", "segmentation", "rle")
_PNG = re.compile(r"(-?\d{1,18})_(\d{1,9})\.png", re.IGNORECASE)
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Prediction:
  """A mask in a file, with what says which expression it is for.

  Attributes:
    where: its place, for error messages.
    fields: the object in the file; of a PNG, its name's numbers and `png`, its path.
  """

  where: str
  fields: Mapping[str, Any]

  def integer(self, key: str) -> int | None:
    """Returns a whole number, which may be written as text or with a fraction of zero.

    Raises:
      InputError: it is something else.
    """
    value = self.fields.get(key)
    if value is None:
      return None
    try:
      number = int(value)
      if not isinstance(value, bool) and float(value) == number and abs(number) < 2**63:
        return number
    except (TypeError, ValueError, OverflowError):
      pass
    raise InputError(f"{self.where}: {key} is {value!r:.40}, which is not a whole number")

  def text(self, keys: Sequence[str]) -> str | None:
    """Returns the first of several keys that the object has.

    Raises:
      InputError: it is not text.
    """
    key = next((key for key in keys if self.fields.get(key) is not None), None)
    if key is None:
      return None
    if not isinstance(self.fields[key], str):
      raise InputError(f"{self.where}: {key} is {self.fields[key]!r:.40}, which is not text")
    return self.fields[key]

  def mask(self, height: int, width: int, side: int | None) -> tuple[np.ndarray, list[str]]:
    """Returns the mask, and what was left out or read in another way.

    Args:
      height, width: of the image, in pixels.
      side: of a square that the mask may have instead.

    Raises:
      InputError: there is none, it cannot be read, or has another size.
    """
    if "png" in self.fields:
      return _read_png(self.fields["png"], self.where, height, width, side), []
    keys = [key for key in _MASKS if key in self.fields]
    if len(keys) != 1:
      found = " and ".join(keys) or f"none of {', '.join(_MASKS)}"
      raise InputError(f"{self.where}: has {found}; write the mask as COCO run lengths in `mask`")
    value = self.fields[keys[0]]
    if _is_dense(value):
      raise InputError(
        f"{self.where}: {keys[0]} is a list of rows of numbers; threshold probabilities, and write "
        "COCO run lengths (`pycocotools.mask.encode`)"
      )
    if side and isinstance(value, dict) and value.get("size") == [side, side]:
      height = width = side
    try:
      segmentation = read_segmentation(value, height, width)
      return segmentation.mask(), list(segmentation.notes)
    except EmptySegmentation:
      return np.zeros((height, width), bool), ["no mask given, counted as an empty one"]
    except ValueError as error:
      raise InputError(f"{self.where}: {keys[0]}: {error}") from error

  def answer(self) -> dict[str, Any]:
    """Returns the fields that hold the mask."""
    return {key: self.fields.get(key) for key in (*_MASKS, "no_target_probability")}

  def no_target_probability(self) -> float | None:
    """Returns the probability that there is no target, if the file has it."""
    value = self.fields.get("no_target_probability")
    if value is None:
      return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
      raise InputError(
        f"{self.where}: no_target_probability is {value!r:.40}; it must be between 0 and 1"
      )
    return float(value)


def _is_dense(value: Any) -> bool:
  """Tells a mask or map as rows of numbers from polygons, which are pairs of coordinates."""
  if not isinstance(value, list) or len(value) < 2:
    return False
  lengths = {len(row) if isinstance(row, list) else 0 for row in value}
  numbers = lengths != {2} and len(lengths) == 1 and all(isinstance(row, list) for row in value)
  if not numbers or not lengths.pop():
    return False
  flat = [number for row in value for number in row]
  return all(isinstance(number, int | float) and 0 <= number <= 1 for number in flat)


def _read_png(
  path: str, where: str, height: int, width: int, side: int | None
) -> Bool[np.ndarray, "rows cols"]:
  try:
    with untrusted_files.open_file(path, where) as file, images.open_header(file) as image:
      if image.format != "PNG":
        raise InputError(f"{where}: it is {image.format}; write masks as PNG, which is lossless")
      if image.size not in ((width, height), (side, side)):
        turned = image.size == (height, width)
        raise InputError(
          f"{where}: the mask is {image.width} x {image.height}, but the image is {width} x "
          f"{height}{'; was it turned by its EXIF data?' if turned else ''}"
        )
      pixels = np.asarray(image)
  except InputError:
    raise
  except Exception as error:  # Pillow raises nearly anything for damaged files
    raise InputError(f"{where}: cannot be read ({error}); is the file complete?") from error
  if pixels.ndim != 2:
    raise InputError(f"{where}: has colours or transparency; write a single channel")
  values = np.unique(pixels)
  # Of a palette and of 16 bits as well.
  if not set(values.tolist()) <= {0, 1} and not set(values.tolist()) <= {0, 255}:
    raise InputError(
      f"{where}: has {counted(len(values), 'value')} from {values[0]} to {values[-1]}; a mask has "
      "0 and 1, or 0 and 255: threshold probabilities, and write several objects as one mask"
    )
  return pixels > 0


def read(path: str) -> list[Prediction]:
  """Reads a file of predictions, a folder of `predict`, or a folder of REFID_INDEX.png.

  Prints the files of a folder that it leaves out.

  Raises:
    InputError: there is no such file or folder, it is not of that form, or it is empty.
  """
  if not os.path.isdir(path):
    return parse(untrusted_files.read_text(path, path, untrusted_json.MAX_BYTES), path)
  if os.path.isfile(rows := os.path.join(path, _ROWS)):
    print(f"{path}: reading {_ROWS}")
    return read(rows)
  found, others = [], []
  for entry in sorted(os.listdir(path)):
    match = _PNG.fullmatch(entry)
    if match is None:
      others.append(entry)
      continue
    file = untrusted_files.resolve_inside(path, entry, path)
    keys = {"ref_id": int(match[1]), "expression_index": int(match[2]), "png": file}
    found.append(Prediction(os.path.join(path, entry), keys))
  pictures = [entry for entry in others if entry.lower().endswith(images.EXTENSIONS)]
  if pictures or not found:
    what = f"{pictures[0]} is called otherwise" if pictures else "there are none"
    raise InputError(
      f"--predictions {path}: masks are called REFID_INDEX.png, such as 12_0.png for the first "
      f"expression of ref 12, but {what}; rename them, or write a JSON file"
    )
  if others:
    shown = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
    print(f"{path}: {counted(len(others), 'file')} left out, not called REFID_INDEX.png: {shown}")
  return found


def parse(data: bytes, name: str) -> list[Prediction]:
  """Parses JSON lines, a JSON list, or an object with such a list in `predictions`.

  Args:
    data: UTF-8.
    name: of the file, for error messages.

  Raises:
    InputError: it is something else, or empty.
  """
  found = []
  for where, row in _rows(data, name):
    if not isinstance(row, dict):
      raise InputError(f"{where}: not a JSON object with a mask and its expression")
    found.append(Prediction(where, {key: row[key] for key in row if key != "png"}))
  if not found:
    raise InputError(f"{name}: has no predictions")
  return found


def _rows(data: bytes, name: str) -> Iterator[tuple[str, Any]]:
  """Yields the place of each prediction, and its value."""
  lines = [(n, line) for n, line in enumerate(data.split(b"\n"), 1) if line.strip()]
  if len(lines) > 1 and _is_object(lines[0][1]):
    for number, line in lines:
      where = f"{name}, line {number}"
      yield where, untrusted_json.loads(line, where, nan_as_none=True)
    return
  try:
    value = untrusted_json.loads(data, name, nan_as_none=True)
  except InputError as error:
    raise InputError(
      f"{error}; write a JSON list, or one object per line, with COCO run lengths"
    ) from error
  if isinstance(value, dict):
    value = next((value[key] for key in _LISTS if isinstance(value.get(key), list)), [value])
  if not isinstance(value, list):
    raise InputError(f"{name}: a {type(value).__name__}; expected a list of predictions")
  for number, row in enumerate(value, 1):
    yield f"{name}, entry {number}", row


def _is_object(line: bytes) -> bool:
  try:
    return isinstance(json.loads(line), dict)
  except (ValueError, RecursionError):
    return False
