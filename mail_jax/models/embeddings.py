"""What turns an image, an expression and instance masks into tokens (paper: figure, left half)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt8

from mail_jax.models import instances

_INIT = nn.initializers.truncated_normal(0.02)


def patchify(images: Float[Array, "b h w c"], patch_size: int) -> Float[Array, "b n p"]:
  """Cuts images into flattened patches, row by row; pixels row by row, channels last."""
  batch, height, width, channels = images.shape
  if height % patch_size or width % patch_size:
    raise ValueError(f"image_size {height} x {width} is not a multiple of model.patch_size {patch_size}")
  rows, cols = height // patch_size, width // patch_size
  tiles = images.reshape(batch, rows, patch_size, cols, patch_size, channels).transpose(0, 1, 3, 2, 4, 5)
  return tiles.reshape(batch, rows * cols, patch_size * patch_size * channels)


def normalise_image(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
  """Bytes to [-1, 1], as ViLT does."""
  return images.astype(jnp.float32) / 127.5 - 1


class ImageEmbedding(nn.Module):
  """Patches -> linear projection, a class token in front, a position embedding (ViT, ViLT)."""

  width: int
  patch_size: int
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b t d"]:
    """Returns the class token and one token per patch, t = 1 + n."""
    x = nn.Dense(self.width, dtype=self.dtype, name="patches")(patchify(images, self.patch_size))
    cls = self.param("cls", _INIT, (1, 1, self.width))
    x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x.astype(jnp.float32)], 1)
    return x + self.param("position", _INIT, (x.shape[1], self.width))


class TextEmbedding(nn.Module):
  """Word + position embedding, LayerNorm (BERT, ViLT)."""

  width: int
  vocab_size: int

  @nn.compact
  def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    """Returns one token per word piece; position i is the i-th word piece."""
    words = nn.Embed(self.vocab_size, self.width, embedding_init=_INIT, name="words")(tokens)
    position = self.param("position", _INIT, (tokens.shape[1], self.width))
    return nn.LayerNorm(epsilon=1e-6, name="norm")(words + position)


class InstanceEmbedding(nn.Module):
  """One token per instance, from its mask alone: its bounding-box crop, its box and its full-frame view.

  Ours, not the paper's: a mask of 16 x 16 inside its box tells the shape whatever the instance's size, the box
  tells place and size exactly, the full-frame view tells what a box cannot (design: preset `instance`).

  Attributes:
    width: of the tokens.
    crop_bins: the crop's resolution.
    frame_bins: the full-frame view's resolution.
  """

  width: int
  crop_bins: int = 16
  frame_bins: int = 12
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(self, masks: Bool[Array, "b k h w"]) -> Float[Array, "b k d"]:
    """Returns one token per slot; slots without an instance give a token that the caller drops."""
    batch, count, height, width = masks.shape
    box = instances.boxes(masks)
    crops, frames = (
      view.reshape(batch, count, -1) for view in instances.views(masks, box, self.crop_bins, self.frame_bins)
    )
    features = jnp.concatenate([crops * 2 - 1, frames * 2 - 1, instances.box_features(box, height, width)], -1)
    # Masks have no gradient; without this the backward pass would look for one through every pixel.
    features = jax.lax.stop_gradient(features)
    x = nn.Dense(2 * self.width, dtype=self.dtype, name="project_in")(features)
    return nn.Dense(self.width, dtype=self.dtype, name="project_out")(jax.nn.gelu(x)).astype(jnp.float32)


class StackedMaskEmbedding(nn.Module):
  """K masks as K channels of one patch projection, with a position embedding (paper's figure, as we read it)."""

  width: int
  patch_size: int
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(self, masks: Bool[Array, "b k h w"]) -> Float[Array, "b n d"]:
    """Returns one token per patch."""
    channels_last = jnp.moveaxis(masks, 1, -1).astype(jnp.float32)
    x = nn.Dense(self.width, dtype=self.dtype, name="patches")(patchify(channels_last, self.patch_size))
    return x.astype(jnp.float32) + self.param("position", _INIT, (x.shape[1], self.width))
