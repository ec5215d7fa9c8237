"""Converts the shapes of annotation tools to masks: polygons, boxes, ellipses, bitmaps and holes.

Coordinates are in pixels, x to the right and y down; (0, 0) is the image's upper left corner.
"""

import base64
import binascii
import io
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from input_pipeline import preprocess
from input_pipeline.custom.schema import Mask
from input_pipeline.masks.segmentation import (
  MAX_COORDINATE,
  check_size,
  decode_segmentation,
  encode_segmentation,
)

Size = tuple[int, int]
"""Height and width in pixels."""

_ELLIPSE_POINTS = 64
_MAX_PNG = 1 << 28
"""Bytes of an unpacked bitmap; a PNG of 89 megapixels is smaller."""


def number(value: Any) -> float:
  """Returns a coordinate or length, which may be text as in XML.

  Raises:
    ValueError: not a number, or too large.
  """
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    raise ValueError(f"{value!r:.40} is not a number")
  try:
    result = float(value)
  except (ValueError, OverflowError) as error:
    raise ValueError(f"{value!r:.40} is not a number") from error
  # Also rejects NaN.
  if not abs(result) <= MAX_COORDINATE:
    raise ValueError(f"the coordinate {value!r:.40} is out of range")
  return result


def whole(value: Any) -> int:
  """Returns an integer, which may be written as 3.0 or as text.

  Raises:
    ValueError: not an integer.
  """
  result = number(value)
  if not result.is_integer():
    raise ValueError(f"{value!r:.40} is not a whole number of pixels")
  return int(result)


def size_of(height: Any, width: Any) -> Size | None:
  """Returns the size that a tool declares for an image; None if it does not.

  Raises:
    ValueError: the declared size is invalid.
  """
  if not height and not width:
    return None
  size = (whole(height), whole(width))
  check_size(*size)
  return size


def polygon(points: Sequence[Any]) -> Mask:
  """Returns a polygon from points [x, y].

  Raises:
    ValueError: fewer than three points, or an invalid point.
  """
  flat: list[float] = []
  for point in points:
    if not isinstance(point, list | tuple) or len(point) != 2:
      raise ValueError(f"{point!r:.40} is not a point [x, y]")
    flat += (number(point[0]), number(point[1]))
  return flat_polygon(flat)


def flat_polygon(coordinates: Sequence[Any]) -> Mask:
  """Returns a polygon from x, y, x, y, ...

  Raises:
    ValueError: fewer than three points, or an odd number of coordinates.
  """
  if len(coordinates) % 2:
    raise ValueError(f"odd number of coordinates ({len(coordinates)})")
  if len(coordinates) < 6:
    raise ValueError("fewer than three points")
  return {"polygons": [[number(value) for value in coordinates]]}


def rotated_box(corners: Sequence[float], degrees: float) -> Mask:
  """Returns a box rotated around its centre.

  Args:
    corners: x and y of two opposite corners before the rotation.
    degrees: clockwise.
  """
  x0, y0, x1, y1 = corners
  x, y = (x0 + x1) / 2, (y0 + y1) / 2
  points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
  return turn([(a - x, b - y) for a, b in points], (x, y), degrees)


def ellipse(centre: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0) -> Mask:
  """Returns an ellipse as a polygon.

  Args:
    centre: x and y.
    radii: half its width and height before the rotation.
    degrees: clockwise.

  Raises:
    ValueError: a radius is zero or negative.
  """
  a, b = radii
  if not (a > 0 and b > 0):
    raise ValueError("radii must be positive")
  angles = [2 * math.pi * k / _ELLIPSE_POINTS for k in range(_ELLIPSE_POINTS)]
  return turn([(a * math.cos(t), b * math.sin(t)) for t in angles], centre, degrees)


def turn(
  points: Sequence[tuple[float, float]], centre: tuple[float, float], degrees: float
) -> Mask:
  """Rotates points clockwise around the origin, then moves them to the centre.

  Args:
    points: x and y of each.
    centre: x and y.
    degrees: clockwise.
  """
  angle = math.radians(degrees)
  cos, sin = math.cos(angle), math.sin(angle)
  moved = [(centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos) for x, y in points]
  return {"polygons": [[coordinate for point in moved for coordinate in point]]}


def clip(shape: Mask, size: Size | None) -> Mask:
  """Clips a convex polygon to the image.

  Circles and rotated boxes legitimately extend beyond the border.

  Args:
    shape: a mask of one polygon.
    size: of the image; if unknown, the polygon is returned unchanged.

  Raises:
    ValueError: the polygon is entirely outside.
  """
  if size is None:
    return shape
  flat = shape["polygons"][0]
  points = list(zip(flat[::2], flat[1::2], strict=True))
  # Sutherland and Hodgman 1974: clips at one side of the image after the other.
  for axis, limit, sign in ((0, 0, 1), (0, size[1], -1), (1, 0, 1), (1, size[0], -1)):
    inside = [sign * (point[axis] - limit) for point in points]
    kept: list[tuple[float, float]] = []
    for k, point in enumerate(points):
      if inside[k - 1] * inside[k] < 0:
        share = inside[k - 1] / (inside[k - 1] - inside[k])
        before = points[k - 1]
        kept.append(
          (before[0] + share * (point[0] - before[0]), before[1] + share * (point[1] - before[1]))
        )
      if inside[k] >= 0:
        kept.append(point)
    points = kept
  if len(points) < 3:
    raise ValueError("entirely outside the image")
  return {"polygons": [[coordinate for point in points for coordinate in point]]}


def bitmap(pixels: Bool[np.ndarray, "h w"], left: int, top: int, size: Size | None) -> Mask:
  """Returns the mask of a bitmap that covers part of an image.

  Args:
    pixels: the bitmap.
    left: column of its left edge.
    top: row of its upper edge.
    size: of the image.

  Raises:
    ValueError: the size is unknown, or the bitmap extends beyond the image.
  """
  if size is None:
    raise ValueError("a bitmap needs the size of the image, which is missing")
  height, width = pixels.shape
  if not (0 <= left <= size[1] - width and 0 <= top <= size[0] - height):
    raise ValueError(
      f"the bitmap of {width} x {height} pixels at ({left}, {top}) extends beyond the image of "
      f"{size[1]} x {size[0]}"
    )
  mask = np.zeros(size, bool)
  mask[top : top + height, left : left + width] = pixels
  return _encode(mask)


def decode_png(text: Any) -> Bool[np.ndarray, "h w"]:
  """Decodes the bitmap of an object: a base64-encoded PNG, optionally compressed with zlib.

  The object is all pixels that are not fully transparent or, without transparency, not black.

  Raises:
    ValueError: not such a bitmap, or too large.
  """
  if not isinstance(text, str):
    raise ValueError("the bitmap is not text")
  try:
    data = base64.b64decode(text, validate=False)
  except (binascii.Error, ValueError) as error:
    raise ValueError(f"the bitmap is not base64 ({error})") from error
  if not data.startswith(b"\x89PNG"):
    unpack = zlib.decompressobj()
    try:
      data = unpack.decompress(data, _MAX_PNG)
    except zlib.error as error:
      raise ValueError(f"the bitmap is neither a PNG nor zlib data ({error})") from error
  try:
    with preprocess.open_header(io.BytesIO(data), formats=("PNG",)) as image:
      image.load()
      if image.has_transparency_data:
        return np.asarray(image.convert("RGBA"))[:, :, 3] > 0
      if image.mode in ("1", "L", "P"):
        return np.asarray(image.convert("L")) > 0
      mode = image.mode
  except Exception as error:  # Pillow's decoders raise nearly anything for damaged files
    raise ValueError(f"the bitmap is a damaged PNG ({error})") from error
  raise ValueError(f"the bitmap has colours or 16 bits (mode {mode})")


def with_holes(outline: Mask, holes: Sequence[Mask], size: Size | None) -> Mask:
  """Subtracts holes from a polygon.

  Raises:
    ValueError: the size of the image is unknown, or a polygon is malformed.
  """
  if not holes:
    return outline
  if size is None:
    raise ValueError("a polygon with a hole needs the size of the image, which is missing")
  mask = rasterise(outline, size)
  for hole in holes:
    mask &= ~rasterise(hole, size)
  return _encode(mask)


def union(masks: Sequence[Mask], size: Size | None) -> Mask:
  """Returns the union of the shapes of one object.

  Raises:
    ValueError: a part is a bitmap, and the size of the image is unknown or differs.
  """
  if len(masks) == 1:
    return masks[0]
  if all("polygons" in mask for mask in masks):
    return {"polygons": [part for mask in masks for part in mask["polygons"]]}
  if size is None:
    raise ValueError("a bitmap needs the size of the image, which is missing")
  return _encode(np.logical_or.reduce([rasterise(mask, size) for mask in masks]))


def rasterise(mask: Mask, size: Size) -> Bool[np.ndarray, "h w"]:
  """Returns the pixels covered by polygons or run lengths."""
  return decode_segmentation(mask.get("polygons", mask.get("rle")), *size)


def _encode(mask: Bool[np.ndarray, "h w"]) -> Mask:
  return {"rle": encode_segmentation(mask)}
