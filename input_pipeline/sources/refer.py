"""Reads RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO, and others laid out as github.com/lichengunc/refer.

The files are `ROOT/refcoco/refs(unc).p` and `ROOT/refcoco/instances.json`, likewise for `refcoco+`,
`refcocog` and `grefcoco`; the images are COCO train2014. Any other data set in this layout is given
by the path of its folder. Everything is checked before anything is written; an inconsistency is an
`InputError` that names the ref.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.common import buckets, image_names, places
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted
from input_pipeline.masks.coco import CocoAnnotations
from input_pipeline.sources import refs_file
from input_pipeline.sources.annotated_images import AnnotatedImage, ImageFinder
from input_pipeline.sources.refs_file import Id, Row

PREFIX = "refer:"
"""Prefix of `--dataset` for a data set given by path."""

_PATH = re.compile(r"refer:(?P<folder>.+):(?P<split_by>[^:/\\]+)")
_REFS_FILE = re.compile(r"g?refs\(.+\)\.(p|json)")


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
  """As published by the authors; pickles and JSON are both read."""
  splits: Mapping[str, Published | None] | None
  """Counts of each split, None if not published; None instead allows any splits."""
  generalised: bool = False
  """Whether a ref may have several annotations or none."""
  crowds: bool = True
  """Whether crowds are part of a target; the toolkit of gRefCOCO's authors leaves them out."""


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
  # The authors only publish the total number of expressions, 259,859 (arXiv 2601.05244).
  "grefcoco_unc": Layout(
    "grefcoco",
    "grefs(unc).json",
    dict.fromkeys(("train", "val", "testA", "testB")),
    generalised=True,
    crowds=False,
  ),
}


def parse_path(dataset: str) -> tuple[str, str]:
  """Returns the folder and SPLITBY of `refer:FOLDER:SPLITBY`.

  Raises:
    InputError: the value has another form.
  """
  match = _PATH.fullmatch(dataset)
  if match is None:
    folder = dataset.removeprefix(PREFIX)
    there = _instead(folder) if os.path.isdir(folder) else ""
    raise InputError(
      f"--dataset {dataset}: expected refer:FOLDER:SPLITBY for FOLDER/refs(SPLITBY).p, such as "
      f"refer:refer/rrsisd:unc{there}"
    )
  return match["folder"], match["split_by"]


def default_name(dataset: str) -> str:
  """Returns the name of `refer:FOLDER:SPLITBY` for other commands, such as rrsisd_unc."""
  folder, split_by = parse_path(dataset)
  return re.sub(
    r"\W", "_", f"{os.path.basename(places.absolute(folder))}_{split_by}", flags=re.ASCII
  )


def layout_of(split_by: str) -> Layout:
  """Returns the layout of a data set given by path."""
  return Layout("", f"refs({split_by}).p", None, generalised=True)


class RefReader:
  """The refs of one data set, checked against their annotations.

  Attributes:
    layout: files of the data set, and its splits.
    rows: every ref, in the file's order.
    splits: for each split with refs, its image ids, ascending. The splits of refcocog_google share
      images; those of the others do not.
  """

  def __init__(
    self,
    dataset: str,
    refer_root: str,
    annotations: str | None = None,
    layout: Layout | None = None,
  ):
    """Reads refs and annotations.

    Args:
      dataset: a key of LAYOUTS, or the name of another data set.
      refer_root: the folder that contains `refcoco/`, `refcoco+/` and so on.
      annotations: the COCO file with the refs' annotations; by default the `instances.json` beside
        the refs.
      layout: of a data set not in LAYOUTS.

    Raises:
      InputError: a file is missing or damaged, or the files do not belong together.
    """
    self.dataset, self.layout = dataset, layout or LAYOUTS[dataset]
    self.refs_path, self.annotations_path = locate(self.layout, refer_root, annotations)
    rules = refs_file.Rules(dataset, self.layout.splits, self.layout.generalised)
    self._refs = refs_file.read(self.refs_path, rules)
    self._annotations = CocoAnnotations(self.annotations_path)
    self.rows = self._refs.rows
    self._other_categories: list[int] = []
    self._with_crowds: list[int] = []
    self._check_published()
    self._check_annotations()
    if not self.layout.crowds:
      self._leave_out_crowds()
    self._rows_of: dict[tuple[str, int], list[Row]] = {}
    for row in self.rows:
      self._rows_of.setdefault((row.split, row.image_id), []).append(row)
    self.splits = {
      split: sorted({row.image_id for row in self.rows if row.split == split})
      for split in self.layout.splits or sorted({row.split for row in self.rows})
      if any(row.split == split for row in self.rows)
    }
    self._finder = ImageFinder()

  def coco_ids(self) -> dict[str, dict[int, int]]:
    """Returns, for each split, image id -> COCO id of the images that are COCO's.

    Those of the published data sets all are; of others, those with COCO's file names.
    """
    all_of_coco = self.layout.splits is not None
    numbers = {
      image_id: image_names.coco_number(self._name(image_id)) or (image_id if all_of_coco else None)
      for image_id in {row.image_id for row in self.rows}
    }
    return {
      split: {i: number for i in image_ids if (number := numbers[i]) is not None}
      for split, image_ids in self.splits.items()
    }

  def count(self, split: str) -> Published:
    """Returns the number of refs and expressions of a split; zeros if the file does not have it."""
    rows = [row for row in self.rows if row.split == split]
    return Published(len(rows), sum(len(row.sentences) for row in rows))

  def warnings(self) -> list[str]:
    """Returns warnings about unusual data, one line per kind."""
    lines = [self.difference(), *map(self._describe_left_out, self._refs.left_out)]
    if others := find_refs(self.layout, os.path.dirname(self.refs_path))[1:]:
      lines.append(f"{others[0]} not read, since {self.refs_path} exists as well")
    if divided := self._refs.divided:
      lines.append(
        f"{self.refs_path}: {counted(len(divided), 'ref')} ({examples(divided)}) with sentences "
        "both with and without a target; the latter became separate refs with id -1 - ref_id"
      )
    if crowds := self._with_crowds:
      lines.append(
        f"{self.refs_path}: {counted(len(crowds), 'ref')} ({examples(crowds)}) with crowds, which "
        "were left out of the targets as in the authors' toolkit"
      )
    if others := self._other_categories:
      lines.append(
        f"{self.refs_path}: {counted(len(others), 'ref')} ({examples(others)}) with a category_id "
        f"other than that of the annotation in {self.annotations_path}"
      )
    return [line for line in lines if line]

  def more_metadata(self) -> dict[str, Any]:
    """Returns further metadata: refs without a target per split, and refs left out."""
    empty = [row.split for row in self.rows if not row.ann_ids]
    no_targets = {split: empty.count(split) for split in self.splits}
    left_out = self._refs.left_out
    return {"no_targets": no_targets} | ({"left_out": left_out} if left_out else {})

  def image_path(self, images: str, image_id: int) -> str:
    """Returns the path of an image in the folder of images.

    The name comes from the annotations: names in refs have a suffix that file names lack.

    Raises:
      InputError: the image is missing or ambiguous.
    """
    return self._finder.path(images, self._name(image_id))

  def annotated_image(self, split: str, image_id: int, images: str) -> AnnotatedImage:
    """Returns an image with its refs in a split.

    Args:
      split: a key of `splits`.
      image_id: one of `splits[split]`.
      images: the folder of images.
    """
    path, error = self._finder.try_path(images, self._name(image_id))
    size = self._annotations.size(image_id)
    refs = [self._ref(row) for row in self._rows_of[split, image_id]]
    return AnnotatedImage(path, image_id, *size, self.annotations_path, refs, error=error)

  def _name(self, image_id: int) -> str:
    name = image_names.name_of_row(self._annotations.image(image_id) or {})
    if name is None:
      raise InputError(f"{self.annotations_path}: image {image_id} has no file_name")
    return name

  def difference(self) -> str:
    """Returns the differences from the published data set; empty if there are none."""
    differences = [
      f"{split} {actual.refs:,} / {actual.expressions:,} of {published.refs:,} / "
      f"{published.expressions:,}"
      for split, published in (self.layout.splits or {}).items()
      if published is not None and (actual := self.count(split)) != published
    ]
    if not differences:
      return ""
    return (
      f"{self.dataset} is not the complete published data set (refs / expressions: "
      f"{'; '.join(differences)}): results are not comparable with published ones"
    )

  def _describe_left_out(self, what: str) -> str:
    ref_ids = self._refs.left_out[what]
    return f"{self.refs_path}: left out {what}: {len(ref_ids):,} ({examples(ref_ids)})"

  def _ref(self, row: Row) -> dict[str, Any]:
    """Returns a ref as in `AnnotatedImage.refs`."""
    annotations = self._target_annotations(row)
    return {
      "ref_id": row.ref_id,
      "ann_ids": [_integer_id(annotation["id"]) for annotation in annotations],
      "segmentations": [annotation.get("segmentation") for annotation in annotations],
      "sentences": list(row.sentences),
    }

  def _target_annotations(self, row: Row) -> list[dict[str, Any]]:
    """Returns the annotations that form the target of a ref."""
    named = [self._annotations.annotation(ann_id) or {"id": ann_id} for ann_id in row.ann_ids]
    return [annotation for annotation in named if not self._is_left_out(annotation)]

  def _is_left_out(self, annotation: dict[str, Any]) -> bool:
    return not self.layout.crowds and self._annotations.is_crowd(annotation)

  def _leave_out_crowds(self) -> None:
    """Leaves out refs to crowds only, and records other refs with crowds."""
    kept = []
    for row in self.rows:
      objects = len(self._target_annotations(row))
      if row.ann_ids and not objects:
        self._refs.left_out.setdefault("refs to crowds only", []).append(row.ref_id)
        continue
      if objects < len(row.ann_ids):
        self._with_crowds.append(row.ref_id)
      kept.append(row)
    self.rows = kept

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

  def _check_annotation(self, row: Row, ann_id: Id, annotation: dict[str, Any]) -> None:
    allowed = {"image_id": (row.image_id,), "category_id": row.categories}
    for key, values in allowed.items():
      if values and annotation.get(key) not in values:
        if key == "category_id" and self.layout.splits is None:
          self._other_categories.append(row.ref_id)
          continue
        raise InputError(
          f"{self.refs_path}, ref {row.ref_id}: {key} {', '.join(map(str, values))}, but its "
          f"annotation {ann_id} has {annotation.get(key)} in {self.annotations_path}; do the two "
          "files belong together?"
        )

  def _check_published(self) -> None:
    """Detects the complete refs of another data set: RefCOCO and RefCOCO+ share annotations."""
    if self.layout.splits is None:
      return
    for other, layout in LAYOUTS.items():
      published = (layout.splits or {}).items()
      same = [self.count(split) == numbers for split, numbers in published]
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
  if not places.is_folder(folder) and not layout.folder:
    raise InputError(f"--dataset: {refer_root}: no such folder")
  if not places.is_folder(folder):
    raise InputError(
      f"--refer_root {refer_root}: contains no folder {layout.folder}; docs/guides/datasets.md "
      "says where to get it and what goes where"
    )
  refs = [*find_refs(layout, folder), os.path.join(folder, layout.refs_file)][0]
  instances = annotations or os.path.join(folder, "instances.json")
  for path in (refs, instances):
    if not places.is_file(path):
      raise InputError(
        f"{path}: no such file{_instead(folder)}; docs/guides/datasets.md says where to get it"
      )
  return refs, instances


def find_refs(layout: Layout, folder: str) -> list[str]:
  """Returns the existing refs files: in the published format, then in the other one."""
  stem, extension = os.path.splitext(layout.refs_file)
  names = [layout.refs_file, stem + {".p": ".json", ".json": ".p"}[extension]]
  if layout.splits is None:
    names += [f"g{name}" for name in names]
  paths = [os.path.join(folder, name) for name in names]
  return [path for path in paths if places.is_file(path)]


def _instead(folder: str) -> str:
  """Returns a hint about the refs files in a folder."""
  names = [] if buckets.is_remote(folder) else sorted(os.listdir(folder))
  names = [name for name in names if _REFS_FILE.fullmatch(name)]
  return f" (found {' and '.join(names)})" if names else ""


def examples(ref_ids: Sequence[int]) -> str:
  """Returns a few ref ids for messages."""
  few = ", ".join(map(str, sorted(set(ref_ids))[:3]))
  return f"ref {few}{' and others' * (len(set(ref_ids)) > 3)}"


def _integer_id(ann_id: Id) -> int:
  """Returns the id of an annotation as stored in records; text, as in RefClef, is hashed."""
  if isinstance(ann_id, int):
    return ann_id
  return int.from_bytes(hashlib.blake2b(ann_id.encode(), digest_size=8).digest()) >> 1
