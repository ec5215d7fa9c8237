"""Logits at the original size, on the device, with static shapes."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def interpolation_matrix(
  size: Int[Array, "b"], source: int, canvas: int
) -> Float[Array, "b {canvas} {source}"]:
  """Weights that resize `source` samples to `size` bilinearly, padded with zero rows to `canvas`.

  Half-pixel centres, edges repeated, no antialiasing: torch's `interpolate(mode="bilinear", align_corners=False)`.
  """
  at = (jnp.arange(canvas) + 0.5) * (source / size[:, None]) - 0.5
  at = jnp.clip(at, 0, source - 1)
  weights = jnp.maximum(0, 1 - jnp.abs(at[..., None] - jnp.arange(source)))
  return jnp.where((jnp.arange(canvas) < size[:, None])[..., None], weights, 0)


def resize_logits(
  logits: Float[Array, "b h w"], size: Int[Array, "b 2"], canvas: tuple[int, int]
) -> Float[Array, "b y x"]:
  """Resizes each map to its own size (height, width) in pixels, padded with zeros to the canvas."""
  rows = interpolation_matrix(size[:, 0], logits.shape[1], canvas[0])
  cols = interpolation_matrix(size[:, 1], logits.shape[2], canvas[1])
  # Default precision on accelerators is too coarse for pixels near the threshold.
  wide = jnp.einsum("bhw,bxw->bhx", logits, cols, precision="highest")
  return jnp.einsum("byh,bhx->byx", rows, wide, precision="highest")
