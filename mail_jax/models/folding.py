"""Images whose tiles are channels, and convolutions of pixels as convolutions of tiles.

Matrix units work on channels: arrays with many pixels and few channels are slow on them, and a TPU
stores every array as if it had 128 channels. A convolution is linear, and so is doubling the
resolution before it, so both together are one convolution of tiles, with kernels that are computed
from those of pixels.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Shaped


def space_to_depth(x: Shaped[Array, "b h w c"], factor: int) -> Shaped[Array, "b y x d"]:
  """Moves each factor x factor tile of pixels into the channels; nothing is lost."""
  batch, height, width, channels = x.shape
  tiles = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
  return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // factor, width // factor, -1)


def depth_to_space(x: Shaped[Array, "b y x d"], factor: int) -> Shaped[Array, "b h w c"]:
  """Undoes `space_to_depth`."""
  batch, rows, cols, depth = x.shape
  tiles = x.reshape(batch, rows, cols, factor, factor, depth // factor**2)
  return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * factor, cols * factor, -1)


def fold_planes(planes: Shaped[Array, "b g h w"], factor: int) -> Shaped[Array, "b y x d"]:
  """Moves each tile of each plane into the channels, d = g factor^2, one plane after the other."""
  # Plane by plane: XLA transposes all together at several times the cost.
  tiles = [space_to_depth(planes[:, i, :, :, None], factor) for i in range(planes.shape[1])]
  return jnp.concatenate(tiles, -1)


def double_line(size: int) -> Float[np.ndarray, "2*{size} {size}"]:
  """Returns the matrix that doubles the resolution of a line bilinearly, and repeats its ends.

  Three quarters of a pixel itself and a quarter of its neighbour, like torch's interpolate with
  align_corners=False.
  """
  matrix = 0.75 * np.repeat(np.eye(size), 2, axis=0)
  for i in range(2 * size):
    matrix[i, np.clip(i // 2 + (1 if i % 2 else -1), 0, size - 1)] += 0.25
  return matrix


@functools.cache
def fold_line(
  taps: int, fold: int, double: bool
) -> tuple[Float32[np.ndarray, "p 3 o i"], Float32[np.ndarray, "2 p 1 o i"]]:
  """Returns the convolution of a line, zero beyond its ends, as one of tiles of `fold` pixels.

  Args:
    taps: of the convolution, an odd number.
    fold: pixels per tile.
    double: whether the resolution is doubled first, so that a tile becomes one of 2 `fold` pixels.

  Returns:
    The weight in pixel o of a tile, with tap p, of pixel i of the tile before, itself and the one
    after; and what is missing in the first and in the last tile, because doubling repeats the ends.
  """
  tiles = 5
  matrix = double_line(tiles * fold) if double else np.eye(tiles * fold)
  lines = np.stack([np.eye(len(matrix), k=tap - taps // 2) @ matrix for tap in range(taps)])
  lines = lines.reshape(taps, tiles, -1, tiles, fold).astype(np.float32)
  inner = np.stack([lines[:, 2, :, tile] for tile in (1, 2, 3)], 1)
  ends = np.stack([lines[:, i, :, i] - inner[:, 1] for i in (0, -1)])
  return inner, ends[:, :, None]


def fold_kernel(
  kernel: Float[Array, "p q c d"],
  rows: Float32[np.ndarray, "p t o i"],
  cols: Float32[np.ndarray, "q u v j"],
  parts: int = 1,
) -> Float[Array, "t u _ _"]:
  """Returns the kernel of a convolution of tiles, whose channels are those of `space_to_depth`.

  Args:
    kernel: of the convolution of pixels.
    rows: see `fold_line`; from top to bottom.
    cols: from left to right.
    parts: each pixel of the result is a tile of parts x parts of them, d = parts^2 e.
  """
  kernel = kernel.reshape(*kernel.shape[:3], parts, parts, -1)
  # Quarters and sixteenths, exact in every type.
  table = jnp.asarray(np.einsum("ptoi,quvj->pqtuijov", rows, cols), kernel.dtype)
  folded = jnp.einsum("pqtuijov,pqcrse->tuijcorvse", table, kernel)
  return folded.reshape(*folded.shape[:2], math.prod(folded.shape[2:5]), -1)


def fold_guide_kernel(kernel: Float[Array, "3 3 r s g d"], fold: int) -> Float[Array, "3 3 _ _"]:
  """Returns the kernel of a convolution of tiles, whose channels are those of `fold_planes`.

  Args:
    kernel: of the convolution of pixels, each a tile of r x s pixels of g planes.
    fold: side of the tiles of the result.
  """
  same, _ = fold_line(3, fold, double=False)
  table = jnp.asarray(np.einsum("ptoi,quvj->pqtuijov", same, same), kernel.dtype)
  folded = jnp.einsum("pqtuijov,pqrsgd->tugirjsovd", table, kernel)
  return folded.reshape(3, 3, math.prod(folded.shape[2:7]), -1)


def convolve(
  x: Float[Array, "b h w c"], kernel: Float[Array, "p q c d"]
) -> Float[Array, "b h w d"]:
  """Convolves with zeros beyond the border, in the type of `x`."""
  numbers = ("NHWC", "HWIO", "NHWC")
  kernel = kernel.astype(x.dtype)
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def convolve_border(
  x: Float[Array, "b y x c"], kernel: Float[Array, "p q k d"], fold: int
) -> Float[Array, "b y x e"]:
  """Returns what `convolve` lacks at the border, where doubling repeats pixels; elsewhere zeros.

  Args:
    x: tiles of `fold` x `fold` pixels.
    kernel: of the convolution of the pixels after doubling.
    fold: side of the tiles.
  """
  total = jnp.zeros((), x.dtype)
  for axis in (1, 2):
    # Top and bottom have the whole width, corners too; left and right are zero beyond their ends.
    sides = [_edge(x, axis, side, fold) for side in (0, -1)]
    added = _along_edges(jnp.stack(sides), kernel, axis == 1)
    for side, part in zip((0, -1), added, strict=True):
      total += _place(part, axis, side, x.shape[axis])
    kernel = kernel.swapaxes(0, 1)
  return total


def _edge(
  x: Float[Array, "b y x c"], axis: int, side: int, fold: int
) -> Float[Array, "b n {fold} k"]:
  """Returns the outermost pixels of the tiles at a side of the map, in their order along it."""
  tiles = x[:, side] if axis == 1 else x[:, :, side]
  tiles = tiles.reshape(*tiles.shape[:2], fold, fold, -1)
  return tiles[:, :, side] if axis == 1 else tiles[:, :, :, side]


def _along_edges(
  lines: Float[Array, "s b n i k"], kernel: Float[Array, "p q k d"], corners: bool
) -> Float[Array, "s b n 2 o d"]:
  """Returns what is missing in the outermost two pixels at both sides.

  Args:
    lines: outermost pixels of both sides, in tiles.
    kernel: its first axis goes across the edge.
    corners: whether the ends of the lines repeat their pixels, too.
  """
  across, along = (fold_line(taps, lines.shape[3], double=True) for taps in kernel.shape[:2])
  near = np.stack([across[1][0][:, 0, :2, 0], across[1][1][:, 0, -2:, -1]])
  taps = np.concatenate([along[0], *along[1]] if corners else [along[0]], 1)
  table = jnp.asarray(np.einsum("spa,quvj->pqsujav", near, taps), kernel.dtype)
  folded = jnp.einsum("pqsujav,pqcd->sujcavd", table, kernel)
  pixels = lines.reshape(*lines.shape[:3], -1)
  size = pixels.shape[2]
  first, last = pixels[:, :, :1], pixels[:, :, size - 1 :]
  shifted = [_pad(pixels[:, :, : size - 1], 2, 1, 0), pixels, _pad(pixels[:, :, 1:], 2, 0, 1)]
  shifted += [_pad(first, 2, 0, size - 1), _pad(last, 2, size - 1, 0)] if corners else []
  joined = jnp.concatenate(shifted, -1)
  weights = folded.reshape(2, joined.shape[-1], -1).astype(joined.dtype)
  added = jnp.einsum("sbnc,scd->sbnd", joined, weights)
  return added.reshape(*added.shape[:3], *folded.shape[4:])


def _place(
  part: Float[Array, "b n 2 o d"], axis: int, side: int, size: int
) -> Float[Array, "b y x e"]:
  """Puts the outermost two pixels into their tiles, and the tiles into a map of zeros."""
  rest = part.shape[3] - 2
  part = _pad(part, 2, *((rest, 0) if side else (0, rest)))
  part = part if axis == 1 else part.swapaxes(2, 3)
  tiles = jnp.expand_dims(part.reshape(*part.shape[:2], -1), axis)
  return _pad(tiles, axis, *((size - 1, 0) if side else (0, size - 1)))


def _pad(x: Array, axis: int, before: int, after: int) -> Array:
  return jnp.pad(x, [(before, after) if i == axis else (0, 0) for i in range(x.ndim)])
