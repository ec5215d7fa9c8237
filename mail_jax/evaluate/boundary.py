"""Boundary IoU (Cheng et al., arXiv 2103.16562): the IoU of what two masks have along their outlines.

The boundary of a mask is what of it lies within d pixels of its contour; the edge of the photo is contour as well. d is
2 % of the photo's diagonal. docs/guides/evaluate.md has the definition.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Int, Int32, UInt8

from mail_jax.evaluate import packed_masks

# 2 % of the diagonal, rounded, are k pixels or more where the diagonal has 50 k - 25 or more.
_DIAGONAL = 50


def find_distance(size: Int[Array, "b 2"], farthest: int) -> Int32[Array, "b"]:
  """How far a boundary reaches into its mask, in pixels: 2 % of the diagonal, rounded, at least 1.

  Half a pixel is rounded to the even number, as Python's `round` does in the authors' code. Compared in whole numbers,
  so that single precision puts no photo on the other side; for sides up to 46,340 pixels.

  Args:
    size: height and width of each photo.
    farthest: no distance is larger; see `farthest_on`.
  """
  steps = jnp.arange(1, farthest + 1, dtype=jnp.uint32)
  squares = (size.astype(jnp.uint32) ** 2).sum(1, dtype=jnp.uint32)[:, None]
  least = (_DIAGONAL * steps - _DIAGONAL // 2) ** 2
  reached = (squares > least) | ((squares == least) & (steps % 2 == 0))
  return jnp.maximum(1, reached.sum(1, dtype=jnp.int32))


def farthest_on(rows: int, cols: int) -> int:
  """No photo that fits on a canvas of that size has a larger distance."""
  return max(1, int(math.hypot(rows, cols) / _DIAGONAL + 0.51))


def take_boundaries(
  packed: UInt8[Array, "b m q w"], size: Int[Array, "b 2"], rows: int, cols: int
) -> UInt8[Array, "b m q w"]:
  """What of each mask lies at its contour.

  Args:
    packed: m masks of each photo, zero beyond it, as `packed_masks.pack` makes them.
    size: height and width of each photo in pixels.
    rows, cols: of the masks before they were packed.
  """
  farthest = farthest_on(rows, cols)
  return packed & ~packed_masks.erode(packed, find_distance(size, farthest), farthest)
