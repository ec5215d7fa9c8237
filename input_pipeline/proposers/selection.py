"""What is kept of the masks that a provider proposes, and in which order: the same for every provider."""

import dataclasses

import numpy as np

from input_pipeline import records
from input_pipeline.common.errors import InputError

MAX_INSTANCES = 16
"""Instances kept of an image, unless someone says otherwise: one bit plane."""


@dataclasses.dataclass(frozen=True)
class Selection:
  """Which proposals are kept."""

  max_instances: int = MAX_INSTANCES
  """At most so many, the best; 1 to 64."""
  min_area: float = 0.0002
  """Smaller masks are dropped; a share of the image, in [0, 1). The default is 8 x 8 pixels of 640 x 480."""
  nms_iou: float = 0.9
  """A mask is dropped whose IoU with a better one is greater; 1 keeps all."""

  def __post_init__(self):
    """Raises: InputError, a value is out of its range."""
    if not 1 <= self.max_instances <= 64:
      raise InputError(f"--max_instances {self.max_instances}: choose 1 to 64")
    if not 0 <= self.min_area < 1:
      raise InputError(f"--min_area {self.min_area:g}: a share of the image, from 0 to below 1")
    if not 0 < self.nms_iou <= 1:
      raise InputError(f"--nms_iou {self.nms_iou:g}: choose above 0, to 1, which keeps all")


def select(
  instances: records.Instances, selection: Selection, trained_on: str = "unknown"
) -> records.Instances:
  """Keeps the best instances.

  The order is that of the scores, highest first; of equal scores the larger mask comes first, of equal areas the one
  that was proposed first. Empty masks are never kept.

  Args:
    instances: as proposed, in any order.
    selection: what to keep.
    trained_on: what the masks were learned from, for the record.

  Returns:
    The instances that are kept, in that order.
  """
  count = len(instances.masks)
  pixels = instances.masks.shape[1] * instances.masks.shape[2]
  areas = np.array([np.count_nonzero(mask) for mask in instances.masks], np.int64)
  order = np.lexsort((np.arange(count), -areas, -instances.scores.astype(np.float64)))
  bits = [np.packbits(mask) for mask in instances.masks]
  kept: list[int] = []
  for k in order:
    if len(kept) == selection.max_instances:
      break
    if areas[k] == 0 or areas[k] < selection.min_area * pixels:
      continue
    if selection.nms_iou == 1 or all(
      _iou(bits[k], bits[other], int(areas[k] + areas[other])) <= selection.nms_iou
      for other in kept
    ):
      kept.append(int(k))
  return records.Instances(
    masks=instances.masks[kept],
    scores=instances.scores[kept],
    categories=instances.categories[kept],
    source=instances.source,
    trained_on=trained_on,
  )


def _iou(a: np.ndarray, b: np.ndarray, areas: int) -> float:
  """Of two masks packed to bits, whose areas sum to `areas`."""
  intersection = int(np.bitwise_count(a & b).sum(dtype=np.int64))
  return intersection / (areas - intersection)
