"""What became of the sentences of a split, counted from its rows: the P@X curve, the histogram, and why some failed."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mail_jax.evaluate.per_expression import Row

STEPS = 100
"""The P@X curve has a point each hundredth from 0 to 1."""
BINS = 20
_HIT = 0.5


def precision_curve(rows: Sequence[Row]) -> list[float]:
  """Returns P@X, the share of rows with an IoU of at least X, for X = 0, 1/STEPS, ..., 1."""
  ious = np.sort([row["iou"] for row in rows])
  below = np.searchsorted(ious, np.arange(STEPS + 1) / STEPS, side="left")
  return ((len(ious) - below) / len(ious)).tolist()


def histogram(rows: Sequence[Row]) -> list[int]:
  """Returns how many rows have an IoU in [0, 1/BINS), [1/BINS, 2/BINS), ...; the last bin has those of 1 too.

  Counted in whole numbers, so that no IoU lands in its neighbour's bin.
  """
  counts = [0] * BINS
  for row in rows:
    full = row["intersection"] * BINS // row["union"] if row["union"] else BINS
    counts[min(full, BINS - 1)] += 1
  return counts


@dataclasses.dataclass(frozen=True)
class Reason:
  """One of the ways in which a sentence ends; `look` is its class in the page's look."""

  name: str
  meaning: str
  look: str


REASONS = (
  Reason("found", "the mask has an IoU of at least 0.5", "found"),
  Reason(
    "poor outline", "the right instance was chosen, and the mask is below 0.5 all the same", "poor"
  ),
  Reason(
    "wrong instance", "an instance mask fits the target, and another or none was chosen", "wrong"
  ),
  Reason("no instance fits", "no instance mask overlaps the target by more than 0.5", "none"),
)


def reasons(rows: Sequence[Row]) -> list[int]:
  """Returns how many of the rows that have a target end in each of REASONS."""
  counts = dict.fromkeys(REASONS, 0)
  for row in rows:
    if row["area"]:
      counts[_reason(row)] += 1
  return [*counts.values()]


def _reason(row: Row) -> Reason:
  found, poor, wrong, impossible = REASONS
  if row["iou"] >= _HIT:
    return found
  if row["chosen_iou"] > _HIT:
    return poor
  return wrong if row["oracle_iou"] > _HIT else impossible
