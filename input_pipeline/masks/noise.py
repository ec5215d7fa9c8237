"""Errors of a detector, added to instance masks in training.

A model that only sees exact masks learns to copy them, and a detector's are not exact. Each mask is
moved, stretched and gets a ragged outline, thicker or thinner; some are cut, merged with a
neighbour, found twice or missed. The target is not changed.
"""

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64, UInt16

from input_pipeline.preprocess.bit_planes import PLANE_BITS

# At a strength of 1; smaller strengths scale all of them.
SHIFT = 0.1
"""Largest shift along an axis, in sides of the box."""
STRETCH = 0.1
"""Largest change of a side of the box, as a logarithm."""
OUTLINE = 0.12
"""Largest distance that the outline moves, in shorter sides of the box."""
CUT, MERGE, DUPLICATE, MISS = 0.1, 0.06, 0.1, 0.08
"""Probabilities for each mask."""
CUT_DEPTH = 0.5
"""Largest part that a cut removes, in sides of the box."""

# How the outline moves varies over the box between this many places along each axis.
_PLACES = 4
_NUMBERS = 12 + _PLACES**2


def add_noise(
  planes: UInt16[np.ndarray, "g h w"],
  count: int,
  most: int,
  strength: float,
  rng: np.random.Generator,
) -> tuple[UInt16[np.ndarray, "g h w"], int]:
  """Adds the errors of a detector to bit planes.

  Args:
    planes: hold the masks.
    count: number of masks.
    most: masks to return, at most, as far as the planes hold them; those beyond are not read.
    strength: 0, which changes nothing, to 1.
    rng: source of randomness.

  Returns:
    New planes, and the number of masks in them: none is empty, and second finds are the last.
  """
  if not strength:
    return planes, count
  most = min(most, len(planes) * PLANE_BITS)
  count = min(count, most)
  numbers = rng.random((2, count, _NUMBERS), np.float32)
  boxes = _boxes(planes, count)
  exists = boxes[:, 2] > 0
  nearest = _nearest(boxes, exists)
  found = [k for k in range(count) if exists[k] and numbers[0, k, 0] >= strength * MISS]
  twice = [k for k in found if numbers[0, k, 1] < strength * DUPLICATE]
  noised, made = np.zeros_like(planes), 0
  for again, k in [*((0, k) for k in found), *((1, k) for k in twice)][:most]:
    slots = [k, nearest[k]] if numbers[again, k, 2] < strength * MERGE else [k]
    mask, top, left = _distort(planes, slots, boxes, numbers[again, k, 3:], strength)
    if mask.any():
      height, width = mask.shape
      place = noised[made // PLANE_BITS, top : top + height, left : left + width]
      place |= mask.astype(np.uint16) << np.uint16(made % PLANE_BITS)
      made += 1
  return noised, made


def _boxes(planes: UInt16[np.ndarray, "g h w"], count: int) -> Int64[np.ndarray, "{count} 4"]:
  """Returns the top, left, bottom and right of each mask, ends exclusive; 0 for an empty one."""
  groups, bits = np.divmod(np.arange(count), PLANE_BITS)
  ends = []
  for axis in (2, 1):
    words = np.bitwise_or.reduce(planes, axis=axis)
    occupied = (words[groups] >> bits[:, None].astype(np.uint16)) & 1 > 0
    last = occupied.shape[1] - occupied[:, ::-1].argmax(1)
    ends.append((occupied.argmax(1), np.where(occupied.any(1), last, 0)))
  (top, bottom), (left, right) = ends
  return np.stack([top, left, bottom, right], 1)


def _nearest(boxes: Int64[np.ndarray, "k 4"], exists: Bool[np.ndarray, "k"]) -> list[int]:
  """Returns the mask whose box has the nearest centre; a lone mask itself."""
  centres = (boxes[:, :2] + boxes[:, 2:]) / 2
  distances = np.hypot(*(centres[:, None] - centres).transpose(2, 0, 1))
  distances[:, ~exists] = np.inf
  if exists.sum() > 1:
    np.fill_diagonal(distances, np.inf)
  return distances.argmin(1).tolist() if len(boxes) else []


def _distort(
  planes: UInt16[np.ndarray, "g h w"],
  slots: list[int],
  boxes: Int64[np.ndarray, "k 4"],
  numbers: Float[np.ndarray, "n"],
  strength: float,
) -> tuple[Bool[np.ndarray, "y x"], int, int]:
  """Returns the changed union of some masks, cut out of the image, and its top and left."""
  low, high = boxes[slots, :2].min(0), boxes[slots, 2:].max(0)
  sides, centre = high - low, (low + high) / 2
  moved = centre + (2 * numbers[:2] - 1) * (strength * SHIFT) * sides
  factor = np.exp((2 * numbers[2:4] - 1) * (strength * STRETCH))
  radius = int(numbers[4] * strength * OUTLINE * sides.min() + 0.5)
  corners, places = [], []
  for axis, size in enumerate(planes.shape[1:]):
    half = sides[axis] * factor[axis] / 2
    # An object that the image cuts off stays so: beyond its edges masks go on as there.
    first = max(int(np.floor(moved[axis] - half)) - radius, 0) if low[axis] else 0
    last = min(int(np.ceil(moved[axis] + half)) + radius, size) if high[axis] < size else size
    pixels = np.arange(first - radius, last + radius).clip(0, size - 1) + 0.5
    source = (pixels - moved[axis]) / factor[axis] + centre[axis]
    places.append(np.floor(source).astype(np.int64).clip(0, size - 1))
    corners.append(first)
  masks = [
    _take(planes[k // PLANE_BITS], *places) & np.uint16(1 << k % PLANE_BITS) > 0 for k in slots
  ]
  mask = np.logical_or.reduce(masks)
  if radius:
    inner = mask.shape[0] - 2 * radius, mask.shape[1] - 2 * radius
    level = (numbers[5] + _spread(numbers[9:].reshape(_PLACES, _PLACES), *inner)) / 2
    mask = move_outline(mask, radius, level)
  if numbers[6] < strength * CUT:
    _cut(mask, int(4 * numbers[7]), float(numbers[8]) * CUT_DEPTH)
  return mask, corners[0], corners[1]


def _take(
  plane: UInt16[np.ndarray, "h w"], rows: Int64[np.ndarray, "y"], columns: Int64[np.ndarray, "x"]
) -> UInt16[np.ndarray, "y x"]:
  """Returns some rows and columns, both ascending."""
  near = plane[rows[0] : rows[-1] + 1]
  return near.take(columns, 1).take(rows - rows[0], 0)


def move_outline(
  mask: Bool[np.ndarray, "y x"], radius: int, level: Float[np.ndarray, "h w"] | float
) -> Bool[np.ndarray, "h w"]:
  """Keeps the pixels around which more than a share of a square window is covered.

  A level of 0 dilates, one near 1 erodes, and one of a half smooths.

  Args:
    mask: with a margin of `radius` on each side, which the result lacks.
    radius: of the window, whose side is 2 radius + 1.
    level: the share of each pixel, in [0, 1).
  """
  side = 2 * radius + 1
  covered = _sums(_sums(mask.astype(np.int32), side).T, side).T
  return covered > level * side**2


def _sums(values: Int32[np.ndarray, "n m"], count: int) -> Int32[np.ndarray, "_ m"]:
  """Returns the sums of `count` rows one after the other, in a fourth of the time of `cumsum`."""
  total, first, width, length = np.int32(0), 0, 1, len(values) - count + 1
  while True:
    # Each row is now the sum of `width` rows.
    if count & width:
      total = total + values[first : first + length]
      first += width
    if 2 * width > count:
      return total  # pyright: ignore[reportReturnType]
    values, width = values[:-width] + values[width:], 2 * width


def _spread(
  grid: Float[np.ndarray, "n n"], height: int, width: int
) -> Float[np.ndarray, "{height} {width}"]:
  """Interpolates numbers on a grid over a rectangle."""
  places = np.arange(len(grid), dtype=np.float32)[:, None]
  rows, columns = (
    np.maximum(0, 1 - abs(np.linspace(0, len(grid) - 1, size, dtype=np.float32) - places))
    for size in (height, width)
  )
  # Not a matrix product, whose library would start threads of its own.
  return np.einsum("yj,jx->yx", np.einsum("iy,ij->yj", rows, grid), columns)


def _cut(mask: Bool[np.ndarray, "y x"], side: int, depth: float) -> None:
  """Clears a part of a mask, on the side 0 to 3: top, bottom, left, right."""
  along = mask if side < 2 else mask.T
  removed = int(depth * len(along))
  along[slice(removed) if side % 2 == 0 else slice(len(along) - removed, None)] = False
