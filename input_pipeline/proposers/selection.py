"""Which proposals are kept as instances; the same for every proposer."""

import dataclasses

import numpy as np

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.proposers import ranking

MAX_INSTANCES = 16
"""Instances kept per image by default: one bit plane."""


@dataclasses.dataclass(frozen=True)
class Selection:
  """Which proposals are kept."""

  max_instances: int = MAX_INSTANCES
  """Maximum number per image, 1 to 64; the first are kept."""
  min_area: float = 0.0002
  """Minimum area as a fraction of the image, in [0, 1); by default 8 x 8 pixels at 640 x 480."""
  nms_iou: float = 0.9
  """A mask whose IoU with an earlier one exceeds this is dropped; 1 keeps all."""
  rank: str = "score"
  """Which come first, of `ranking.RANKS`."""

  def __post_init__(self):
    """Raises InputError if a value is out of range."""
    if not 1 <= self.max_instances <= 64:
      raise InputError(f"--max_instances {self.max_instances}: must be between 1 and 64")
    if not 0 <= self.min_area < 1:
      raise InputError(f"--min_area {self.min_area:g}: must be a fraction, from 0 to below 1")
    if not 0 < self.nms_iou <= 1:
      raise InputError(
        f"--nms_iou {self.nms_iou:g}: must be above 0 and at most 1, which keeps all"
      )


def select(
  instances: records.Instances, selection: Selection, trained_on: str = "unknown"
) -> records.Instances:
  """Keeps the first proposals of a ranking; empty masks are dropped.

  Args:
    instances: all proposals, in any order.
    selection: which ones are kept.
    trained_on: what the masks were learned from, for the record.
  """
  pixels = instances.masks.shape[1] * instances.masks.shape[2]
  areas = np.array([np.count_nonzero(mask) for mask in instances.masks], np.int64)
  bits = [np.packbits(mask) for mask in instances.masks]
  kept: list[int] = []
  for k in ranking.RANKS[selection.rank](instances.masks, instances.scores):
    if len(kept) == selection.max_instances:
      break
    if areas[k] == 0 or areas[k] < selection.min_area * pixels:
      continue
    if selection.nms_iou == 1 or all(
      _iou(bits[k], bits[other], int(areas[k] + areas[other])) <= selection.nms_iou
      for other in kept
    ):
      kept.append(k)
  return records.Instances(
    masks=instances.masks[kept],
    scores=instances.scores[kept],
    categories=instances.categories[kept],
    source=instances.source,
    trained_on=trained_on,
    notes=instances.notes,
  )


def _iou(a: np.ndarray, b: np.ndarray, areas: int) -> float:
  """Returns the IoU of two bit-packed masks whose areas sum to `areas`."""
  intersection = int(np.bitwise_count(a & b).sum(dtype=np.int64))
  return intersection / (areas - intersection)
