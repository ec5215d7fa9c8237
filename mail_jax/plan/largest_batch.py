"""Searches for the largest batch that fits."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class LargestBatch:
  """The result of a search.

  Attributes:
    fits: the largest batch found to fit; 0 if none.
    too_large: the smallest batch found not to fit; 0 if none.
    compilations: number of them.
  """

  fits: int
  too_large: int
  compilations: int


def find_largest(
  needs: Callable[[int], float | None],
  available: float,
  start: int,
  unit: int = 1,
  budget: int = 6,
) -> LargestBatch:
  """Searches for the largest batch that fits.

  Args:
    needs: returns the bytes that a batch needs, None if it does not fit; takes minutes.
    available: bytes of memory.
    start: the first batch to try, a multiple of `unit`.
    unit: batches are multiples of it.
    budget: the limit of calls to `needs`.
  """
  fitting: dict[int, float] = {0: 0.0}
  too_large = 0
  guess = start
  for calls in range(1, budget + 1):
    needed = needs(guess)
    if needed is None or needed > available:
      too_large = min(guess, too_large or guess)
    else:
      fitting[guess] = needed
    best = max(fitting)
    if too_large and too_large - best <= unit:
      return LargestBatch(best, too_large, calls)
    guess = _next(fitting, too_large, available, unit)
  return LargestBatch(max(fitting), too_large, budget)


def _next(fitting: dict[int, float], too_large: int, available: float, unit: int) -> int:
  """Returns the next batch to try, by extrapolating from the two largest that fit."""
  best = max(fitting)
  if len(fitting) < 3:
    # One point does not separate the fixed memory from that of the batch; halve or double.
    guess = (best + too_large) // 2 if too_large else 2 * best
  else:
    second = sorted(fitting)[-2]
    slope = (fitting[best] - fitting[second]) / (best - second)
    left = (available - fitting[best]) / slope if slope > 0 else best
    guess = best + int(min(left, 3 * best))
    if too_large and not best < guess < too_large:
      guess = (best + too_large) // 2
  guess = max(best + unit, guess // unit * unit)
  return min(guess, too_large - unit) if too_large else guess
