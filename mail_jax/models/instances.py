"""Geometry of instance masks on the device: bit planes, coverage of patches, boxes, crops."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt16

from input_pipeline.preprocess.bit_planes import PLANE_BITS


def unpack_bit_planes(planes: UInt16[Array, "b g h w"], count: int) -> Bool[Array, "b {count} h w"]:
  """Unpacks masks: instance k is bit k % 16 of plane k // 16."""
  bits = jnp.arange(PLANE_BITS, dtype=planes.dtype)[:, None, None]
  masks = (planes[:, :, None] >> bits) & jnp.uint16(1)
  batch, groups, _, height, width = masks.shape
  return masks.reshape(batch, groups * PLANE_BITS, height, width)[:, :count].astype(bool)


def clear_slots(
  planes: UInt16[Array, "b g h w"], valid: Bool[Array, "b k"]
) -> UInt16[Array, "b g h w"]:
  """Empties the masks of slots that are not valid."""
  groups = planes.shape[1]
  flags = jnp.pad(valid, ((0, 0), (0, groups * PLANE_BITS - valid.shape[1])))
  bits = 2 ** jnp.arange(PLANE_BITS, dtype=jnp.int32)
  words = jnp.where(flags.reshape(-1, groups, PLANE_BITS), bits, 0).sum(2)
  return planes & words.astype(planes.dtype)[:, :, None, None]


def take_slot(planes: UInt16[Array, "b g h w"], slot: Int[Array, "b"]) -> Bool[Array, "b h w"]:
  """Returns one mask of each example; a slot beyond the last is empty."""
  slot = slot.astype(planes.dtype)[:, None, None, None]
  plane = jnp.arange(planes.shape[1], dtype=planes.dtype)[:, None, None]
  return ((slot // PLANE_BITS == plane) & (planes >> slot % PLANE_BITS & 1 == 1)).any(1)


def patch_coverage(masks: Bool[Array, "b k h w"], patch_size: int) -> Float[Array, "b k n"]:
  """Returns the fraction of each patch that each instance covers; patches row by row.

  Computed as products with matrices that sum columns and rows, which is exact in any precision:
  all factors are small integers. Columns come first: rows first would transpose every mask.
  """
  batch, count, height, width = masks.shape
  rows, cols = (
    jnp.repeat(jnp.eye(size // patch_size), patch_size, axis=1) for size in (height, width)
  )
  lines = jnp.einsum("bkyx,jx->bkyj", masks.astype(jnp.float32), cols)
  covered = jnp.einsum("iy,bkyj->bkij", rows, lines)
  return covered.reshape(batch, count, len(rows) * len(cols)) / patch_size**2


def areas(masks: Bool[Array, "b k h w"]) -> Float[Array, "b k"]:
  """Returns the number of pixels of each mask."""
  return overlap(masks, jnp.ones((masks.shape[0], *masks.shape[2:]), bool))


def overlap(masks: Bool[Array, "b k h w"], other: Bool[Array, "b h w"]) -> Float[Array, "b k"]:
  """Returns the number of pixels that each mask shares with another one.

  A matrix product is many times faster on CPUs than counting, and exact below 2^24 pixels.
  """
  batch, count, height, width = masks.shape
  inside = masks.astype(jnp.float32).reshape(batch, count, height * width)
  return (inside @ other.astype(jnp.float32).reshape(batch, height * width, 1))[..., 0]


def instance_iou(
  masks: Bool[Array, "b k h w"], target: Bool[Array, "b h w"]
) -> Float[Array, "b k"]:
  """Returns the IoU of each instance mask with the target; 0 where both are empty."""
  both = overlap(masks, target)
  area = areas(masks) + target.sum((1, 2), dtype=jnp.float32)[:, None]
  return both / jnp.maximum(area - both, 1)


def instance_share(
  masks: Bool[Array, "b k h w"], target: Bool[Array, "b h w"]
) -> Float[Array, "b k"]:
  """Returns the fraction of each instance mask inside the target; 0 for an empty mask.

  With several targets each of them is inside, but none has a high IoU with all of them.
  """
  return overlap(masks, target) / jnp.maximum(areas(masks), 1)


def boxes(masks: Bool[Array, "b k h w"]) -> Float[Array, "b k 4"]:
  """Returns bounding boxes in pixels: top, left, bottom, right, ends exclusive.

  The box of an empty mask is the whole image.
  """
  sides = []
  for occupied in (masks.any(3), masks.any(2)):
    size = occupied.shape[-1]
    first = jnp.argmax(occupied, -1)
    last = size - jnp.argmax(occupied[..., ::-1], -1)
    sides.append((first, last))
  (top, bottom), (left, right) = sides
  return jnp.stack([top, left, bottom, right], -1).astype(jnp.float32)


def box_features(
  box: Float[Array, "b k 4"], height: int, width: int, octaves: int = 5
) -> Float[Array, "b k f"]:
  """Returns features of the place and size of each box, of about unit scale.

  Sides, height and width as fractions of the image in [-1, 1], the log of the area, and sines and
  cosines of the first six at `octaves` frequencies, in which small differences between boxes are
  large; f = 7 + 12 octaves.
  """
  top, left, bottom, right = jnp.moveaxis(box, -1, 0)
  top, bottom = top / height, bottom / height
  left, right = left / width, right / width
  tall, wide = bottom - top, right - left
  log_area = jnp.log(jnp.maximum(tall * wide, 1e-4)) / 4 + 1
  linear = jnp.stack([top, left, bottom, right, tall, wide], -1) * 2 - 1
  angles = linear[..., None] * (jnp.pi / 2 * 2.0 ** jnp.arange(octaves))
  waves = [wave(angles).reshape(*box.shape[:2], -1) for wave in (jnp.sin, jnp.cos)]
  return 1.5 * jnp.concatenate([linear, log_area[..., None], *waves], -1)


def crop_weights(
  low: Float[Array, "b k"], high: Float[Array, "b k"], bins: int, size: int
) -> Float[Array, "b k {bins} {size}"]:
  """Returns weights that average pixels over equal bins of [low, high); each row sums to 1."""
  step = jnp.maximum((high - low) / bins, 1e-6)[..., None, None]
  start = low[..., None, None] + step * jnp.arange(bins, dtype=jnp.float32)[:, None]
  pixel = jnp.arange(size, dtype=jnp.float32)
  overlap = jnp.minimum(start + step, pixel + 1) - jnp.maximum(start, pixel)
  return jnp.maximum(overlap, 0) / step


def views(
  masks: Bool[Array, "b k h w"], box: Float[Array, "b k 4"], crop_bins: int, frame_bins: int
) -> tuple[
  Float[Array, "b k {crop_bins} {crop_bins}"], Float[Array, "b k {frame_bins} {frame_bins}"]
]:
  """Averages each mask over a grid on its box, and over a grid on the whole image.

  Both in one pass over the pixels, which dominates the cost.
  """
  batch, count, height, width = masks.shape
  whole = jnp.zeros((batch, count)), jnp.ones((batch, count))
  rows = jnp.concatenate([
    crop_weights(box[..., 0], box[..., 2], crop_bins, height),
    crop_weights(whole[0], whole[1] * height, frame_bins, height),
  ], 2)  # fmt: skip
  lines = jnp.einsum("bkiy,bkyx->bkix", rows, masks.astype(jnp.float32))
  cols = crop_weights(box[..., 1], box[..., 3], crop_bins, width)
  frame_cols = crop_weights(jnp.zeros((1, 1)), jnp.full((1, 1), float(width)), frame_bins, width)[
    0, 0
  ]
  crops = jnp.einsum("bkix,bkjx->bkij", lines[:, :, :crop_bins], cols)
  return crops, jnp.einsum("bkix,jx->bkij", lines[:, :, crop_bins:], frame_cols)


def crop_pixels(
  pixels: Float[Array, "b h w c"], box: Float[Array, "b k 4"], bins: int
) -> Float[Array, "b k {bins} {bins} c"]:
  """Averages the image over a bins x bins grid on each box."""
  height, width = pixels.shape[1:3]
  rows = crop_weights(box[..., 0], box[..., 2], bins, height)
  cols = crop_weights(box[..., 1], box[..., 3], bins, width)
  lines = jnp.einsum("bkiy,byxc->bkixc", rows, pixels)
  return jnp.einsum("bkixc,bkjx->bkijc", lines, cols)


def colour_and_texture(
  pixels: Float[Array, "b h w c"], masks: Bool[Array, "b k h w"], area: Float[Array, "b k"]
) -> tuple[Float[Array, "b k c"], Float[Array, "b k c+3"]]:
  """Summarises the pixels inside each mask at full resolution; `area` is that of each mask.

  Returns:
    The mean colour, and the texture, of about unit scale: the standard deviation of each colour,
    and of the structure tensor the roots of both eigenvalues and the coherence, which is 1 for
    stripes and 0 for dots. Zeros for an empty mask.
  """
  batch, count = masks.shape[:2]
  channels = pixels.shape[-1]
  down = (pixels[:, 2:] - pixels[:, :-2])[:, :, 1:-1]
  right = (pixels[:, :, 2:] - pixels[:, :, :-2])[:, 1:-1]
  # Channel by channel: a sum over so short an axis is slow on CPUs.
  tensor = jnp.stack(
    [
      sum(a[..., c] * b[..., c] for c in range(channels))
      for a, b in ((right, right), (down, down), (right, down))
    ],
    -1,
  )
  tensor = jnp.pad(tensor, ((0, 0), (1, 1), (1, 1), (0, 0)))  # no gradient at the border
  maps = jnp.concatenate([pixels, pixels**2, tensor], -1).reshape(batch, -1, 2 * channels + 3)
  inside = masks.astype(jnp.float32).reshape(batch, count, -1)
  mean = inside @ maps / jnp.maximum(area[..., None], 1)
  colour, square, tensor = jnp.split(mean, [channels, 2 * channels], -1)
  deviation = jnp.sqrt(jnp.maximum(square - colour**2, 0))
  xx, yy, xy = jnp.moveaxis(tensor, -1, 0)
  half, gap = (xx + yy) / 2, jnp.sqrt(((xx - yy) / 2) ** 2 + xy**2)
  low, high = jnp.sqrt(jnp.maximum(half - gap, 0)), jnp.sqrt(half + gap)
  coherence = gap / jnp.maximum(half, 1e-6)
  return colour, jnp.concatenate(
    [4 * deviation, jnp.stack([2 * low, 2 * high, 3 * coherence], -1)], -1
  )


def weighted_sum(
  weights: Float[Array, "b k"], masks: Bool[Array, "b k h w"]
) -> Float[Array, "b h w"]:
  """Returns the sum over instances of weight times mask."""
  batch, count, height, width = masks.shape
  inside = masks.astype(jnp.float32).reshape(batch, count, height * width)
  # An einsum is many times slower on CPUs; accelerators must not round the weights.
  total = jnp.matmul(weights[:, None], inside, precision="highest")
  return total.reshape(batch, height, width)


def union(weights: Float[Array, "b k"], masks: Bool[Array, "b k h w"]) -> Float[Array, "b h w"]:
  """Returns the weighted sum, at most 1; with weights of 0 and 1 it is the union of the masks."""
  total = weighted_sum(weights, masks)
  # Not a minimum, which halves the gradient at 1.
  return jnp.where(total > 1, 1, total)


def likeness(
  pixels: Float[Array, "b h w c"], weights: Float[Array, "b h w"], sharpness: float = 4.0
) -> Float[Array, "b h w 1"]:
  """Returns the similarity of pixels to a region: exp(-sharpness |pixel - mean colour|^2).

  A detector's mask is off by some pixels at its outline, where the colour changes; this shows a
  convolution on which side a pixel is. 0 everywhere for an empty region.
  """
  area = weights.sum((1, 2))[:, None, None, None]
  mean = (pixels * weights[..., None]).sum((1, 2), keepdims=True) / jnp.maximum(area, 1e-6)
  distance = ((pixels - mean) ** 2).sum(-1, keepdims=True)
  return jnp.exp(-sharpness * distance) * (area > 0)


def count_valid(num_instances: Int[Array, "b"], count: int) -> Bool[Array, "b {count}"]:
  """Returns which of `count` slots hold an instance: the first `num_instances`."""
  return jnp.arange(count) < num_instances[:, None]


def pack_bit_planes(masks: Bool[Array, "b k h w"], groups: int) -> UInt16[Array, "b {groups} h w"]:
  """Undoes `unpack_bit_planes`: instance k becomes bit k % 16 of plane k // 16."""
  batch, count, height, width = masks.shape
  masks = jnp.pad(masks, ((0, 0), (0, groups * PLANE_BITS - count), (0, 0), (0, 0)))
  bits = jnp.arange(PLANE_BITS, dtype=jnp.uint16)[:, None, None]
  tiles = masks.reshape(batch, groups, PLANE_BITS, height, width).astype(jnp.uint16)
  return (tiles << bits).sum(2, dtype=jnp.uint16)
