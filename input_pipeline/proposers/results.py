"""Reads a detector's masks from COCO results files of Detectron2, MMDetection and others.

A file is a list of rows `{"image_id", "category_id", "segmentation", "score"}`, or an object with
such a list, as in FiftyOne; segmentations are run lengths, compressed or not, or polygons.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from input_pipeline import preprocess, records
from input_pipeline.common.errors import InputError
from input_pipeline.common.image_names import ImageNotFound, name_of_row
from input_pipeline.common.terminal import counted
from input_pipeline.masks.coco import ImageTable, category_of
from input_pipeline.masks.row_index import Id, RowIndex, first_character
from input_pipeline.masks.segmentation import EmptySegmentation, Segmentation, read_segmentation
from input_pipeline.proposers.registry import UnknownImage

CATEGORY_0 = "category 0 read as no category; do the categories start at 0?"
NO_MASK = "detection with an empty mask left out"

# Scores are stored as float32.
_MAX_SCORE = float(np.finfo(np.float32).max)
# Keys of an object that may hold the list of rows.
_KEYS = ("annotations", "predictions", "results", "detections")


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
    self._files = [_ResultsFile(path) for path in argument.split(",")]
    self._entries: dict[Id, tuple[_ResultsFile, Id]] = {}
    for file in self._files:
      for image_id in file.image_ids:
        other, _ = self._entries.setdefault(file.entry(image_id), (file, image_id))
        if other is not file:
          raise InputError(
            f"{file.path}: image {image_id} is also in {other.path}; use files without common "
            "images"
          )

  @property
  def is_empty(self) -> bool:
    """Whether the files contain no detections at all."""
    return not self._entries

  @property
  def needs_ids(self) -> bool:
    """Whether images can only be found by id, since the files do not name all of them."""
    return any(file.needs_ids for file in self._files)

  def find_image(self, path: str, image_id: Id | None = None, name: str = "") -> Id:
    """Returns the entry of an image in the files.

    It is found by name if rows or a list of images name it (ids that are text are file names).
    Otherwise its id is `image_id`, or the number at the end of its name, as in COCO.

    Args:
      path: of the image.
      image_id: its id in the data set, if known.
      name: path relative to the folder of images, if known.

    Raises:
      UnknownImage: the files have no detection of it.
      InputError: several images match, or the name does not end with a number.
    """
    found = [i for file in self._files if (i := file.find_by_name(path, name)) is not None]
    if len(found) > 1:
      raise InputError(
        f"{self._paths()}: {path} is in several files; use files without common images"
      )
    if found:
      return found[0]
    number = image_id if image_id is not None else _number_at_end(path)
    if number is None and self.needs_ids:
      raise InputError(f"--instances results: the name {path} does not end with an image id")
    if number is None or number not in self._entries:
      known = f"image {number}" if self.needs_ids else os.path.basename(path)
      raise UnknownImage(
        f"{self._paths()}: no detection of {known}; are these the results of another data set?"
      )
    return number

  def _paths(self) -> str:
    return ", ".join(file.path for file in self._files)

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[Id]
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

  def _propose(self, height: int, width: int, image_id: Id) -> records.Instances:
    if image_id not in self._entries:
      raise UnknownImage(
        f"{self._paths()}: no detection of image {image_id}; are these the results of another "
        "data set?"
      )
    file, image_id = self._entries[image_id]
    where = f"{file.path}, image {image_id}"
    masks, scores, categories, notes = [], [], [], []
    rows = file.rows(image_id)
    if all(row.get("segmentation") is None for row in rows):
      raise InputError(
        f"{where}: no row has a segmentation, and boxes are not enough; export the detector's "
        "masks (segm results)"
      )
    for row in rows:
      score, category = _score(row, where), category_of(row, where)
      try:
        segmentation = _segmentation(row, where, height, width)
      except EmptySegmentation:
        notes.append(NO_MASK)
        continue
      notes += [CATEGORY_0] * (category == 0 and row.get("category_id") is not None)
      notes += segmentation.notes
      masks.append(segmentation.mask())
      scores.append(score)
      categories.append(category)
    return records.Instances(
      masks=np.stack(masks) if masks else np.zeros((0, height, width), bool),
      scores=np.array(scores, np.float32),
      categories=np.array(categories, np.int32),
      source="results",
      notes=tuple(notes),
    )


class _ResultsFile:
  """A results file.

  Attributes:
    path: of the file.
    image_ids: of the images with detections.
    needs_ids: whether images are found by their ids; otherwise all of them have names.
  """

  def __init__(self, path: str):
    self.path = path
    self._index = _open(path)
    self.image_ids = self._index.image_ids("results")
    if count := self._index.without_image("results"):
      raise InputError(
        f"{path}: {counted(count, 'row')} without image_id, which every detection needs"
      )
    # Ids are private to a file that lists its images.
    names = list(self._listed()) or list(self._named_by_id())
    self.needs_ids = not names
    self._table = ImageTable(names, path)

  def rows(self, image_id: Id) -> list[dict[str, Any]]:
    """Returns the detections of an image."""
    return self._index.of_image("results", image_id)

  def entry(self, image_id: Id) -> Id:
    """Returns the key of an image among all files; ids of files with names are private to them."""
    return image_id if self.needs_ids else f"{image_id} of {self.path}"

  def find_by_name(self, path: str, name: str) -> Id | None:
    """Returns the entry of an image by its name; None if the file does not name it.

    Raises:
      InputError: several images match.
    """
    spellings = (str, _as_jpeg, _as_number)
    for spell in () if self.needs_ids else spellings:
      try:
        return self.entry(self._table.find(spell(path), spell(name)))
      except ImageNotFound:
        pass
    return None

  def _listed(self) -> Iterator[tuple[Id, str]]:
    for row in self._index.rows("images"):
      name, image_id = name_of_row(row), row.get("id")
      if name is not None and image_id is not None:
        yield image_id, name

  def _named_by_id(self) -> Iterator[tuple[Id, str]]:
    """Yields images named in rows, by `file_name` or by a text id."""
    first = next(self._index.rows("results"), {})
    if name_of_row(first) is None and all(type(image_id) is int for image_id in self.image_ids):
      return
    for row in self._index.first_of_images("results"):
      # Among names without extensions, a number is a file name as well.
      yield row["image_id"], name_of_row(row) or _as_jpeg(str(row["image_id"]))


def _open(path: str) -> RowIndex:
  """Opens a file with a list of rows or an object that contains one.

  Raises:
    InputError: there is no such list.
  """
  if first_character(path) != "{":
    return RowIndex(path, {"results": "item"})
  for key in _KEYS:
    index = RowIndex(path, {"results": f"{key}.item", "images": "images.item"})
    if index.image_ids("results"):
      return index
  raise InputError(
    f"{path}: no detections; expected COCO's results format, a list of rows with image_id, "
    "category_id, segmentation and score, alone or under `annotations`"
  )


def _as_jpeg(name: str) -> str:
  """Returns a name with the extension .jpg in place of its image extension, if any."""
  stem, ending = os.path.splitext(name)
  return f"{stem if ending.lower() in preprocess.EXTENSIONS else name}.jpg"


def _as_number(path: str) -> str:
  """Strips leading zeros from a numeric name: some tools write 007.png as 7."""
  folder, slash, last = path.rpartition("/")
  stem = os.path.splitext(last)[0]
  return f"{folder}{slash}{int(stem) if stem.isdecimal() else stem}.jpg"


def _number_at_end(path: str) -> int | None:
  stem = path.replace("\\", "/").rpartition("/")[2].partition(".")[0]
  digits = stem[len(stem.rstrip("0123456789")) :]
  return int(digits) if digits else None


def _segmentation(row: dict[str, Any], where: str, height: int, width: int) -> Segmentation:
  try:
    return read_segmentation(row.get("segmentation"), height, width)
  except EmptySegmentation:
    raise
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
