"""A detector's masks from files in COCO's results format, as Detectron2, MMDetection and ultralytics write them.

A list of rows `{"image_id", "category_id", "segmentation", "score"}`; segmentations are run lengths, compressed or not,
or polygons.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.masks.coco import category_of, decode_segmentation
from input_pipeline.masks.row_index import RowIndex
from input_pipeline.proposers.registry import UnknownImage

_LARGEST = float(np.finfo(np.float32).max)  # as which scores are kept


class DetectionResults:
  """Every row of an image, whatever its score."""

  parallel = True

  def __init__(self, argument: str):
    """Opens the files.

    Args:
      argument: path of a file, or several with commas between them, such as those of train and val.

    Raises:
      InputError: a file is missing, is of another form, or has images that another one has too.
    """
    if not argument:
      raise InputError("--instances results: which file? Write --instances results:detections.json")
    self._files = [RowIndex(path, {"results": "item"}) for path in argument.split(",")]
    self._file_of: dict[int, RowIndex] = {}
    for file in self._files:
      ids = file.image_ids("results")
      if not ids:
        raise InputError(
          f"{file.path}: no detections; COCO's results format is a list of rows with image_id, category_id, "
          "segmentation and score"
        )
      if both := ids & self._file_of.keys():
        image_id = min(both)
        raise InputError(
          f"{file.path}: image {image_id} is in {self._file_of[image_id].path} too; whose masks are meant? "
          "Name files that share no image"
        )
      self._file_of |= dict.fromkeys(ids, file)

  def image_ids(self) -> set[int]:
    """Returns the images that have detections."""
    return set(self._file_of)

  def image_id(self, file_name: str) -> int:
    """Returns the id of an image by the number at the end of its file's name, as COCO's files have it.

    Raises:
      InputError: the name has no number.
    """
    stem = file_name.rpartition("/")[2].partition(".")[0]
    number = stem[len(stem.rstrip("0123456789")) :]
    if not number:
      raise InputError(f"--instances results: {file_name} has no image id at the end of its name")
    return int(number)

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns the detections of each image.

    Raises:
      UnknownImage: the files have no detection of an image.
      InputError: a row is unusable, or its mask is of another size than the image.
    """
    return [
      self._propose(image.shape[0], image.shape[1], image_id)
      for image, image_id in zip(images, image_ids, strict=True)
    ]

  def _propose(self, height: int, width: int, image_id: int) -> records.Instances:
    file = self._file_of.get(image_id)
    if file is None:
      raise UnknownImage(
        f"{', '.join(file.path for file in self._files)}: no detection of image {image_id}; are these the results for "
        "this set? If the detector found nothing there, say so with --allow_empty"
      )
    rows = file.of_image("results", image_id)
    where = f"{file.path}, image {image_id}"
    masks = [_mask(row, where, height, width) for row in rows]
    return records.Instances(
      masks=np.stack(masks),
      scores=np.array([_score(row, where) for row in rows], np.float32),
      categories=np.array([category_of(row, where) for row in rows], np.int32),
      source="results",
    )


def _mask(row: dict[str, Any], where: str, height: int, width: int) -> np.ndarray:
  segmentation = row.get("segmentation")
  if segmentation is None:
    raise InputError(
      f"{where}: a row without a segmentation; boxes are no masks, write the detector's segm results"
    )
  try:
    return decode_segmentation(segmentation, height, width)
  except ValueError as error:
    raise InputError(
      f"{where}: unusable segmentation ({error}); is the file damaged, or of resized photos?"
    ) from error


def _score(row: dict[str, Any], where: str) -> float:
  score: Any = row.get("score")
  if type(score) not in (int, float) or not abs(score) <= _LARGEST:
    raise InputError(
      f"{where}: the score of a row is {score!r}; results have a score each, ground truth is "
      "for --instances coco:FILE"
    )
  return float(score)
