"""Geometry of instance masks on the device: bit planes, coverage of patches, boxes, crops."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from input_pipeline.preprocess.bit_planes import PLANE_BITS
from mail_jax.models.folding import fold_planes

_BITS = 2 ** np.arange(PLANE_BITS, dtype=np.int32)


def masks_per_plane(planes: UInt[Array, "..."]) -> int:
  """Returns 16, or 1 where planes are masks as bytes: some runtimes have no operations on bits."""
  return PLANE_BITS if planes.dtype == jnp.uint16 else 1


def unpack_bit_planes(
  planes: UInt[Array, "b g h w"], count: int, dtype: DTypeLike = bool
) -> Shaped[Array, "b {count} h w"]:
  """Unpacks masks: instance k is bit k % 16 of plane k // 16.

  Compilers for accelerators do this within the product that reads the masks of a plane.
  """
  if masks_per_plane(planes) == 1:
    return (planes[:, :count] > 0).astype(dtype)
  masks = (planes.astype(jnp.int32)[:, :, None] & _BITS[:, None, None]) > 0
  batch, groups, _, height, width = masks.shape
  return masks.reshape(batch, groups * PLANE_BITS, height, width)[:, :count].astype(dtype)


def unpack_by_plane(
  planes: UInt[Array, "b g h w"], count: int, dtype: DTypeLike
) -> list[Shaped[Array, "b k h w"]]:
  """Unpacks the masks of one plane after the other, at most 16 each.

  Of several planes at once, compilers for accelerators write the masks to memory.
  """
  each = masks_per_plane(planes)
  if each == 1:
    return [unpack_bit_planes(planes, count, dtype)]
  return [
    unpack_bit_planes(planes[:, first // each, None], min(each, count - first), dtype)
    for first in range(0, max(count, 1), each)
  ]


def clear_slots(
  planes: UInt[Array, "b g h w"], valid: Bool[Array, "b k"]
) -> UInt[Array, "b g h w"]:
  """Empties the masks of slots that are not valid."""
  groups = planes.shape[1]
  if masks_per_plane(planes) == 1:
    flags = jnp.pad(valid, ((0, 0), (0, groups - valid.shape[1])))
    return jnp.where(flags[:, :, None, None], planes, 0)
  flags = jnp.pad(valid, ((0, 0), (0, groups * PLANE_BITS - valid.shape[1])))
  words = jnp.where(flags.reshape(-1, groups, PLANE_BITS), _BITS, 0).sum(2)
  return planes & words.astype(planes.dtype)[:, :, None, None]


def take_slot(planes: UInt[Array, "b g h w"], slot: Int[Array, "b"]) -> Bool[Array, "b h w"]:
  """Returns one mask of each example; a slot beyond the last is empty."""
  slot = slot.astype(planes.dtype)[:, None, None, None]
  plane = jnp.arange(planes.shape[1], dtype=planes.dtype)[:, None, None]
  return ((slot // PLANE_BITS == plane) & (planes >> slot % PLANE_BITS & 1 == 1)).any(1)


def sum_inside(
  planes: UInt[Array, "b g h w"], count: int, maps: Float[Array, "b m h w"]
) -> Float[Array, "b {count} m"]:
  """Returns the sum of each map over the pixels of each mask, in float32.

  A matrix product in the dtype of the maps. It counts pixels exactly, below 2^24 of them.
  """
  # An einsum over rows and columns is many times slower on CPUs.
  batch, number, height, width = maps.shape
  pixels = maps.reshape(batch, number, height * width)
  sums = [
    product("bkp,bmp->bkm", masks.reshape(*masks.shape[:2], height * width), pixels)
    for masks in unpack_by_plane(planes, count, maps.dtype)
  ]
  return jnp.concatenate(sums, 1)


def areas_and_overlap(
  planes: UInt[Array, "b g h w"],
  count: int,
  other: Bool[Array, "b h w"],
  dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "b {count}"], Float[Array, "b {count}"]]:
  """Returns the number of pixels of each mask, and of those that it shares with another one.

  Exact in any `dtype`, which is that of the product.
  """
  # Not stacked: that would be an array in memory.
  maps = other[:, None] | (jnp.arange(2) == 0)[:, None, None]
  area, both = jnp.moveaxis(sum_inside(planes, count, maps.astype(dtype)), -1, 0)
  return area, both


def instance_iou(
  planes: UInt[Array, "b g h w"],
  count: int,
  target: Bool[Array, "b h w"],
  dtype: DTypeLike = jnp.float32,
) -> Float[Array, "b {count}"]:
  """Returns the IoU of each instance mask with the target; 0 where both are empty."""
  area, both = areas_and_overlap(planes, count, target, dtype)
  union = area + target.sum((1, 2), dtype=jnp.float32)[:, None] - both
  return both / jnp.maximum(union, 1)


def instance_share(
  planes: UInt[Array, "b g h w"],
  count: int,
  target: Bool[Array, "b h w"],
  dtype: DTypeLike = jnp.float32,
) -> Float[Array, "b {count}"]:
  """Returns the fraction of each instance mask inside the target; 0 for an empty mask.

  With several targets each of them is inside, but none has a high IoU with all of them.
  """
  area, both = areas_and_overlap(planes, count, target, dtype)
  return both / jnp.maximum(area, 1)


def boxes(planes: UInt[Array, "b g h w"], count: int) -> Float[Array, "b {count} 4"]:
  """Returns bounding boxes in pixels: top, left, bottom, right, ends exclusive.

  The box of an empty mask is the whole image.
  """
  sides = []
  for axis in (3, 2):
    # The bits of 16 instances at once.
    reduce = jnp.max if masks_per_plane(planes) == 1 else jnp.bitwise_or.reduce
    words = reduce(planes, axis=axis)
    occupied = unpack_bit_planes(words[:, :, None], count)[:, :, 0]
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


def patch_coverage(
  planes: UInt[Array, "b g h w"], count: int, patch_size: int, dtype: DTypeLike = jnp.float32
) -> Float[Array, "b {count} n"]:
  """Returns the fraction of each patch that each instance covers; patches row by row.

  Exact in any `dtype`, which is that of the products: all factors are small integers.
  """
  rows, cols = (_patch_sums(size, patch_size) for size in planes.shape[2:])
  shared = jnp.broadcast_to(rows, (planes.shape[0], count, *rows.shape))
  return _covered(_sum_rows(planes, shared, dtype), cols)


def views(
  planes: UInt[Array, "b g h w"],
  box: Float[Array, "b k 4"],
  bins: tuple[int, int, int],
  dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "b k i i"], Float[Array, "b k j j"], Float[Array, "b k n"]]:
  """Averages each mask over a grid on its box, and over a grid on the whole image.

  In one pass over the pixels, which dominates the cost, with the coverage of patches.

  Args:
    planes: the masks.
    box: of each mask.
    bins: along a side of the box, along a side of the image, and the size of a patch.
    dtype: of the products.

  Returns:
    The averages over both grids, and `patch_coverage`.
  """
  crop_bins, frame_bins, patch_size = bins
  (height, width), shape = planes.shape[2:], box.shape[:2]
  frame_rows, frame_cols = (_frame_weights(frame_bins, size) for size in (height, width))
  patch_rows, patch_cols = (_patch_sums(size, patch_size) for size in (height, width))
  shared = jnp.concatenate([frame_rows, patch_rows])
  rows = [
    crop_weights(box[..., 0], box[..., 2], crop_bins, height),
    jnp.broadcast_to(shared, (*shape, *shared.shape)),
  ]
  lines = _sum_rows(planes, jnp.concatenate(rows, 2), dtype)
  crop, frame, patch = jnp.split(lines, [crop_bins, crop_bins + frame_bins], 2)
  cols = crop_weights(box[..., 1], box[..., 3], crop_bins, width)
  return (
    product("bkix,bkjx->bkij", crop, cols.astype(dtype)),
    product("bkix,jx->bkij", frame, frame_cols.astype(dtype)),
    _covered(patch, patch_cols),
  )


def _frame_weights(bins: int, size: int) -> Float[Array, "{bins} {size}"]:
  return crop_weights(jnp.zeros((1, 1)), jnp.full((1, 1), float(size)), bins, size)[0, 0]


def _patch_sums(size: int, patch_size: int) -> Float[Array, "patches {size}"]:
  return jnp.repeat(jnp.eye(size // patch_size), patch_size, axis=1)


def _sum_rows(
  planes: UInt[Array, "b g h w"], rows: Float[Array, "b k i h"], dtype: DTypeLike
) -> Float[Array, "b k i w"]:
  """Returns weighted sums of the rows of each mask, in the dtype."""
  each = unpack_by_plane(planes, rows.shape[1], dtype)
  ends = np.cumsum([masks.shape[1] for masks in each])[:-1]
  lines = [
    jnp.einsum("bkiy,bkyx->bkix", some, masks)
    for some, masks in zip(jnp.split(rows.astype(dtype), ends, axis=1), each, strict=True)
  ]
  return jnp.concatenate(lines, 1)


def _covered(lines: Float[Array, "b k i w"], cols: Float[Array, "j w"]) -> Float[Array, "b k n"]:
  covered = product("bkix,jx->bkij", lines, cols.astype(lines.dtype))
  pixels = (cols.shape[1] // cols.shape[0]) ** 2
  return covered.reshape(*lines.shape[:2], lines.shape[2] * cols.shape[0]) / pixels


def product(letters: str, left: Array, right: Array) -> Float[Array, "..."]:
  """Returns an einsum in float32, for operands of any dtype."""
  return jnp.einsum(letters, left, right, preferred_element_type=jnp.float32)


def chosen_tiles(
  planes: UInt[Array, "b g h w"], weights: Float[Array, "b k"], tile: int
) -> Float[Array, "b y x d"]:
  """Returns the sum over instances of weight times mask, with tiles of pixels in the channels."""
  groups = [fold_planes(planes[:, i : i + 1], tile) for i in range(planes.shape[1])]
  # Otherwise XLA folds the bits, as floats, one by one.
  groups = jax.lax.optimization_barrier(groups)
  total = jnp.zeros(groups[0].shape)
  for k, weight in enumerate(jnp.moveaxis(weights, 1, 0)):
    if masks_per_plane(planes) == 1:
      bits = groups[k]
    else:
      bits = groups[k // PLANE_BITS] >> k % PLANE_BITS & 1
    total += weight[:, None, None, None] * bits.astype(jnp.float32)
  return total


def union(total: Float[Array, "*p"]) -> Float[Array, "*p"]:
  """Returns a sum of masks, at most 1; with weights of 0 and 1 it is their union."""
  # Not a minimum, which halves the gradient at 1.
  return jnp.where(total > 1, 1, total)


def likeness(
  pixels: Float[Array, "b y x e"], weights: Float[Array, "b y x d"], sharpness: float = 4.0
) -> Float[Array, "b y x d"]:
  """Returns the similarity of pixels to a region: exp(-sharpness |pixel - mean colour|^2).

  A detector's mask is off by some pixels at its outline, where the colour changes; this shows a
  convolution on which side a pixel is. 0 everywhere for an empty region.

  Args:
    pixels: one plane after the other, in tiles (`fold_planes`).
    weights: of the pixels, in the same tiles.
    sharpness: of the decay with distance.
  """

  def total(x: Float[Array, "b y x d"]) -> Float[Array, "b 1 1 1"]:
    return x.sum((1, 2, 3), keepdims=True)

  area = total(weights)
  distance = jnp.zeros(())
  for plane in jnp.split(pixels, pixels.shape[-1] // weights.shape[-1], axis=-1):
    distance += (plane - total(plane * weights) / jnp.maximum(area, 1e-6)) ** 2
  return jnp.exp(-sharpness * distance) * (area > 0)


def count_valid(num_instances: Int[Array, "b"], count: int) -> Bool[Array, "b {count}"]:
  """Returns which of `count` slots hold an instance: the first `num_instances`."""
  return jnp.arange(count) < num_instances[:, None]
