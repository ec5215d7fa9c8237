"""Resizes maps and masks on the device, with static shapes."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

AnyArray = TypeVar("AnyArray", Array, np.ndarray)


def interpolation_matrix(
  size: Int[Array, "b"], source: int, canvas: int
) -> Float[Array, "b {canvas} {source}"]:
  """Returns weights that resize samples bilinearly to `size`, with zero rows up to `canvas`.

  Half-pixel centres, edges repeated, no antialiasing, like torch's
  `interpolate(mode="bilinear", align_corners=False)`.
  """
  at = jnp.clip(_centres(size, source, canvas), 0, source - 1)
  weights = jnp.maximum(0, 1 - jnp.abs(at[..., None] - jnp.arange(source)))
  return _within(size, weights)


def cubic_matrix(
  size: Int[Array, "b"], source: int, canvas: int
) -> Float[Array, "b {canvas} {source}"]:
  """Returns weights that resize like OpenCV's cubic, with zero rows up to `canvas`.

  Half-pixel centres, no antialiasing; Keys' kernel with a = -3/4. Values beyond the edges are 0, so
  the weights of a sample near an edge sum to less than one.
  """
  t = jnp.abs(_centres(size, source, canvas)[..., None] - jnp.arange(source))
  near = (1.25 * t - 2.25) * t * t + 1
  far = ((-0.75 * t + 3.75) * t - 6) * t + 3
  weights = jnp.where(t <= 1, near, jnp.where(t < 2, far, 0))
  return _within(size, weights)


def _centres(size: Int[Array, "b"], source: int, canvas: int) -> Float[Array, "b {canvas}"]:
  """Returns the centres of the resized samples, in units of the `source` samples."""
  return (jnp.arange(canvas) + 0.5) * (source / size[:, None]) - 0.5


def _within(
  size: Int[Array, "b"], weights: Float[Array, "b canvas source"]
) -> Float[Array, "b canvas source"]:
  return jnp.where((jnp.arange(weights.shape[1]) < size[:, None])[..., None], weights, 0)


def resize_logits(
  tiles: Float[Array, "b r c d"], size: Int[Array, "b 2"], canvas: tuple[int, int]
) -> Float[Array, "b y x"]:
  """Resizes each map to its own size (height, width) in pixels, padded with zeros to the canvas.

  Args:
    tiles: as in `Output.tiles`; the pixels of a map with an axis of size 1 at the end.
    size: of the results.
    canvas: height and width that all sizes fit into.
  """
  return _resize(tiles, size, canvas, interpolation_matrix)


def resize_cubic(
  tiles: Float[Array, "b r c d"], size: Int[Array, "b 2"], canvas: tuple[int, int]
) -> Float[Array, "b y x"]:
  """Resizes like `resize_logits` but with `cubic_matrix`, for values that are 0 outside the map."""
  return _resize(tiles, size, canvas, cubic_matrix)


def _resize(
  tiles: Float[Array, "b r c d"],
  size: Int[Array, "b 2"],
  canvas: tuple[int, int],
  matrix: Callable[[Int[Array, "b"], int, int], Float[Array, "b canvas source"]],
) -> Float[Array, "b y x"]:
  batch, height, width, depth = tiles.shape
  fold = math.isqrt(depth)
  pixels = tiles.reshape(batch, height, width, fold, fold)
  rows = matrix(size[:, 0], height * fold, canvas[0]).reshape(batch, -1, height, fold)
  cols = matrix(size[:, 1], width * fold, canvas[1]).reshape(batch, -1, width, fold)
  # The default precision of accelerators is too low for pixels near the threshold.
  wide = jnp.einsum("brcuv,bxcv->brux", pixels, cols, precision="highest")
  return jnp.einsum("byru,brux->byx", rows, wide, precision="highest")


def squash_masks(
  masks: Bool[Array, "b y x"],
  size: Int[Array, "b 2"],
  side: int,
  nearest: Callable[[int, int], Int32[np.ndarray, "sizes {side}"]],
) -> Bool[Array, "b {side} {side}"]:
  """Resizes the top left `size` (height, width) of each mask to a square.

  Args:
    masks: zero outside the image.
    size: height and width of each image.
    side: of the square, in pixels.
    nearest: `pillow_nearest` or `opencv_nearest`.
  """
  rows = jnp.asarray(nearest(masks.shape[1], side))[size[:, 0]]
  cols = jnp.asarray(nearest(masks.shape[2], side))[size[:, 1]]
  return _take(masks, rows, cols)


def letterbox_masks(
  masks: Bool[Array, "b y x"], size: Int[Array, "b 2"], side: int
) -> Bool[Array, "b {side} {side}"]:
  """Resizes the top left `size` of each mask to `letterboxed_size`, like torch's nearest.

  The result is in the top left corner.
  """
  inner = letterboxed_size(size, side)
  rows, cols = (torch_nearest(size[:, axis], inner[:, axis], side) for axis in (0, 1))
  inside = jnp.arange(side) < inner[:, :, None]
  return _take(masks, rows, cols) & inside[:, 0, :, None] & inside[:, 1, None, :]


def _take(
  masks: Bool[Array, "b y x"], rows: Int32[Array, "b r"], cols: Int32[Array, "b c"]
) -> Bool[Array, "b r c"]:
  tall = jnp.take_along_axis(masks, rows[:, :, None], axis=1)
  return jnp.take_along_axis(tall, cols[:, None, :], axis=2)


def pillow_nearest(longest: int, side: int) -> Int32[np.ndarray, "sizes {side}"]:
  """Returns which of n pixels Pillow's NEAREST takes for each of `side`, for n = 0 to `longest`.

  Pillow accumulates the step in double precision. Where a sample falls between two pixels, rounding
  decides: from 640 pixels to 480, 99 are the left neighbours of those that
  `preprocess.nearest_indices` takes.
  """
  step = np.arange(longest + 1)[:, None] / side
  steps = np.concatenate([step / 2, np.repeat(step, side - 1, axis=1)], axis=1)
  return np.cumsum(steps, axis=1).astype(np.int32)


def opencv_nearest(longest: int, side: int) -> Int32[np.ndarray, "sizes {side}"]:
  """Returns what `pillow_nearest` does, for OpenCV's INTER_NEAREST: the left or upper neighbours.

  OpenCV multiplies by a reciprocal in double precision, so that some samples between two pixels
  are one pixel further left.
  """
  sizes = np.arange(longest + 1)[:, None]
  step = 1 / (side / np.maximum(sizes, 1))
  return np.minimum(np.floor(np.arange(side) * step), np.maximum(sizes - 1, 0)).astype(np.int32)


def torch_nearest(
  size: Int[AnyArray, "b"], inner: Int[AnyArray, "b"], canvas: int
) -> Int32[AnyArray, "b {canvas}"]:
  """Returns which of `size` pixels torch's `interpolate(mode="nearest")` takes for each of `inner`.

  Torch computes in single precision. Beyond `inner`, up to the canvas, it is the last pixel.
  """
  xp: Any = np if isinstance(size, np.ndarray) else jnp
  step = size.astype(np.float32) / inner.astype(np.float32)
  at = xp.floor(xp.arange(canvas, dtype=np.float32) * step[:, None])
  return xp.minimum(at.astype(np.int32), size[:, None] - 1)


def letterboxed_size(size: Int[AnyArray, "b 2"], side: int) -> Int[AnyArray, "b 2"]:
  """Returns the height and width of an image whose longer side becomes `side`; at least 1.

  The shorter side is rounded as in Python, halves to even.
  """
  xp: Any = np if isinstance(size, np.ndarray) else jnp
  longest = size.max(1, keepdims=True)
  whole, rest = size * side // longest, size * side % longest
  up = (2 * rest > longest) | ((2 * rest == longest) & (whole % 2 == 1))
  return xp.maximum(whole + up, 1)
