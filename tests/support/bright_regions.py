"""A quick proposer without extra packages: connected regions by brightness."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from input_pipeline import records


class BrightRegions:
  """Proposes the largest connected regions above and below the median brightness."""

  trained_on = "nothing"
  parallel = True

  def __init__(self, argument: str = ""):
    """Takes the number of regions of each kind, by default 8."""
    self._count = int(argument or 8)

  def propose(
    self, images: Sequence[np.ndarray], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns the regions of each image; a larger one has a higher score."""
    del image_ids
    return [self._propose(image) for image in images]

  def _propose(self, image: np.ndarray) -> records.Instances:
    light = ndimage.uniform_filter(image.mean(axis=2), 9)
    masks = []
    for side in (light > np.median(light), light <= np.median(light)):
      labels, count = ndimage.label(side)
      sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
      masks += [labels == 1 + k for k in np.argsort(-sizes, kind="stable")[: self._count]]
    stacked = np.stack(masks)
    scores = stacked.mean(axis=(1, 2)).astype(np.float32)
    return records.Instances(stacked, scores, np.zeros(len(stacked), np.int32), "bright")
