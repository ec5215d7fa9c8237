"""Masks of eight pixels a byte: what is counted of them, and their erosion, by a fraction of the memory traffic.

Bit k of row j is the pixel of row k q + j, of q packed rows. Everything is exact.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32, UInt8

_BITS = 8
_BYTES = 4  # of the words in which bits are counted


def pack(masks: Bool[Array, "*n y x"]) -> UInt8[Array, "*n q w"]:
  """Packs masks; they are padded with zeros to eight rows and to four columns."""
  rows, cols = masks.shape[-2:]
  pads = [(0, 0)] * (masks.ndim - 2) + [(0, -rows % _BITS), (0, -cols % _BYTES)]
  masks = jnp.pad(masks, pads)
  blocks = masks.reshape(*masks.shape[:-2], _BITS, -1, masks.shape[-1]).astype(jnp.uint8)
  packed = blocks[..., 0, :, :]
  for bit in range(1, _BITS):
    packed |= blocks[..., bit, :, :] << bit
  return packed


def count_pixels(packed: UInt8[Array, "*n q w"]) -> Int32[Array, "*n"]:
  """How many pixels each mask has."""
  words = packed.reshape(*packed.shape[:-1], -1, _BYTES)
  ones = jax.lax.population_count(jax.lax.bitcast_convert_type(words, jnp.uint32))
  return ones.sum((-2, -1), dtype=jnp.int32)


def erode(
  packed: UInt8[Array, "b m q w"], distance: Int[Array, "b"], farthest: int
) -> UInt8[Array, "b m q w"]:
  """Leaves the pixels whose square of that distance lies in the mask; beyond the canvas nothing is in a mask.

  Args:
    packed: m masks of each of b photos.
    distance: of each photo, in pixels from 1 to `farthest`: 3 is a square of 7 x 7.
    farthest: decides what is compiled.
  """
  steps = _steps(distance, farthest)
  reach = sum(step for step, _ in steps)
  # Padded before anything is eroded: XLA makes slow code of steps that it merges with padding.
  wide = jnp.pad(packed, ((0, 0), (0, 0), (0, 0), (reach, reach)))
  return _erode_axis(_erode_axis(_with_rows_around(wide, reach), steps, axis=2), steps, axis=3)


def _with_rows_around(packed: UInt8[Array, "b m q w"], count: int) -> UInt8[Array, "b m r w"]:
  """Adds `count` rows above and below: what each bit of the q rows has for neighbours."""
  q = packed.shape[2]
  blocks = -(-count // q)
  above = [packed << n for n in range(blocks, 0, -1)]
  below = [packed >> n for n in range(1, blocks + 1)]
  rows = jnp.concatenate([*above, packed, *below], axis=2)
  return rows[:, :, blocks * q - count : blocks * q + q + count]


def _steps(distance: Int[Array, "b"], farthest: int) -> list[tuple[int, UInt8[Array, "b 1 1 1"]]]:
  """Steps whose sum is the distance, and with each 255 where it is left out, else 0.

  None is more than twice the sum of those before it, plus 1, so that taken one after the other they leave no gap: a
  pixel that has both neighbours at every step has all in between.
  """
  found, step = [], 1
  rest = distance
  while _sum_of_thirds(step) <= farthest:
    used = distance >= _sum_of_thirds(step)
    rest, step = rest - step * used, 3 * step
    found.append((step // 3, used))
  left = max(n - _trebled(n) for n in range(1, farthest + 1))
  while left:
    step = (left + 1) // 2
    used = rest >= step
    rest, left = rest - step * used, left - step
    found.append((step, used))
  return [
    (step, jnp.where(used, 0, 255).astype(jnp.uint8)[:, None, None, None]) for step, used in found
  ]


def _sum_of_thirds(step: int) -> int:
  """1 + 3 + 9 + ... + step."""
  return (3 * step - 1) // 2


def _trebled(distance: int) -> int:
  """The largest sum of 1, 3, 9, ... that the distance has room for."""
  step = 1
  while _sum_of_thirds(3 * step) <= distance:
    step *= 3
  return _sum_of_thirds(step)


def _erode_axis(
  packed: UInt8[Array, "b m r c"], steps: list[tuple[int, UInt8[Array, "b 1 1 1"]]], axis: int
) -> UInt8[Array, "b m q w"]:
  """Erodes along one axis; the result is shorter by every step at both ends."""
  for step, left_out in steps:
    end = packed.shape[axis] - 2 * step
    before, here, after = (
      jax.lax.slice_in_dim(packed, start, start + end, axis=axis) for start in (0, step, 2 * step)
    )
    packed = here & ((before & after) | left_out)
  return packed
