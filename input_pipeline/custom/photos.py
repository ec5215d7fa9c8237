"""Matches the regions of an export with the images on disk, and fits their masks to them."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageOps

from input_pipeline.common.errors import InputError
from input_pipeline.common.image_names import ImageFolder, ImageNotFound, same_spelling
from input_pipeline.common.terminal import counted
from input_pipeline.custom import image_files
from input_pipeline.custom.converters.collect import Export, Region, size_of_runs
from input_pipeline.custom.image_files import Header
from input_pipeline.custom.schema import LineError, Mask
from input_pipeline.masks.segmentation import Segmentation, encode_segmentation, read_segmentation

UPRIGHT, STORED = "upright", "stored"
"""Values of `--exif`."""
_EXIF_ORIENTATION = 0x0112
# Rounding of the sides of a resized image, in pixels.
_ROUNDING = 1.0


@dataclasses.dataclass(frozen=True)
class Fit:
  """The user's options for images that differ from the annotated ones."""

  exif: str | None = None
  """UPRIGHT or STORED: the pixels that masks are for; None to follow the export."""
  rescale: bool = False
  """Whether masks are scaled to images of another size with the same aspect ratio."""


def find_photos(export: Export, folder: str) -> tuple[dict[str, str], list[str]]:
  """Finds the images of an export.

  Args:
    export: its regions name them.
    folder: of the images, at any depth.

  Returns:
    Paths relative to the folder, by name; and an error for each name that was not found, whose path
    is the name itself.

  Raises:
    InputError: a name matches several images, or several names match one image.
  """
  photos = ImageFolder(folder)
  paths: dict[str, str] = {}
  names: dict[str, str] = {}
  missing = []
  for name in dict.fromkeys(region.image for region in export.regions):
    if name in export.embedded:
      paths[name] = name
      continue
    try:
      path = photos.find(name)
    except ImageNotFound as error:
      missing.append(str(error))
      paths[name] = name.replace("\\", "/").lstrip("/")
      continue
    paths[name] = path
    other = names.setdefault(path, name)
    if not same_spelling(other, name):
      raise InputError(
        f"{folder}: {other} and {name} in the export both match {path}; add the missing image, or "
        "remove one of the two from the export"
      )
  return paths, missing


def check_ids(regions: Sequence[Region]) -> None:
  """Checks that no two images share a name.

  Raises:
    InputError: two images do.
  """
  ids: dict[str, int | None] = {}
  for region in regions:
    if ids.setdefault(region.image, region.image_id) != region.image_id:
      raise InputError(
        f"{region.image} is the name of both image {ids[region.image]} and image "
        f"{region.image_id}; export the names with their folders, or export the images separately"
      )


def fit_regions(
  export: Export, paths: Mapping[str, str], folder: str, fit: Fit
) -> tuple[list[Region], list[str]]:
  """Checks the sizes that an export declares, and fits masks to the upright images.

  Args:
    export: masks that are rotated or scaled are noted in it.
    paths: see `find_photos`.
    folder: of the images.
    fit: the user's options.

  Returns:
    The regions, with masks for the upright images; and errors about images that could not be
    opened.

  Raises:
    InputError: masks are for another image size, or their orientation is unknown.
  """
  headers: dict[str, Header | None] = {}
  unreadable, problems = [], {}
  regions = []
  for region in export.regions:
    path = os.path.join(folder, paths[region.image])
    if region.image in export.embedded or not os.path.exists(path):
      regions.append(region)
      continue
    if path not in headers:
      headers[path] = None
      try:
        headers[path] = image_files.read_header(path)
      except LineError as error:
        unreadable.append(str(error))
    header = headers[path]
    try:
      regions.append(region if header is None else _fit(region, header, fit, export))
    except ValueError as error:
      problems.setdefault(region.image, f"{region.image}: {error}")
  if problems:
    first, *others = problems.values()
    more = f" (similarly for {counted(len(others), 'other image')})" if others else ""
    raise InputError(f"{first}{more}")
  return regions, unreadable


def _fit(region: Region, header: Header, fit: Fit, export: Export) -> Region:
  """Returns a region with its mask fitted to the upright image; raises ValueError if impossible."""
  mask = region.mask
  if mask is None:
    return region
  upright = region.upright if fit.exif is None else fit.exif == UPRIGHT
  if header.orientation == 1:
    upright = True
  declared = region.size or size_of_runs(mask.get("rle"))
  expected = header.stored_size if upright is False else header.size
  size = declared or expected
  if size != expected and not (fit.rescale and _is_scaled(size, expected)):
    raise ValueError(_differ(size, header, upright))
  if upright is None and (declared is None or header.turned_unseen):
    raise ValueError(
      "EXIF rotates the image, and the export does not tell whether masks are for the upright or "
      "the stored pixels; add --exif upright or --exif stored and check the result with `draw`"
    )
  if size != expected:
    mask = _scaled(mask, size, expected)
    export.note("mask scaled to the size of the image", region.image)
  if upright is False:
    mask = _turned(mask, expected, header.orientation)
    export.note("mask rotated with the image as in its EXIF data", region.image)
  return dataclasses.replace(region, mask=mask)


def _is_scaled(size: tuple[int, int], other: tuple[int, int]) -> bool:
  """Returns whether two sizes have the same aspect ratio, up to rounding."""
  (height, width), (other_height, other_width) = sorted((size, other), key=lambda s: s[0] * s[1])
  return (
    abs(height - other_height * width / other_width) < _ROUNDING
    or abs(width - other_width * height / other_height) < _ROUNDING
  )


def _differ(size: tuple[int, int], header: Header, upright: bool | None) -> str:
  """Returns the error message for a size that differs."""
  height, width = header.size
  text = f"the export is for {size[1]} x {size[0]} pixels, but the image has {width} x {height}"
  if header.stored_size != header.size:
    text += f" upright and {height} x {width} as stored (EXIF rotates it)"
    for name, other in ((STORED, header.stored_size), (UPRIGHT, header.size)):
      if size == other:
        return (
          f"{text}; if the masks are for the {name} pixels, add --exif {name} and check the result "
          "with `draw`"
        )
  expected = header.stored_size if upright is False else header.size
  if _is_scaled(size, expected):
    return (
      f"{text}: a resized copy; use the folder of the annotated images with --images, or scale the "
      "masks with --rescale"
    )
  return f"{text}; use the folder of the annotated images with --images"


def _read(mask: Mask, size: tuple[int, int]) -> Segmentation:
  return read_segmentation(mask["rle"] if "rle" in mask else mask["polygons"], *size)


def _scaled(mask: Mask, size: tuple[int, int], other: tuple[int, int]) -> Mask:
  """Returns a mask for an image of another size."""
  segmentation = _read(mask, size)
  factors = (other[1] / size[1], other[0] / size[0])
  if all("polygons" in part for part in segmentation.parts):
    polygons = [polygon for part in segmentation.parts for polygon in part["polygons"]]
    return {"polygons": [[v * factors[k % 2] for k, v in enumerate(p)] for p in polygons]}
  image = Image.fromarray(segmentation.mask())
  resized = image.resize((other[1], other[0]), Image.Resampling.NEAREST)
  return {"rle": encode_segmentation(np.asarray(resized))}


def _turned(mask: Mask, size: tuple[int, int], orientation: int) -> Mask:
  """Returns a mask of the stored pixels rotated to the upright image."""
  image = Image.fromarray(_read(mask, size).mask())
  image.getexif()[_EXIF_ORIENTATION] = orientation
  return {"rle": encode_segmentation(np.asarray(ImageOps.exif_transpose(image)))}
