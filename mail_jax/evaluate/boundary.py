"""Boundary IoU (Cheng et al., arXiv 2103.16562): the IoU of two masks near their outlines.

The boundary of a mask is the set of its pixels within d pixels of its contour; the edge of the
image is contour as well. d is 2 % of the image's diagonal. docs/guides/evaluate.md has the
definition.

Masks are packed into bit planes, 32 pixels per word, which takes a fraction of the memory
traffic: bit k of row j is the pixel of row k q + j, with q packed rows. Everything is exact.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, UInt32

# 2 % of the diagonal, rounded, is at least k pixels where the diagonal is at least 50 k - 25.
_DIAGONAL = 50
# TPUs compute in words of 32 bits.
_BITS = 32


def find_distance(size: Int[Array, "b 2"], farthest: int) -> Int32[Array, "b"]:
  """Returns how far a boundary reaches into its mask, in pixels.

  That is 2 % of the diagonal, rounded, and at least 1. Halves are rounded to even, as Python's
  `round` does in the authors' code. The comparison is in integers, so that single precision moves
  no image across the threshold; valid for sides up to 46,340 pixels.

  Args:
    size: height and width of each image.
    farthest: the upper limit of the distances; see `farthest_on`.
  """
  steps = jnp.arange(1, farthest + 1, dtype=jnp.uint32)
  squares = (size.astype(jnp.uint32) ** 2).sum(1, dtype=jnp.uint32)[:, None]
  least = (_DIAGONAL * steps - _DIAGONAL // 2) ** 2
  reached = (squares > least) | ((squares == least) & (steps % 2 == 0))
  return jnp.maximum(1, reached.sum(1, dtype=jnp.int32))


def farthest_on(rows: int, cols: int) -> int:
  """Returns the largest distance of any image that fits on a canvas of this size."""
  return max(1, int(math.hypot(rows, cols) / _DIAGONAL + 0.51))


def take_boundaries(
  packed: UInt32[Array, "b m q w"], size: Int[Array, "b 2"], rows: int, cols: int
) -> UInt32[Array, "b m q w"]:
  """Keeps the pixels of each mask that lie at its contour.

  Args:
    packed: m masks per image, zero outside the image, as `pack` makes them.
    size: height and width of each image in pixels.
    rows, cols: of the masks before they were packed.
  """
  farthest = farthest_on(rows, cols)
  return packed & ~erode(packed, find_distance(size, farthest), farthest)


def take_boundary(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
  """Keeps the pixels of a mask of an image that lie at its contour; on the host."""
  distance = max(1, round(math.hypot(*mask.shape) / _DIAGONAL))
  return mask & ~_erode_rows(_erode_rows(mask, distance).T, distance).T


def _erode_rows(mask: Bool[np.ndarray, "h w"], distance: int) -> Bool[np.ndarray, "h w"]:
  """Keeps the pixels whose neighbours above and below, up to a distance, are in the mask."""
  rows = np.pad(mask, ((distance, distance), (0, 0)))
  count, side = 1, 2 * distance + 1
  # Each of the rows stands for `count` consecutive ones.
  while count < side:
    step = min(count, side - count)
    rows = rows[:-step] & rows[step:]
    count += step
  return rows


def pack(masks: Bool[Array, "*n y x"]) -> UInt32[Array, "*n q w"]:
  """Packs masks into bit planes, padded with zeros to a multiple of 32 rows."""
  masks = jnp.pad(masks, [(0, 0)] * (masks.ndim - 2) + [(0, -masks.shape[-2] % _BITS), (0, 0)])
  blocks = masks.reshape(*masks.shape[:-2], _BITS, -1, masks.shape[-1]).astype(jnp.uint32)
  packed = blocks[..., 0, :, :]
  for bit in range(1, _BITS):
    packed |= blocks[..., bit, :, :] << bit
  return packed


def count_pixels(packed: UInt32[Array, "*n q w"]) -> Int32[Array, "*n"]:
  """Counts the pixels of each mask."""
  return jax.lax.population_count(packed).sum((-2, -1), dtype=jnp.int32)


def erode(
  packed: UInt32[Array, "b m q w"], distance: Int[Array, "b"], farthest: int
) -> UInt32[Array, "b m q w"]:
  """Keeps the pixels whose square neighbourhood lies in the mask; outside the canvas is background.

  Args:
    packed: m masks per image.
    distance: of each image, from 1 to `farthest` pixels: 3 is a square of 7 x 7.
    farthest: static; determines the compiled steps.
  """
  steps = _steps(distance, farthest)
  reach = sum(step for step, _ in steps)
  # All padding comes first: XLA makes slow code of steps that it merges with padding.
  wide = jnp.pad(packed, ((0, 0), (0, 0), (0, 0), (reach, reach)))
  return _erode_axis(_erode_axis(_with_rows_around(wide, reach), steps, axis=2), steps, axis=3)


def _with_rows_around(packed: UInt32[Array, "b m q w"], count: int) -> UInt32[Array, "b m r w"]:
  """Adds `count` rows above and below, in which each bit of the q rows finds its neighbours."""
  q = packed.shape[2]
  blocks = -(-count // q)
  above = [packed << n for n in range(blocks, 0, -1)]
  below = [packed >> n for n in range(1, blocks + 1)]
  rows = jnp.concatenate([*above, packed, *below], axis=2)
  return rows[:, :, blocks * q - count : blocks * q + q + count]


def _steps(distance: Int[Array, "b"], farthest: int) -> list[tuple[int, UInt32[Array, "b 1 1 1"]]]:
  """Returns steps that sum to the distance, each with all bits for images that skip it, else 0.

  No step is more than twice the sum of the earlier ones, plus 1, so that steps leave no gap: a
  pixel that has both neighbours at every step has all pixels in between.
  """
  steps, step = [], 1
  rest = distance
  while _sum_of_thirds(step) <= farthest:
    used = distance >= _sum_of_thirds(step)
    rest, step = rest - step * used, 3 * step
    steps.append((step // 3, used))
  left = max(n - _largest_sum_of_thirds(n) for n in range(1, farthest + 1))
  while left:
    step = (left + 1) // 2
    used = rest >= step
    rest, left = rest - step * used, left - step
    steps.append((step, used))
  return [(step, -(~used).astype(jnp.uint32)[:, None, None, None]) for step, used in steps]


def _sum_of_thirds(step: int) -> int:
  """Returns 1 + 3 + 9 + ... + step."""
  return (3 * step - 1) // 2


def _largest_sum_of_thirds(distance: int) -> int:
  """Returns the largest sum of 1, 3, 9, ... up to the distance."""
  step = 1
  while _sum_of_thirds(3 * step) <= distance:
    step *= 3
  return _sum_of_thirds(step)


def _erode_axis(
  packed: UInt32[Array, "b m r c"], steps: list[tuple[int, UInt32[Array, "b 1 1 1"]]], axis: int
) -> UInt32[Array, "b m q w"]:
  """Erodes along one axis; every step shortens the result at both ends."""
  for step, skipped in steps:
    end = packed.shape[axis] - 2 * step
    before, here, after = (
      jax.lax.slice_in_dim(packed, start, start + end, axis=axis) for start in (0, step, 2 * step)
    )
    packed = here & ((before & after) | skipped)
  return packed
