"""The largest batch that fits, found by trying."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class LargestBatch:
  """What a search found.

  Attributes:
    fits: the largest batch that was seen to fit; 0 for none.
    too_large: the smallest that was seen not to; 0 for none.
    compilations: that it took.
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
  """Searches the largest batch that fits.

  Args:
    needs: bytes that a batch needs, None if it does not fit; this is what takes long.
    available: bytes that there are.
    start: the first batch to try, a multiple of `unit`.
    unit: batches are multiples of it.
    budget: how often `needs` may be asked.
  """
  fitting: dict[int, float] = {0: 0.0}
  too_large = 0
  guess = start
  for asked in range(1, budget + 1):
    found = needs(guess)
    if found is None or found > available:
      too_large = min(guess, too_large or guess)
    else:
      fitting[guess] = found
    best = max(fitting)
    if too_large and too_large - best <= unit:
      return LargestBatch(best, too_large, asked)
    guess = _next(fitting, too_large, available, unit)
  return LargestBatch(max(fitting), too_large, budget)


def _next(fitting: dict[int, float], too_large: int, available: float, unit: int) -> int:
  """The batch after next: where the line through the two largest that fit meets what there is."""
  best = max(fitting)
  if len(fitting) < 3:
    # One point says nothing of what every batch needs besides; halve, or double.
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
