"""Reads referring expressions in MDETR's JSON format, which GREC uses as well.

The format resembles COCO, but each row of `images` is an expression (its `caption`): an image has
one row per expression, and row ids are not COCO's image ids. The annotations of a row form its
target. MDETR's converters leave out the masks; they are looked up by `original_id` in COCO's file.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.common import image_names, untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters.collect import (
  Export,
  LeftOut,
  Options,
  Region,
  box,
  box_in,
  id_in,
  masks_in,
  rows_in,
  split_in,
)
from input_pipeline.custom.schema import Mask, is_id
from input_pipeline.masks.coco import CocoAnnotations

HINT = (
  "or, if each row of `images` is an expression (its `caption`) for the annotations of that row, "
  "use --from mdetr"
)
"""Advice for a COCO file with captions in `images`."""

# Data sets in which every expression has a target.
_WITH_TARGET = ("refcoco", "refcoco+", "refcocog")
# Tolerance in pixels.
_SAME_BOX = 1.0


def read(path: str, options: Options) -> Export:
  """Reads a file.

  Args:
    path: JSON with `caption` in the rows of `images`.
    options: how it is read.

  Raises:
    InputError: not such a file, or it contradicts itself or COCO's file.
  """
  return read_content(untrusted_json.load_file(path), path, options)


def read_content(content: Any, path: str, options: Options) -> Export:
  """Reads a file from parsed JSON; see `read`."""
  if not isinstance(content, dict) or not has_captions(content):
    raise InputError(
      f"{path}: not MDETR's format: no row of `images` has a `caption`; use --from coco for "
      "expressions in the annotations"
    )
  return _Reader(content, path, options).read()


def is_mdetr(content: Mapping[str, Any]) -> bool:
  """Returns whether a COCO file has captions in `images` and fields of MDETR's converters."""
  return has_captions(content) and (
    any("tokens_positive" in row for row in rows_in(content.get("annotations")))
    or any({"original_id", "dataset_name"} <= set(row) for row in rows_in(content.get("images")))
  )


def has_captions(content: Mapping[str, Any]) -> bool:
  """Returns whether any row of `images` has a caption."""
  return any(isinstance(row.get("caption"), str) for row in rows_in(content.get("images")))


class _Reader:
  """The state of reading one file."""

  def __init__(self, content: Mapping[str, Any], path: str, options: Options):
    self._path = path
    self._options = options
    self._images = rows_in(content.get("images"))
    self._export = Export()
    self._split = split_in(path.replace("\\", "/").rpartition("/")[2])
    self._coco = CocoAnnotations(options.annotations) if options.annotations else None
    self._of_image: dict[int | str | None, list[Mapping[str, Any]]] = {}
    for row in rows_in(content.get("annotations")):
      self._of_image.setdefault(id_in(row, "image_id"), []).append(row)

  def read(self) -> Export:
    seen: set[int | str] = set()
    refs: dict[str, list[Region]] = {}
    for number, image in enumerate(self._images, 1):
      image_id = id_in(image, "id")
      where = f"{self._path}: images row {number}"
      if image_id is None:
        raise InputError(f"{where}: id is missing, or neither an integer nor text")
      if image_id in seen:
        raise InputError(f"{where}: duplicate id {image_id}; every row needs its own id")
      seen.add(image_id)
      try:
        self._read_row(image, self._of_image.pop(image_id, []), where, refs)
      except LeftOut as error:
        self._export.skip(str(error), f"image {image_id}")
    for image_id, rows in self._of_image.items():
      for _ in rows:
        self._export.skip("annotation of an image that is not in the file", f"image {image_id}")
    self._export.regions += [region for regions in refs.values() for region in regions]
    if not self._export.regions:
      reasons = "; ".join(self._export.report())
      raise InputError(f"{self._path}: no expression could be converted: {reasons}")
    if self._split:
      self._export.note(f"split {self._split} from the name of the file", self._path)
    return self._export

  def _read_row(
    self,
    image: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    where: str,
    refs: dict[str, list[Region]],
  ) -> None:
    caption, name = image.get("caption"), image_names.name_of_row(image)
    if not isinstance(caption, str) or not caption.strip():
      raise LeftOut("row of images without a caption")
    if name is None:
      raise LeftOut("row of images without a file_name")
    size = _size(image, where)
    masks = self._target(image, rows, size, where)
    # Expressions for the same pixels are the sentences of one ref, as in the original data set.
    ref = json.dumps([name, masks])
    texts = (caption.strip(),)
    if ref in refs:
      texts = (*refs[ref][0].texts, *texts)
    coco_id = image.get("original_id")
    refs[ref] = [
      Region(
        name,
        mask,
        texts,
        image_id=coco_id if is_id(coco_id) else None,
        size=size,
        ref=ref,
        split=self._split,
      )
      for mask in masks or [None]
    ]

  def _target(
    self,
    image: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    where: str,
  ) -> list[Mask]:
    """Returns the masks whose union is the target; none for an expression without a target."""
    objects = [row for row in rows if not _is_empty(row)]
    if objects and len(objects) < len(rows):
      raise InputError(f"{where}: has both an annotation marked `empty` and one of an object")
    if not objects:
      if not rows and image.get("dataset_name") in _WITH_TARGET:
        raise LeftOut("caption without an annotation")
      if not rows:
        place = f"image {image.get('id')}"
        self._export.note("caption without an annotation, read as having no target", place)
      return []
    if len({json.dumps(row.get("tokens_positive")) for row in objects}) > 1:
      raise LeftOut("caption whose annotations belong to different words, not one target")
    return [mask for row in objects for mask in self._masks(image, row, size)]

  def _masks(
    self, image: Mapping[str, Any], row: Mapping[str, Any], size: tuple[int, int]
  ) -> list[Mask]:
    place = f"annotation {row.get('id')}"
    segmentation = row.get("segmentation")
    if self._coco and not segmentation:
      segmentation = self._look_up(self._coco, image, row, size, place).get("segmentation")
    if not segmentation:
      segmentation = self._box(row)["polygons"]
    try:
      masks, notes = masks_in(segmentation, *size)
    except ValueError as error:
      raise LeftOut(f"invalid segmentation ({error})") from error
    for note in notes:
      self._export.note(note, place)
    return masks

  def _box(self, row: Mapping[str, Any]) -> Mask:
    bbox = box_in(row.get("bbox"))
    if bbox is None:
      raise LeftOut("no mask")
    if not self._options.boxes:
      raise LeftOut(
        "box without a mask (add COCO's masks with --annotations INSTANCES.json, or use --boxes)"
      )
    return box(*bbox)

  def _look_up(
    self,
    coco: CocoAnnotations,
    image: Mapping[str, Any],
    row: Mapping[str, Any],
    size: tuple[int, int],
    place: str,
  ) -> Mapping[str, Any]:
    """Returns COCO's annotation of an object after checking its image and box."""
    number, name = row.get("original_id"), image_names.name_of_row(image) or ""
    where = f"{self._path}: {place}"
    found = coco.annotation(number) if type(number) is int else None
    if found is None:
      raise InputError(
        f"{where}: original_id {number!r} is not in {coco.path}; use the COCO file of these images"
      )
    photo = coco.image(found["image_id"]) or {}
    other = image_names.name_of_row(photo) or ""
    if not image_names.same_image(name, other):
      raise InputError(
        f"{where}: original_id {number} belongs to {other} in {coco.path}, not to {name}; use the "
        "COCO file of these images"
      )
    if (photo.get("height"), photo.get("width")) != size:
      raise InputError(
        f"{where}: {name} is {size[1]} x {size[0]} here, but {photo.get('width')} x "
        f"{photo.get('height')} in {coco.path}"
      )
    ours, theirs = box_in(row.get("bbox")), box_in(found.get("bbox"))
    if ours and theirs and max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > _SAME_BOX:
      raise InputError(
        f"{where}: box {list(ours)} differs from that of annotation {number} in {coco.path}, "
        f"{list(theirs)}; use the COCO file of these images"
      )
    return found


def _is_empty(row: Mapping[str, Any]) -> bool:
  """Returns whether an annotation is GREC's placeholder for no object."""
  return row.get("empty") is True or (row.get("category_id") == -1 and row.get("original_id") == -1)


def _size(image: Mapping[str, Any], where: str) -> tuple[int, int]:
  height, width = image.get("height"), image.get("width")
  if type(height) is not int or type(width) is not int or min(height, width) < 1:
    raise InputError(f"{where}: height and width must be the image's size in pixels")
  return height, width
