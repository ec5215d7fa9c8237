"""Masks from and to the segmentations of COCO, and from those of PhraseCut.

COCO's are checked before pycocotools' unsafe C code runs.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from input_pipeline import preprocess

MAX_POLYGONS = 10_000
"""Per segmentation; COCO's crowds have tens of polygons."""
MAX_BOUNDARY = 1_000_000
"""Pixels along all edges of a segmentation: pycocotools allocates 100 bytes per pixel."""
MAX_COORDINATE = 1_000_000
"""Maximum absolute coordinate in pixels, far below the limit of C's integers."""

_MAX_CHARACTERS = 6
"""Per run length in COCO's string: 30 bits. C shifts an int by five bits per character."""


def decode_segmentation(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
  """Rasterises a COCO segmentation as pycocotools does.

  Args:
    segmentation: polygons as lists of x, y, x, y, ... (overlaps count once), or run lengths,
      compressed or not.
    height: of the image, in pixels.
    width: of the image, in pixels.

  Raises:
    ValueError: the segmentation is malformed, has another size, or exceeds a limit.
  """
  check_size(height, width)
  try:
    if isinstance(segmentation, Mapping):
      runs = _check_runs(segmentation, height, width)
    else:
      runs = coco_mask.merge(coco_mask.frPyObjects(_check_polygons(segmentation), height, width))
    return coco_mask.decode(runs).astype(bool)
  except (KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
    raise ValueError(str(error)) from error


def encode_segmentation(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
  """Returns a mask as COCO's compressed run lengths: `size`, [height, width], and `counts`."""
  runs: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {"size": list(mask.shape), "counts": runs["counts"].decode()}


def check_size(height: int, width: int) -> None:
  """Raises ValueError for an invalid image size, before memory is allocated for the mask."""
  if min(height, width) < 1 or height * width > preprocess.MAX_PIXELS:
    limit = f"the limit is {preprocess.MAX_PIXELS / 1e6:.0f} megapixels"
    raise ValueError(f"invalid image size {width} x {height}; {limit}")


def _check_polygons(segmentation: Any) -> list[Any]:
  """Returns the polygons with at least three points; raises ValueError for ones unsafe in C."""
  # Fewer than three points enclose nothing, and pycocotools would interpret four numbers as a box.
  polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
  if not polygons or any(len(polygon) % 2 for polygon in polygons):
    raise ValueError("no polygon with at least three points")
  if len(polygons) > MAX_POLYGONS:
    raise ValueError(f"{len(polygons):,} polygons; the limit is {MAX_POLYGONS:,}")
  boundary = 0.0
  for polygon in polygons:
    boundary += _boundary(polygon)
    if boundary > MAX_BOUNDARY:
      raise ValueError(f"edges exceed {MAX_BOUNDARY:,} pixels in total")
  return polygons


def _boundary(polygon: Any) -> float:
  """Returns the pixels along a polygon's edges, at least one per point, or a small upper bound."""
  numbers = np.asarray(polygon) if isinstance(polygon, list) else None
  if numbers is None or numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
    raise ValueError(f"not a list of numbers: {polygon!r:.60}")
  low, high = float(numbers.min()), float(numbers.max())
  # Also false for NaN.
  if not (low >= -MAX_COORDINATE and high <= MAX_COORDINATE):
    raise ValueError(f"a point far outside the image: {polygon!r:.60}")
  count = len(numbers) // 2
  bound = count * (high - low + 1)
  if bound <= MAX_BOUNDARY / 100:
    return bound
  points = numbers.astype(np.float64).reshape(count, 2)
  edges = np.abs(points - points[np.arange(count) - 1])
  return float(np.maximum(edges[:, 0], edges[:, 1]).sum()) + count


def _check_runs(segmentation: Mapping[str, Any], height: int, width: int) -> Any:
  """Returns run lengths that are safe to decode for that size, or raises ValueError."""
  size, counts = segmentation["size"], segmentation["counts"]
  if not isinstance(size, list | tuple) or list(size) != [height, width]:
    raise ValueError(f"run lengths have size {size!r:.60}, but the image has {[height, width]}")
  if isinstance(counts, str):
    counts = counts.encode()
  if isinstance(counts, bytes):
    lengths = _decompress(counts, height * width)
  elif isinstance(counts, list):
    lengths = np.asarray(counts if counts else np.zeros(0, np.int64))
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
      raise ValueError("run lengths must be integers")
  else:
    raise ValueError(f"run lengths must be a string or a list, not {type(counts).__name__}")
  _check_lengths(lengths, height * width)
  # Only the checked keys are passed on.
  runs: Any = {"size": [height, width], "counts": counts}
  return runs if isinstance(counts, bytes) else coco_mask.frPyObjects(runs, height, width)


def _check_lengths(lengths: np.ndarray, pixels: int) -> None:
  # pycocotools would leave pixels that no run covers uninitialised, and write past the mask's end.
  # Each length is checked before the sum: a sum of large ones may overflow to any number.
  if len(lengths) > 2 * pixels + 2:
    raise ValueError(f"{len(lengths):,} run lengths for {pixels} pixels")
  if lengths.size and (lengths.min() < 0 or lengths.max() > pixels):
    raise ValueError(f"run lengths between {lengths.min()} and {lengths.max()} for {pixels} pixels")
  if (total := int(lengths.sum(dtype=np.int64))) != pixels:
    raise ValueError(f"run lengths cover {total} of {pixels} pixels")


def _decompress(counts: bytes, pixels: int) -> Int64[np.ndarray, "n"]:
  """Decodes COCO's string of five bits per character.

  From the third one on, a length is stored as the difference to the one two positions earlier.
  """
  if len(counts) > _MAX_CHARACTERS * (2 * pixels + 2):
    raise ValueError(f"{len(counts):,} characters of run lengths for {pixels} pixels")
  bits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
  if not len(bits):
    return bits
  if bits.min() < 0 or bits.max() > 63:
    raise ValueError("invalid characters in run lengths")
  ends = np.flatnonzero((bits & 32) == 0)
  if not len(ends) or ends[-1] != len(bits) - 1:
    raise ValueError("truncated run lengths")
  starts = np.concatenate([[0], ends[:-1] + 1])
  characters = ends - starts + 1
  if characters.max() > _MAX_CHARACTERS:
    raise ValueError("a run length has too many characters")
  shift = 5 * (np.arange(len(bits)) - np.repeat(starts, characters))
  values = np.add.reduceat((bits & 31) << shift, starts)
  values -= np.where(bits[ends] & 16, np.int64(1) << (5 * characters), 0)
  values[1::2] = values[1::2].cumsum()
  values[2::2] = values[2::2].cumsum()
  return values


def decode_phrasecut(polygons: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
  """Rasterises the polygons of one instance as the authors' evaluation does.

  Coordinates are truncated to integers, and Pillow draws the polygon with its outline. The outline
  belongs to the region, so an object is about half a pixel larger on every side than by COCO's
  rule. Polygons with fewer than two points are ignored; overlaps count once.

  Args:
    polygons: lists of points [x, y], in pixels.
    height: of the image, in pixels.
    width: of the image, in pixels.

  Raises:
    ValueError: the polygons are malformed or exceed a limit.
  """
  if not isinstance(polygons, list):
    raise ValueError(f"{polygons!r:.40} is not a list of polygons")
  check_size(height, width)
  if len(polygons) > MAX_POLYGONS:
    raise ValueError(f"{len(polygons):,} polygons; the limit is {MAX_POLYGONS:,}")
  canvas = Image.new("L", (width, height))
  draw = ImageDraw.Draw(canvas)
  for polygon in polygons:
    points = [_point(point) for point in polygon] if isinstance(polygon, list) else None
    if points is None:
      raise ValueError(f"{polygon!r:.40} is not a list of points")
    if len(points) >= 2:
      draw.polygon(points, outline=1, fill=1)
  return np.asarray(canvas).astype(bool)


def _point(point: Any) -> tuple[int, int]:
  try:
    x, y = point
    if not max(abs(x), abs(y)) <= MAX_COORDINATE or math.isnan(y):
      raise ValueError("far outside the image")
    return int(x), int(y)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{point!r:.40} is not a point [x, y]") from error
