"""Brings the regions of an export and the photos on disk together, or says why they do not fit."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageOps

from input_pipeline.common.errors import InputError
from input_pipeline.common.image_names import ImageFolder, ImageNotFound, same_spelling
from input_pipeline.common.terminal import counted
from input_pipeline.custom import image_files
from input_pipeline.custom.converters.collect import Export, Region
from input_pipeline.custom.image_files import Header
from input_pipeline.custom.schema import LineError, Mask
from input_pipeline.masks.segmentation import Segmentation, encode_segmentation, read_segmentation

UPRIGHT, STORED = "upright", "stored"
"""Values of `--exif`."""
_EXIF_ORIENTATION = 0x0112
# Pixels by which the sides of a resized photo are rounded.
_ROUNDING = 1.0


@dataclasses.dataclass(frozen=True)
class Fit:
  """What the user says about photos that differ from those that were annotated."""

  exif: str | None = None
  """UPRIGHT or STORED: which pixels masks are for; None where the export says it."""
  rescale: bool = False
  """Whether masks are scaled to photos of another size and the same shape."""


def find_photos(export: Export, folder: str) -> tuple[dict[str, str], list[str]]:
  """Finds the photos of an export.

  Args:
    export: its regions name them.
    folder: the photos are in it, at any depth.

  Returns:
    Paths relative to the folder, by name; and an error for each name that was not found, which
    keeps its name as path.

  Raises:
    InputError: several photos may be meant by a name, or one photo by several names.
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
        f"{folder}: the export has {other} and {name}, and both seem to be {path}; add the photo "
        "that is missing, or leave out one of the two"
      )
  return paths, missing


def check_ids(regions: Sequence[Region]) -> None:
  """Checks that no name is that of several images.

  Raises:
    InputError: it is.
  """
  ids: dict[str, int | None] = {}
  for region in regions:
    if ids.setdefault(region.image, region.image_id) != region.image_id:
      raise InputError(
        f"{region.image} is the name of the images {ids[region.image]} and {region.image_id}; "
        "export them with their folders, or one at a time"
      )


def fit_regions(
  export: Export, paths: Mapping[str, str], folder: str, fit: Fit
) -> tuple[list[Region], list[str]]:
  """Compares the sizes that an export declares with those of the photos.

  Args:
    export: masks that are turned or scaled are noted in it.
    paths: see `find_photos`.
    folder: of the photos.
    fit: what the user says about them.

  Returns:
    The regions, whose masks are now for the upright photos; and errors of photos that could not be
    opened.

  Raises:
    InputError: masks are for photos of another size, or it is unclear whether for turned ones.
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
    more = f" (and so for {counted(len(others), 'other image')})" if others else ""
    raise InputError(f"{first}{more}")
  return regions, unreadable


def _fit(region: Region, header: Header, fit: Fit, export: Export) -> Region:
  """Returns a region whose mask is for the upright photo; raises ValueError if it cannot be."""
  mask = region.mask
  if mask is None:
    return region
  upright = region.upright if fit.exif is None else fit.exif == UPRIGHT
  if header.orientation == 1:
    upright = True
  declared = region.size or _size_in(mask)
  expected = header.stored_size if upright is False else header.size
  size = declared or expected
  if size != expected and not (fit.rescale and _is_scaled(size, expected)):
    raise ValueError(_differ(size, header, upright))
  if upright is None and (declared is None or header.turned_unseen):
    raise ValueError(
      "EXIF data turns the photo, and the export does not tell whether masks are for the pixels "
      "upright or stored: say --exif upright or --exif stored, and look with `draw`"
    )
  if size != expected:
    mask = _scaled(mask, size, expected)
    export.note("mask scaled to the size of the photo", region.image)
  if upright is False:
    mask = _turned(mask, expected, header.orientation)
    export.note("mask turned as EXIF data turns the photo", region.image)
  return dataclasses.replace(region, mask=mask)


def _size_in(mask: Mask) -> tuple[int, int] | None:
  """Returns the height and width that run lengths have."""
  size = mask["rle"].get("size") if isinstance(mask.get("rle"), dict) else None
  if isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
    return size[0], size[1]
  return None


def _is_scaled(size: tuple[int, int], other: tuple[int, int]) -> bool:
  """Tells whether two sizes have the same shape, up to rounding."""
  (height, width), (other_height, other_width) = sorted((size, other), key=lambda s: s[0] * s[1])
  return (
    abs(height - other_height * width / other_width) < _ROUNDING
    or abs(width - other_width * height / other_height) < _ROUNDING
  )


def _differ(size: tuple[int, int], header: Header, upright: bool | None) -> str:
  """Returns what is wrong with a size, and what to do."""
  height, width = header.size
  text = f"the export is for {size[1]} x {size[0]} pixels, but the photo has {width} x {height}"
  if header.stored_size != header.size:
    text += f" upright, and {height} x {width} stored, since EXIF data turns it"
    for name, other in ((STORED, header.stored_size), (UPRIGHT, header.size)):
      if size == other:
        return (
          f"{text}; if masks are for the pixels {name}, say --exif {name}, and look with `draw`"
        )
  expected = header.stored_size if upright is False else header.size
  if _is_scaled(size, expected):
    return (
      f"{text}: a resized copy; name the folder of those that were annotated with --images, or "
      "scale the masks with --rescale"
    )
  return f"{text}; name the folder of the photos that were annotated with --images"


def _read(mask: Mask, size: tuple[int, int]) -> Segmentation:
  return read_segmentation(mask["rle"] if "rle" in mask else mask["polygons"], *size)


def _scaled(mask: Mask, size: tuple[int, int], other: tuple[int, int]) -> Mask:
  """Returns a mask for a photo of another size."""
  segmentation = _read(mask, size)
  factors = (other[1] / size[1], other[0] / size[0])
  if all("polygons" in part for part in segmentation.parts):
    polygons = [polygon for part in segmentation.parts for polygon in part["polygons"]]
    return {"polygons": [[v * factors[k % 2] for k, v in enumerate(p)] for p in polygons]}
  image = Image.fromarray(segmentation.mask())
  resized = image.resize((other[1], other[0]), Image.Resampling.NEAREST)
  return {"rle": encode_segmentation(np.asarray(resized))}


def _turned(mask: Mask, size: tuple[int, int], orientation: int) -> Mask:
  """Returns the pixels of a mask for the photo as stored, turned as the photo is."""
  image = Image.fromarray(_read(mask, size).mask())
  image.getexif()[_EXIF_ORIENTATION] = orientation
  return {"rle": encode_segmentation(np.asarray(ImageOps.exif_transpose(image)))}
