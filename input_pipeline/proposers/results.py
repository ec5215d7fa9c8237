"""A detector's masks from COCO results files, as Detectron2 and MMDetection write them.

A file is a list of rows `{"image_id", "category_id", "segmentation", "score"}`; segmentations are
run lengths, compressed or not, or polygons.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.masks.coco import category_of
from input_pipeline.masks.row_index import RowIndex
from input_pipeline.masks.segmentation import decode_segmentation
from input_pipeline.proposers.registry import UnknownImage

# Scores are stored as float32.
_MAX_SCORE = float(np.finfo(np.float32).max)


class ResultsProposer:
  """Proposes all detections of an image, with any score."""

  parallel = True

  def __init__(self, argument: str):
    """Opens the files.

    Args:
      argument: path of a file, or several with commas, such as those of train and val.

    Raises:
      InputError: a file is missing, malformed, or shares an image with another one.
    """
    if not argument:
      raise InputError("--instances results: missing file; use --instances results:detections.json")
    self._files = [RowIndex(path, {"results": "item"}) for path in argument.split(",")]
    self._file_of: dict[int, RowIndex] = {}
    for file in self._files:
      ids = file.image_ids("results")
      if not ids:
        raise InputError(
          f"{file.path}: no detections; expected COCO's results format, a list of rows with "
          "image_id, category_id, segmentation and score"
        )
      if shared := ids & self._file_of.keys():
        image_id = min(shared)
        raise InputError(
          f"{file.path}: image {image_id} is also in {self._file_of[image_id].path}; use files "
          "that do not share images"
        )
      self._file_of |= dict.fromkeys(ids, file)

  def image_ids(self) -> set[int]:
    """Returns the images that have detections."""
    return set(self._file_of)

  def image_id(self, file_name: str) -> int:
    """Returns the number at the end of a file name, which is the image id in COCO's file names.

    Raises:
      InputError: the name does not end with a number.
    """
    stem = file_name.rpartition("/")[2].partition(".")[0]
    number = stem[len(stem.rstrip("0123456789")) :]
    if not number:
      raise InputError(f"--instances results: {file_name} does not end with an image id")
    return int(number)

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns the detections of each image.

    Raises:
      UnknownImage: the files have no detection of an image.
      InputError: a row is invalid, or its mask has another size than the image.
    """
    return [
      self._propose(image.shape[0], image.shape[1], image_id)
      for image, image_id in zip(images, image_ids, strict=True)
    ]

  def _propose(self, height: int, width: int, image_id: int) -> records.Instances:
    file = self._file_of.get(image_id)
    if file is None:
      raise UnknownImage(
        f"{', '.join(file.path for file in self._files)}: no detection of image {image_id}; are "
        "these the results of another data set? If the detector found nothing, use --allow_empty"
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
      f"{where}: a row without a segmentation; boxes are not enough, export the detector's masks "
      "(segm results)"
    )
  try:
    return decode_segmentation(segmentation, height, width)
  except ValueError as error:
    raise InputError(
      f"{where}: invalid segmentation ({error}); is the file damaged, or of resized images?"
    ) from error


def _score(row: dict[str, Any], where: str) -> float:
  score: Any = row.get("score")
  if type(score) not in (int, float) or not abs(score) <= _MAX_SCORE:
    raise InputError(
      f"{where}: invalid score {score!r}; results need a score per row, ground truth is for "
      "--instances coco:FILE"
    )
  return float(score)
