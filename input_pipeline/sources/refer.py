"""RefCOCO, RefCOCO+ and RefCOCOg in the layout of github.com/lichengunc/refer.

`ROOT/refcoco/refs(unc).p` and `ROOT/refcoco/instances.json`, and so on for `refcoco+` and
`refcocog`; photos are COCO train2014. Everything is checked before anything is written: what does
not fit together is an `InputError` that names the ref.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from input_pipeline import preprocess
from input_pipeline.coco_annotations import CocoAnnotations
from input_pipeline.errors import InputError
from input_pipeline.sources import Task, photos, plain_pickle

BATCH_SIZE = 4
"""Photos that a provider of instances gets at once, unless someone says otherwise."""


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
  splits: Mapping[str, Published]


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
  ann_id: int
  image_id: int
  split: str
  sentences: tuple[str, ...]


class RefReader:
  """The refs of one data set, checked against their annotations.

  Attributes:
    rows: every ref, in the file's order.
    splits: for each split that has refs, its image ids, ascending. The google split of RefCOCOg
      shares images between its splits; the others do not.
  """

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
    self.dataset = dataset
    self.refs_path, self.annotations_path = locate(dataset, refer_root, annotations)
    loaded = plain_pickle.load(self.refs_path)
    if not isinstance(loaded, list) or not loaded:
      raise InputError(f"{self.refs_path}: not a list of refs; is it another file, renamed?")
    self._annotations = CocoAnnotations(self.annotations_path)
    self.rows = [self._read_row(number, fields) for number, fields in enumerate(loaded)]
    self._check_published()
    self._check_annotations(loaded)
    self._rows_of: dict[tuple[str, int], list[Row]] = {}
    for row in self.rows:
      self._rows_of.setdefault((row.split, row.image_id), []).append(row)
    self.splits = {
      split: sorted({row.image_id for row in self.rows if row.split == split})
      for split in LAYOUTS[dataset].splits
      if any(row.split == split for row in self.rows)
    }

  def count(self, split: str) -> Published:
    """Returns the number of refs and sentences of a split; zeros if the file does not have it."""
    rows = [row for row in self.rows if row.split == split]
    return Published(len(rows), sum(len(row.sentences) for row in rows))

  def warning(self) -> str | None:
    """Returns how the data differs from the published data set, None where it is complete."""
    published = LAYOUTS[self.dataset].splits
    differences = [
      f"{split} {found.refs:,} / {found.sentences:,} of {expected.refs:,} / {expected.sentences:,}"
      for split, expected in published.items()
      if (found := self.count(split)) != expected
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
    return os.path.join(images, os.path.basename(name))

  def photo(self, split: str, image_id: int, images: str) -> photos.Photo:
    """Returns one photo with the refs that it has in a split.

    Args:
      split: a key of `splits`.
      image_id: one of `splits[split]`.
      images: the folder of photos.
    """
    height, width = self._annotations.size(image_id)
    refs = [
      {
        "ref_id": row.ref_id,
        "ann_ids": [row.ann_id],
        "segmentations": [(self._annotations.annotation(row.ann_id) or {}).get("segmentation")],
        "sentences": list(row.sentences),
      }
      for row in self._rows_of[split, image_id]
    ]
    path = self.image_path(images, image_id)
    return photos.Photo(path, image_id, height, width, self.annotations_path, refs)

  def _read_row(self, number: int, fields: Any) -> Row:
    """Checks what can be checked of a ref without its annotation."""
    where = f"{self.refs_path}, ref number {number}"
    if not isinstance(fields, dict):
      raise InputError(f"{where}: a {type(fields).__name__} instead of a dict; is it another file?")
    for key in ("ref_id", "ann_id", "image_id"):
      if type(fields.get(key)) is not int:
        raise InputError(
          f"{where}: {key} is {fields.get(key)!r}, not a whole number; is this a refs file of "
          "another project (gRefCOCO has several ann_id a ref)?"
        )
    where = f"{self.refs_path}, ref {fields['ref_id']}"
    allowed = LAYOUTS[self.dataset].splits
    if fields.get("split") not in allowed:
      raise InputError(
        f"{where}: split {fields.get('split')!r}, but {self.dataset} has {', '.join(allowed)}; "
        "is this the refs file of another data set?"
      )
    sentences = fields.get("sentences")
    if not isinstance(sentences, list) or not sentences:
      raise InputError(f"{where}: no sentences; every ref needs one")
    texts = tuple(_sentence(where, index, row) for index, row in enumerate(sentences))
    return Row(fields["ref_id"], fields["ann_id"], fields["image_id"], fields["split"], texts)

  def _check_annotations(self, loaded: list[dict[str, Any]]) -> None:
    """Checks that each ref means an annotation of its own image and category, and is there once."""
    of_refs = [self._annotations.annotation(row.ann_id) for row in self.rows]
    missing = [row for row, found in zip(self.rows, of_refs, strict=True) if found is None]
    if missing:
      raise InputError(
        f"{self.refs_path}, ref {missing[0].ref_id}: ann_id {missing[0].ann_id} is not in "
        f"{self.annotations_path} ({len(missing)} of {len(self.rows)} refs are not); do the two "
        "files belong together? If another COCO file has these annotations, name it with "
        "--annotations FILE"
      )
    seen: set[int] = set()
    for row, fields, annotation in zip(self.rows, loaded, of_refs, strict=True):
      assert annotation is not None
      for key in ("image_id", "category_id"):
        if key in fields and fields[key] != annotation.get(key):
          raise InputError(
            f"{self.refs_path}, ref {row.ref_id}: {key} {fields[key]}, but its annotation "
            f"{row.ann_id} has {annotation.get(key)} in {self.annotations_path}; do the two files "
            "belong together?"
          )
      if self._annotations.image(row.image_id) is None:
        raise InputError(
          f"{self.refs_path}, ref {row.ref_id}: image {row.image_id} is not among the images of "
          f"{self.annotations_path}; is that file complete?"
        )
      if row.ref_id in seen:
        raise InputError(f"{self.refs_path}: ref {row.ref_id} is there twice; is the file damaged?")
      seen.add(row.ref_id)

  def _check_published(self) -> None:
    """Recognises the complete refs of another data set: RefCOCO and RefCOCO+ share annotations."""
    for other, layout in LAYOUTS.items():
      same = [self.count(split) == expected for split, expected in layout.splits.items()]
      if other != self.dataset and all(same):
        raise InputError(
          f"{self.refs_path}: these are the refs of {other}, not of {self.dataset}; were the "
          "folders exchanged?"
        )


def locate(dataset: str, refer_root: str, annotations: str | None) -> tuple[str, str]:
  """Returns the paths of the refs and of their annotations.

  Raises:
    InputError: the folder or a file is not there.
  """
  layout = LAYOUTS[dataset]
  folder = os.path.join(refer_root, layout.folder)
  refs = os.path.join(folder, layout.refs_file)
  instances = annotations or os.path.join(folder, "instances.json")
  if not os.path.isdir(folder):
    raise InputError(
      f"--refer_root {refer_root}: there is no folder {layout.folder} in it; docs/data.md says "
      f"where to get {dataset} and what goes where"
    )
  for path in (refs, instances):
    if not os.path.isfile(path):
      raise InputError(f"{path}: no such file; docs/data.md says where to get {dataset}")
  return refs, instances


def _sentence(where: str, index: int, fields: Any) -> str:
  """Returns a sentence as it was written, or as the authors cleaned it if only that is given."""
  if not isinstance(fields, dict):
    raise InputError(f"{where}, sentence {index}: a {type(fields).__name__} instead of a dict")
  text = fields.get("raw") or fields.get("sent") or ""
  try:
    preprocess.normalise_text(text)
  except (InputError, TypeError, AttributeError) as error:
    raise InputError(
      f"{where}, sentence {index} (sent_id {fields.get('sent_id')}): the sentence is empty or no "
      "text; correct it or remove it from the file"
    ) from error
  return text


class ReferSet:
  """A data set of the RefCOCO family as a source of examples, one an image and split."""

  def __init__(
    self,
    reader: RefReader,
    images: str,
    make: photos.PhotoMaker,
    provenance: dict[str, Any],
    workers: int = 1,
    batch_size: int = BATCH_SIZE,
  ):
    """Checks that every photo is there, so that a missing one is found in a second.

    Args:
      reader: the refs.
      images: the folder of photos.
      make: what makes examples of them.
      provenance: where its instance masks come from, `leakage.provenance`.
      workers: number of processes.
      batch_size: photos that the provider of instances gets at once.

    Raises:
      InputError: the folder or, unless `make.skip` is on, a photo is missing.
    """
    if not os.path.isdir(images):
      raise InputError(f"--images {images}: no such folder; docs/data.md says what goes where")
    self._reader, self._images, self._batch_size = reader, images, batch_size
    self.make, self.provenance, self.workers = make, provenance, workers
    self.splits = {split: len(image_ids) for split, image_ids in reader.splits.items()}
    if not make.skip:
      self._check_photos()

  def _check_photos(self) -> None:
    needed = sorted({image_id for ids in self._reader.splits.values() for image_id in ids})
    missing = [
      path
      for path in (self._reader.image_path(self._images, image_id) for image_id in needed)
      if not os.path.isfile(path)
    ]
    if missing:
      raise InputError(
        f"image {missing[0]}: no such file ({len(missing):,} of {len(needed):,} images are "
        "missing); --images names the folder of the COCO train2014 photos"
      )

  def tasks(self, split: str) -> Iterator[Task]:
    """Yields the photos of a split, ordered by image id."""
    image_ids = self._reader.splits[split]
    for first in range(0, len(image_ids), self._batch_size):
      batch = image_ids[first : first + self._batch_size]
      found = [self._reader.photo(split, image_id, self._images) for image_id in batch]
      yield {"photos": [dict(vars(photo)) for photo in found]}
