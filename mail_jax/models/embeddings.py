"""Tokens of an image, an expression and instance masks (paper: figure, left half)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt, UInt8

from input_pipeline.common.errors import InputError
from mail_jax.models import appearance, instances

_INIT = nn.initializers.truncated_normal(0.02)
# Relations of two instances: left of, right of, above, below, smaller than, larger than.
SIDES = 6


class PatchProjection(nn.Module):
  """One linear projection of every patch: pixels row by row, channels last, and a bias.

  Written as one product, in which compilers find the patches of planar maps by themselves: cutting
  them out first costs more than the product.
  """

  width: int
  patch_size: int
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(self, maps: Float[Array, "b c h w"]) -> Float[Array, "b n d"]:
    """Returns one vector per patch, row by row, in float32."""
    side = self.patch_size
    batch, channels, height, width = maps.shape
    if height % side or width % side:
      raise InputError(
        f"image_size {height} x {width} is not a multiple of model.patch_size {side}"
      )
    size = side * side * channels
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (size, self.width))
    bias = self.param("bias", nn.initializers.zeros_init(), (self.width,))
    x = jnp.einsum(
      "bciyjx,yxcd->bijd",
      maps.reshape(batch, channels, height // side, side, width // side, side).astype(self.dtype),
      kernel.reshape(side, side, channels, self.width).astype(self.dtype),
    )
    return x.reshape(batch, -1, self.width).astype(jnp.float32) + bias


def normalise_image(images: UInt8[Array, "*p"]) -> Float[Array, "*p"]:
  """Maps bytes to [-1, 1], as ViLT does."""
  return images.astype(jnp.float32) / 127.5 - 1


class ImageEmbedding(nn.Module):
  """Patches -> linear projection, a class token in front, a position embedding (ViT, ViLT)."""

  width: int
  patch_size: int
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(self, image: UInt8[Array, "b h w 3"]) -> Float[Array, "b t d"]:
    """Returns the class token and one token per patch, t = 1 + n."""
    pixels = jnp.moveaxis(normalise_image(image), -1, 1)
    x = PatchProjection(self.width, self.patch_size, self.dtype, name="patches")(pixels)
    cls = self.param("cls", _INIT, (1, 1, self.width))
    x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], 1)
    return x + self.param("position", _INIT, (x.shape[1], self.width))


class TextEmbedding(nn.Module):
  """Word + position embedding, and a LayerNorm (BERT, ViLT; BEiT-3 has none).

  Attributes:
    max_tokens: number of positions for word pieces; a call may have fewer.
    norm: whether there is a LayerNorm.
  """

  width: int
  vocab_size: int
  max_tokens: int
  norm: bool = True

  @nn.compact
  def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    """Returns one token per word piece; position i is the i-th word piece."""
    words = nn.Embed(self.vocab_size, self.width, embedding_init=_INIT, name="words")(tokens)
    position = self.param("position", _INIT, (self.max_tokens, self.width))
    x = words + position[: tokens.shape[1]]
    return nn.LayerNorm(epsilon=1e-12, name="norm")(x) if self.norm else x  # BERT's


def on_side(box: Float[Array, "b k 4"], area: Float[Array, "b k"]) -> Float[Array, "b k k 6"]:
  """Returns the relations (`SIDES`) of instance j (third axis) to instance i (second): 0 or 1.

  By the centres of the boxes and by areas; an instance without pixels has no relation to others.

  Args:
    box: top, left, bottom, right.
    area: of each mask, in pixels.
  """
  top, left, bottom, right = jnp.moveaxis(box, -1, 0)
  places = jnp.stack([left + right, top + bottom, area], -1)
  # Whether the value of i is larger than that of j.
  ahead = places[:, :, None] > places[:, None]
  sides = jnp.stack([ahead, ahead.swapaxes(1, 2)], -1).reshape(*ahead.shape[:3], SIDES)
  return sides * (area > 0).astype(jnp.float32)[:, None, :, None]


class Neighbours(nn.Module):
  """Counts, for each instance, the similar instances on each side (ours, not the paper's).

  "The second circle from the right" is the circle with one circle on its right. Attention takes
  averages, which are bad at counting. Similarity is learned: exp(-s |e_i - e_j|^2), with vectors e
  of each head. One more head counts all instances.

  Attributes:
    width: of the tokens.
    heads: number of learned similarities.
    head_width: width of the vectors that are compared.
    most: counts up to this one have features of their own.
  """

  width: int
  heads: int = 8
  head_width: int = 16
  most: int = 3

  @nn.compact
  def __call__(
    self, x: Float[Array, "b k d"], box: Float[Array, "b k 4"], area: Float[Array, "b k"]
  ) -> Float[Array, "b k w"]:
    """Returns a vector to add to each token.

    Args:
      x: one vector per instance, of its appearance.
      box: top, left, bottom, right.
      area: of each mask, in pixels; 0 for slots without an instance, which are not counted.
    """
    batch, count, _ = x.shape
    x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
    kinds = nn.DenseGeneral((self.heads, self.head_width), name="kinds")(x)
    sharpness = self.param("sharpness", nn.initializers.constant(2.0), (self.heads,))
    distance = ((kinds[:, :, None] - kinds[:, None]) ** 2).mean(-1)
    like = jnp.exp(-jnp.abs(sharpness) * distance)
    like = jnp.concatenate([like, jnp.ones((batch, count, count, 1))], -1)
    counts = jnp.einsum("bijh,bijs->bihs", like, on_side(box, area))
    # A count of 1 is not half of a count of 2, so each count has its own feature.
    steps = jnp.arange(self.most + 1, dtype=jnp.float32)
    exact = jax.nn.relu(1 - jnp.abs(counts[..., None] - steps))
    features = jnp.concatenate([exact, counts[..., None] / (self.most + 1)], -1)
    return nn.Dense(self.width, name="project")(features.reshape(batch, count, -1))


class InstanceEmbedding(nn.Module):
  """One token per instance: from its mask in its box, the box, the mask in the frame, the image.

  Ours, not the paper's. The crop of the mask shows the shape at any size, the box gives place and
  size exactly, and the frame shows where in the image the parts of the mask are. With `appearance`
  the token also gets the pixels inside the mask, and does not have to find its own patches by
  attention first.

  Attributes:
    width: of the tokens.
    patch_size: of the patches whose coverage is returned.
    appearance: whether the token gets the image inside its mask.
    neighbours: whether it gets the numbers of similar instances on each side.
    crop_bins: resolution of the mask inside its box.
    frame_bins: resolution of the mask in the frame.
    pixel_bins: resolution of the image inside the box; it divides `crop_bins`.
  """

  width: int
  patch_size: int
  appearance: bool = True
  neighbours: bool = True
  crop_bins: int = 16
  frame_bins: int = 12
  pixel_bins: int = 8
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(
    self,
    planes: UInt[Array, "b g h w"],
    image: UInt8[Array, "b h w 3"],
    count: int,
  ) -> tuple[Float[Array, "b {count} d"], Float[Array, "b {count} n"]]:
    """Returns one token per slot; the caller drops those of slots without an instance.

    Args:
      planes: instance masks as bit planes.
      image: RGB bytes.
      count: number of slots.

    Returns:
      The tokens, and the fraction of each patch that each instance covers.
    """
    batch, (height, width) = planes.shape[0], planes.shape[2:]
    box = instances.boxes(planes, count)
    bins = (self.crop_bins, self.frame_bins, self.patch_size)
    crops, frames, coverage = instances.views(planes, box, bins, self.dtype)
    groups = {
      "crop": crops * 2 - 1,
      "frame": frames * 2 - 1,
      "box": instances.box_features(box, height, width),
    }
    area = coverage.sum(-1) * self.patch_size**2
    if self.appearance:
      colours = appearance.centre_bytes(image, self.dtype)
      colour, texture = appearance.colour_and_texture(colours, planes, area)
      groups |= {
        "pixels": 2 * self._seen(crops, colours, box),
        "colour": 2 * colour,
        "texture": texture,
      }
    # Each group has its own projection: in a shared one, the few numbers of the box and the colour
    # would drown among hundreds of pixels (docs/reports/results.md).
    hidden = jnp.zeros((batch, count, 2 * self.width))
    for name, group in groups.items():
      # Pixels have no gradient; without this the backward pass would go through every mask.
      flat = jax.lax.stop_gradient(group.reshape(batch, count, -1))
      hidden += nn.Dense(2 * self.width, dtype=self.dtype, name=name)(flat)
    x = jax.nn.gelu(hidden / len(groups) ** 0.5)
    x = nn.Dense(self.width, dtype=self.dtype, name="project")(x).astype(jnp.float32)
    if self.neighbours:
      x += Neighbours(self.width, name="neighbours")(x, box, area)
    return nn.LayerNorm(epsilon=1e-6, name="norm")(x), coverage

  def _seen(self, crops, colours, box):
    """Returns the image inside the mask, on a coarser grid than that of the mask's crop."""
    factor = self.crop_bins // self.pixel_bins
    inside = crops.reshape(*crops.shape[:2], self.pixel_bins, factor, self.pixel_bins, factor)
    grid = appearance.crop_pixels(colours, box, self.pixel_bins)
    return grid * inside.mean((3, 5))[..., None]


class StackedMaskEmbedding(nn.Module):
  """K masks as K channels of one patch projection, with a position embedding.

  Our reading of the paper's figure.
  """

  width: int
  patch_size: int
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(self, planes: UInt[Array, "b g h w"], count: int) -> Float[Array, "b n d"]:
    """Returns one token per patch, from the first `count` masks."""
    masks = instances.unpack_bit_planes(planes, count, self.dtype)
    x = PatchProjection(self.width, self.patch_size, self.dtype, name="patches")(masks)
    return x + self.param("position", _INIT, (x.shape[1], self.width))
