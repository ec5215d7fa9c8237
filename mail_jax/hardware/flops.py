"""Floating-point operations of the model, counted by hand: its matrix products and convolutions.

A multiplication and an addition are two operations. Taps of a convolution beyond the edge of the
map do not count, and neither do elementwise operations (normalisation, activations, resizing,
losses, the optimizer), which do not run on units for matrix products. The decoder counts as a
network of pixels: the zeros that convolutions of tiles multiply (`models/folding.py`) are a price
of the implementation. The size of the vocabulary has no effect: words are looked up.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from ml_collections import ConfigDict

from mail_jax.models.embeddings import SIDES, InstanceEmbedding, Neighbours
from mail_jax.models.encoder import STACK, block_name

# Parts of products of two results.
_WITHOUT_PARAMETERS = frozenset((
  "encoder/attention", "mask/neighbours/counts", "selection/masks", "selection/inside",
  "selection/spread",
))  # fmt: skip
# Lengths of what `instances.box_features` and `appearance.colour_and_texture` return.
_BOX, _COLOUR, _TEXTURE = 67, 3, 6


@dataclasses.dataclass(frozen=True)
class Product:
  """A matrix product or convolution of the forward pass.

  Attributes:
    part: of the model, by the name of its parameters.
    flops: operations per example.
    gradients: number of factors whose gradient training needs; each costs as much again. -1 if
      training does not need the product. One less if its parameters are frozen.
    decoded: whether training only computes it for decoded examples (`config.decode_every`).
  """

  part: str
  flops: float
  gradients: int = 2
  decoded: bool = False


def forward_flops(config: ConfigDict) -> float:
  """Returns the operations of one example at test time."""
  return sum(product.flops for product in products(config))


def train_step_flops(config: ConfigDict) -> float:
  """Returns the operations of one training step, over all devices."""
  total = 0.0
  for product in products(config):
    share = 1 / config.decode_every if product.decoded else 1.0
    factors = 1 + product.gradients - _frozen(config, product)
    total += product.flops * factors * share
  if config.max_instances and config.model.selection != "none":
    # Overlap of the instances with the target, and their areas.
    total += 2 * _matmul(config.max_instances, config.image_size**2, 1)
  return total * config.batch_size


def _frozen(config: ConfigDict, product: Product) -> float:
  """Returns the share of a product's parameters that training leaves as they are.

  A rule for one expert of a multiway encoder counts for all.
  """
  if product.gradients < 1 or product.part in _WITHOUT_PARAMETERS:
    return 0.0
  part = product.part
  names = [f"{part}/kernel" if "/" in part else f"{part}/patches/kernel"]
  if part.startswith("encoder/"):
    blocks = [STACK if config.model.scan else block_name(i) for i in range(config.model.depth)]
    names = [part.replace("encoder", f"encoder/{block}") + "/kernel" for block in blocks]
  rules = config.optimizer.lr_scale
  scales = [next((x for rule, x in rules if re.search(rule, name)), 1.0) for name in names]
  return sum(scale == 0 for scale in scales) / len(scales)


def products(config: ConfigDict) -> Iterator[Product]:
  """Yields the matrix products and convolutions of an example, in the order of the forward pass."""
  model, count = config.model, config.max_instances
  side, width = config.image_size // model.patch_size, model.width
  patches, pixels = side**2, model.patch_size**2
  # Pixels have no gradient.
  yield Product("image", _matmul(patches, 3 * pixels, width), gradients=1)
  if count and model.mask_tokens == "stacked":
    masks = patches
    yield Product("mask", _matmul(patches, count * pixels, width), gradients=1)
  elif count:
    masks = count
    yield from _instance_tokens(config)
  else:
    masks = 0
  yield from _blocks(config, 1 + patches + masks + config.max_tokens)
  if count:
    lines = _matmul(side, config.image_size, config.image_size)
    yield Product(
      "selection/coverage", count * (lines + _matmul(side, config.image_size, side)), gradients=0
    )
    yield from _selection(config, patches, masks)
  yield from _decoder(config, side)
  if model.no_target:
    yield Product("no_target", _matmul(1, width, 1))


def _matmul(rows: int, inner: int, cols: int) -> float:
  return 2.0 * rows * inner * cols


def _instance_tokens(config: ConfigDict) -> Iterator[Product]:
  """Yields the products of `embeddings.InstanceEmbedding`; views and pixels have no gradient."""
  model, size, count = config.model, config.image_size, config.max_instances
  width = model.width
  crop, frame = InstanceEmbedding.crop_bins, InstanceEmbedding.frame_bins
  lines = _matmul(crop + frame, size, size)
  grids = _matmul(crop, size, crop) + _matmul(frame, size, frame)
  yield Product("mask/views", count * (lines + grids), gradients=0)
  features = crop**2 + frame**2 + _BOX
  if model.appearance:
    bins = InstanceEmbedding.pixel_bins
    seen = count * (_matmul(bins, size, 3 * size) + _matmul(3 * bins, size, bins))
    # Averages inside each mask: colours, their squares and the structure tensor, the last two in
    # two parts if the dtype is a short one.
    maps = _COLOUR + _TEXTURE * (1 if model.dtype == "float32" else 2)
    yield Product("mask/pixels", seen + _matmul(count, size**2, maps), gradients=0)
    features += 3 * bins**2 + _COLOUR + _TEXTURE
  yield Product("mask/groups", _matmul(count, features, 2 * width), gradients=1)
  yield Product("mask/project", _matmul(count, 2 * width, width))
  if model.neighbours:
    heads, most = Neighbours.heads, Neighbours.most
    yield Product("mask/neighbours/kinds", _matmul(count, width, heads * Neighbours.head_width))
    # The relations of neighbours have no gradient.
    yield Product("mask/neighbours/counts", count * _matmul(heads + 1, count, SIDES), gradients=1)
    yield Product(
      "mask/neighbours/project", _matmul(count, (heads + 1) * SIDES * (most + 2), width)
    )


def _blocks(config: ConfigDict, tokens: int) -> Iterator[Product]:
  """Yields the products of the encoder's blocks for this many tokens."""
  model = config.model
  width, depth, hidden = model.width, model.depth, int(model.width * model.mlp_ratio)
  yield Product("encoder/qkv", depth * _matmul(tokens, width, 3 * width))
  # Scores and the weighted sum; padding is computed like the rest.
  yield Product("encoder/attention", depth * 2 * _matmul(tokens, width, tokens))
  yield Product("encoder/out", depth * _matmul(tokens, width, width))
  yield Product("encoder/mlp", depth * 2 * _matmul(tokens, width, hidden))


def _selection(config: ConfigDict, patches: int, masks: int) -> Iterator[Product]:
  """Yields the products of `mask_selection.MaskSelection`; the coverage has no gradient.

  Args:
    config: a whole config.
    patches: of the image.
    masks: tokens of the masks.
  """
  model, count = config.model, config.max_instances
  width, pooled = model.width, _matmul(count, patches, model.width)
  learned = model.selection != "none"
  if model.mask_tokens != "instance":
    yield Product("selection/masks", _matmul(count, masks, width), gradients=1)
  # Without a selection training needs no scores; they are part of the output at test time.
  scores = _matmul(count, 2 * width, width) + _matmul(count, width, 1) + _matmul(1, width, 1)
  yield Product("selection/inside", pooled, gradients=1 if learned else -1)
  yield Product("selection/scores", scores, gradients=2 if learned else -1)
  yield Product("selection/spread", pooled, gradients=2 if learned else 1)


def _decoder(config: ConfigDict, side: int) -> Iterator[Product]:
  """Yields the products of `decoder.Decoder`."""
  model, masked = config.model, bool(config.max_instances)
  # The image, the chosen mask, and with both the similarity of pixels to the mask's inside.
  image, mask = model.image_path, model.mask_path and masked
  guides = 3 * image + mask + (image and mask)
  channels, last = model.width * (1 + masked) + 8, len(model.decoder_widths) - 1
  for stage, width in enumerate(model.decoder_widths):
    channels += guides * (4 if stage == last else 1)
    size = side * 2**stage
    yield Product(f"decoder/stage{stage}", _convolution(size, channels, width), decoded=True)
    channels = width
  size = side * 2**last
  yield Product("decoder/logits", _matmul(size**2, channels, 1), decoded=True)
  if guides:
    yield Product("decoder/detail", _convolution(size, channels, 4), decoded=True)


def _convolution(size: int, channels: int, width: int) -> float:
  """Counts a 3 x 3 convolution on a square map, without the taps beyond its edges."""
  return _matmul((3 * size - 2) ** 2, channels, width)


def shares(config: ConfigDict) -> dict[str, float]:
  """Returns the fraction of the forward pass of each part: image, mask, encoder and so on."""
  parts: dict[str, float] = {}
  for product in products(config):
    name = product.part.partition("/")[0]
    parts[name] = parts.get(name, 0.0) + product.flops
  total = math.fsum(parts.values())
  return {name: flops / total for name, flops in parts.items()}
