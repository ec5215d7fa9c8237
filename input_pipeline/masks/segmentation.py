"""Masks from and to the segmentations of COCO, and from those of PhraseCut.

COCO's are checked before pycocotools' unsafe C code runs.
"""

import ast
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from input_pipeline import preprocess

MAX_POLYGONS = 10_000
"""Per segmentation; COCO's crowds have tens of polygons."""
MAX_BOUNDARY = 1_000_000
"""Pixels along all edges of a segmentation: pycocotools allocates 100 bytes per pixel."""
MAX_COORDINATE = 1_000_000
"""Maximum absolute coordinate in pixels, far below the limit of C's integers."""

# Tolerated overshoot of polygons, as a fraction of the side.
_SLIP = 0.05
# Overshoot in pixels that is not worth a note: tools round.
_ROUNDING = 1.0
# COCO's strings contain no quotes.
_BYTES = re.compile(r"b'.*'|b\".*\"", re.DOTALL)
_MAX_CHARACTERS = 6
"""Per run length in COCO's string: 30 bits. C shifts an int by five bits per character."""


class SegmentationError(ValueError):
  """An invalid segmentation; the message says what is wrong and how to fix it."""


class EmptySegmentation(SegmentationError):
  """An empty segmentation: none was given, or no part has an area."""


class OtherSize(SegmentationError):
  """Run lengths for an image of another size."""


class OutsideImage(SegmentationError):
  """A polygon that extends too far beyond the border to be imprecise drawing."""


TOO_FEW_POINTS = "part with fewer than three points left out"
EMPTY_PART = "empty part left out"
CLIPPED = "polygon beyond the border clipped"


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """A checked segmentation, in one form for all dialects."""

  parts: tuple[dict[str, Any], ...]
  """Each `{"polygons": [[x, y, x, y, ...]]}` in pixels, or `{"rle": {"size": [height, width],
  "counts": ...}}` with COCO's string or a list. The mask is their union."""
  notes: tuple[str, ...]
  """What was left out or changed, one entry per part: TOO_FEW_POINTS, EMPTY_PART or CLIPPED."""
  height: int
  width: int

  def mask(self) -> Bool[np.ndarray, "{self.height} {self.width}"]:
    """Returns the pixels covered by the parts, as rasterised by pycocotools."""
    return coco_mask.decode(self._runs()).astype(bool)

  def area(self) -> int:
    """Returns the number of pixels covered by the parts; faster than `mask`."""
    return int(coco_mask.area(self._runs()))

  def _runs(self) -> Any:
    runs: list[Any] = []
    for part in self.parts:
      if "rle" in part:
        rle = part["rle"]
        if isinstance(rle["counts"], str):
          runs.append(rle | {"counts": rle["counts"].encode()})
        else:
          runs.append(coco_mask.frPyObjects(rle, self.height, self.width))
      else:
        runs += coco_mask.frPyObjects(part["polygons"], self.height, self.width)
    return coco_mask.merge(runs)


def read_segmentation(value: Any, height: int, width: int) -> Segmentation:
  """Reads the `segmentation` of a COCO annotation in every form written by tools.

  These are polygons as lists of x, y, x, y, ... or of [x, y], a single polygon without the outer
  list, run lengths as COCO's string or as a list, and lists of run lengths. Parts without an area
  are left out; polygons are clipped at the border if they overshoot by less than `tolerance`.

  Args:
    value: the segmentation.
    height: of the image, in pixels.
    width: of the image, in pixels.

  Raises:
    ValueError: an invalid image size or a `SegmentationError`.
  """
  check_size(height, width)
  if isinstance(value, Mapping):
    value = [value]
  if value is None or (isinstance(value, list | tuple) and not value):
    raise EmptySegmentation("no segmentation; a box is not enough")
  if not isinstance(value, list | tuple):
    raise SegmentationError(
      f"expected a list of polygons or run lengths, got {type(value).__name__}"
    )
  try:
    return _read_parts(_parts_of(value), height, width)
  except SegmentationError:
    raise
  except (ValueError, TypeError, OverflowError) as error:
    raise SegmentationError(f"not a list of numbers: {value!r:.60}") from error


def decode_segmentation(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
  """Returns the mask of a segmentation; see `read_segmentation`.

  Raises:
    ValueError: see `read_segmentation`.
  """
  return read_segmentation(segmentation, height, width).mask()


def encode_segmentation(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
  """Returns a mask as COCO's compressed run lengths: `size`, [height, width], and `counts`."""
  runs: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {"size": list(mask.shape), "counts": runs["counts"].decode()}


def check_size(height: int, width: int) -> None:
  """Raises ValueError for an invalid image size, before memory is allocated for the mask."""
  if min(height, width) < 1 or height * width > preprocess.MAX_PIXELS:
    limit = f"the limit is {preprocess.MAX_PIXELS / 1e6:.0f} megapixels"
    raise ValueError(f"invalid image size {width} x {height}; {limit}")


def tolerance(side: int) -> float:
  """Returns by how many pixels a polygon may extend beyond the border (imprecise drawing)."""
  return max(3.0, _SLIP * side)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _parts_of(value: Sequence[Any]) -> list[Any]:
  """Returns the parts of a list, which may itself be a single part."""
  if _is_number(value[0]):
    return [value]
  # Points [x, y] of one polygon: two numbers cannot be a polygon.
  pairs = all(isinstance(part, list | tuple) and len(part) == 2 for part in value)
  if pairs and all(_is_number(x) for part in value for x in part):
    return [value]
  return list(value)


def _read_parts(values: list[Any], height: int, width: int) -> Segmentation:
  if len(values) > MAX_POLYGONS:
    raise SegmentationError(f"{len(values):,} polygons; the limit is {MAX_POLYGONS:,}")
  parts: list[dict[str, Any]] = []
  arrays: list[np.ndarray] = []
  notes: list[str] = []
  boundary = 0.0
  for value in values:
    if isinstance(value, Mapping):
      parts.append({"rle": _check_runs(value, height, width)})
      continue
    polygon = _flat(value)
    if len(polygon) < 6:
      _check_short(polygon, height, width)
      notes.append(TOO_FEW_POINTS if polygon else EMPTY_PART)
      continue
    numbers = _check_polygon(polygon, height, width)
    boundary += _boundary(numbers)
    if boundary > MAX_BOUNDARY:
      raise SegmentationError(f"edges exceed {MAX_BOUNDARY:,} pixels in total")
    if _beyond(numbers, height, width) > _ROUNDING:
      notes.append(CLIPPED)
    parts.append({"polygons": [polygon]})
    arrays.append(numbers)
  if not parts:
    raise EmptySegmentation("no part has three or more points")
  if len(arrays) == len(parts) and _are_shares(arrays, height, width):
    raise SegmentationError(
      "all coordinates are between 0 and 1; if they are fractions of the sides, multiply x by the "
      "width and y by the height"
    )
  return Segmentation(tuple(parts), tuple(notes), height, width)


def _are_shares(polygons: list[np.ndarray], height: int, width: int) -> bool:
  inside = all(p.min() >= -_SLIP and p.max() <= 1 + _SLIP for p in polygons)
  # A polygon with all points in one place is an accidental click.
  return inside and min(height, width) > 1 and any(p.max() > p.min() for p in polygons)


def _flat(part: Any) -> list[Any]:
  """Returns a polygon as a flat list, given flat or as points [x, y]; [] for None."""
  if part is None:
    return []
  if not isinstance(part, list | tuple):
    raise SegmentationError(f"not a list of numbers: {part!r:.60}")
  if part and all(isinstance(point, list | tuple) for point in part):
    wrong = next((point for point in part if len(point) != 2), None)
    if wrong is not None:
      raise SegmentationError(f"{wrong!r:.60} is not a point [x, y]")
    return [x for point in part for x in point]
  return list(part)


def _check_polygon(polygon: list[Any], height: int, width: int) -> Float64[np.ndarray, "n"]:
  """Returns a polygon that is safe to pass to pycocotools' C code."""
  numbers = np.asarray(polygon)
  if numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
    raise SegmentationError(f"not a list of numbers: {polygon!r:.60}")
  # Also rejects NaN.
  if not (numbers.min() >= -MAX_COORDINATE and numbers.max() <= MAX_COORDINATE):
    raise OutsideImage(f"a point far outside the image: {polygon!r:.60}")
  odd = len(numbers) % 2 == 1
  outside = _beyond(numbers, height, width, tolerated=True) > 0
  # Hardly any polygon with integer coordinates adds up to the number of pixels by chance.
  adds_up = numbers.min() >= 0 and numbers.sum() == height * width
  if adds_up and (odd or outside or (numbers.dtype.kind != "f" and len(numbers) >= 16)):
    raise _runs_in_place(polygon, height, width)
  if odd:
    raise SegmentationError(
      f"a polygon needs x and y for each point, but {polygon!r:.40} has {len(polygon)} numbers"
    )
  if outside:
    x, y = numbers[::2], numbers[1::2]
    raise OutsideImage(
      f"a polygon extends from ({x.min():g}, {y.min():g}) to ({x.max():g}, {y.max():g}), but the "
      f"image is {width} x {height}; is it for the image at another size?"
    )
  return numbers.astype(np.float64)


def _check_short(polygon: list[Any], height: int, width: int) -> None:
  """Raises SegmentationError if a short list consists of run lengths of a simple mask."""
  lengths = len(polygon) > 1 and all(type(x) is int and x >= 0 for x in polygon)
  if lengths and sum(polygon) == height * width:
    raise _runs_in_place(polygon, height, width)


def _runs_in_place(polygon: list[Any], height: int, width: int) -> SegmentationError:
  return SegmentationError(
    f"{polygon!r:.40} looks like run lengths (their sum is {width} x {height}) instead of a "
    f'polygon; write {{"size": [{height}, {width}], "counts": [...]}}'
  )


def _beyond(
  numbers: Shaped[np.ndarray, "n"], height: int, width: int, *, tolerated: bool = False
) -> float:
  """Returns by how many pixels a polygon exceeds the border, or the tolerance."""
  return max(
    max(-values.min(), values.max() - side) - (tolerance(side) if tolerated else 0)
    for values, side in ((numbers[::2], width), (numbers[1::2], height))
  )


def _boundary(numbers: Float64[np.ndarray, "n"]) -> float:
  """Returns the pixels along a polygon's edges, at least one per point, or a small upper bound."""
  count = len(numbers) // 2
  bound = count * (float(numbers.max() - numbers.min()) + 1)
  if bound <= MAX_BOUNDARY / 100:
    return bound
  points = numbers.reshape(count, 2)
  edges = np.abs(points - points[np.arange(count) - 1])
  return float(np.maximum(edges[:, 0], edges[:, 1]).sum()) + count


def _check_runs(segmentation: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
  """Returns run lengths that are safe to decode at that size, with only `size` and `counts`."""
  missing = {"size", "counts"} - segmentation.keys()
  if missing:
    raise SegmentationError(f"run lengths need `size` and `counts`; {min(missing)} is missing")
  size, counts = segmentation["size"], segmentation["counts"]
  if not isinstance(size, list | tuple) or list(size) != [height, width]:
    swapped = isinstance(size, list | tuple) and list(size) == [width, height]
    hint = "; `size` must be [height, width]; are they swapped, or is the image rotated?"
    raise OtherSize(
      f"run lengths have size {size!r:.60}, but the image has {[height, width]} (height, width)"
      f"{hint if swapped else ''}"
    )
  if isinstance(counts, str) and _BYTES.fullmatch(counts):
    counts = _bytes_in(counts)
  if isinstance(counts, str):
    counts = counts.encode()
  if isinstance(counts, bytes):
    lengths = _decompress(counts, height * width)
  elif isinstance(counts, list):
    lengths = np.asarray(counts if counts else np.zeros(0, np.int64))
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
      raise SegmentationError("run lengths must be integers")
  else:
    raise SegmentationError(f"run lengths must be a string or a list, not {type(counts).__name__}")
  _check_lengths(lengths, height * width)
  return {
    "size": [height, width],
    "counts": counts.decode() if isinstance(counts, bytes) else counts,
  }


def _bytes_in(text: str) -> bytes:
  """Returns the bytes in Python's string form: `str(counts)` instead of `counts.decode()`."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError) as error:
    raise SegmentationError(
      f"run lengths {text!r:.40} are the string form of Python bytes; write counts.decode()"
    ) from error


def _check_lengths(lengths: np.ndarray, pixels: int) -> None:
  # pycocotools would leave pixels that no run covers uninitialised, and write past the mask's end.
  # Each length is checked before the sum: a sum of large ones may overflow to any number.
  if len(lengths) > 2 * pixels + 2:
    raise SegmentationError(f"{len(lengths):,} run lengths for {pixels} pixels")
  if lengths.size and (lengths.min() < 0 or lengths.max() > pixels):
    raise SegmentationError(
      f"run lengths between {lengths.min()} and {lengths.max()} for {pixels} pixels"
    )
  if (total := int(lengths.sum(dtype=np.int64))) != pixels:
    raise SegmentationError(f"run lengths cover {total} of {pixels} pixels")


def _decompress(counts: bytes, pixels: int) -> Int64[np.ndarray, "n"]:
  """Decodes COCO's string of five bits per character.

  From the third one on, a length is stored as the difference to the one two positions earlier.
  """
  if len(counts) > _MAX_CHARACTERS * (2 * pixels + 2):
    raise SegmentationError(f"{len(counts):,} characters of run lengths for {pixels} pixels")
  bits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
  if not len(bits):
    return bits
  if bits.min() < 0 or bits.max() > 63:
    raise SegmentationError("invalid characters in run lengths")
  ends = np.flatnonzero((bits & 32) == 0)
  if not len(ends) or ends[-1] != len(bits) - 1:
    raise SegmentationError("truncated run lengths")
  starts = np.concatenate([[0], ends[:-1] + 1])
  characters = ends - starts + 1
  if characters.max() > _MAX_CHARACTERS:
    raise SegmentationError("a run length has too many characters")
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
