"""COCO instance annotations: the file behind targets and ground-truth instance masks."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

from input_pipeline.errors import InputError


class CocoAnnotations:
  """An `instances.json`, indexed by annotation and by image."""

  def __init__(self, path: str):
    """Reads the file.

    Args:
      path: a JSON file with COCO's `images` and `annotations`.

    Raises:
      InputError: the file is missing or is not of that form.
    """
    self.path = path
    try:
      with open(path, encoding="utf-8") as file:
        content = json.load(file)
      self.images: dict[int, dict[str, Any]] = {row["id"]: row for row in content["images"]}
      self.annotations: dict[int, dict[str, Any]] = {
        row["id"]: row for row in content["annotations"]
      }
      self._of_image: dict[int, list[dict[str, Any]]] = {key: [] for key in self.images}
      for row in content["annotations"]:
        self._of_image.setdefault(row["image_id"], []).append(row)
    except OSError as error:
      raise InputError(
        f"COCO annotations {path}: {error.strerror}; docs/data.md says where to get instances.json"
      ) from error
    except (KeyError, TypeError, ValueError) as error:
      raise InputError(
        f"COCO annotations {path}: not a COCO instances file ({type(error).__name__}: {error}); "
        "it needs `images` and `annotations`, each row with its id"
      ) from error

  def of_image(self, image_id: int) -> list[dict[str, Any]]:
    """Returns the annotations of an image, in the file's order; none if it has none."""
    return self._of_image.get(image_id, [])

  def size(self, image_id: int) -> tuple[int, int]:
    """Returns height and width of an image in pixels."""
    try:
      image = self.images[image_id]
      return int(image["height"]), int(image["width"])
    except (KeyError, TypeError, ValueError) as error:
      raise InputError(
        f"COCO annotations {self.path}: image {image_id} has no entry with height and width; "
        "is the file complete?"
      ) from error

  def mask(self, annotation: Mapping[str, Any]) -> Bool[np.ndarray, "h w"]:
    """Returns the pixels that an annotation covers: the union of its polygons, or its RLE.

    Raises:
      InputError: the segmentation is empty, malformed or of another size than the image.
    """
    height, width = self.size(annotation["image_id"])
    try:
      return decode_segmentation(annotation["segmentation"], height, width)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
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
  if isinstance(segmentation, Mapping):
    runs = _check_runs(segmentation, height, width)
  else:
    # Fewer than three points enclose nothing, and pycocotools would take four numbers for a box.
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not polygons or any(len(polygon) % 2 for polygon in polygons):
      raise ValueError("no polygon of three or more points")
    runs = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
  return coco_mask.decode(runs).astype(bool)


def _check_runs(segmentation: Mapping[str, Any], height: int, width: int) -> Any:
  """Returns compressed run lengths for an image of that size, or raises ValueError."""
  if list(segmentation["size"]) != [height, width]:
    raise ValueError(f"run lengths of {segmentation['size']}, image of {[height, width]}")
  if not isinstance(segmentation["counts"], list):
    return dict(segmentation)
  counts = segmentation["counts"]
  if any(count < 0 for count in counts) or sum(counts) != height * width:
    raise ValueError(f"run lengths cover {sum(counts)} of {height * width} pixels")
  uncompressed: Any = dict(segmentation)
  return coco_mask.frPyObjects(uncompressed, height, width)
