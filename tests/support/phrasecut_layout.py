"""A tiny data set in the layout of ChenyunWu/PhraseCutDataset, for tests to damage."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
SPLITS = ("train", "val", "test", "miniv")


@dataclasses.dataclass
class PhraseCutLayout:
  """The files on disk; change `tasks` or `image_data` and write again."""

  root: pathlib.Path
  tasks: dict[str, list[dict[str, Any]]]
  image_data: list[dict[str, Any]]

  @property
  def folder(self) -> pathlib.Path:
    return self.root / "VGPhraseCut_v0"

  @property
  def images(self) -> pathlib.Path:
    return self.folder / "images"

  def write(self) -> "PhraseCutLayout":
    self.images.mkdir(parents=True, exist_ok=True)
    for split, tasks in self.tasks.items():
      (self.folder / f"refer_{split}.json").write_text(json.dumps(tasks))
    (self.folder / "image_data_split.json").write_text(json.dumps(self.image_data))
    return self

  def arguments(self, data_dir: pathlib.Path, *more: str) -> list[str]:
    """Returns the command line of `prepare`."""
    arguments = {
      "--dataset": "phrasecut",
      "--refer_root": str(self.root),
      "--images": str(self.images),
      "--instances": "none",
      "--data_dir": str(data_dir),
    }
    return [part for pair in arguments.items() for part in pair] + list(more)


def make_layout(folder: pathlib.Path) -> PhraseCutLayout:
  """Writes two images per split, each with two tasks; every other image is COCO's."""
  layout = PhraseCutLayout(folder / "data", {}, [])
  layout.images.mkdir(parents=True)
  rng = np.random.default_rng(0)
  for number, split in enumerate(SPLITS):
    layout.tasks[split] = []
    for which in range(2):
      image_id = 2000 + 2 * number + which
      pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
      Image.fromarray(pixels).save(layout.images / f"{image_id}.jpg")
      layout.image_data.append(
        {
          "image_id": image_id,
          "coco_id": 500 + number if which else None,
          "flickr_id": 1,
          "width": WIDTH,
          "height": HEIGHT,
          "url": f"https://example.org/{image_id}.jpg",
          "split": split,
        }
      )
      layout.tasks[split] += _tasks(image_id)
  return layout.write()


def _tasks(image_id: int) -> list[dict[str, Any]]:
  """Returns a phrase for two instances, one of two polygons, and one for a subpixel triangle."""
  rectangle = [[2, 3], [11, 3], [11, 12], [2, 12]]
  overlapping = [[8, 9], [19, 9], [19, 20], [8, 20]]
  triangle = [[30.9, 10.2], [60.7, 12.9], [41.5, 40.4]]
  instances = [[[rectangle, overlapping], [triangle]], [[triangle]]]
  phrases = ("Two White Cups", "cup on table")
  return [
    {
      "task_id": f"{image_id}__{number}",
      "image_id": image_id,
      "ann_ids": [10 * image_id + number],
      "instance_boxes": [[0, 0, 5, 5]] * len(polygons),
      "Polygons": polygons,
      "phrase": phrase,
      "phrase_structure": {"name": "cup", "attributes": [], "relation_descriptions": []},
    }
    for number, (phrase, polygons) in enumerate(zip(phrases, instances, strict=True))
  ]
