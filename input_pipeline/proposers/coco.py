"""Ground-truth masks from COCO annotations, which make the proposals an oracle."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.masks.coco import CocoAnnotations, category_of, has_iscrowd
from input_pipeline.masks.row_index import Id
from input_pipeline.masks.segmentation import EmptySegmentation
from input_pipeline.proposers.registry import UnknownImage

CROWD = "COCO crowd left out"
NOT_A_CROWD = "annotation with iscrowd kept, since it is not one of COCO's crowds"
NO_MASK = "annotation without a mask left out"


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

  def find_image(self, path: str, image_id: Id | None = None, name: str = "") -> Id:
    """Returns the id of an image in the file.

    Args:
      path: of the image.
      image_id: its id, if known; the file must list it under a matching name.
      name: path relative to the folder of images, if known.

    Raises:
      InputError: no or several images have that name, or the image has another id.
    """
    if image_id is None:
      return self._annotations.find_image(path, name)
    self._annotations.check_image(image_id, path, name)
    return image_id

  def only_image(self) -> Id | None:
    """Returns the id of the only image, or None if there are several."""
    return self._annotations.only_image()

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[Id]
  ) -> list[records.Instances]:
    """Returns the annotated objects of each image, all with score 1.

    Raises:
      UnknownImage: an image has no annotation.
      InputError: an image is not in the file, or has another size there.
    """
    return [
      self._propose(image.shape[0], image.shape[1], image_id)
      for image, image_id in zip(images, image_ids, strict=True)
    ]

  def _propose(self, height: int, width: int, image_id: Id) -> records.Instances:
    self._check_size(height, width, image_id)
    rows = self._annotations.of_image(image_id)
    if not rows:
      raise UnknownImage(
        f"COCO annotations {self._annotations.path}: no annotation of image {image_id}; is the "
        "file complete?"
      )
    masks, categories, notes = [], [], []
    known = self._annotations.category_ids
    for row in rows:
      where = f"COCO annotations {self._annotations.path}: annotation {row.get('id')}"
      category = category_of(row, where)
      if known and category not in known:
        raise InputError(
          f"{where} has category {category}, which is not in the file's list of categories; is the "
          "file damaged?"
        )
      if self._annotations.is_crowd(row):
        notes.append(CROWD)
        continue
      try:
        segmentation = self._annotations.segmentation(row)
      except EmptySegmentation:
        notes.append(NO_MASK)
        continue
      notes += [NOT_A_CROWD] * has_iscrowd(row) + list(segmentation.notes)
      masks.append(segmentation.mask())
      categories.append(category)
    return records.Instances(
      masks=np.stack(masks) if masks else np.zeros((0, height, width), bool),
      scores=np.ones(len(masks), np.float32),
      categories=np.asarray(categories, np.int32),
      source="coco",
      notes=tuple(notes),
    )

  def _check_size(self, height: int, width: int, image_id: Id) -> None:
    expected = self._annotations.size(image_id)
    if expected == (height, width):
      return
    hint = "was the image resized?"
    if expected == (width, height):
      hint = (
        "the sides are swapped: if EXIF rotates the image, the annotations are for the stored "
        "pixels; remove the orientation from the file, or annotate the upright image"
      )
    raise InputError(
      f"COCO annotations {self._annotations.path}: image {image_id} is {expected[1]} x "
      f"{expected[0]}, but its file is {width} x {height}; {hint}"
    )
