"""COCO instance annotations, the source of targets and of ground-truth instance masks."""

import itertools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from input_pipeline.common.errors import InputError
from input_pipeline.masks.row_index import RowIndex, RowsInMemory
from input_pipeline.masks.segmentation import decode_segmentation

_SECTIONS = {name: f"{name}.item" for name in ("images", "annotations", "categories")}


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
    if isinstance(source, str) and not os.path.isfile(source):
      raise InputError(
        f"COCO annotations {path}: no such file; docs/guides/datasets.md says where to get "
        "instances.json"
      )
    try:
      self._rows = (
        RowIndex(source, _SECTIONS) if isinstance(source, str) else RowsInMemory(source, _SECTIONS)
      )
      first = [next(self._rows.rows(section), None) for section in ("images", "annotations")]
    except InputError as error:
      raise InputError(f"COCO annotations: {error}") from error
    if any(row is None or row.get("id") is None for row in first):
      raise InputError(
        f"COCO annotations {path}: not a COCO instances file; it needs `images` and `annotations` "
        "whose rows have an id"
      )
    ids = [row.get("id") for row in self._rows.rows("categories")]
    self.category_ids = frozenset(number for number in ids if type(number) is int)
    """Ids of the categories; empty if the file has none."""

  def image(self, image_id: int) -> dict[str, Any] | None:
    """Returns the row of an image, or None if it is not in the file."""
    return self._rows.row("images", image_id)

  def annotation(self, annotation_id: int) -> dict[str, Any] | None:
    """Returns an annotation, or None if it is not in the file."""
    return self._rows.row("annotations", annotation_id)

  def find_image(self, file_name: str) -> int:
    """Returns the id of an image by its file name, ignoring folders.

    Raises:
      InputError: no image has that file name.
    """
    name = os.path.basename(file_name)
    for row in self._rows.rows("images"):
      if os.path.basename(str(row.get("file_name"))) == name and type(row.get("id")) is int:
        return row["id"]
    raise InputError(
      f"COCO annotations {self.path}: no image is called {name}; predict without --instances, or "
      "keep the file's COCO name"
    )

  def only_image(self) -> int | None:
    """Returns the id of the only image, or None if there are several."""
    first = list(itertools.islice(self._rows.rows("images"), 2))
    return first[0]["id"] if len(first) == 1 and type(first[0]["id"]) is int else None

  def of_image(self, image_id: int) -> list[dict[str, Any]]:
    """Returns the annotations of an image, in the file's order."""
    return self._rows.of_image("annotations", image_id)

  def size(self, image_id: int) -> tuple[int, int]:
    """Returns height and width of an image in pixels."""
    row = self.image(image_id) or {}
    height, width = row.get("height"), row.get("width")
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
      raise InputError(
        f"COCO annotations {self.path}: image {image_id} has no row with height and width; is the "
        "file complete?"
      )
    return height, width

  def mask(self, annotation: Mapping[str, Any]) -> Bool[np.ndarray, "h w"]:
    """Returns the pixels that an annotation covers: the union of its polygons, or its RLE.

    Raises:
      InputError: the segmentation is empty, malformed, or has another size than the image.
    """
    height, width = self.size(annotation["image_id"])
    try:
      return decode_segmentation(annotation.get("segmentation"), height, width)
    except ValueError as error:
      raise InputError(
        f"COCO annotations {self.path}: annotation {annotation.get('id')} has an invalid "
        f"segmentation ({error}); is the file damaged?"
      ) from error


def category_of(row: Mapping[str, Any], where: str) -> int:
  """Returns the category of an annotation or a detection; 0 if it has none.

  Raises:
    InputError: it is not a valid id.
  """
  category = row.get("category_id", 0)
  if type(category) is not int or not 0 <= category < 2**31:
    raise InputError(f"{where}: category_id {category!r} is not a non-negative integer")
  return category
