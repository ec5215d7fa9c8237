"""RefCOCO, RefCOCO+ and RefCOCOg in the layout of github.com/lichengunc/refer (gRefCOCO: `grefer.py`).

`ROOT/refcoco/refs(unc).p` and `ROOT/refcoco/instances.json`, and so on for `refcoco+` and
`refcocog`; photos are COCO train2014. Everything is checked before anything is written: what does
not fit together is an `InputError` that names the ref.
"""

import dataclasses
import os
import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar

from input_pipeline import preprocess
from input_pipeline.common import untrusted_paths, untrusted_pickle
from input_pipeline.common.errors import InputError
from input_pipeline.masks.coco import CocoAnnotations
from input_pipeline.sources import annotated_images


@dataclasses.dataclass(frozen=True)
class Published:
  """How many refs and sentences a complete split has."""

  refs: int
  sentences: int


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where a data set lies under ROOT, and its splits."""

  folder: str
  refs_file: str
  splits: Mapping[str, Published | None]
  """None where nobody has published how many refs and sentences a split has."""


# Refs as the authors publish them (github.com/lichengunc/refer, counted by TFDS's ref_coco);
# sentences as papers report them.
LAYOUTS = {
  "refcoco_unc": Layout(
    "refcoco",
    "refs(unc).p",
    {
      "train": Published(42404, 120624),
      "val": Published(3811, 10834),
      "testA": Published(1975, 5657),
      "testB": Published(1810, 5095),
    },
  ),
  "refcoco+_unc": Layout(
    "refcoco+",
    "refs(unc).p",
    {
      "train": Published(42278, 120191),
      "val": Published(3805, 10758),
      "testA": Published(1975, 5726),
      "testB": Published(1798, 4889),
    },
  ),
  "refcocog_umd": Layout(
    "refcocog",
    "refs(umd).p",
    {
      "train": Published(42226, 80512),
      "val": Published(2573, 4896),
      "test": Published(5023, 9602),
    },
  ),
  "refcocog_google": Layout(
    "refcocog",
    "refs(google).p",
    {"train": Published(44822, 85474), "val": Published(5000, 9536)},
  ),
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One ref as its file has it, checked."""

  ref_id: int
  ann_ids: tuple[int, ...]
  """What is meant; empty where nothing is."""
  categories: tuple[int, ...]
  """Which categories the ref says that has; empty where it does not say."""
  image_id: int
  split: str
  sentences: tuple[str, ...]


class RefReader:
  """The refs of one data set, checked against their annotations.

  Attributes:
    layout: where the data set lies, and its splits.
    rows: every ref, in the file's order.
    splits: for each split that has refs, its image ids, ascending. The google split of RefCOCOg
      shares images between its splits; the others do not.
  """

  layouts: ClassVar[Mapping[str, Layout]] = LAYOUTS
  """The data sets that this class reads."""

  def __init__(self, dataset: str, refer_root: str, annotations: str | None = None):
    """Reads refs and annotations.

    Args:
      dataset: a key of LAYOUTS.
      refer_root: the folder that holds `refcoco/`, `refcoco+/` and `refcocog/`.
      annotations: the COCO file with the refs' annotations; the `instances.json` beside the refs
        by default.

    Raises:
      InputError: a file is missing or damaged, or the files do not belong together.
    """
    self.dataset, self.layout = dataset, self.layouts[dataset]
    self.refs_path, self.annotations_path = locate(self.layout, refer_root, annotations)
    loaded = self._load(self.refs_path)
    if not isinstance(loaded, list) or not loaded:
      raise InputError(f"{self.refs_path}: not a list of refs; is it another file, renamed?")
    self._annotations = CocoAnnotations(self.annotations_path)
    self.rows = [self._read_row(number, fields) for number, fields in enumerate(loaded)]
    self._check_published()
    self._check_annotations()
    self._rows_of: dict[tuple[str, int], list[Row]] = {}
    for row in self.rows:
      self._rows_of.setdefault((row.split, row.image_id), []).append(row)
    self.splits = {
      split: sorted({row.image_id for row in self.rows if row.split == split})
      for split in self.layout.splits
      if any(row.split == split for row in self.rows)
    }

  def coco_ids(self) -> dict[str, list[int]]:
    """Returns the COCO ids of the photos of each split: all photos are COCO's."""
    return self.splits

  def count(self, split: str) -> Published:
    """Returns the number of refs and sentences of a split; zeros if the file does not have it."""
    rows = [row for row in self.rows if row.split == split]
    return Published(len(rows), sum(len(row.sentences) for row in rows))

  def warning(self) -> str | None:
    """Returns how the data differs from the published data set, None where it is complete."""
    differences = [
      f"{split} {found.refs:,} / {found.sentences:,} of {expected.refs:,} / {expected.sentences:,}"
      for split, expected in self.layout.splits.items()
      if expected is not None and (found := self.count(split)) != expected
    ]
    if not differences:
      return None
    return (
      f"{self.dataset} is not the complete published data set (refs / sentences: "
      f"{'; '.join(differences)}): results will not compare with published ones"
    )

  def image_path(self, images: str, image_id: int) -> str:
    """Returns the file of an image in the folder of photos.

    The name comes from the annotations: refs name files with a suffix that no photo has.
    """
    name = (self._annotations.image(image_id) or {}).get("file_name")
    if not isinstance(name, str) or not name:
      raise InputError(f"{self.annotations_path}: image {image_id} has no file_name")
    return photo_in(images, os.path.basename(name))

  def photo(self, split: str, image_id: int, images: str) -> annotated_images.Photo:
    """Returns one photo with the refs that it has in a split.

    Args:
      split: a key of `splits`.
      image_id: one of `splits[split]`.
      images: the folder of photos.
    """
    height, width = self._annotations.size(image_id)
    refs = [self._ref(row) for row in self._rows_of[split, image_id]]
    path = self.image_path(images, image_id)
    return annotated_images.Photo(path, image_id, height, width, self.annotations_path, refs)

  def _read_row(self, number: int, fields: Any) -> Row:
    """Checks what can be checked of a ref without its annotation."""
    where = f"{self.refs_path}, ref number {number}"
    if not isinstance(fields, dict):
      raise InputError(f"{where}: a {type(fields).__name__} instead of a dict; is it another file?")
    for key in ("ref_id", "image_id"):
      _check_whole(where, key, fields.get(key))
    ann_ids, categories = self._ids(where, fields)
    where = f"{self.refs_path}, ref {fields['ref_id']}"
    allowed = self.layout.splits
    split = fields.get("split")
    if not isinstance(split, str) or split not in allowed:
      raise InputError(
        f"{where}: split {reprlib.repr(split)}, but {self.dataset} has {', '.join(allowed)}; "
        "is this the refs file of another data set?"
      )
    sentences = fields.get("sentences")
    if not isinstance(sentences, list) or not sentences:
      raise InputError(f"{where}: no sentences; every ref needs one")
    texts = tuple(_sentence(where, index, row) for index, row in enumerate(sentences))
    return Row(fields["ref_id"], ann_ids, categories, fields["image_id"], split, texts)

  def _load(self, path: str) -> Any:
    """The content of the refs file."""
    return untrusted_pickle.load(path)

  def _ids(self, where: str, fields: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The annotations that a ref means, and the categories that it says they have."""
    _check_whole(where, "ann_id", fields.get("ann_id"))
    if "category_id" not in fields:
      return (fields["ann_id"],), ()
    _check_whole(where, "category_id", fields["category_id"])
    return (fields["ann_id"],), (fields["category_id"],)

  def _ref(self, row: Row) -> dict[str, Any]:
    """A ref as `annotated_images.Photo` has it; the union of its annotations is the target."""
    meant = self._meant(row)
    return {
      "ref_id": row.ref_id,
      "ann_ids": [annotation["id"] for annotation in meant],
      "segmentations": [annotation.get("segmentation") for annotation in meant],
      "sentences": list(row.sentences),
    }

  def _meant(self, row: Row) -> list[dict[str, Any]]:
    """The annotations of a ref."""
    return [self._annotations.annotation(ann_id) or {"id": ann_id} for ann_id in row.ann_ids]

  def _check_annotations(self) -> None:
    """Checks that each ref means annotations of its own image and categories, and is there once."""
    pairs = [
      (row, ann_id, self._annotations.annotation(ann_id))
      for row in self.rows
      for ann_id in row.ann_ids
    ]
    missing = [(row, ann_id) for row, ann_id, found in pairs if found is None]
    if missing:
      row, ann_id = missing[0]
      raise InputError(
        f"{self.refs_path}, ref {row.ref_id}: ann_id {ann_id} is not in "
        f"{self.annotations_path} ({len({row.ref_id for row, _ in missing})} of {len(self.rows)} refs are not); do the "
        "two files belong together? If another COCO file has these annotations, name it with --annotations FILE"
      )
    for row, ann_id, annotation in pairs:
      assert annotation is not None
      self._check_annotation(row, ann_id, annotation)
    seen: set[int] = set()
    for row in self.rows:
      if self._annotations.image(row.image_id) is None:
        raise InputError(
          f"{self.refs_path}, ref {row.ref_id}: image {row.image_id} is not among the images of "
          f"{self.annotations_path}; is that file complete?"
        )
      if row.ref_id in seen:
        raise InputError(f"{self.refs_path}: ref {row.ref_id} is there twice; is the file damaged?")
      seen.add(row.ref_id)

  def _check_annotation(self, row: Row, ann_id: int, annotation: dict[str, Any]) -> None:
    said = {"image_id": (row.image_id,), "category_id": row.categories}
    for key, values in said.items():
      if values and annotation.get(key) not in values:
        raise InputError(
          f"{self.refs_path}, ref {row.ref_id}: {key} {', '.join(map(str, values))}, but its annotation "
          f"{ann_id} has {annotation.get(key)} in {self.annotations_path}; do the two files "
          "belong together?"
        )

  def _check_published(self) -> None:
    """Recognises the complete refs of another data set: RefCOCO and RefCOCO+ share annotations."""
    for other, layout in self.layouts.items():
      same = [self.count(split) == expected for split, expected in layout.splits.items()]
      if other != self.dataset and all(same):
        raise InputError(
          f"{self.refs_path}: these are the refs of {other}, not of {self.dataset}; were the "
          "folders exchanged?"
        )


def locate(layout: Layout, refer_root: str, annotations: str | None) -> tuple[str, str]:
  """Returns the paths of the refs and of their annotations.

  Raises:
    InputError: the folder or a file is not there.
  """
  folder = os.path.join(refer_root, layout.folder)
  refs = os.path.join(folder, layout.refs_file)
  instances = annotations or os.path.join(folder, "instances.json")
  if not os.path.isdir(folder):
    raise InputError(
      f"--refer_root {refer_root}: there is no folder {layout.folder} in it; docs/guides/datasets.md says "
      "where to get it and what goes where"
    )
  for path in (refs, instances):
    if not os.path.isfile(path):
      raise InputError(f"{path}: no such file; docs/guides/datasets.md says where to get it")
  return refs, instances


def photo_in(images: str, name: str) -> str:
  """Returns the file of a photo, in the folder of photos.

  Raises:
    InputError: it is a link to a file somewhere else.
  """
  untrusted_paths.inside(images, name, f"--images {images}: photo")
  return os.path.join(images, name)


def is_whole(value: Any) -> bool:
  """Whether a value is a whole number, and one that records can hold: 64 bits."""
  return type(value) is int and -(1 << 63) <= value < 1 << 63


def _check_whole(where: str, key: str, value: Any) -> None:
  if not is_whole(value):
    raise InputError(
      f"{where}: {key} is {reprlib.repr(value)}, not a whole number; is this a refs file of "
      "another project (gRefCOCO has several ann_id a ref)?"
    )


def _sentence(where: str, index: int, fields: Any) -> str:
  """Returns a sentence as it was written, or as the authors cleaned it if only that is given."""
  if not isinstance(fields, dict):
    raise InputError(f"{where}, sentence {index}: a {type(fields).__name__} instead of a dict")
  text = fields.get("raw") or fields.get("sent") or ""
  try:
    preprocess.normalise_text(text)
  except (InputError, TypeError, AttributeError) as error:
    raise InputError(
      f"{where}, sentence {index} (sent_id {reprlib.repr(fields.get('sent_id'))}): the sentence is empty or no "
      "text; correct it or remove it from the file"
    ) from error
  return text
