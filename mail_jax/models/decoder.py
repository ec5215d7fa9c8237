"""The decoder: from patch features to one logit per pixel (paper: figure, right half)."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from input_pipeline.common.errors import InputError
from mail_jax.models.folding import (
  convolve,
  convolve_border,
  depth_to_space,
  fold_guide_kernel,
  fold_kernel,
  fold_line,
  fold_planes,
)

# Sides of the tiles of pixels that are the channels of guides and logits. Matrix units are fastest
# with hundreds of channels; on a CPU the zeros in kernels of large tiles cost more than they save
# (docs/reports/performance.md).
_TILES = {"cpu": 4}
_TILE = 8


def coordinate_map(rows: int, cols: int) -> Float[Array, "{rows} {cols} 8"]:
  """Returns a map of each cell's position: its sides, its centre and its size, in [-1, 1].

  The paper's figure has an unlabelled map O without input from the encoder; this is our reading.
  """
  y, x = jnp.meshgrid(jnp.arange(rows), jnp.arange(cols), indexing="ij")
  top, bottom = y / rows * 2 - 1, (y + 1) / rows * 2 - 1
  left, right = x / cols * 2 - 1, (x + 1) / cols * 2 - 1
  size = [jnp.full((rows, cols), 1 / rows), jnp.full((rows, cols), 1 / cols)]
  return jnp.stack([left, top, right, bottom, (left + right) / 2, (top + bottom) / 2, *size], -1)


def average_tiles(tiles: Float[Array, "b y x d"], tile: int, parts: int) -> Float[Array, "b y x e"]:
  """Averages each of parts x parts parts of every tile, d = g tile^2 and e = g parts^2.

  As a product with a matrix of g diagonal blocks, since planes of few pixels are slow.
  """
  line = np.repeat(np.eye(parts), tile // parts, axis=0) * parts / tile
  block = np.einsum("ya,xb->yxab", line, line).reshape(tile**2, parts**2)
  matrix = np.kron(np.eye(tiles.shape[-1] // tile**2), block)
  return tiles @ jnp.asarray(matrix, tiles.dtype)


def guide_pyramid(
  guides: Sequence[Float[Array, "b y x _"]], order: tuple[int, ...], tile: int, stages: int
) -> list[list[Float[Array, "b _ _ _"]]]:
  """Returns the guides of each stage, coarsest first: averages, all in one, and themselves at last.

  Args:
    guides: planes of pixels, each with tiles of `tile` x `tile` pixels in the channels.
    order: place in the kernels of each plane, and in the averages.
    tile: side of the tiles.
    stages: of which each has the double resolution of the one before, and the last half of that of
      the pixels.

  Returns:
    Planes at the resolution of the stage, in tiles as large as a pixel of the stage before, but not
    smaller than `tile`.
  """
  levels = [list(guides)]
  for i in range(stages - 2, -1, -1):
    side = 2 ** (stages - i)  # Pixels that are averaged.
    if side > tile:
      level = average_tiles(levels[-1][0], 2, 1)
    else:
      averages = jnp.concatenate([average_tiles(g, tile, tile // side) for g in guides], -1)
      planes = jnp.split(averages, len(order), axis=-1)
      level = jnp.concatenate([planes[i] for i in np.argsort(order)], -1)
    if i and side >= tile:
      level = fold_planes(jnp.moveaxis(level, -1, 1), 2)
    levels.append([level])
  return levels[::-1]


def find_tile(patch_size: int) -> int:
  """Returns the fastest side of tiles on the platform that is traced for; at most a patch."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  platform = jax.default_backend() if device is None else device.platform
  return min(_TILES.get(platform, _TILE), patch_size)


class Parameters(nn.Module):
  """The parameters of a convolution, with the names and initial values of `nn.Conv`."""

  shape: tuple[int, int, int, int]

  @nn.compact
  def __call__(self, bias: bool = True) -> tuple[Float[Array, "p q c d"], Float[Array, "d"]]:
    """Returns kernel and bias, which is 0 without `bias`."""
    kernel = self.param("kernel", nn.initializers.lecun_normal(), self.shape)
    added = jnp.zeros(self.shape[-1:])
    if bias:
      added = self.param("bias", nn.initializers.zeros, self.shape[-1:])
    return jnp.asarray(kernel), jnp.asarray(added)  # Exported models have NumPy's.


class Normalise(nn.Module):
  """Batch or group normalisation of channels that occur once per pixel of a tile.

  The same as `nn.BatchNorm` or `nn.GroupNorm` of the pixels; statistics are float32.

  Attributes: see `Stage`.
  """

  width: int
  norm: str = "batch"
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(self, x: Float[Array, "b y x d"], train: bool) -> Float[Array, "b y x d"]:
    """Normalises each channel over all of its d / `width` copies."""
    scale = self.param("scale", nn.initializers.ones, (self.width,))
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    exact = x.astype(jnp.float32)
    if self.norm == "batch":
      mean, var = self._of_batch(exact, train)
      scale = scale * jax.lax.rsqrt(var + 1e-5)
    elif self.norm == "group":
      mean, var = _statistics(exact, self.width, min(8, self.width), (1, 2))
      mean, var = (jnp.repeat(v, self.width // v.shape[1], 1)[:, None, None] for v in (mean, var))
      scale = scale * jax.lax.rsqrt(var + 1e-6)
    else:
      raise InputError(f"model.norm {self.norm!r} is not one of batch, group")
    copies = x.shape[-1] // self.width
    mean, scale, bias = (jnp.tile(v, copies) for v in (mean, scale, bias))
    return ((exact - mean) * scale + bias).astype(self.dtype)

  def _of_batch(
    self, x: Float[Array, "b y x d"], train: bool
  ) -> tuple[Float[Array, "w"], Float[Array, "w"]]:
    mean = self.variable("batch_stats", "mean", jnp.zeros, (self.width,))
    var = self.variable("batch_stats", "var", jnp.ones, (self.width,))
    if not train:
      return jnp.asarray(mean.value), jnp.asarray(var.value)
    new_mean, new_var = (v[0] for v in _statistics(x, self.width, self.width, (0, 1, 2)))
    if not self.is_initializing():
      mean.value = 0.9 * mean.value + 0.1 * new_mean
      var.value = 0.9 * var.value + 0.1 * new_var
    return new_mean, new_var


def _statistics(
  x: Float[Array, "b y x d"], width: int, groups: int, axes: tuple[int, ...]
) -> tuple[Float[Array, "e g"], Float[Array, "e g"]]:
  """Returns mean and variance of each group of channels over the axes and all their copies."""
  moments = (m.mean(axes, keepdims=True) for m in (x, x**2))
  mean, square = (m.reshape(m.shape[0], -1, groups, width // groups).mean((1, 3)) for m in moments)
  return mean, jnp.maximum(square - mean**2, 0)


class Stage(nn.Module):
  """Bilinear doubling (not in the first stage), 3x3 convolution, normalisation, ReLU.

  Attributes:
    width: output channels.
    norm: `batch` uses the statistics of the global batch (the paper's Sync BN); `group` is
      independent of the other examples.
    dtype: of the convolution and of the result.
    order: place in the kernel of each plane of the guides.
    parts: side of a pixel of the convolution in pixels of the guides, which are its channels.
  """

  width: int
  norm: str = "batch"
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]
  order: tuple[int, ...] = ()
  parts: int = 1

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b y x c"],
    guides: Sequence[Float[Array, "b y x _"]],
    fold: int,
    train: bool,
  ) -> Float[Array, "b y x e"]:
    """Applies the stage.

    Args:
      x: pixels, in tiles of `fold` x `fold`.
      guides: planes of pixels in the same tiles; the last array shares the convolution of x, so
        that only its gradient is computed where the others have none.
      fold: side of the tiles before doubling; 0 for the first stage, which does not double.
      train: see `Decoder`.

    Returns:
      Pixels in the same tiles.
    """
    x, side = x.astype(self.dtype), max(2 * fold, 1)
    channels = x.shape[-1] // max(fold, 1) ** 2
    planes = [guide.shape[-1] // (side * self.parts) ** 2 for guide in guides]
    joins = sum(planes) * self.parts**2
    kernel, _ = Parameters((3, 3, channels + joins, self.width), name="conv")(bias=False)
    own, others = jnp.split(kernel.astype(self.dtype), [channels], axis=2)
    folded = []
    if fold or self.parts > 1:
      others = others.reshape(3, 3, self.parts, self.parts, -1, self.width)
      places = iter(self.order)
      for count in planes:
        some = [others[..., i : i + 1, :] for i in itertools.islice(places, count)]
        folded.append(fold_guide_kernel(jnp.concatenate(some, -2), side))
      inner, _ = fold_line(3, max(fold, 1), double=fold > 0)
      kernel = jnp.concatenate([fold_kernel(own, inner, inner), *folded[-1:]], 2)
    y = convolve(jnp.concatenate([x, *guides[-1:]], -1), kernel)
    for guide, apart in zip(guides[:-1], folded[:-1], strict=True):
      y += convolve(guide, apart)
    if fold:
      y += convolve_border(x, own, fold)
    return jax.nn.relu(Normalise(self.width, self.norm, self.dtype, name="norm")(y, train))


class Decoder(nn.Module):
  """log2(P) x {3x3 convolution, normalisation, ReLU, upsample 2x}, then one logit per pixel.

  The last 1x1 convolution commutes with bilinear upsampling, so it runs before the last doubling:
  the same result at a quarter of the cost.

  With a guide (the raw image and the selected raw mask; ours, not the paper's) each stage also gets
  the guide at its resolution, and the last one all its pixels, moved into channels, to predict a
  correction per pixel. So the outline is not limited by the patch size.

  Nothing has a higher resolution than one cell per tile: what is finer is in the channels, and each
  doubling is one with the convolution that follows (`folding`).

  Attributes:
    widths: channels of each stage; each stage doubles the resolution.
    norm: see `Stage`.
    dtype: of the convolutions of the stages.
    order: place in the kernels of each plane of the guides.
    tile: side of the tiles of guides and logits, in pixels: a power of two of at least 4, but at
      most a patch. It does not change the result.
  """

  widths: tuple[int, ...]
  norm: str = "batch"
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]
  order: tuple[int, ...] = ()
  tile: int = _TILE

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b rows cols c"],
    guides: Sequence[Float[Array, "b y x _"]],
    train: bool = False,
  ) -> Float[Array, "b y x d"]:
    """Decodes.

    Args:
      x: features of the patches as a map.
      guides: planes of pixels (`fold_planes`), those that need a gradient in the last array; none
        for the paper's decoder.
      train: normalises with the statistics of the batch instead of the running ones.

    Returns:
      One logit per pixel, in tiles, float32.
    """
    stages, tile = len(self.widths), self.tile
    guides = [guide.astype(self.dtype) for guide in guides]
    levels = guide_pyramid(guides, self.order, tile, stages) if guides else [[]] * stages
    for i, (width, level) in enumerate(zip(self.widths, levels, strict=True)):
      before = 2 ** (stages - i + 1)  # Side in pixels of what the stage doubles.
      fold = max(tile // before, 1) if i else 0
      order, parts = (self.order, 2) if i == stages - 1 else (tuple(range(len(self.order))), 1)
      stage = Stage(width, self.norm, self.dtype, order, parts, name=f"stage{i}")
      x = stage(x, level, fold, train)
      if i and before > tile:
        x = depth_to_space(x, 2)
    x, fold = x.astype(jnp.float32), tile // 2
    kernel, bias = Parameters((1, 1, self.widths[-1], 1), name="logits")()
    inner, _ = fold_line(1, fold, double=True)
    folded = fold_kernel(kernel, inner, inner)
    if guides:
      detail, more = Parameters((3, 3, self.widths[-1], 4), name="detail")()
      same, _ = fold_line(3, fold, double=False)
      folded += fold_kernel(detail, same, same, parts=2)
      bias += jnp.tile(more.reshape(2, 2), (fold, fold)).reshape(-1)
    return convolve(x, folded) + convolve_border(x, kernel, fold) + bias
