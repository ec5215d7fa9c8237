"""Masks of custom data: the pixels that the masks of a line cover."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import UnidentifiedImageError

from input_pipeline import preprocess
from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.custom.schema import LineError, Mask
from input_pipeline.masks.coco import CocoAnnotations
from input_pipeline.masks.segmentation import decode_segmentation

# Pixels that a polygon may extend beyond the image: annotation tools round.
_TOLERANCE = 1.0


@dataclasses.dataclass(frozen=True)
class PathResolver:
  """Finds the files that lines name."""

  root: str
  """The folder of the images and of masks in files."""
  annotations: str = ""
  """The COCO file that `ann_id` refers to; empty without one."""

  def resolve(self, path: str) -> str:
    """Returns the real path of an image or a mask.

    Raises:
      LineError: the path is outside the folder.
    """
    try:
      return untrusted_files.resolve_inside(self.root, path, "the path")
    except InputError as error:
      raise LineError("path outside the folder", str(error)) from error


def resolve(mask: Mask, image: str, paths: PathResolver) -> list[Mask]:
  """Returns a mask as self-contained parts: `rle`, `polygons`, or `png` with a full path.

  Args:
    mask: as in the line, with its types checked.
    image: the image as the line names it.
    paths: where files are.

  Raises:
    LineError: an annotation does not exist or belongs to another image.
  """
  if "png" in mask:
    return [mask | {"png": paths.resolve(mask["png"])}]
  ids = mask["ann_ids"] if "ann_ids" in mask else [mask["ann_id"]] if "ann_id" in mask else None
  return [mask] if ids is None else [_look_up(ann_id, image, paths) for ann_id in ids]


def _look_up(ann_id: int, image: str, paths: PathResolver) -> Mask:
  if not paths.annotations:
    hint = "name the COCO file with 'annotations' on a line or with --annotations FILE"
    raise LineError("no COCO file", f"annotation {ann_id}: {hint}")
  try:
    coco = open_coco(paths.annotations)
  except InputError as error:
    raise LineError("no COCO file", str(error)) from error
  annotation = coco.annotation(ann_id)
  if annotation is None:
    message = f"annotation {ann_id} is not in {os.path.basename(coco.path)}"
    raise LineError("unknown annotation", message)
  row = coco.image(annotation.get("image_id", -1)) or {}
  name = str(row.get("file_name", "")).replace("\\", "/").rpartition("/")[2]
  if name != os.path.basename(image):
    message = f"annotation {ann_id} belongs to image {name!r}, not to {os.path.basename(image)!r}"
    raise LineError("unknown annotation", message)
  segmentation = annotation.get("segmentation")
  if isinstance(segmentation, dict):
    return {"rle": segmentation}
  if not isinstance(segmentation, list) or not segmentation:
    raise LineError("unknown annotation", f"annotation {ann_id} has no segmentation")
  return {"polygons": segmentation}


@functools.cache
def open_coco(path: str) -> CocoAnnotations:
  """Opens a COCO file, once per process."""
  return CocoAnnotations(path)


def rasterise(mask: Mask, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
  """Returns the pixels of a mask that `resolve` returned.

  Args:
    mask: `rle`, `polygons` or `png`.
    height: of the upright image, in pixels.
    width: of the upright image, in pixels.

  Raises:
    LineError: the mask does not fit the image or cannot be read.
  """
  if "png" in mask:
    return _read_png(mask["png"], mask.get("value"), height, width)
  try:
    if "rle" in mask:
      return decode_segmentation(mask["rle"], height, width)
    _check_inside(mask["polygons"], height, width)
    return decode_segmentation(mask["polygons"], height, width)
  except LineError:
    raise
  except ValueError as error:
    kind = "invalid RLE" if "rle" in mask else "invalid polygon"
    raise LineError(kind, f"does not fit the image ({error})") from error


def union(parts: Sequence[Bool[np.ndarray, "h w"]]) -> Bool[np.ndarray, "h w"]:
  """Returns the union of one or more masks."""
  # `np.logical_or.reduce` would take half as long as the rest of the check of a line.
  return functools.reduce(np.logical_or, parts)


def _check_inside(polygons: Any, height: int, width: int) -> None:
  for number, polygon in enumerate(polygons):
    for values, limit, axis in ((polygon[::2], width, "x"), (polygon[1::2], height, "y")):
      outside = [v for v in values if not -_TOLERANCE <= v <= limit + _TOLERANCE]
      if outside:
        point = f"{axis} = {outside[0]:g}"
        message = f"number {number + 1} has {point}, but the image is {width} x {height}"
        raise LineError("polygon outside the image", message)


def _read_png(
  path: str, value: int | None, height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
  name = os.path.basename(path)
  try:
    with untrusted_files.open_file(path, path) as file, preprocess.open_header(file) as image:
      if image.format != "PNG":
        message = f"{name} is {image.format}; write masks as PNG, which is lossless"
        raise LineError("invalid PNG", message)
      if image.size != (width, height):
        sizes = f"{name} is {image.width} x {image.height}, but the image is {width} x {height}"
        raise LineError("mask has another size", sizes)
      pixels = np.asarray(image)
  except LineError:
    raise
  except InputError as error:
    if isinstance(error.__cause__, FileNotFoundError):
      raise LineError("mask is missing", f"{path}: no such file") from error
    raise LineError("invalid PNG", str(error)) from error
  except UnidentifiedImageError as error:
    raise LineError("invalid PNG", f"{name} is not an image of a known format") from error
  except Exception as error:  # Pillow raises almost any exception on damaged files.
    raise LineError("invalid PNG", f"{name} cannot be read ({error})") from error
  if pixels.ndim == 3:
    if pixels.shape[2] != 3 or (pixels != pixels[..., :1]).any():
      message = f"{name} has colours or transparency; write a single channel"
      raise LineError("invalid PNG", message)
    pixels = pixels[..., 0]
  return pixels == value if value is not None else pixels != 0
