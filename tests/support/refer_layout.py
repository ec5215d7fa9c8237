"""A tiny data set in the layout of lichengunc/refer, or of gRefCOCO, for tests to damage."""

import dataclasses
import json
import pathlib
import pickle
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
SPLITS = {
  "refcoco_unc": ("refcoco", "refs(unc).p", ("train", "val", "testA", "testB")),
  "refcoco+_unc": ("refcoco+", "refs(unc).p", ("train", "val", "testA", "testB")),
  "refcocog_umd": ("refcocog", "refs(umd).p", ("train", "val", "test")),
  "refcocog_google": ("refcocog", "refs(google).p", ("train", "val")),
}
_ALL = SPLITS | {
  "grefcoco_unc": ("grefcoco", "grefs(unc).json", ("train", "val", "testA", "testB"))
}


@dataclasses.dataclass
class ReferLayout:
  """The files on disk; change `refs` or `instances` and write again."""

  dataset: str
  root: pathlib.Path
  images: pathlib.Path
  refs: list[Any]
  instances: dict[str, Any]

  @property
  def refs_path(self) -> pathlib.Path:
    return self.root / _ALL[self.dataset][0] / _ALL[self.dataset][1]

  @property
  def instances_path(self) -> pathlib.Path:
    return self.root / _ALL[self.dataset][0] / "instances.json"

  def image_path(self, number: int) -> pathlib.Path:
    return self.images / self.instances["images"][number]["file_name"]

  def write(self) -> "ReferLayout":
    """Writes refs as Python 2 did (protocol 2), or as JSON, and the annotations."""
    self.refs_path.parent.mkdir(parents=True, exist_ok=True)
    if self.refs_path.suffix == ".json":
      self.refs_path.write_text(json.dumps(self.refs))
    else:
      self.refs_path.write_bytes(pickle.dumps(self.refs, protocol=2))
    self.instances_path.write_text(json.dumps(self.instances))
    return self

  def arguments(self, data_dir: pathlib.Path, *more: str) -> list[str]:
    """Returns the command line of `prepare`."""
    arguments = {
      "--dataset": self.dataset,
      "--refer_root": str(self.root),
      "--images": str(self.images),
      "--instances": f"coco:{self.instances_path}",
      "--data_dir": str(data_dir),
    }
    return [part for pair in arguments.items() for part in pair] + list(more)


def make_layout(folder: pathlib.Path, dataset: str = "refcoco_unc") -> ReferLayout:
  """Writes one image per split, each with two objects, two refs, three expressions and a crowd."""
  images = folder / "train2014"
  images.mkdir(parents=True)
  rng = np.random.default_rng(0)
  refs, image_rows, annotations = [], [], []
  for number, split in enumerate(_ALL[dataset][2]):
    image_id = 100 + number
    name = f"COCO_train2014_{image_id:012d}.jpg"
    pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).convert("L" if number == 1 else "RGB").save(images / name)
    image_rows.append({"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH})
    annotations += _annotations(image_id)
    for which in range(2):
      ref_id = 2 * number + which
      texts = ["The LEFT one ", "cup"] if which == 0 else ["bigger cup"]
      sentences = [
        {"raw": text, "sent": text.lower().strip(), "sent_id": 10 * ref_id + i, "tokens": []}
        for i, text in enumerate(texts)
      ]
      refs.append(
        {
          "ref_id": ref_id,
          "ann_id": 10 * image_id + which,
          "category_id": 47,
          "image_id": image_id,
          "split": split,
          "file_name": f"COCO_train2014_{image_id:012d}_{which}.jpg",
          "sent_ids": [sentence["sent_id"] for sentence in sentences],
          "sentences": sentences,
        }
      )
  instances = {"images": image_rows, "annotations": annotations, "categories": []}
  return ReferLayout(dataset, folder / "refer", images, refs, instances).write()


def make_generalised(folder: pathlib.Path) -> ReferLayout:
  """Writes the same in the layout of gRefCOCO.

  Of each photo one ref means both objects, one nothing, one the second object alone.
  """
  layout = make_layout(folder, "grefcoco_unc")
  refs = []
  for image_id, row in ((row["image_id"], row) for row in layout.refs[::2]):
    of_both = {"ann_id": [10 * image_id, 10 * image_id + 1], "category_id": [47, 47]}
    of_none = {"ann_id": [-1], "category_id": [-1], "no_target": True}
    of_one = {"ann_id": [10 * image_id + 1], "category_id": [47]}
    for which, fields in enumerate((of_both, of_none, of_one)):
      text = ("both cups", "the dog", "bigger cup")[which]
      ref_id = 3 * (image_id - 100) + which
      sentences = [{"raw": text, "sent": text, "sent_id": ref_id, "tokens": text.split()}]
      refs.append(row | {"no_target": False} | fields | {"ref_id": ref_id, "sentences": sentences})
  layout.refs = refs
  return layout.write()


def _annotations(image_id: int) -> list[dict[str, Any]]:
  """Returns an object of two overlapping polygons, a larger one of one polygon, and a crowd."""
  polygons = (
    [rectangle(2, 3, 12, 13), rectangle(8, 9, 20, 21)],
    [rectangle(30, 10, 60, 40)],
  )
  rows: list[dict[str, Any]] = [
    {"id": 10 * image_id + which, "segmentation": segmentation, "area": 100.0 * (1 + which)}
    for which, segmentation in enumerate(polygons)
  ]
  runs = {"counts": [0, HEIGHT * WIDTH], "size": [HEIGHT, WIDTH]}
  rows.append({"id": 10 * image_id + 2, "segmentation": runs, "area": 9999.0, "iscrowd": 1})
  return [{"iscrowd": 0, "category_id": 47, "image_id": image_id, **row} for row in rows]


def rectangle(left: int, top: int, right: int, bottom: int) -> list[float]:
  """Returns a polygon that covers the pixels [left, right) x [top, bottom)."""
  corners = (left, top), (right, top), (right, bottom), (left, bottom)
  return [float(value) for corner in corners for value in corner]
