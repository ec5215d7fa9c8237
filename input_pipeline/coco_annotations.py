"""COCO instance annotations: the file behind targets and ground-truth instance masks."""

import itertools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

from input_pipeline.errors import InputError
from input_pipeline.row_index import RowIndex, RowsInMemory

_SECTIONS = {name: f"{name}.item" for name in ("images", "annotations", "categories")}


class CocoAnnotations:
  """An `instances.json`, indexed by annotation and by image; the index lies on disk (`row_index.py`)."""

  def __init__(self, source: str | Mapping[str, Any]):
    """Opens the file.

    Args:
      source: path of a JSON file with COCO's `images` and `annotations`; or what such a file holds.

    Raises:
      InputError: the file is missing or is not of that form.
    """
    self.path = path = source if isinstance(source, str) else "that were given"
    if isinstance(source, str) and not os.path.isfile(source):
      raise InputError(
        f"COCO annotations {path}: no such file; docs/data.md says where to get instances.json"
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
        f"COCO annotations {path}: not a COCO instances file; it needs `images` and `annotations`, each row with its id"
      )
    self.category_ids = frozenset(row["id"] for row in self._rows.rows("categories") if "id" in row)
    """The list of categories; empty where the file has none."""

  def image(self, image_id: int) -> dict[str, Any] | None:
    """Returns the row of an image, None if the file does not have it."""
    return self._rows.row("images", image_id)

  def annotation(self, annotation_id: int) -> dict[str, Any] | None:
    """Returns an annotation, None if the file does not have it."""
    return self._rows.row("annotations", annotation_id)

  def find_image(self, file_name: str) -> int:
    """Returns the id of an image by the name of its file, whatever its folder.

    Raises:
      InputError: the annotations know no such file.
    """
    name = os.path.basename(file_name)
    for row in self._rows.rows("images"):
      if os.path.basename(str(row.get("file_name"))) == name:
        return row["id"]
    raise InputError(
      f"COCO annotations {self.path} know no image {name}; predict without --instances, or keep the file's COCO name"
    )

  def only_image(self) -> int | None:
    """Returns the id of the only image that there is; None where there are several."""
    first = list(itertools.islice(self._rows.rows("images"), 2))
    return first[0]["id"] if len(first) == 1 else None

  def of_image(self, image_id: int) -> list[dict[str, Any]]:
    """Returns the annotations of an image, in the file's order; none if it has none."""
    return self._rows.of_image("annotations", image_id)

  def size(self, image_id: int) -> tuple[int, int]:
    """Returns height and width of an image in pixels."""
    row = self.image(image_id) or {}
    height, width = row.get("height"), row.get("width")
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
      raise InputError(
        f"COCO annotations {self.path}: image {image_id} has no entry with height and width; is the file complete?"
      )
    return height, width

  def mask(self, annotation: Mapping[str, Any]) -> Bool[np.ndarray, "h w"]:
    """Returns the pixels that an annotation covers: the union of its polygons, or its RLE.

    Raises:
      InputError: the segmentation is empty, malformed or of another size than the image.
    """
    height, width = self.size(annotation["image_id"])
    try:
      return decode_segmentation(annotation.get("segmentation"), height, width)
    except ValueError as error:
      raise InputError(
        f"COCO annotations {self.path}: annotation {annotation.get('id')} has no usable "
        f"segmentation ({error}); is the file damaged?"
      ) from error


def decode_segmentation(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
  """Rasterises a COCO segmentation as pycocotools does.

  Args:
    segmentation: polygons as lists of x, y, x, y, ... (a pixel in two of them counts once), or
      run lengths, compressed or not.
    height: of the image, in pixels.
    width: of the image, in pixels.

  Raises:
    ValueError: the segmentation is neither, or is of another size.
  """
  try:
    if isinstance(segmentation, Mapping):
      runs = _check_runs(segmentation, height, width)
    else:
      # Fewer than three points enclose nothing, and pycocotools would take four numbers for a box.
      polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
      if not polygons or any(len(polygon) % 2 for polygon in polygons):
        raise ValueError("no polygon of three or more points")
      runs = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return coco_mask.decode(runs).astype(bool)
  except (KeyError, IndexError, TypeError, AttributeError) as error:
    raise ValueError(str(error)) from error


def _check_runs(segmentation: Mapping[str, Any], height: int, width: int) -> Any:
  """Returns compressed run lengths for an image of that size, or raises ValueError."""
  if list(segmentation["size"]) != [height, width]:
    raise ValueError(f"run lengths of {segmentation['size']}, image of {[height, width]}")
  counts = segmentation["counts"]
  compressed = not isinstance(counts, list)
  lengths = _decompress(counts) if compressed else counts
  # pycocotools would leave what runs do not cover as the memory happens to be.
  if any(length < 0 for length in lengths) or sum(lengths) != height * width:
    raise ValueError(f"run lengths cover {sum(lengths)} of {height * width} pixels")
  runs: Any = dict(segmentation)
  return runs if compressed else coco_mask.frPyObjects(runs, height, width)


def _decompress(counts: str | bytes) -> list[int]:
  """The run lengths in COCO's string: five bits a character, each length after the third less the one two before."""
  lengths: list[int] = []
  value = shift = 0
  for byte in counts.encode() if isinstance(counts, str) else counts:
    bits = byte - 48
    value |= (bits & 31) << shift
    shift += 5
    if not bits & 32:
      value -= (bits & 16) and 1 << shift
      lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
      value = shift = 0
  return lengths
