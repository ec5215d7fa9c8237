"""Masks of a user's own data: which pixels the parts of a line mean."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import UnidentifiedImageError

from input_pipeline import preprocess
from input_pipeline.common import untrusted_files, untrusted_paths
from input_pipeline.common.errors import InputError
from input_pipeline.custom.problems import Wrong
from input_pipeline.custom.schema import Mask
from input_pipeline.masks.coco import CocoAnnotations, decode_segmentation

_TOLERANCE = 1.0  # pixels that a polygon may lie outside: tools round


@dataclasses.dataclass(frozen=True)
class Places:
  """Where the files are that lines name."""

  root: str
  """The folder of images, and of masks that are files."""
  annotations: str = ""
  """The COCO file that `ann_id` looks into; empty where there is none."""

  def image(self, path: str) -> str:
    """Returns the file of an image.

    Raises:
      Wrong: the path leaves the folder.
    """
    try:
      return untrusted_paths.inside(self.root, path, "the path")
    except InputError as error:
      raise Wrong("path leaves the folder", str(error)) from error


def resolve(mask: Mask, image: str, places: Places) -> list[Mask]:
  """Returns what a mask means without any other table: `rle`, `polygons`, or `png` with its whole path.

  Args:
    mask: as the line has it, its types checked.
    image: of the line, as it names it.
    places: where files are.

  Raises:
    Wrong: an annotation is not there, or is of another image.
  """
  if "png" in mask:
    return [mask | {"png": places.image(mask["png"])}]
  ids = mask["ann_ids"] if "ann_ids" in mask else [mask["ann_id"]] if "ann_id" in mask else None
  return [mask] if ids is None else [_annotation(ann_id, image, places) for ann_id in ids]


def _annotation(ann_id: int, image: str, places: Places) -> Mask:
  if not places.annotations:
    text = "which COCO file? Name it with 'annotations' on a line, or with --annotations FILE"
    raise Wrong("no COCO file", f"annotation {ann_id}: {text}")
  try:
    coco = open_coco(places.annotations)
  except InputError as error:
    raise Wrong("no COCO file", str(error)) from error
  found = coco.annotation(ann_id)
  if found is None:
    raise Wrong(
      "unknown annotation", f"annotation {ann_id} is not in {os.path.basename(coco.path)}"
    )
  row = coco.image(found.get("image_id", -1)) or {}
  name = str(row.get("file_name", "")).replace("\\", "/").rpartition("/")[2]
  if name != os.path.basename(image):
    raise Wrong("unknown annotation", f"annotation {ann_id} is of the image {name!r}, not of this")
  segmentation = found.get("segmentation")
  if isinstance(segmentation, dict):
    return {"rle": segmentation}
  if not isinstance(segmentation, list) or not segmentation:
    raise Wrong("unknown annotation", f"annotation {ann_id} has no segmentation")
  return {"polygons": segmentation}


@functools.cache
def open_coco(path: str) -> CocoAnnotations:
  """Opens a COCO file, once a process."""
  return CocoAnnotations(path)


def rasterise(mask: Mask, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
  """Returns the pixels of a mask that `resolve` gave.

  Args:
    mask: `rle`, `polygons` or `png`.
    height: of the upright image, in pixels.
    width: of the upright image, in pixels.

  Raises:
    Wrong: it does not fit the image, or cannot be read.
  """
  if "png" in mask:
    return _read_png(mask["png"], mask.get("value"), height, width)
  try:
    if "rle" in mask:
      return decode_segmentation(mask["rle"], height, width)
    _check_inside(mask["polygons"], height, width)
    return decode_segmentation(mask["polygons"], height, width)
  except Wrong:
    raise
  except ValueError as error:
    kind = "wrong RLE" if "rle" in mask else "wrong polygon"
    raise Wrong(kind, f"does not fit ({error})") from error


def union(parts: Sequence[Bool[np.ndarray, "h w"]]) -> Bool[np.ndarray, "h w"]:
  """Returns what any of the masks covers; there is at least one."""
  # `np.logical_or.reduce` takes half as long as all else that is done to a line.
  return functools.reduce(np.logical_or, parts)


def _check_inside(polygons: Any, height: int, width: int) -> None:
  for number, polygon in enumerate(polygons):
    for values, limit, axis in ((polygon[::2], width, "x"), (polygon[1::2], height, "y")):
      far = [v for v in values if not -_TOLERANCE <= v <= limit + _TOLERANCE]
      if far:
        text = f"number {number + 1} has {axis} = {far[0]:g}, and the image is {width} x {height}"
        raise Wrong("polygon outside the image", text)


def _read_png(
  path: str, value: int | None, height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
  name = os.path.basename(path)
  try:
    with untrusted_files.open_file(path, path) as file, preprocess.open_head(file) as image:
      if image.format != "PNG":
        raise Wrong("wrong PNG", f"{name} is a {image.format}; write masks as PNG, without loss")
      if image.size != (width, height):
        text = f"{name} is {image.width} x {image.height}, the image is {width} x {height}"
        raise Wrong("mask of another size", text)
      pixels = np.asarray(image)
  except Wrong:
    raise
  except InputError as error:
    if isinstance(error.__cause__, FileNotFoundError):
      raise Wrong("mask is missing", f"{path}: no such file") from error
    raise Wrong("wrong PNG", str(error)) from error
  except UnidentifiedImageError as error:
    raise Wrong("wrong PNG", f"{name}: it is no picture of a known kind") from error
  except Exception as error:  # Pillow raises nearly anything of damaged files.
    raise Wrong("wrong PNG", f"{name} cannot be read ({error})") from error
  if pixels.ndim == 3:
    if pixels.shape[2] != 3 or (pixels != pixels[..., :1]).any():
      raise Wrong("wrong PNG", f"{name} is coloured or has transparency; write one channel")
    pixels = pixels[..., 0]
  return pixels == value if value is not None else pixels != 0
