"""Helpers of the tests of proposers."""

import numpy as np

from input_pipeline import records
from input_pipeline.proposers.selection import Selection

ALL = Selection(max_instances=64, min_area=0.0, nms_iou=1.0)


def assert_same(one: records.Instances, other: records.Instances):
  assert len(one.masks) == len(other.masks)
  np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
  np.testing.assert_array_equal(one.categories, other.categories)
  # Rounding may move a pixel of the outline.
  differing = (one.masks != other.masks).mean(axis=(1, 2))
  assert (differing < 1e-4).all()
