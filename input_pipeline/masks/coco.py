"""COCO instance annotations, the source of targets and of ground-truth instance masks."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from input_pipeline.common import places
from input_pipeline.common.errors import InputError
from input_pipeline.common.image_names import (
  ImageNames,
  ImageNotFound,
  coco_number,
  name_of_row,
  same_image,
)
from input_pipeline.masks.row_index import (
  Id,
  RowIndex,
  RowsInMemory,
  first_character,
  whole_number,
)
from input_pipeline.masks.segmentation import EmptySegmentation, Segmentation, read_segmentation

_SECTIONS = {name: f"{name}.item" for name in ("images", "annotations", "categories")}


class ImageTable:
  """The images of a file, looked up by name."""

  def __init__(self, names: Iterable[tuple[Id, str]], where: str):
    """Stores the images.

    Args:
      names: the id and the name of each image, with or without folders.
      where: their source, for error messages.
    """
    self._ids: dict[str, list[Id]] = {}
    for image_id, name in names:
      self._ids.setdefault(name, []).append(image_id)
    self._names, self._where = ImageNames(self._ids, where), where
    last = {_last(name) for name in self._ids}
    self._folders_matter = len(last) < len(self._ids)

  def find(self, path: str, name: str = "") -> Id:
    """Returns the id of an image by its path, or by its file name if file names are unique.

    Args:
      path: of the image.
      name: path relative to the folder of images, if known.

    Raises:
      ImageNotFound: no image has that name.
      InputError: several images match.
    """
    try:
      name = self._names.find(path)
    except ImageNotFound as error:
      shorter = name if "/" in name else ""
      if not self._folders_matter:
        shorter = _last(path)
      try:
        name = self._names.find(shorter)
      except ImageNotFound:
        raise error from None
    first, *others = self._ids[name]
    if others:
      raise InputError(f"{self._where}: images {first} and {others[0]} are both named {name}")
    return first

  def agree(self, path: str, name: str, listed: str) -> bool:
    """Returns whether an image, given as in `find`, may be the one listed under a name."""
    number = coco_number(path)
    return (
      same_image(path, listed)
      or ("/" in name and same_image(name, listed))
      or (not self._folders_matter and same_image(_last(path), listed))
      or (number is not None and number == coco_number(listed))
    )


def _last(path: str) -> str:
  return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


class CocoAnnotations:
  """An `instances.json` with an on-disk index by annotation and by image (`row_index.py`)."""

  def __init__(self, source: str | Mapping[str, Any]):
    """Opens the file.

    Args:
      source: path of a JSON file with COCO's `images` and `annotations`, or its content.

    Raises:
      InputError: the file is missing or malformed.
    """
    self.path = path = source if isinstance(source, str) else "(given as a dict)"
    if isinstance(source, str) and not places.is_file(source):
      raise InputError(
        f"COCO annotations {path}: no such file; docs/guides/datasets.md lists sources of "
        "instances.json"
      )
    self._table: ImageTable | None = None
    try:
      if isinstance(source, str) and first_character(source) == "[":
        raise InputError(
          f"{path}: a list, not an object with `images` and `annotations`; for a detector's "
          f"results use --instances results:{path}"
        )
      self._rows = (
        RowIndex(source, _SECTIONS) if isinstance(source, str) else RowsInMemory(source, _SECTIONS)
      )
      image, annotation = (next(self._rows.rows(name), None) for name in ("images", "annotations"))
    except InputError as error:
      raise InputError(f"COCO annotations: {error}") from error
    if wrong := _other_kind(image, annotation):
      raise InputError(f"COCO annotations {path}: not a COCO instances file; {wrong}")
    ids = [row.get("id") for row in self._rows.rows("categories")]
    self.category_ids = frozenset(number for number in ids if type(number) is int)
    """Ids of the categories; empty if the file has none."""

  def image(self, image_id: Id) -> dict[str, Any] | None:
    """Returns the row of an image, or None if it is not in the file."""
    return self._rows.row("images", image_id)

  def annotation(self, annotation_id: Id) -> dict[str, Any] | None:
    """Returns an annotation, or None if it is not in the file."""
    return self._rows.row("annotations", annotation_id)

  def find_image(self, path: str, name: str = "") -> Id:
    """Returns the id of an image by its path and name; see `ImageTable.find`.

    Raises:
      InputError: no image has that name, or several.
    """
    try:
      return self._images().find(path, name)
    except ImageNotFound as error:
      raise ImageNotFound(
        f"{error}; predict without --instances, or keep the file's COCO name"
      ) from error

  def check_image(self, image_id: Id, path: str, name: str = "") -> None:
    """Checks that an image is the one at a path; see `ImageTable.find`.

    Raises:
      InputError: the file lists it under another name.
    """
    listed = name_of_row(self.image(image_id) or {})
    # The table is only built if needed.
    if listed is None or same_image(path, listed) or self._images().agree(path, name, listed):
      return
    raise InputError(
      f"COCO annotations {self.path}: image {image_id} is {listed} there, but {path} here; use the "
      "annotations of this data set"
    )

  def _images(self) -> ImageTable:
    if self._table is None:
      names = ((row.get("id"), name_of_row(row)) for row in self._rows.rows("images"))
      named = ((i, name) for i, name in names if i is not None and name is not None)
      self._table = ImageTable(named, f"COCO annotations {self.path}")
    return self._table

  def only_image(self) -> Id | None:
    """Returns the id of the only image, or None if there are several."""
    first = list(itertools.islice(self._rows.rows("images"), 2))
    return first[0].get("id") if len(first) == 1 else None

  def of_image(self, image_id: Id) -> list[dict[str, Any]]:
    """Returns the annotations of an image, in the file's order."""
    return self._rows.of_image("annotations", image_id)

  def size(self, image_id: Id) -> tuple[int, int]:
    """Returns height and width of an image in pixels."""
    row = self.image(image_id) or {}
    height, width = whole_number(row.get("height")), whole_number(row.get("width"))
    if height is None or width is None or min(height, width) < 1:
      raise InputError(
        f"COCO annotations {self.path}: image {image_id} has no row with height and width; is the "
        "file complete?"
      )
    return height, width

  def is_crowd(self, annotation: Mapping[str, Any]) -> bool:
    """Returns whether an annotation of the file is a crowd; see `is_crowd`."""
    image_id = annotation.get("image_id")
    name = name_of_row(self.image(image_id) or {}) if image_id is not None else None
    return name is not None and is_crowd(annotation, image_id, name)

  def segmentation(self, annotation: Mapping[str, Any]) -> Segmentation:
    """Returns the parts of an annotation's mask.

    Raises:
      EmptySegmentation: the annotation has no mask.
      InputError: the segmentation is malformed, or for an image of another size.
    """
    height, width = self.size(annotation["image_id"])
    where = f"COCO annotations {self.path}: annotation {annotation.get('id')}"
    try:
      return read_segmentation(annotation.get("segmentation"), height, width)
    except EmptySegmentation as error:
      raise EmptySegmentation(f"{where} has no mask: {error}") from error
    except ValueError as error:
      raise InputError(f"{where} has an invalid segmentation: {error}") from error

  def mask(self, annotation: Mapping[str, Any]) -> Bool[np.ndarray, "h w"]:
    """Returns the pixels that an annotation covers: the union of its polygons, or its RLE.

    Raises:
      InputError: the segmentation is empty, malformed, or has another size than the image.
    """
    try:
      return self.segmentation(annotation).mask()
    except EmptySegmentation as error:
      raise InputError(str(error)) from error


def _other_kind(image: Mapping[str, Any] | None, annotation: Mapping[str, Any] | None) -> str:
  """Returns what is wrong with the first rows of a file; "" if it may be a COCO instances file."""
  if annotation is not None and "segments_info" in annotation:
    return "it is a panoptic file, whose masks are in PNG files; use instances_*.json"
  if annotation is not None and "caption" in annotation and "segmentation" not in annotation:
    return "it has captions of whole images and no masks; use instances_*.json"
  for name, row in (("images", image), ("annotations", annotation)):
    if row is None:
      return f"`{name}` is missing or empty"
    if row.get("id") is None:
      return f"the rows of `{name}` have no id"
  if annotation is not None and annotation.get("image_id") is None:
    return "the rows of `annotations` have no image_id"
  return ""


def has_iscrowd(annotation: Mapping[str, Any]) -> bool:
  """Returns whether an annotation says that it is a crowd."""
  value = annotation.get("iscrowd")
  return value is True or bool(whole_number(value))


def is_crowd(annotation: Mapping[str, Any], image_id: Any, image_name: str) -> bool:
  """Returns whether an annotation is a crowd: one mask for several undistinguished objects.

  COCO marks them with `iscrowd` and gives them run lengths. Tools set `iscrowd` for what they write
  as run lengths, since pycocotools' documentation can be read so. Only in COCO's own files, where
  the id of an image is the number in its name, does it mean a crowd.

  Args:
    annotation: of a COCO file.
    image_id: of its image, as a number or text.
    image_name: of its image.
  """
  return (
    has_iscrowd(annotation)
    and isinstance(annotation.get("segmentation"), Mapping)
    and coco_number(image_name) is not None
    and coco_number(image_name) == whole_number(image_id)
  )


def category_of(row: Mapping[str, Any], where: str) -> int:
  """Returns the category of an annotation or a detection; 0 if it has none.

  Raises:
    InputError: it is not a valid id.
  """
  given = row.get("category_id")
  category = 0 if given is None else whole_number(given)
  if category is None or not 0 <= category < 2**31:
    raise InputError(f"{where}: category_id {given!r} is not a non-negative integer")
  return category
