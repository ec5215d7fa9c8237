"""Masks of custom data: the pixels that the masks of a line cover."""

import dataclasses
import functools
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image, UnidentifiedImageError

from input_pipeline import preprocess
from input_pipeline.common import buckets, image_names, places, untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.custom.schema import LineError, Mask
from input_pipeline.masks import segmentation
from input_pipeline.masks.coco import CocoAnnotations
from input_pipeline.masks.row_index import whole_number

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\\\")
# Up to this many values are labels; more are shades of grey.
_MAX_LABELS = 16
# Share of white above which most pixels of a lossy mask (such as JPEG) stay.
_WHITE, _MOST = 0.9, 0.75
# Number of values listed in a message.
_SHOWN = 4
_OTHER_SIZE = "mask has another size"
DECLARED = "declared"
"""Key of a looked-up part: the image's height and width in the COCO file, and the part's name."""


@dataclasses.dataclass(frozen=True)
class PathResolver:
  """Finds the files that lines name."""

  root: str
  """The folder of the images and of masks in files."""
  annotations: str = ""
  """The COCO file that `ann_id` refers to; empty without one."""
  follow_links: bool | None = None
  """Whether links may lead out of the folder: only if the user named it. None: never."""

  def name(self, path: str) -> str:
    """Returns a path as spelled on disk, with forward slashes."""
    if _URL.match(path):
      return path
    if not buckets.is_remote(self.root):
      path = image_names.spelled(self.root, path) or path
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return path if os.path.isabs(path) else "/".join(parts)

  def resolve(self, path: str) -> str:
    """Returns the real path of an image or a mask; see `name`.

    Raises:
      LineError: the path is outside the folder, or a URL.
    """
    if _URL.match(path):
      raise LineError("image is missing", f"{path} is a URL; download the file and use its path")
    if _WINDOWS_ROOT.match(path):
      message = f"the path {path!r}: write a path relative to {self.root}"
      raise LineError("path outside the folder", message)
    try:
      return self.inside(path, "the path")
    except InputError as error:
      hint = "; to follow links, name the folder with --images" * (self.follow_links is False)
      raise LineError("path outside the folder", f"{error}{hint}") from error

  def inside(self, path: str, what: str) -> str:
    """Returns the real path of a file in the folder, or its address.

    Args:
      path: relative to the folder.
      what: of the path, for error messages.

    Raises:
      InputError: the path is not inside the folder.
    """
    name = self.name(path)
    if not buckets.is_remote(self.root):
      return untrusted_files.resolve_inside(
        self.root, name, what, follow_links=bool(self.follow_links)
      )
    if not untrusted_files.stays_inside(name):
      raise InputError(f"{what} {path!r}: write a path relative to {self.root}")
    return places.join(self.root, name)


def resolve(mask: Mask, image: str, paths: PathResolver) -> list[Mask]:
  """Returns a mask as self-contained parts: `rle`, `polygons`, or `png` with a full path.

  Args:
    mask: as in the line, with its types checked.
    image: the image as named in the line.
    paths: where files are.

  Raises:
    LineError: an annotation does not exist or belongs to another image.
  """
  if "png" in mask:
    return [mask | {"png": paths.resolve(mask["png"])}]
  ids = mask["ann_ids"] if "ann_ids" in mask else [mask["ann_id"]] if "ann_id" in mask else None
  return [mask] if ids is None else [_look_up(ann_id, image, paths) for ann_id in ids]


def coco_images(mask: Mask, paths: PathResolver) -> set[Any]:
  """Returns the ids of the images in the COCO file whose annotations a mask consists of."""
  ids = mask["ann_ids"] if "ann_ids" in mask else [mask["ann_id"]] if "ann_id" in mask else []
  try:
    coco = open_coco(paths.annotations) if ids else None
  except InputError:  # `resolve` reports it
    return set()
  return {
    row["image_id"] for i in ids if coco and (row := coco.annotation(i)) and "image_id" in row
  }


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
  image_id = annotation.get("image_id", -1)
  row = coco.image(image_id) or {}
  name = image_names.name_of_row(row) or ""
  if not image_names.same_image(name, image) or not _is_best(image_id, image, coco):
    message = f"annotation {ann_id} belongs to image {name!r}, not to {image!r}"
    raise LineError("unknown annotation", message)
  value = annotation.get("segmentation")
  if not value:
    raise LineError("unknown annotation", f"annotation {ann_id} has no segmentation")
  part: Mask = {"rle": value} if isinstance(value, dict) else {"polygons": value}
  height, width = whole_number(row.get("height")), whole_number(row.get("width"))
  # coco-annotator writes zeros for an unknown size.
  if not height or not width:
    return part
  return part | {DECLARED: [height, width, f"annotation {ann_id}"]}


def _is_best(image_id: Any, name: str, coco: CocoAnnotations) -> bool:
  """Returns whether no other image of the file matches a name better."""
  try:
    return coco.find_image(name) == image_id
  except InputError:  # several match equally well
    return True


@functools.cache
def open_coco(path: str) -> CocoAnnotations:
  """Opens a COCO file, once per process."""
  return CocoAnnotations(path)


def rasterise(mask: Mask, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
  """Returns the pixels of a mask; see `read`."""
  return read(mask, height, width)[0]


def read(
  mask: Mask, height: int, width: int
) -> tuple[Bool[np.ndarray, "{height} {width}"], tuple[LineError, ...]]:
  """Returns the pixels of a mask that `resolve` returned, and warnings.

  Args:
    mask: `rle`, `polygons` or `png`.
    height: of the upright image, in pixels.
    width: of the upright image, in pixels.

  Raises:
    LineError: the mask does not fit the image, cannot be read, or is ambiguous.
  """
  if "png" in mask:
    return _read_png(mask["png"], mask.get("value"), height, width)
  if DECLARED in mask:
    *size, name = mask[DECLARED]
    _check_size(f"{name} is for", (size[0], size[1]), height, width)
  try:
    parts = segmentation.read_segmentation(
      mask["rle"] if "rle" in mask else mask["polygons"], height, width
    )
    return parts.mask(), tuple(LineError(note, note) for note in dict.fromkeys(parts.notes))
  except segmentation.OtherSize as error:
    raise LineError(_OTHER_SIZE, str(error)) from error
  except segmentation.OutsideImage as error:
    raise LineError("polygon outside the image", str(error)) from error
  except ValueError as error:
    raise LineError("invalid RLE" if "rle" in mask else "invalid polygon", str(error)) from error


def _check_size(which: str, size: tuple[int, int], height: int, width: int) -> None:
  if size == (height, width):
    return
  message = f"{which} {size[1]} x {size[0]}, but the image is {width} x {height}"
  if size == (width, height):
    message += "; EXIF rotates the image: make the mask for the upright image"
  else:
    message += "; if the image was resized, use the one that the mask was made for"
  raise LineError(_OTHER_SIZE, message)


def union(parts: Sequence[Bool[np.ndarray, "h w"]]) -> Bool[np.ndarray, "h w"]:
  """Returns the union of one or more masks."""
  # `np.logical_or.reduce` would take half as long as the rest of the check of a line.
  return functools.reduce(np.logical_or, parts)


def _read_png(
  path: str, value: int | None, height: int, width: int
) -> tuple[Bool[np.ndarray, "{height} {width}"], tuple[LineError, ...]]:
  name = os.path.basename(path)
  try:
    with untrusted_files.open_file(path, path) as file, preprocess.open_header(file) as image:
      if image.format != "PNG":
        message = f"{name} is {image.format}; write masks as PNG, which is lossless"
        raise LineError("invalid PNG", message)
      _check_size(f"{name} is", (image.height, image.width), height, width)
      pixels = _single_channel(image, name)
  except LineError:
    raise
  except InputError as error:
    if isinstance(error.__cause__, FileNotFoundError):
      raise LineError("mask is missing", f"{path}: no such file") from error
    raise LineError("invalid PNG", str(error)) from error
  except UnidentifiedImageError as error:
    raise LineError("invalid PNG", f"{name} {error}") from error
  except Exception as error:  # Pillow raises almost any exception on damaged files.
    raise LineError("invalid PNG", f"{name} cannot be read ({error})") from error
  if value is not None:
    selected = pixels == value
    return selected, () if selected.any() else (_no_such_value(pixels, value, name),)
  return pixels != 0, _check_values(pixels, image.mode, name)


def _single_channel(image: Image.Image, name: str) -> np.ndarray:
  pixels = np.asarray(image)
  if pixels.ndim == 2:
    return pixels
  if image.mode == "RGB" and (pixels == pixels[..., :1]).all():
    return pixels[..., 0]
  content = "transparency" if "A" in image.getbands() else "colours"
  raise LineError(
    "invalid PNG",
    f"{name} has {content} (mode {image.mode}); write a single channel that is 0 outside, such as "
    f"Image.open({name!r}).getchannel({image.getbands()[-1]!r}) in Pillow",
  )


def _no_such_value(pixels: np.ndarray, value: int, name: str) -> LineError:
  values = np.unique(pixels)
  shown = ", ".join(map(str, values[:_MAX_LABELS])) + ", ..." * (len(values) > _MAX_LABELS)
  return LineError("mask without its value", f"{name} has no pixels of value {value}, only {shown}")


def _are_shades(values: np.ndarray, counts: np.ndarray) -> bool:
  """Returns whether values are shades from black to white rather than labels."""
  white = np.iinfo(values.dtype).max
  if len(values) > _MAX_LABELS and values[-1] > white // 2:
    return True
  bright = int(counts[values > _WHITE * white].sum())
  return bright >= _MOST * int(counts[values != 0].sum())


def _check_values(pixels: np.ndarray, mode: str, name: str) -> tuple[LineError, ...]:
  """Checks that a mask without `value` is unambiguous; returns warnings."""
  values, counts = np.unique(pixels, return_counts=True)
  if len(values) < 2 or (len(values) == 2 and values[0] == 0):
    return ()
  kind = "mask with several values"
  order = np.argsort(-counts)[:_SHOWN]
  shown = ", ".join(f"{values[i]} on {counts[i]:,} pixels" for i in order)
  shown += ", ..." * (len(values) > _SHOWN)
  message = f"{name} has {len(values)} values ({shown}) and no 'value'"
  if mode == "P" or not _are_shades(values, counts):
    label = next(values[i] for i in order if values[i])
    raise LineError(
      kind,
      f'{message}; add the value of the object, such as "value": {label}, or use only 0 and 255',
    )
  covered, half = int(counts[values != 0].sum()), int(counts[values > values[-1] / 2].sum())
  return (
    LineError(
      kind,
      f"{message}: all {covered:,} non-zero pixels count as covered, but only {half:,} exceed "
      f"{values[-1] // 2}; use only 0 and 255",
    ),
  )
