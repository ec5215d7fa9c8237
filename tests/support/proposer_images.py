"""Helpers of the tests of proposers."""

import numpy as np

from input_pipeline import records
from input_pipeline.proposers.selection import Selection

ALL = Selection(max_instances=64, min_area=0.0, nms_iou=1.0)


def assert_same(first: records.Instances, other: records.Instances):
  assert len(first.masks) == len(other.masks)
  np.testing.assert_allclose(first.scores, other.scores, atol=1e-5)
  np.testing.assert_array_equal(first.categories, other.categories)
  # Rounding may move a pixel of the outline.
  differing = (first.masks != other.masks).mean(axis=(1, 2))
  assert (differing < 1e-4).all()
