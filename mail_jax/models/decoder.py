"""The decoder: from patch features to one logit per pixel (paper: figure, right half)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from input_pipeline.common.errors import InputError


def coordinate_map(rows: int, cols: int) -> Float[Array, "{rows} {cols} 8"]:
  """Returns a map of each cell's position: its sides, its centre and its size, in [-1, 1].

  The paper's figure has an unlabelled map O without input from the encoder; this is our reading.
  """
  y, x = jnp.meshgrid(jnp.arange(rows), jnp.arange(cols), indexing="ij")
  top, bottom = y / rows * 2 - 1, (y + 1) / rows * 2 - 1
  left, right = x / cols * 2 - 1, (x + 1) / cols * 2 - 1
  size = [jnp.full((rows, cols), 1 / rows), jnp.full((rows, cols), 1 / cols)]
  return jnp.stack([left, top, right, bottom, (left + right) / 2, (top + bottom) / 2, *size], -1)


def upsample2(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
  """Doubles the resolution bilinearly, like torch's interpolate with align_corners=False.

  Written as shifts and adds: a quarter of the neighbour and three quarters of the pixel itself.
  """
  for axis in (1, 2):
    size = x.shape[axis]
    first, last = (
      jax.lax.slice_in_dim(x, 0, 1, axis=axis),
      jax.lax.slice_in_dim(x, size - 1, size, axis=axis),
    )
    before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
    pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    x = pair.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
  return x


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


def guide_pyramid(guide: Float[Array, "b h w g"], stages: int) -> list[Float[Array, "b _ _ _"]]:
  """Returns the guide of each stage, coarsest first: averages of tiles, and all pixels at last."""
  levels = [space_to_depth(guide, 2)]
  pooled = levels[0]
  for _ in range(stages - 1):
    # A tile is the average of its quarters; `space_to_depth` keeps channels together.
    quarters = pooled.reshape(*pooled.shape[:3], 4, guide.shape[-1])
    pooled = space_to_depth(quarters.mean(3), 2)
    levels.append(pooled.reshape(*pooled.shape[:3], 4, guide.shape[-1]).mean(3))
  return levels[::-1]


class Stage(nn.Module):
  """3x3 convolution, normalisation, ReLU.

  Attributes:
    width: output channels.
    norm: `batch` uses the statistics of the global batch (the paper's Sync BN); `group` is
      independent of the other examples.
  """

  width: int
  norm: str = "batch"
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w d"]:
    """Applies the stage."""
    x = nn.Conv(self.width, (3, 3), use_bias=False, dtype=self.dtype, name="conv")(x)
    if self.norm == "batch":
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
    elif self.norm == "group":
      x = nn.GroupNorm(num_groups=min(8, self.width), name="norm")(x)
    else:
      raise InputError(f"model.norm {self.norm!r} is not one of batch, group")
    return jax.nn.relu(x)


class Decoder(nn.Module):
  """log2(P) x {3x3 convolution, normalisation, ReLU, upsample 2x}, then one logit per pixel.

  The last 1x1 convolution commutes with bilinear upsampling, so it runs before the last doubling:
  the same result at a quarter of the cost.

  With a guide (the raw image and the selected raw mask; ours, not the paper's) each stage also gets
  the guide at its resolution, and the last one all its pixels, moved into channels, to predict a
  correction per pixel. So the outline is not limited by the patch size.

  Attributes:
    widths: channels of each stage; each stage doubles the resolution.
    norm: see `Stage`.
    dtype: of the convolutions.
  """

  widths: tuple[int, ...]
  norm: str = "batch"
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b rows cols c"],
    guide: Float[Array, "b h w g"] | None,
    train: bool = False,
  ) -> Float[Array, "b h w"]:
    """Decodes.

    Args:
      x: features of the patches as a map.
      guide: input of the stages at the resolution of the logits; None for the paper's decoder.
      train: normalises with the statistics of the batch instead of the running ones.

    Returns:
      One logit per pixel, float32.
    """
    guides = [None] * len(self.widths) if guide is None else guide_pyramid(guide, len(self.widths))
    for i, (width, joins) in enumerate(zip(self.widths, guides, strict=True)):
      if i:
        x = upsample2(x)
      if joins is not None:
        x = jnp.concatenate([x, joins.astype(x.dtype)], -1)
      x = Stage(width, self.norm, self.dtype, name=f"stage{i}")(x, train)
    logits = upsample2(nn.Conv(1, (1, 1), name="logits")(x.astype(jnp.float32)))
    if guide is not None:
      logits += depth_to_space(nn.Conv(4, (3, 3), name="detail")(x.astype(jnp.float32)), 2)
    return logits[..., 0]
