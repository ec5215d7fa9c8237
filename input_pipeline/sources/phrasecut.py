"""PhraseCut in the layout of github.com/ChenyunWu/PhraseCutDataset, with Visual Genome's images.

The files are `ROOT/VGPhraseCut_v0/refer_train.json`, likewise for val, test and miniv, and
`image_data_split.json`; the images are `IMAGE_ID.jpg`. A PhraseCut task, which is a phrase with its
instances, is a ref; its index in its file is its `ref_id`. The files are not read into memory
(`masks/row_index.py`).
"""

import dataclasses
import os
import reprlib
from collections.abc import Mapping
from typing import Any

from input_pipeline import preprocess
from input_pipeline.common import places
from input_pipeline.common.errors import InputError
from input_pipeline.masks.row_index import RowIndex
from input_pipeline.sources.annotated_images import AnnotatedImage, ImageFinder
from input_pipeline.sources.refs_file import is_int64

DATASET = "phrasecut"
FOLDER = "VGPhraseCut_v0"
IMAGE_DATA = "image_data_split.json"
# Phrases, as published. Of the 20,316 for validation, 821 are miniv, whose images the file of val
# does not have.
PUBLISHED = {"train": 310_816, "val": 19_495, "test": 14_354, "miniv": 821}


@dataclasses.dataclass(frozen=True)
class ImageData:
  """The row of an image with tasks in `image_data_split.json`."""

  height: int
  width: int
  coco_id: int | None
  """COCO's id of the same image; about half of Visual Genome's images are COCO's."""


class PhraseCutReader:
  """The tasks of PhraseCut, checked against the list of its images.

  Attributes:
    dataset: `phrasecut`.
    annotations_path: empty: its objects have no COCO category.
    splits: for each split whose file exists, its image ids, ascending.
  """

  def __init__(self, refer_root: str):
    """Reads the tasks once and indexes them.

    Args:
      refer_root: the folder that contains `VGPhraseCut_v0/`.

    Raises:
      InputError: a file is missing or damaged, or a task does not fit its image.
    """
    self.dataset, self.annotations_path, self._finder = DATASET, "", ImageFinder()
    self._files, self._image_data_path = locate(refer_root)
    self._tasks = {split: RowIndex(path, {"tasks": "item"}) for split, path in self._files.items()}
    self._numbers = {split: self._check_tasks(split) for split in self._files}
    self.splits = {split: sorted(numbers) for split, numbers in self._numbers.items()}
    self._images = self._read_images({i for ids in self.splits.values() for i in ids})

  def coco_ids(self) -> dict[str, dict[int, int]]:
    """Returns, for each split, image id -> COCO id of the images that are COCO's."""
    return {
      split: {i: coco_id for i in ids if (coco_id := self._images[i].coco_id) is not None}
      for split, ids in self.splits.items()
    }

  def warnings(self) -> list[str]:
    """Returns the differences from the published data set, if any."""
    counts = {split: sum(map(len, self._numbers.get(split, {}).values())) for split in PUBLISHED}
    differences = [
      f"{split} {counts[split]:,} of {published:,}"
      for split, published in PUBLISHED.items()
      if counts[split] != published
    ]
    if not differences:
      return []
    return [
      f"{DATASET} is not the complete published data set (phrases: {'; '.join(differences)}): "
      "results are not comparable with published ones"
    ]

  def more_metadata(self) -> dict[str, Any]:
    """Returns an empty dictionary: there is no further metadata."""
    return {}

  def image_path(self, images: str, image_id: int) -> str:
    """Returns the path of an image in the folder of images.

    Raises:
      InputError: the image is missing or ambiguous.
    """
    return self._finder.path(images, f"{image_id}.jpg")

  def annotated_image(self, split: str, image_id: int, images: str) -> AnnotatedImage:
    """Returns an image with its refs in a split.

    Args:
      split: a key of `splits`.
      image_id: one of `splits[split]`.
      images: the folder of images.
    """
    tasks = self._tasks[split].of_image("tasks", image_id)
    refs = [
      {
        "ref_id": number,
        "ann_ids": task["ann_ids"],
        "segmentations": task["Polygons"],
        "sentences": [task["phrase"]],
      }
      for number, task in zip(self._numbers[split][image_id], tasks, strict=True)
    ]
    size = self._images[image_id]
    path, error = self._finder.try_path(images, f"{image_id}.jpg")
    return AnnotatedImage(
      path,
      image_id,
      size.height,
      size.width,
      self._files[split],
      refs,
      rule="phrasecut",
      error=error,
    )

  def _check_tasks(self, split: str) -> dict[int, list[int]]:
    """Checks each task alone; returns the indices of the tasks of each image, in file order."""
    path, numbers, seen = self._files[split], {}, set()
    for number, task in enumerate(self._tasks[split].rows("tasks")):
      where = f"{path}, task number {number} ({task.get('task_id')})"
      _check_task(where, task)
      if task["task_id"] in seen:
        raise InputError(f"{where}: duplicate task; is the file damaged?")
      seen.add(task["task_id"])
      numbers.setdefault(task["image_id"], []).append(number)
    if not numbers:
      raise InputError(f"{path}: no tasks; is it another file, renamed?")
    return numbers

  def _read_images(self, image_ids: set[int]) -> dict[int, ImageData]:
    """Returns the rows of the images with tasks."""
    images = {}
    for row in RowIndex(self._image_data_path, {"images": "item"}).rows("images"):
      if row.get("image_id") in image_ids:
        where = f"{self._image_data_path}, image {row['image_id']}"
        for key in ("height", "width"):
          if not is_int64(row.get(key)) or row[key] < 1:
            raise InputError(
              f"{where}: {key} is {reprlib.repr(row.get(key))}, not a number of pixels"
            )
        coco_id = row.get("coco_id")
        if coco_id is not None and type(coco_id) is not int:
          raise InputError(f"{where}: coco_id is {coco_id!r}, neither an integer nor null")
        images[row["image_id"]] = ImageData(row["height"], row["width"], coco_id)
    if missing := sorted(image_ids - images.keys()):
      raise InputError(
        f"{self._image_data_path}: image {missing[0]} is not in it ({len(missing):,} of "
        f"{len(image_ids):,} images with tasks are not); do the files belong together?"
      )
    return images


def locate(refer_root: str) -> tuple[dict[str, str], str]:
  """Returns the files of tasks that exist, by split, and the list of images.

  Raises:
    InputError: the folder, the list, or every file of tasks is missing.
  """
  folder = os.path.join(refer_root, FOLDER)
  if not places.is_folder(folder):
    raise InputError(
      f"--refer_root {refer_root}: contains no folder {FOLDER}; docs/guides/datasets.md says where "
      "to get it and what goes where"
    )
  files = {split: os.path.join(folder, f"refer_{split}.json") for split in PUBLISHED}
  existing = {split: path for split, path in files.items() if places.is_file(path)}
  images = os.path.join(folder, IMAGE_DATA)
  for path, missing in ((images, not places.is_file(images)), (files["train"], not existing)):
    if missing:
      raise InputError(f"{path}: no such file; docs/guides/datasets.md says where to get it")
  return existing, images


def _check_task(where: str, task: Mapping[str, Any]) -> None:
  image_id, task_id = task.get("image_id"), task.get("task_id")
  if not is_int64(image_id):
    raise InputError(
      f"{where}: image_id is {reprlib.repr(image_id)}, not an integer; is it a file of tasks?"
    )
  if not isinstance(task_id, str | int):
    raise InputError(
      f"{where}: task_id is {reprlib.repr(task_id)}, neither a string nor an integer; is it a file "
      "of tasks?"
    )
  ann_ids, polygons = task.get("ann_ids"), task.get("Polygons")
  if not isinstance(ann_ids, list) or not all(map(is_int64, ann_ids)):
    raise InputError(f"{where}: ann_ids is {reprlib.repr(ann_ids)}, not a list of integers")
  if not isinstance(polygons, list) or not polygons:
    raise InputError(
      f"{where}: no Polygons; refer_input files are only for prediction, use the refer files"
    )
  try:
    preprocess.normalise_text(task.get("phrase") or "")
  except (InputError, TypeError, AttributeError) as error:
    raise InputError(
      f"{where}: the phrase is empty or not a string; correct it or remove the task from the file"
    ) from error
