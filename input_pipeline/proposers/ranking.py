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


def by_distinction(
  masks: Bool[np.ndarray, "k h w"], scores: Float[np.ndarray, "k"]
) -> Iterator[int]:
  """Yields masks so that the first ones are good, large, and unlike each other.

  Each is the one with the largest product of its score, its `stability`, the fourth root of its
  area and 1 - its highest IoU with an earlier one. The area that is not covered yet would be wrong
  for masks of wholes and of their parts: the first one may be the whole image
  (docs/reports/results.md).
  """
  step = max(1, max(masks.shape[1:]) // _SIDE)
  small = masks[:, ::step, ::step]
  bits = np.packbits(small.reshape(len(small), small[0].size if len(small) else 0), axis=1)
  areas, highest = _count(bits), np.zeros(len(masks))
  merits = scores.astype(np.float64) * stability(small) * areas**0.25
  left = np.arange(len(masks))
  while len(left):
    best = int((merits[left] * (1 - highest[left])).argmax())
    k, left = int(left[best]), np.delete(left, best)
    yield k
    shared = _count(bits[left] & bits[k])
    union = np.maximum(areas[left] + areas[k] - shared, 1)
    highest[left] = np.maximum(highest[left], shared / union)


def as_given(masks: Bool[np.ndarray, "k h w"], scores: Float[np.ndarray, "k"]) -> Iterator[int]:
  """Yields masks in their order, such as that of a file by `proposals propose`."""
  del scores
  yield from range(len(masks))


RANKS: dict[str, Callable[..., Iterator[int]]] = {
  "distinct": by_distinction,
  "given": as_given,
  "score": by_score,
}
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
