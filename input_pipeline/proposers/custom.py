"""The instances that come with custom data (docs/guides/custom-data.md)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.custom import masks
from input_pipeline.custom.schema import LineError

NAME = "custom"


class CustomProposer:
  """Proposes the `instances` of a file of annotations; none for an image without them."""

  trained_on = "unknown"
  parallel = True

  def __init__(
    self, argument: str = "", given: Mapping[int, Sequence[dict[str, Any]]] | None = None
  ):
    """Takes the instances of the images that are proposed next.

    Args:
      argument: must be empty.
      given: masks for `custom.masks.rasterise`, with `score` and `category`, by image id.
    """
    if argument:
      raise InputError(
        f"--instances custom:{argument}: custom does not take an argument; the instances are in "
        "the JSONL file"
      )
    self._given = given

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns the instances of each image.

    Raises:
      InputError: they do not fit their image, or there is no file of annotations.
    """
    if self._given is None:
      raise InputError("--instances custom: only works with --dataset jsonl:FILE")
    return [
      self._propose(self._given.get(image_id, ()), image_id, *image.shape[:2])
      for image, image_id in zip(images, image_ids, strict=True)
    ]

  def _propose(
    self, given: Sequence[dict[str, Any]], image_id: int, height: int, width: int
  ) -> records.Instances:
    try:
      read = [masks.read(mask, height, width) for mask in given]
    except LineError as error:
      raise InputError(f"instances of image {image_id}: {error}") from error
    return records.Instances(
      masks=np.stack([mask for mask, _ in read]) if read else np.zeros((0, height, width), bool),
      scores=np.array([mask.get("score", 1.0) for mask in given], np.float32),
      categories=np.array([mask.get("category", 0) for mask in given], np.int32),
      source=NAME,
      notes=tuple(warning.kind for _, warnings in read for warning in warnings),
    )
