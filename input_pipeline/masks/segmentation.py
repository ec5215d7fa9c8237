"""COCO's segmentations to masks: everything is checked before pycocotools' C code, which checks nothing, is called."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from pycocotools import mask as coco_mask

from input_pipeline import preprocess

MAX_POLYGONS = 10_000
"""Of one segmentation; COCO's crowds have some tens."""
MAX_BOUNDARY = 1_000_000
"""Pixels along the edges of all polygons of a segmentation: pycocotools takes 100 bytes for each."""
MAX_COORDINATE = 1_000_000
"""How far from the image's corner a point may lie, in pixels: far from where C's integers end."""

_MAX_CHARACTERS = 6
"""Of one run in COCO's string: 30 bits. C shifts an int by five bits a character, whatever their number."""


def decode_segmentation(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
  """Rasterises a COCO segmentation as pycocotools does.

  Args:
    segmentation: polygons as lists of x, y, x, y, ... (a pixel in two of them counts once), or
      run lengths, compressed or not.
    height: of the image, in pixels.
    width: of the image, in pixels.

  Raises:
    ValueError: the segmentation is neither, is of another size, or is beyond a limit.
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


def check_size(height: int, width: int) -> None:
  """Raises ValueError for an image that no photo is, before memory is spent on its mask."""
  if min(height, width) < 1 or height * width > preprocess.MAX_PIXELS:
    most = f"{preprocess.MAX_PIXELS / 1e6:.0f} megapixels are the most that is read"
    raise ValueError(f"an image of {width} x {height} pixels; {most}")


def _check_polygons(segmentation: Any) -> list[Any]:
  """Returns the polygons of three points or more; raises ValueError where C must not see them."""
  # Fewer than three points enclose nothing, and pycocotools would take four numbers for a box.
  polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
  if not polygons or any(len(polygon) % 2 for polygon in polygons):
    raise ValueError("no polygon of three or more points")
  if len(polygons) > MAX_POLYGONS:
    raise ValueError(f"{len(polygons):,} polygons; {MAX_POLYGONS:,} are the most that is read")
  boundary = 0.0
  for polygon in polygons:
    boundary += _boundary(polygon)
    if boundary > MAX_BOUNDARY:
      raise ValueError(f"edges of more than {MAX_BOUNDARY:,} pixels")
  return polygons


def _boundary(polygon: Any) -> float:
  """The pixels along a polygon's edges, a point at least one; or more, where that is few enough."""
  numbers = np.asarray(polygon) if isinstance(polygon, list) else None
  if numbers is None or numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
    raise ValueError(f"a polygon that is no list of numbers: {polygon!r:.60}")
  low, high = float(numbers.min()), float(numbers.max())
  # The comparison is false for NaN, too.
  if not (low >= -MAX_COORDINATE and high <= MAX_COORDINATE):
    raise ValueError(f"a polygon with a point that lies nowhere near the image: {polygon!r:.60}")
  count = len(numbers) // 2
  most = count * (high - low + 1)
  if most <= MAX_BOUNDARY / 100:
    return most
  points = numbers.astype(np.float64).reshape(count, 2)
  edges = np.abs(points - points[np.arange(count) - 1])
  return float(np.maximum(edges[:, 0], edges[:, 1]).sum()) + count


def _check_runs(segmentation: Mapping[str, Any], height: int, width: int) -> Any:
  """Returns compressed run lengths for an image of that size, or raises ValueError."""
  size, counts = segmentation["size"], segmentation["counts"]
  if not isinstance(size, list | tuple) or list(size) != [height, width]:
    raise ValueError(f"run lengths of {size!r:.60}, image of {[height, width]}")
  if isinstance(counts, str):
    counts = counts.encode()
  if isinstance(counts, bytes):
    lengths = _decompress(counts, height * width)
  elif isinstance(counts, list):
    lengths = np.asarray(counts if counts else np.zeros(0, np.int64))
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
      raise ValueError("run lengths that are no whole numbers")
  else:
    raise ValueError(f"run lengths that are a {type(counts).__name__}")
  _check_lengths(lengths, height * width)
  # Only what was checked is passed on: other keys of the object may be anything.
  runs: Any = {"size": [height, width], "counts": counts}
  return runs if isinstance(counts, bytes) else coco_mask.frPyObjects(runs, height, width)


def _check_lengths(lengths: np.ndarray, pixels: int) -> None:
  # pycocotools would leave what runs do not cover as the memory happens to be, and write behind the mask's end.
  # Each is compared before all are added: a sum of large ones comes round to any number.
  if len(lengths) > 2 * pixels + 2:
    raise ValueError(f"{len(lengths):,} run lengths for {pixels} pixels")
  if lengths.size and (lengths.min() < 0 or lengths.max() > pixels):
    raise ValueError(
      f"a run of {lengths.min()} or {lengths.max()}: run lengths do not cover {pixels} pixels"
    )
  if (total := int(lengths.sum(dtype=np.int64))) != pixels:
    raise ValueError(f"run lengths cover {total} of {pixels} pixels")


def _decompress(counts: bytes, pixels: int) -> Int64[np.ndarray, "n"]:
  """The run lengths in COCO's string: five bits a character, each length after the third less the one two before."""
  if len(counts) > _MAX_CHARACTERS * (2 * pixels + 2):
    raise ValueError(f"{len(counts):,} characters of run lengths for {pixels} pixels")
  bits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
  if not len(bits):
    return bits
  if bits.min() < 0 or bits.max() > 63:
    raise ValueError("characters that are no run lengths")
  ends = np.flatnonzero((bits & 32) == 0)
  if not len(ends) or ends[-1] != len(bits) - 1:
    raise ValueError("run lengths that are cut off")
  starts = np.concatenate([[0], ends[:-1] + 1])
  characters = ends - starts + 1
  if characters.max() > _MAX_CHARACTERS:
    raise ValueError("a run length of too many characters")
  shift = 5 * (np.arange(len(bits)) - np.repeat(starts, characters))
  values = np.add.reduceat((bits & 31) << shift, starts)
  values -= np.where(bits[ends] & 16, np.int64(1) << (5 * characters), 0)
  values[1::2] = values[1::2].cumsum()
  values[2::2] = values[2::2].cumsum()
  return values
