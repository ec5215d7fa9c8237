"""Reads parquet files of referring expressions from the Hugging Face Hub.

A row is an object, or an image with its objects. These layouts are recognised by their columns:

- RefCOCO-M (`moondream/refcoco-m`): `image` and `samples`, objects with `sentences` and `mask`.
- RefCOCO, + and g of `lmms-lab`: `image`, `answer` (the expressions), `segmentation` (one polygon)
  and `bbox` (x, y, width, height).
- RefCOCO, + and g of `jxu124`: `sentences`, `image_path`, and COCO's JSON in `raw_anns` and
  `raw_image_info`; no images. Its `bbox` has two corners and is not read.
- Ref-L4 (`JierunChen/Ref-L4`): `caption`, `file_name`, `bbox` (x, y, width, height) and its
  `bbox_area`; no masks and no images.

Others are read if they have expressions, masks in a COCO format, and images or their names.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline import preprocess
from input_pipeline.common import image_names, untrusted_files, untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters.collect import (
  NEEDS_BOXES,
  TEXT_KEYS,
  Export,
  LeftOut,
  Options,
  Region,
  box,
  box_in,
  masks_in,
  rows_in,
  split_in,
)
from input_pipeline.custom.schema import Mask, is_id
from input_pipeline.masks.segmentation import EmptySegmentation, OtherSize

_LIST = "samples"
_TEXTS = (*TEXT_KEYS, "answer")
_MASKS = ("mask", "segmentation", "rle")
_NAMES = ("image_path", "file_name")
_READ = ("image", "bbox", "bbox_area", "split", "height", "width", "image_id", "ann_id")
_IDS = ("ref_id", "id")
_JSON = ("raw_anns", "raw_image_info")
# Rows held in memory.
_BATCH = 16
# Tolerance in pixels between the polygon of a whole object and its box.
_SAME_BOX = 2.0
# The name of an image in refs, which ends with the number of an object.
_REF_NAME = re.compile(r"(COCO_(?:train|val|test)201[457]_\d{12})_\d+(\.\w+)")
_SPLIT = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_MAGIC = b"PAR1"
_LFS = b"version https://git-lfs"
_MAX_JSON = 16 << 20
_LOOKS_LIKE_JSON = re.compile(r'\s*[\[{].*".*[\]}]\s*', re.DOTALL)


def read(path: str, options: Options) -> Export:
  """Reads a file, or all files in a folder.

  Images in the file are written to `options.images`, in the order of the rows.

  Args:
    path: of a file, or of a folder with several splits or shards.
    options: how it is read.

  Raises:
    InputError: a file is damaged, or a column is missing or invalid.
  """
  reader = _Reader(options)
  for file in _files(path):
    for number, row in _rows(file, reader):
      reader.read_row(row, _Place(file, number))
  if not reader.refs:
    reasons = "; ".join(reader.export.report()) or "no rows"
    raise InputError(f"{path}: no expression could be converted: {reasons}")
  return reader.finish()


def is_parquet(path: str) -> bool:
  """Returns whether a file is parquet, judging by its first bytes.

  Raises:
    InputError: the file is missing or not a regular file.
  """
  with untrusted_files.open_file(path, path) as file:
    return file.read(len(_MAGIC)) == _MAGIC


@dataclasses.dataclass(frozen=True)
class _Place:
  """The place of a row, for messages."""

  file: str
  row: int
  """From 1."""

  def __str__(self) -> str:
    return f"{os.path.basename(self.file)} row {self.row}"

  def error(self, column: str, message: str) -> InputError:
    return InputError(f"{self.file}: row {self.row}, column {column}: {message}")


@dataclasses.dataclass(frozen=True)
class _Photo:
  """The image of a row."""

  name: str
  """As in `Region.image`."""
  number: int | None
  """COCO's number in the name."""
  image_id: int | None
  """COCO's number, or else the id in the row."""
  size: tuple[int, int] | None
  """Height and width; None if unknown."""


@dataclasses.dataclass
class _Ref:
  """A target and its expressions."""

  photo: _Photo
  masks: list[Mask]
  split: str | None
  texts: list[str]
  rows: set[str]
  """The expressions of each row that had this target."""


def _files(path: str) -> list[str]:
  if not os.path.isdir(path):
    return [path]
  found = (p for p in pathlib.Path(path).rglob("*.parquet") if not _hidden(p.relative_to(path)))
  files = sorted(str(p) for p in found)
  if not files:
    raise InputError(f"{path}: no .parquet file in this folder")
  return files


def _hidden(path: pathlib.Path) -> bool:
  return any(part.startswith(".") for part in path.parts)


def _rows(path: str, reader: "_Reader") -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields the numbered rows of a file, reading a few at a time."""
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as error:
    raise InputError(f"{path}: reading parquet needs pyarrow; pip install pyarrow") from error

  with untrusted_files.open_file(path, path) as file:
    start = file.read(len(_LFS))
    if start == _LFS:
      raise InputError(
        f"{path}: only a Git LFS pointer; get the file itself with `git lfs pull` or `hf download`"
      )
    if not start.startswith(_MAGIC):
      raise InputError(f"{path}: not a parquet file, which starts with PAR1")
    file.seek(0)
    number = 0
    try:
      # With pre-buffering, all row groups would be in memory.
      table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
      columns = reader.columns(path, table.schema_arrow.names)
      for batch in table.iter_batches(_BATCH, columns=columns, use_threads=False):
        for row in batch.to_pylist():
          number += 1
          yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
      reason = " ".join(str(error).split())[:200]
      raise InputError(
        f"{path}: damaged after row {number} ({reason}); download it again"
      ) from error


class _Reader:
  """The state of reading all files."""

  def __init__(self, options: Options):
    self.export = Export()
    self.refs: dict[str, _Ref] = {}
    self._options = options
    named = options.text_keys != TEXT_KEYS
    self._texts = tuple(options.text_keys) if named else _TEXTS
    # An expression may have several lines unless the user sets the separator.
    self._separator = options.separator if options.separator != "\n" else None
    self._ids: dict[tuple[str | None, str], tuple[str, _Place]] = {}

  def columns(self, path: str, names: Sequence[str]) -> list[str]:
    """Returns the names of the columns to read.

    Raises:
      InputError: a required column is missing.
    """
    for wanted, what, way_out in (
      ((_LIST, *self._texts), "expressions", "; name it with --text COLUMN"),
      ((_LIST, *_MASKS, "raw_anns", "bbox"), "masks or boxes", ""),
      (("image", *_NAMES, "raw_image_info"), "images or their names", ""),
    ):
      if not set(wanted) & set(names):
        raise InputError(
          f"{path}: no column of {what} ({', '.join(wanted)}); the columns are "
          f"{', '.join(names)}{way_out}"
        )
    known = {_LIST, *self._texts, *_MASKS, *_NAMES, *_READ, *_IDS, *_JSON}
    return [name for name in names if name in known]

  def read_row(self, row: Mapping[str, Any], place: _Place) -> None:
    row = dict(row) | {key: _json(row[key], key, place) for key in _JSON if row.get(key)}
    photo = self._photo(row, place)
    if photo is None:
      self.export.skip("row without an image", str(place))
      return
    split = self._split(row, place)
    if row.get(_LIST) and len(rows_in(row[_LIST])) != len(row[_LIST]):
      raise place.error(_LIST, "not a list of objects")
    objects = rows_in(row[_LIST]) if _LIST in row else [row]
    if not objects:
      self.export.skip(f"row with empty {_LIST}", str(place))
    # In other layouts, `id` may identify something else.
    column = "id" if _LIST in row or "bbox_area" in row else "ref_id"
    for fields in objects:
      _check_same(row.get("image_id"), fields.get("image_id"), "image_id", place)
      try:
        ref = self._read_object(fields, photo, split, place)
      except LeftOut as error:
        self.export.skip(str(error), str(place))
      else:
        self._check_id(fields.get(column), column, ref, place)

  def finish(self) -> Export:
    """Returns the export."""
    for number, ref in enumerate(self.refs.values()):
      self.export.regions += [
        Region(
          ref.photo.name,
          mask,
          tuple(ref.texts),
          image_id=ref.photo.image_id,
          size=ref.photo.size or tuple(mask["rle"]["size"]),
          ref=str(number),
          split=ref.split,
        )
        for mask in ref.masks
      ]
    return self.export

  def _read_object(
    self, fields: Mapping[str, Any], photo: _Photo, split: str | None, place: _Place
  ) -> str:
    """Adds an object and returns the key of its ref."""
    texts = self._expressions(fields, place)
    masks = self._masks(fields, photo, place)
    content = json.dumps([split, photo.name, masks])
    key = hashlib.sha256(content.encode()).hexdigest()
    ref = self.refs.setdefault(key, _Ref(photo, masks, split, [], set()))
    if (row := json.dumps(texts)) in ref.rows:
      self.export.skip("duplicate row (same image, mask and expressions)", str(place))
      return key
    ref.rows.add(row)
    ref.texts += texts
    return key

  def _check_id(self, value: Any, column: str, ref: str, place: _Place) -> None:
    """Checks that an id denotes one object of a split."""
    if value is None:
      return
    split = self.refs[ref].split
    earlier, where = self._ids.setdefault((split, str(value)), (ref, place))
    if earlier != ref:
      raise place.error(
        column, f"{value} is also the id of another object in {where}; ids must be unique"
      )

  def _expressions(self, fields: Mapping[str, Any], place: _Place) -> list[str]:
    keys = [key for key in self._texts if fields.get(key)]
    if self._texts == _TEXTS:
      keys = keys[:1]
    texts: list[str] = []
    for key in keys:
      value = fields[key]
      for item in value if isinstance(value, list) else [value]:
        text = (item.get("raw") or item.get("sent")) if isinstance(item, dict) else item
        if not isinstance(text, str | None) or _LOOKS_LIKE_JSON.fullmatch(text or ""):
          raise place.error(key, f"{item!r:.60} is not an expression")
        parts = (text or "").split(self._separator) if self._separator else [text or ""]
        kept = [part.strip() for part in parts if preprocess.is_expression(part)]
        texts += kept
        if not kept:
          self.export.skip("empty expression", str(place))
    if not texts:
      raise LeftOut("row without an expression")
    return texts

  def _masks(self, fields: Mapping[str, Any], photo: _Photo, place: _Place) -> list[Mask]:
    if fields.get("raw_anns"):
      # Not parsed yet where the row has a list of objects.
      annotation = _json(fields["raw_anns"], "raw_anns", place)
      _check_same(annotation.get("id"), fields.get("ann_id"), "ann_id", place)
      _check_same(annotation.get("image_id"), fields.get("image_id"), "image_id", place)
      _check_same(annotation.get("image_id"), photo.number, "raw_anns", place)
      key, value, bbox = "raw_anns", annotation.get("segmentation"), annotation.get("bbox")
    else:
      key = next((key for key in _MASKS if fields.get(key)), _MASKS[0])
      value, bbox = fields.get(key), fields.get("bbox")
    if isinstance(value, str):
      value = _json(value, key, place)
    if isinstance(value, dict) and value.get("bytes"):
      raise place.error(key, "masks stored as images are not supported; use COCO run lengths")
    if value:
      return self._decode(value, key, fields, photo, place)
    corners = box_in(bbox)
    if corners is None:
      raise LeftOut("no mask")
    if not self._options.boxes:
      raise LeftOut(NEEDS_BOXES)
    _check_box(corners, fields, place)
    return self._decode(box(*corners)["polygons"], "bbox", fields, photo, place)

  def _decode(
    self, value: Any, key: str, fields: Mapping[str, Any], photo: _Photo, place: _Place
  ) -> list[Mask]:
    size = photo.size
    if size is None and isinstance(value, dict) and isinstance(value.get("size"), list):
      size = tuple(value["size"])
    if size is None or len(size) != 2:
      raise place.error(key, "the size of the image is unknown; add the columns height and width")
    try:
      masks, notes = masks_in(value, *size)
    except OtherSize as error:
      raise place.error(key, f"{error} (is it the mask of another image?)") from error
    except EmptySegmentation as error:
      raise LeftOut(f"no mask ({error})") from error
    except (ValueError, TypeError) as error:
      if key == "bbox":
        raise LeftOut(f"invalid box ({error})") from error
      raise place.error(key, str(error)) from error
    corners = box_in(fields.get("bbox"))
    if corners and isinstance(value, list) and not isinstance(value[0], list | dict):
      # A single polygon may be only the first part of the object.
      x, y, width, height = corners
      sides = min(value[::2]), min(value[1::2]), max(value[::2]), max(value[1::2])
      expected = x, y, x + width, y + height
      if max(abs(a - b) for a, b in zip(sides, expected, strict=True)) > _SAME_BOX:
        raise LeftOut("polygon does not fill its box, so it is only part of the object")
    for note in notes:
      self.export.note(note, str(place))
    return masks

  def _photo(self, row: Mapping[str, Any], place: _Place) -> _Photo | None:
    """Returns the image of a row after writing it out; None if the row has none."""
    info = row.get("raw_image_info") or {}
    names = [*(row.get(key) for key in _NAMES), info.get("file_name")]
    name = next((_photo_name(text) for text in names if isinstance(text, str) and text), "")
    size = _declared_size(info, place) or _declared_size(row, place)
    image = row.get("image")
    data, inner = (
      (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, "")
    )
    if isinstance(data, str):
      data, inner = None, data
    if not name and isinstance(inner, str):
      name = _photo_name(inner)
    number, given = image_names.coco_number(name), row.get("image_id")
    image_id = given if is_id(given) else None
    if number is not None and image_id not in (None, number):
      self.export.note("image_id replaced by COCO's number in the file name", str(place))
    photo = _Photo(name, number, image_id if number is None else number, size)
    if data is None:
      return photo if name else None
    if not isinstance(data, bytes):
      raise place.error("image", f"expected the bytes of an image, got {type(data).__name__}")
    return self._write(data, photo, place)

  def _write(self, data: bytes, photo: _Photo, place: _Place) -> _Photo:
    images = self._options.images
    if images is None:
      raise place.error("image", "there is no folder to write the images to")
    written = images.add(data, photo.name, f"{place.file}: row {place.row}, column image")
    if photo.size and photo.size != written.size:
      sizes = [f"{width} x {height}" for height, width in (written.size, photo.size)]
      raise place.error(
        "image", f"{photo.name or 'the image'} is {sizes[0]}, but the row says {sizes[1]}"
      )
    if written.turned:
      self.export.note("image rotated by EXIF; masks are for the upright image", str(place))
    self.export.embedded.add(written.path)
    return dataclasses.replace(photo, name=written.path, size=written.size)

  def _split(self, row: Mapping[str, Any], place: _Place) -> str | None:
    text = row.get("split")
    if isinstance(text, str) and text:
      if not _SPLIT.fullmatch(text):
        raise place.error("split", f"{text!r:.40} may only contain letters, digits and _")
      return split_in(text) or text
    path = pathlib.Path(place.file)
    folder = path.absolute().parent.name
    split = split_in(path.stem) or (split_in(folder) if folder.isalpha() else None)
    if split is None:
      self.export.note("row without a split: set by --split, default train", str(place))
    else:
      self.export.note(f"split {split} from the name of the file")
    return split


def _photo_name(path: str) -> str:
  """Returns the name of an image; COCO's names are unique and lose their folders."""
  if image_names.coco_number(path) is None:
    return path
  name = path.replace("\\", "/").rpartition("/")[2]
  return _REF_NAME.sub(r"\1\2", name)


def _declared_size(fields: Mapping[str, Any], place: _Place) -> tuple[int, int] | None:
  height, width = fields.get("height"), fields.get("width")
  if height is None or width is None:
    return None
  if type(height) is not int or type(width) is not int or min(height, width) < 1:
    raise place.error("height", f"invalid size {width!r:.20} x {height!r:.20}")
  return height, width


def _check_box(
  corners: tuple[float, float, float, float], fields: Mapping[str, Any], place: _Place
) -> None:
  """Checks that a box is x, y, width and height, and not two corners."""
  area = fields.get("bbox_area")
  if isinstance(area, int | float):
    if abs(corners[2] * corners[3] - area) > 0.01 * abs(area) + 1:
      raise place.error(
        "bbox", f"width times height of {list(corners)} differs from bbox_area, {area}"
      )
  elif not (fields.get("raw_anns") or "answer" in fields or "mask" in fields):
    raise place.error(
      "bbox",
      "may be x, y, width and height, or two corners; write a polygon in the column segmentation",
    )


def _check_same(value: Any, other: Any, column: str, place: _Place) -> None:
  """Checks that two fields with the same meaning agree, if both are present."""
  if value is not None and other is not None and value != other:
    raise place.error(column, f"{other!r:.40}, but the row also says {value!r:.40}")


def _json(value: Any, column: str, place: _Place) -> Any:
  """Returns the JSON in a column: a COCO object or a segmentation."""
  if isinstance(value, str):
    try:
      value = untrusted_json.loads(value, "the text", max_bytes=_MAX_JSON)
    except InputError as error:
      raise place.error(column, f"not JSON ({error})") from error
  if column in _JSON and not isinstance(value, dict):
    raise place.error(column, f"{value!r:.40} is not a JSON object")
  return value
