"""Resizes maps and masks on the device, with static shapes."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32


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
  logits: Float[Array, "b h w"], size: Int[Array, "b 2"], canvas: tuple[int, int]
) -> Float[Array, "b y x"]:
  """Resizes each map to its own size (height, width) in pixels, padded with zeros to the canvas."""
  rows = interpolation_matrix(size[:, 0], logits.shape[1], canvas[0])
  cols = interpolation_matrix(size[:, 1], logits.shape[2], canvas[1])
  return _apply(rows, cols, logits)


def resize_cubic(
  values: Float[Array, "b h w"], size: Int[Array, "b 2"], canvas: tuple[int, int]
) -> Float[Array, "b y x"]:
  """Resizes like `resize_logits` but with `cubic_matrix`, for values that are 0 outside the map."""
  rows = cubic_matrix(size[:, 0], values.shape[1], canvas[0])
  cols = cubic_matrix(size[:, 1], values.shape[2], canvas[1])
  return _apply(rows, cols, values)


def _apply(
  rows: Float[Array, "b y h"], cols: Float[Array, "b x w"], values: Float[Array, "b h w"]
) -> Float[Array, "b y x"]:
  # The default precision of accelerators is too low for pixels near the threshold.
  wide = jnp.einsum("bhw,bxw->bhx", values, cols, precision="highest")
  return jnp.einsum("byh,bhx->byx", rows, wide, precision="highest")


def squash_masks(
  masks: Bool[Array, "b y x"], size: Int[Array, "b 2"], side: int
) -> Bool[Array, "b {side} {side}"]:
  """Resizes the top left `size` (height, width) of each mask to a square, like Pillow's NEAREST."""
  rows = jnp.asarray(pillow_nearest(masks.shape[1], side))[size[:, 0]]
  cols = jnp.asarray(pillow_nearest(masks.shape[2], side))[size[:, 1]]
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
