"""What instances look like: the photo inside their masks and boxes, at full resolution."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt, UInt8

from mail_jax.models.instances import crop_weights, product, sum_inside

# Bytes become [-1, 1], as in ViLT.
HALF_RANGE = 127.5
_CENTRE = 128


def centre_bytes(
  image: UInt8[Array, "b h w 3"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "b 3 h w"]:
  """Returns planar colours as whole numbers, byte - 128, which bfloat16 holds exactly, too."""
  return (jnp.moveaxis(image, -1, 1).astype(jnp.float32) - _CENTRE).astype(dtype)


def to_unit(centred: Float[Array, "..."]) -> Float[Array, "..."]:
  """Maps averages of `centre_bytes` to those of colours in [-1, 1]."""
  return (centred + (_CENTRE - HALF_RANGE)) / HALF_RANGE


def crop_pixels(
  colours: Float[Array, "b 3 h w"], box: Float[Array, "b k 4"], bins: int
) -> Float[Array, "b k {bins} {bins} 3"]:
  """Averages the image over a bins x bins grid on each box.

  Args:
    colours: from `centre_bytes`; products are computed in their dtype.
    box: in pixels: top, left, bottom, right.
    bins: along each side.

  Returns:
    Colours in [-1, 1].
  """
  height, width = colours.shape[2:]
  rows = crop_weights(box[..., 0], box[..., 2], bins, height).astype(colours.dtype)
  cols = crop_weights(box[..., 1], box[..., 3], bins, width).astype(colours.dtype)
  lines = jnp.einsum("bkiy,bcyx->bkicx", rows, colours)
  return to_unit(product("bkicx,bkjx->bkijc", lines, cols))


def colour_and_texture(
  colours: Float[Array, "b 3 h w"], planes: UInt[Array, "b g h w"], area: Float[Array, "b k"]
) -> tuple[Float[Array, "b k 3"], Float[Array, "b k 6"]]:
  """Summarises the pixels inside each mask.

  Args:
    colours: from `centre_bytes`; products are computed in their dtype.
    planes: the masks.
    area: of each mask, in pixels.

  Returns:
    The mean colour in [-1, 1], and the texture, of about unit scale: the standard deviation of each
    colour, and of the structure tensor the roots of both eigenvalues and the coherence, which is 1
    for stripes and 0 for dots. Zeros for an empty mask.
  """
  exact = colours.astype(jnp.float32)
  of_squares = _parts(exact**2, colours.dtype)
  of_tensor = _parts(_structure_tensor(exact), colours.dtype)
  # One product, so that the masks are unpacked once.
  parts = [exact, *of_squares, *of_tensor]
  maps = jnp.concatenate(parts, 1).astype(colours.dtype)
  sums = sum_inside(planes, area.shape[1], maps) / jnp.maximum(area[..., None], 1)
  centred, *means = jnp.split(sums, len(parts), -1)
  square = sum(means[: len(of_squares)], jnp.zeros(())) / HALF_RANGE**2
  tensor = sum(means[len(of_squares) :], jnp.zeros(())) / HALF_RANGE**2
  deviation = jnp.sqrt(jnp.maximum(square - (centred / HALF_RANGE) ** 2, 0))
  xx, yy, xy = jnp.moveaxis(tensor, -1, 0)
  half, gap = (xx + yy) / 2, jnp.sqrt(((xx - yy) / 2) ** 2 + xy**2)
  low, high = jnp.sqrt(jnp.maximum(half - gap, 0)), jnp.sqrt(half + gap)
  coherence = gap / jnp.maximum(half, 1e-6)
  texture = [4 * deviation, jnp.stack([2 * low, 2 * high, 3 * coherence], -1)]
  return to_unit(centred) * (area > 0)[..., None], jnp.concatenate(texture, -1)


def _parts(maps: Float[Array, "b 3 h w"], dtype: DTypeLike) -> list[Float[Array, "b 3 h w"]]:
  """Returns maps that sum to these and that the dtype holds, to 16 bits at least.

  The statistics are small differences of large sums.
  """
  if dtype == jnp.float32:
    return [maps]
  coarse = jax.lax.reduce_precision(maps, 8, 7)
  return [coarse, maps - coarse]


def _structure_tensor(colours: Float[Array, "b 3 h w"]) -> Float[Array, "b 3 h w"]:
  """Returns xx, yy and xy of the differences between neighbours, summed over colours.

  0 at the border.
  """
  down = jnp.pad(colours[:, :, 2:] - colours[:, :, :-2], ((0, 0), (0, 0), (1, 1), (0, 0)))
  right = jnp.pad(colours[..., 2:] - colours[..., :-2], ((0, 0), (0, 0), (0, 0), (1, 1)))
  kind = jnp.arange(3)[:, None, None]
  # Colour by colour: a sum over so short an axis is slow on CPUs.
  tensor = sum(
    jnp.where(kind == 1, down[:, c, None], right[:, c, None])
    * jnp.where(kind == 0, right[:, c, None], down[:, c, None])
    for c in range(3)
  )
  height, width = colours.shape[2:]
  y, x = jnp.arange(height)[:, None], jnp.arange(width)
  inside = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
  return jnp.where(inside, tensor, 0)
