"""RefCOCO, RefCOCO+ and RefCOCOg in the layout of github.com/lichengunc/refer.

The files are `ROOT/refcoco/refs(unc).p` and `ROOT/refcoco/instances.json`, likewise for `refcoco+`
and `refcocog`; the images are COCO train2014. Everything is checked before anything is written; an
inconsistency is an `InputError` that names the ref.
"""

import dataclasses
import os
import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar

from input_pipeline import preprocess
from input_pipeline.common import untrusted_files, untrusted_pickle
from input_pipeline.common.errors import InputError
from input_pipeline.masks.coco import CocoAnnotations
from input_pipeline.sources.annotated_images import AnnotatedImage


@dataclasses.dataclass(frozen=True)
class Published:
  """Numbers of refs and expressions in a complete split."""

  refs: int
  expressions: int


@dataclasses.dataclass(frozen=True)
class Layout:
  """Files of a data set under ROOT, and its splits."""

  folder: str
  refs_file: str
  splits: Mapping[str, Published | None]
  """None if the numbers are not published."""


# Refs as the authors publish them (github.com/lichengunc/refer, counted by TFDS's ref_coco);
# expressions as papers report them.
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
  """A ref as in its file, checked."""

  ref_id: int
  ann_ids: tuple[int, ...]
  """Annotations that form the target; empty without a target."""
  categories: tuple[int, ...]
  """Their categories according to the ref; empty if it has none."""
  image_id: int
  split: str
  sentences: tuple[str, ...]


class RefReader:
  """The refs of one data set, checked against their annotations.

  Attributes:
    layout: files of the data set, and its splits.
    rows: every ref, in the file's order.
    splits: for each split with refs, its image ids, ascending. The splits of refcocog_google share
      images; those of the others do not.
  """

  layouts: ClassVar[Mapping[str, Layout]] = LAYOUTS
  """Data sets that this class reads."""

  def __init__(self, dataset: str, refer_root: str, annotations: str | None = None):
    """Reads refs and annotations.

    Args:
      dataset: a key of LAYOUTS.
      refer_root: the folder that contains `refcoco/`, `refcoco+/` and `refcocog/`.
      annotations: the COCO file with the refs' annotations; by default the `instances.json` beside
        the refs.

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

  def coco_ids(self) -> dict[str, dict[int, int]]:
    """Returns, for each split, image id -> COCO id: all images are COCO's."""
    return {split: {i: i for i in image_ids} for split, image_ids in self.splits.items()}

  def count(self, split: str) -> Published:
    """Returns the number of refs and expressions of a split; zeros if the file does not have it."""
    rows = [row for row in self.rows if row.split == split]
    return Published(len(rows), sum(len(row.sentences) for row in rows))

  def warning(self) -> str | None:
    """Returns how the data differs from the published data set; None if it does not."""
    differences = [
      f"{split} {actual.refs:,} / {actual.expressions:,} of {published.refs:,} / "
      f"{published.expressions:,}"
      for split, published in self.layout.splits.items()
      if published is not None and (actual := self.count(split)) != published
    ]
    if not differences:
      return None
    return (
      f"{self.dataset} is not the complete published data set (refs / expressions: "
      f"{'; '.join(differences)}): results are not comparable with published ones"
    )

  def image_path(self, images: str, image_id: int) -> str:
    """Returns the path of an image in the folder of images.

    The name comes from the annotations: the names in refs have a suffix that files do not have.
    """
    name = (self._annotations.image(image_id) or {}).get("file_name")
    if not isinstance(name, str) or not name:
      raise InputError(f"{self.annotations_path}: image {image_id} has no file_name")
    return image_in(images, os.path.basename(name))

  def annotated_image(self, split: str, image_id: int, images: str) -> AnnotatedImage:
    """Returns an image with its refs in a split.

    Args:
      split: a key of `splits`.
      image_id: one of `splits[split]`.
      images: the folder of images.
    """
    height, width = self._annotations.size(image_id)
    refs = [self._ref(row) for row in self._rows_of[split, image_id]]
    path = self.image_path(images, image_id)
    return AnnotatedImage(path, image_id, height, width, self.annotations_path, refs)

  def _read_row(self, number: int, fields: Any) -> Row:
    """Checks a ref, except for its annotations."""
    where = f"{self.refs_path}, ref number {number}"
    if not isinstance(fields, dict):
      raise InputError(
        f"{where}: expected a dict, got {type(fields).__name__}; is it another file?"
      )
    for key in ("ref_id", "image_id"):
      _check_int64(where, key, fields.get(key))
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
    expressions = tuple(_expression(where, index, row) for index, row in enumerate(sentences))
    return Row(fields["ref_id"], ann_ids, categories, fields["image_id"], split, expressions)

  def _load(self, path: str) -> Any:
    """Returns the content of the refs file."""
    return untrusted_pickle.load(path)

  def _ids(self, where: str, fields: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the annotations that form the target, and their categories according to the ref."""
    _check_int64(where, "ann_id", fields.get("ann_id"))
    if "category_id" not in fields:
      return (fields["ann_id"],), ()
    _check_int64(where, "category_id", fields["category_id"])
    return (fields["ann_id"],), (fields["category_id"],)

  def _ref(self, row: Row) -> dict[str, Any]:
    """Returns a ref as in `AnnotatedImage.refs`."""
    annotations = self._target_annotations(row)
    return {
      "ref_id": row.ref_id,
      "ann_ids": [annotation["id"] for annotation in annotations],
      "segmentations": [annotation.get("segmentation") for annotation in annotations],
      "sentences": list(row.sentences),
    }

  def _target_annotations(self, row: Row) -> list[dict[str, Any]]:
    """Returns the annotations that form the target of a ref."""
    return [self._annotations.annotation(ann_id) or {"id": ann_id} for ann_id in row.ann_ids]

  def _check_annotations(self) -> None:
    """Checks that annotations match their ref's image and categories, and that ids are unique."""
    pairs = [
      (row, ann_id, self._annotations.annotation(ann_id))
      for row in self.rows
      for ann_id in row.ann_ids
    ]
    missing = [(row, ann_id) for row, ann_id, annotation in pairs if annotation is None]
    if missing:
      row, ann_id = missing[0]
      count = len({row.ref_id for row, _ in missing})
      raise InputError(
        f"{self.refs_path}, ref {row.ref_id}: ann_id {ann_id} is not in {self.annotations_path} "
        f"(this concerns {count} of {len(self.rows)} refs); do the two files belong together? If "
        "another COCO file has these annotations, name it with --annotations FILE"
      )
    for row, ann_id, annotation in pairs:
      assert annotation is not None
      self._check_annotation(row, ann_id, annotation)
    seen: set[int] = set()
    for row in self.rows:
      if self._annotations.image(row.image_id) is None:
        raise InputError(
          f"{self.refs_path}, ref {row.ref_id}: image {row.image_id} is not in "
          f"{self.annotations_path}; is that file complete?"
        )
      if row.ref_id in seen:
        raise InputError(f"{self.refs_path}: duplicate ref {row.ref_id}; is the file damaged?")
      seen.add(row.ref_id)

  def _check_annotation(self, row: Row, ann_id: int, annotation: dict[str, Any]) -> None:
    allowed = {"image_id": (row.image_id,), "category_id": row.categories}
    for key, values in allowed.items():
      if values and annotation.get(key) not in values:
        raise InputError(
          f"{self.refs_path}, ref {row.ref_id}: {key} {', '.join(map(str, values))}, but its "
          f"annotation {ann_id} has {annotation.get(key)} in {self.annotations_path}; do the two "
          "files belong together?"
        )

  def _check_published(self) -> None:
    """Detects the complete refs of another data set: RefCOCO and RefCOCO+ share annotations."""
    for other, layout in self.layouts.items():
      same = [self.count(split) == published for split, published in layout.splits.items()]
      if other != self.dataset and all(same):
        raise InputError(
          f"{self.refs_path}: these are the refs of {other}, not of {self.dataset}; were the "
          "folders swapped?"
        )


def locate(layout: Layout, refer_root: str, annotations: str | None) -> tuple[str, str]:
  """Returns the paths of the refs and of their annotations.

  Raises:
    InputError: the folder or a file does not exist.
  """
  folder = os.path.join(refer_root, layout.folder)
  refs = os.path.join(folder, layout.refs_file)
  instances = annotations or os.path.join(folder, "instances.json")
  if not os.path.isdir(folder):
    raise InputError(
      f"--refer_root {refer_root}: contains no folder {layout.folder}; docs/guides/datasets.md "
      "says where to get it and what goes where"
    )
  for path in (refs, instances):
    if not os.path.isfile(path):
      raise InputError(f"{path}: no such file; docs/guides/datasets.md says where to get it")
  return refs, instances


def image_in(images: str, name: str) -> str:
  """Returns the path of an image in the folder of images.

  Raises:
    InputError: it is a link to a file outside the folder.
  """
  untrusted_files.resolve_inside(images, name, f"--images {images}: image")
  return os.path.join(images, name)


def is_int64(value: Any) -> bool:
  """Returns whether a value is an integer of 64 bits, as records store it."""
  return type(value) is int and -(1 << 63) <= value < 1 << 63


def _check_int64(where: str, key: str, value: Any) -> None:
  if not is_int64(value):
    raise InputError(
      f"{where}: {key} is {reprlib.repr(value)}, not an integer; is this a refs file of another "
      "project (gRefCOCO has several ann_id per ref)?"
    )


def _expression(where: str, index: int, fields: Any) -> str:
  """Returns an expression as it was written or, if missing, as the authors cleaned it."""
  if not isinstance(fields, dict):
    raise InputError(f"{where}, sentence {index}: expected a dict, got {type(fields).__name__}")
  text = fields.get("raw") or fields.get("sent") or ""
  try:
    preprocess.normalise_text(text)
  except (InputError, TypeError, AttributeError) as error:
    raise InputError(
      f"{where}, sentence {index} (sent_id {reprlib.repr(fields.get('sent_id'))}): empty or not a "
      "string; correct it or remove it from the file"
    ) from error
  return text
