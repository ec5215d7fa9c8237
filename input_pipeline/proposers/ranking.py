"""Orders of proposals: which come first where there are more of them than are kept."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, UInt8

# Longer side of the masks that are compared, about; in pixels.
_SIDE = 160


def by_score(masks: Bool[np.ndarray, "k h w"], scores: Float[np.ndarray, "k"]) -> Iterator[int]:
  """Yields masks by score, highest first; ties by area, largest first, then in their order."""
  areas = [-np.count_nonzero(mask) for mask in masks]
  yield from np.lexsort((np.arange(len(masks)), areas, -scores.astype(np.float64))).tolist()


def by_cover(masks: Bool[np.ndarray, "k h w"], scores: Float[np.ndarray, "k"]) -> Iterator[int]:
  """Yields masks so that the first ones are good, large, and show what others do not.

  Each is the one with the largest product of its score, its `stability`, the root of its area and
  the share of it that is new.
  """
  step = max(1, max(masks.shape[1:]) // _SIDE)
  small = masks[:, ::step, ::step]
  bits = np.packbits(small.reshape(len(small), small[0].size if len(small) else 0), axis=1)
  areas, covered = _count(bits), np.zeros_like(bits[:1])
  merits = scores.astype(np.float64) * stability(small) * np.sqrt(areas)
  left = np.arange(len(masks))
  while len(left):
    new = _count(bits[left] & ~covered) / np.maximum(areas[left], 1)
    best = int((merits[left] * new).argmax())
    yield int(left[best])
    covered |= bits[left[best]]
    left = np.delete(left, best)


RANKS: dict[str, Callable[..., Iterator[int]]] = {"cover": by_cover, "score": by_score}
"""Name on the command line -> order."""


def stability(masks: Bool[np.ndarray, "k h w"]) -> Float[np.ndarray, "k"]:
  """Returns how little each mask depends on its threshold: its eroded by its dilated area.

  As SAM's stability score (Kirillov et al., ICCV 2023), with one pixel instead of the logits, which
  most proposers do not give. 0 for thin and ragged masks, near 1 for large compact ones.
  """
  padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)), mode="edge")
  eroded, dilated = (
    _around(_around(padded, 1, op), 2, op) for op in (np.logical_and, np.logical_or)
  )
  return eroded.sum((1, 2)) / np.maximum(dilated.sum((1, 2)), 1)


def _around(
  masks: Bool[np.ndarray, "k _ _"], axis: int, combine: Callable[..., np.ndarray]
) -> np.ndarray:
  """Combines each pixel with both neighbours along an axis, which gets shorter by two."""
  first, middle, last = (
    masks[(slice(None),) * axis + (slice(start, stop),)]
    for start, stop in ((0, -2), (1, -1), (2, None))
  )
  return combine(combine(first, middle), last)


def _count(bits: UInt8[np.ndarray, "k bytes"]) -> np.ndarray:
  return np.bitwise_count(bits).sum(-1, dtype=np.int64)
