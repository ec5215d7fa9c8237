"""What turns an image, an expression and instance masks into tokens (paper: figure, left half)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt8

from input_pipeline.common.errors import InputError
from mail_jax.models import instances
from mail_jax.models.neighbours import Neighbours

_INIT = nn.initializers.truncated_normal(0.02)


def patchify(images: Float[Array, "b h w c"], patch_size: int) -> Float[Array, "b n p"]:
  """Cuts images into flattened patches, row by row; pixels row by row, channels last."""
  batch, height, width, channels = images.shape
  if height % patch_size or width % patch_size:
    raise InputError(
      f"image_size {height} x {width} is not a multiple of model.patch_size {patch_size}"
    )
  rows, cols = height // patch_size, width // patch_size
  tiles = images.reshape(batch, rows, patch_size, cols, patch_size, channels).transpose(
    0, 1, 3, 2, 4, 5
  )
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
    x = jnp.concatenate(
      [jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x.astype(jnp.float32)], 1
    )
    return x + self.param("position", _INIT, (x.shape[1], self.width))


class TextEmbedding(nn.Module):
  """Word + position embedding, LayerNorm (BERT, ViLT).

  Attributes:
    max_tokens: word pieces that there are positions for; a call may have fewer.
  """

  width: int
  vocab_size: int
  max_tokens: int

  @nn.compact
  def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    """Returns one token per word piece; position i is the i-th word piece."""
    words = nn.Embed(self.vocab_size, self.width, embedding_init=_INIT, name="words")(tokens)
    position = self.param("position", _INIT, (self.max_tokens, self.width))
    return nn.LayerNorm(epsilon=1e-12, name="norm")(words + position[: tokens.shape[1]])  # BERT's


class InstanceEmbedding(nn.Module):
  """One token per instance: its bounding-box crop, its box, its full-frame view, and what is seen in it.

  Ours, not the paper's: a mask of 16 x 16 inside its box tells the shape at any size of the instance, the box
  tells place and size exactly, the full-frame view tells what a box cannot. With `appearance` the token also gets
  the pixels inside the mask, so that it need not first find its own patches by attention.

  Attributes:
    width: of the tokens.
    appearance: whether the token sees the image inside its mask.
    neighbours: whether it knows how many instances like it lie on each side.
    crop_bins: the mask crop's resolution.
    frame_bins: the full-frame view's resolution.
    pixel_bins: the image crop's resolution; it divides `crop_bins`.
  """

  width: int
  appearance: bool = True
  neighbours: bool = True
  crop_bins: int = 16
  frame_bins: int = 12
  pixel_bins: int = 8
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(
    self, masks: Bool[Array, "b k h w"], pixels: Float[Array, "b h w 3"]
  ) -> Float[Array, "b k d"]:
    """Returns one token per slot; slots without an instance give a token that the caller drops."""
    batch, count, height, width = masks.shape
    box = instances.boxes(masks)
    crops, frames = instances.views(masks, box, self.crop_bins, self.frame_bins)
    groups = {
      "crop": crops * 2 - 1,
      "frame": frames * 2 - 1,
      "box": instances.box_features(box, height, width),
    }
    area = instances.areas(masks)
    if self.appearance:
      colour, texture = instances.colour_and_texture(pixels, masks, area)
      groups |= {
        "pixels": 2 * self._seen(crops, pixels, box),
        "colour": 2 * colour,
        "texture": texture,
      }
    # Each group has its own projection: side by side in one, the few numbers of the box and the colour would drown
    # among hundreds of pixels (docs/reports/results.md).
    hidden = jnp.zeros((batch, count, 2 * self.width))
    for name, group in groups.items():
      # Pixels have no gradient; without this the backward pass would look for one through every mask.
      flat = jax.lax.stop_gradient(group.reshape(batch, count, -1))
      hidden += nn.Dense(2 * self.width, dtype=self.dtype, name=name)(flat)
    x = jax.nn.gelu(hidden / len(groups) ** 0.5)
    x = nn.Dense(self.width, dtype=self.dtype, name="project")(x).astype(jnp.float32)
    if self.neighbours:
      x += Neighbours(self.width, name="neighbours")(x, box, area)
    return nn.LayerNorm(epsilon=1e-6, name="norm")(x)

  def _seen(self, crops, pixels, box):
    """Returns the image inside the mask, on a coarser grid than that of the mask's crop."""
    factor = self.crop_bins // self.pixel_bins
    inside = crops.reshape(*crops.shape[:2], self.pixel_bins, factor, self.pixel_bins, factor)
    grid = instances.crop_pixels(pixels, box, self.pixel_bins)
    return grid * inside.mean((3, 5))[..., None]


class StackedMaskEmbedding(nn.Module):
  """K masks as K channels of one patch projection, with a position embedding (paper's figure, as we read it)."""

  width: int
  patch_size: int
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(self, masks: Bool[Array, "b k h w"]) -> Float[Array, "b n d"]:
    """Returns one token per patch."""
    channels_last = jnp.moveaxis(masks, 1, -1).astype(jnp.float32)
    x = nn.Dense(self.width, dtype=self.dtype, name="patches")(
      patchify(channels_last, self.patch_size)
    )
    return x.astype(jnp.float32) + self.param("position", _INIT, (x.shape[1], self.width))
