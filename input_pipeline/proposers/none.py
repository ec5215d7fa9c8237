"""No proposals: the model uses the image and the expression alone."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from input_pipeline import records
from input_pipeline.common.errors import InputError


class EmptyProposer:
  """Proposes nothing."""

  trained_on = "nothing"
  parallel = True

  def __init__(self, argument: str = ""):
    """Takes no argument."""
    if argument:
      raise InputError(f"--instances none:{argument}: none does not take an argument")

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns no proposals for each image."""
    del image_ids
    return [records.no_instances(*image.shape[:2]) for image in images]
