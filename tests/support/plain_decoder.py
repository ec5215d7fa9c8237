"""The decoder written out pixel by pixel: doubling, then convolution, at every resolution."""

import jax
import jax.numpy as jnp
from flax import linen as nn


def upsample2(x):
  """Doubles the resolution of [b h w c] bilinearly, and repeats the edge."""
  for axis in (1, 2):
    size = x.shape[axis]
    before = jnp.take(x, jnp.maximum(jnp.arange(size) - 1, 0), axis)
    after = jnp.take(x, jnp.minimum(jnp.arange(size) + 1, size - 1), axis)
    pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    x = pair.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
  return x


def average(x, factor):
  """Averages each tile of pixels."""
  batch, height, width, channels = x.shape
  tiles = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
  return tiles.mean((2, 4))


class Stage(nn.Module):
  """3x3 convolution, normalisation, ReLU."""

  width: int
  norm: str

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(self.width, (3, 3), use_bias=False, name="conv")(x)
    if self.norm == "batch":
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
    else:
      x = nn.GroupNorm(num_groups=min(8, self.width), name="norm")(x)
    return jax.nn.relu(x)


class Decoder(nn.Module):
  """The stages with the guide [b h w g] at their resolution, the last one with all its pixels."""

  widths: tuple[int, ...]
  norm: str = "batch"

  @nn.compact
  def __call__(self, x, guide, train=False):
    """Returns one logit per pixel, [b h w]."""
    last = len(self.widths) - 1
    for i, width in enumerate(self.widths):
      x = upsample2(x) if i else x
      if guide is not None and i < last:
        x = jnp.concatenate([x, average(guide, 2 ** (last + 1 - i))], -1)
      elif guide is not None:
        quarters = [guide[:, y::2, x::2] for y in (0, 1) for x in (0, 1)]
        x = jnp.concatenate([x, *quarters], -1)
      x = Stage(width, self.norm, name=f"stage{i}")(x, train)
    logits = upsample2(nn.Conv(1, (1, 1), name="logits")(x))[..., 0]
    if guide is not None:
      detail = nn.Conv(4, (3, 3), name="detail")(x)
      batch, height, width, _ = detail.shape
      pixels = detail.reshape(batch, height, width, 2, 2).transpose(0, 1, 3, 2, 4)
      logits += pixels.reshape(logits.shape)
    return logits
