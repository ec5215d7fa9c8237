"""PhraseCut in the layout of github.com/ChenyunWu/PhraseCutDataset: phrases for regions of Visual Genome's photos.

`ROOT/VGPhraseCut_v0/refer_train.json` and so on for val, test and miniv, and `image_data_split.json`; the photos are
`IMAGE_ID.jpg`. A task, a phrase and the instances that it means, is a ref; its number in its file is its `ref_id`. The
files are not read into memory (`row_index.py`).
"""

import dataclasses
import os
import reprlib
from collections.abc import Mapping
from typing import Any

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.masks.row_index import RowIndex
from input_pipeline.sources import annotated_images, refer

DATASET = "phrasecut"
FOLDER = "VGPhraseCut_v0"
IMAGE_DATA = "image_data_split.json"
# Phrases, as the authors publish them; of the 20,316 for validation 821 are miniv, whose images the file of val lacks.
PUBLISHED = {"train": 310_816, "val": 19_495, "test": 14_354, "miniv": 821}


@dataclasses.dataclass(frozen=True)
class ImageData:
  """What `image_data_split.json` says of a photo that has a task."""

  height: int
  width: int
  coco_id: int | None
  """COCO's name for the same photo; about half of Visual Genome is COCO's."""


class PhraseCutReader:
  """The tasks of PhraseCut, checked against the list of its images.

  Attributes:
    dataset: `phrasecut`.
    annotations_path: empty: its objects are of no COCO category.
    splits: for each split whose file is there, its image ids, ascending.
  """

  def __init__(self, refer_root: str):
    """Reads the tasks once, and makes an index of them.

    Args:
      refer_root: the folder that holds `VGPhraseCut_v0/`.

    Raises:
      InputError: a file is missing or damaged, or a task does not fit to its image.
    """
    self.dataset, self.annotations_path = DATASET, ""
    self._files, self._image_data_path = locate(refer_root)
    self._tasks = {split: RowIndex(path, {"tasks": "item"}) for split, path in self._files.items()}
    self._numbers = {split: self._check_tasks(split) for split in self._files}
    self.splits = {split: sorted(numbers) for split, numbers in self._numbers.items()}
    self._images = self._read_images({i for ids in self.splits.values() for i in ids})

  def coco_ids(self) -> dict[str, list[int]]:
    """Returns the COCO ids of those photos of each split that are COCO's."""
    known = {split: [self._images[i].coco_id for i in ids] for split, ids in self.splits.items()}
    return {split: [i for i in ids if i is not None] for split, ids in known.items()}

  def warning(self) -> str | None:
    """Returns how the data differs from the published data set, None where it is complete."""
    found = {split: sum(map(len, self._numbers.get(split, {}).values())) for split in PUBLISHED}
    differences = [
      f"{split} {found[split]:,} of {count:,}"
      for split, count in PUBLISHED.items()
      if found[split] != count
    ]
    if not differences:
      return None
    return (
      f"{DATASET} is not the complete published data set (phrases: {'; '.join(differences)}): results will not "
      "compare with published ones"
    )

  def image_path(self, images: str, image_id: int) -> str:
    """Returns the file of an image in the folder of photos."""
    return refer.photo_in(images, f"{image_id}.jpg")

  def photo(self, split: str, image_id: int, images: str) -> annotated_images.Photo:
    """Returns one photo with the refs that it has in a split.

    Args:
      split: a key of `splits`.
      image_id: one of `splits[split]`.
      images: the folder of photos.
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
    size, path = self._images[image_id], self.image_path(images, image_id)
    return annotated_images.Photo(
      path, image_id, size.height, size.width, self._files[split], refs, rule="phrasecut"
    )

  def _check_tasks(self, split: str) -> dict[int, list[int]]:
    """Checks each task alone; returns the numbers of those of each image, in the file's order."""
    path, numbers, seen = self._files[split], {}, set()
    for number, task in enumerate(self._tasks[split].rows("tasks")):
      where = f"{path}, task number {number} ({task.get('task_id')})"
      _check_task(where, task)
      if task["task_id"] in seen:
        raise InputError(f"{where}: the task is there twice; is the file damaged?")
      seen.add(task["task_id"])
      numbers.setdefault(task["image_id"], []).append(number)
    if not numbers:
      raise InputError(f"{path}: no tasks; is it another file, renamed?")
    return numbers

  def _read_images(self, wanted: set[int]) -> dict[int, ImageData]:
    """The sizes of the photos that have tasks."""
    found = {}
    for row in RowIndex(self._image_data_path, {"images": "item"}).rows("images"):
      if row.get("image_id") in wanted:
        where = f"{self._image_data_path}, image {row['image_id']}"
        for key in ("height", "width"):
          if not refer.is_whole(row.get(key)) or row[key] < 1:
            raise InputError(
              f"{where}: {key} is {reprlib.repr(row.get(key))}, not a number of pixels"
            )
        coco_id = row.get("coco_id")
        if coco_id is not None and type(coco_id) is not int:
          raise InputError(f"{where}: coco_id is {coco_id!r}, neither a whole number nor null")
        found[row["image_id"]] = ImageData(row["height"], row["width"], coco_id)
    if missing := sorted(wanted - found.keys()):
      raise InputError(
        f"{self._image_data_path}: image {missing[0]} is not in it ({len(missing):,} of {len(wanted):,} images with "
        "tasks are not); do the files belong together?"
      )
    return found


def locate(refer_root: str) -> tuple[dict[str, str], str]:
  """Returns the files of tasks that are there, by their splits, and the list of images.

  Raises:
    InputError: the folder, the list, or every file of tasks is missing.
  """
  folder = os.path.join(refer_root, FOLDER)
  if not os.path.isdir(folder):
    raise InputError(
      f"--refer_root {refer_root}: there is no folder {FOLDER} in it; docs/guides/datasets.md says "
      "where to get it and what goes where"
    )
  files = {split: os.path.join(folder, f"refer_{split}.json") for split in PUBLISHED}
  there = {split: path for split, path in files.items() if os.path.isfile(path)}
  images = os.path.join(folder, IMAGE_DATA)
  for path, missing in ((images, not os.path.isfile(images)), (files["train"], not there)):
    if missing:
      raise InputError(f"{path}: no such file; docs/guides/datasets.md says where to get it")
  return there, images


def _check_task(where: str, task: Mapping[str, Any]) -> None:
  if not refer.is_whole(task.get("image_id")):
    raise InputError(
      f"{where}: image_id is {reprlib.repr(task.get('image_id'))}, not a whole number; is it a file of tasks?"
    )
  if not isinstance(task.get("task_id"), str | int):
    raise InputError(
      f"{where}: task_id is {reprlib.repr(task.get('task_id'))}, no name; is it a file of tasks?"
    )
  ann_ids, polygons = task.get("ann_ids"), task.get("Polygons")
  if not isinstance(ann_ids, list) or not all(map(refer.is_whole, ann_ids)):
    raise InputError(f"{where}: ann_ids is {reprlib.repr(ann_ids)}, not a list of whole numbers")
  if not isinstance(polygons, list) or not polygons:
    raise InputError(
      f"{where}: no Polygons; refer_input files are for predicting only, take the refer files"
    )
  try:
    preprocess.normalise_text(task.get("phrase") or "")
  except (InputError, TypeError, AttributeError) as error:
    raise InputError(
      f"{where}: the phrase is empty or no text; correct it or remove the task from the file"
    ) from error
