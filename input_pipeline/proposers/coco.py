"""Ground-truth masks from COCO annotations, which make the proposals an oracle."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.masks.coco import CocoAnnotations, category_of
from input_pipeline.proposers.registry import UnknownImage


class CocoProposer:
  """Proposes every annotated object of an image; crowds are left out."""

  trained_on = "ground-truth"
  parallel = True

  def __init__(self, argument: str | Mapping[str, Any]):
    """Reads the annotations.

    Args:
      argument: path of an `instances.json`, or its content.
    """
    if not argument:
      raise InputError("--instances coco: missing file; use --instances coco:instances.json")
    self._annotations = CocoAnnotations(argument)

  def image_id(self, file_name: str) -> int:
    """Returns the id of an image by its file name.

    Raises:
      InputError: no image has that name.
    """
    return self._annotations.find_image(file_name)

  def only_image(self) -> int | None:
    """Returns the id of the only image, or None if there are several."""
    return self._annotations.only_image()

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns the annotated objects of each image, all with score 1.

    Raises:
      InputError: an image is not in the annotations or has another size there.
    """
    return [
      self._propose(image.shape[0], image.shape[1], image_id)
      for image, image_id in zip(images, image_ids, strict=True)
    ]

  def _propose(self, height: int, width: int, image_id: int) -> records.Instances:
    if self._annotations.size(image_id) != (height, width):
      expected = self._annotations.size(image_id)
      raise InputError(
        f"COCO annotations {self._annotations.path}: image {image_id} is {expected[1]} x "
        f"{expected[0]}, but its file is {width} x {height}; was the image resized?"
      )
    rows = self._annotations.of_image(image_id)
    if not rows:
      raise UnknownImage(
        f"COCO annotations {self._annotations.path}: no annotation of image {image_id}; is the "
        "file complete? If the image has no objects, use --allow_empty"
      )
    masks, categories = [], []
    known = self._annotations.category_ids
    for row in rows:
      where = f"COCO annotations {self._annotations.path}: annotation {row.get('id')}"
      category = category_of(row, where)
      if known and category not in known:
        raise InputError(
          f"{where} has category {category}, which is not in the file's list of categories; is the "
          "file damaged?"
        )
      if not row.get("iscrowd"):
        masks.append(self._annotations.mask(row))
        categories.append(category)
    return records.Instances(
      masks=np.stack(masks) if masks else np.zeros((0, height, width), bool),
      scores=np.ones(len(masks), np.float32),
      categories=np.asarray(categories, np.int32),
      source="coco",
    )
