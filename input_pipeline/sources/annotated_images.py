"""Converts annotated images to records, in the worker processes of `prepare`."""

import collections
import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from input_pipeline import preprocess, records
from input_pipeline.common import buckets, places, untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.common.image_names import ImageFolder
from input_pipeline.custom import image_files, masks
from input_pipeline.image_hashes import hash_image
from input_pipeline.masks.coco import CocoAnnotations
from input_pipeline.masks.segmentation import (
  EmptySegmentation,
  decode_phrasecut,
  read_segmentation,
)
from input_pipeline.proposers import custom, folds
from input_pipeline.proposers.registry import (
  NO_MASKS,
  SelectingProposer,
  UnknownImage,
  check_turn,
  open_proposer,
)
from input_pipeline.proposers.selection import Selection
from input_pipeline.sources.source import SkippedImage, Task, TaskResult


@dataclasses.dataclass(frozen=True)
class AnnotatedImage:
  """An image file and its refs, as JSON: everything that a worker needs."""

  path: str
  image_id: int
  height: int
  width: int
  """Height and width in pixels according to the annotations."""
  annotations: str
  """Source file of the segmentations, for errors."""
  refs: list[dict[str, Any]]
  """`ref_id`, `ann_ids`, `segmentations`, `sentences`. The target is the union of the
  segmentations; it is empty without any."""
  rule: str = "coco"
  """Format of the segmentations and which pixels they cover: `coco` (polygons or run lengths as in
  pycocotools, one per annotation), `phrasecut` (a list of polygons per instance, see
  `segmentation.decode_phrasecut`) or `custom` (see `custom.masks.rasterise`)."""
  upright: bool = False
  """Whether the annotations apply to the image after its EXIF rotation, or as it is stored."""
  name: str = ""
  """Path relative to the folder of images, if it may have subfolders."""
  has_id: bool = True
  """Whether `image_id` comes from the data set; otherwise masks are looked up by name."""
  instances: list[dict[str, Any]] | None = None
  """The image's own instances for `CustomProposer`; None without any."""
  error: str = ""
  """Why the file cannot be used, such as a missing file; empty if no problem is known."""
  fold: str = ""
  """Whose detector makes its masks, of `folds.names`; empty without folds."""


class ImageFinder:
  """Finds images by name; lists each folder once.

  Links are followed anywhere: the user chose the folder, and names cannot leave it.
  """

  def __init__(self):
    """Starts without a folder."""
    self._folders: dict[str, ImageFolder] = {}

  def path(self, images: str, name: str) -> str:
    """Returns the path of an image.

    Args:
      images: the folder.
      name: of the image in the annotations.

    Raises:
      InputError: the folder or image is missing, or the name is ambiguous.
    """
    if images not in self._folders:
      self._folders[images] = ImageFolder(images)
    return places.join(images, self._folders[images].find(name))

  def try_path(self, images: str, name: str) -> tuple[str, str]:
    """Returns the path of an image and "", or its name and an error message."""
    try:
      return self.path(images, name), ""
    except InputError as error:
      return name, str(error)


@dataclasses.dataclass(frozen=True)
class RecordMaker:
  """Makes records of images, given as `{"images": [...]}`, each an `AnnotatedImage` as a dict."""

  instances: str
  """`NAME` or `NAME:ARGUMENT`, as for `open_proposer`."""
  selection: Selection = dataclasses.field(default_factory=Selection)
  trained_on: str = ""
  """What the masks were learned from, if the user declares it."""
  of_folds: Mapping[str, str] = dataclasses.field(default_factory=dict)
  """What each fold's detector was trained on, like `trained_on`; empty without folds."""
  categories: str = ""
  """A COCO file whose `categories` the instances must have; they are not checked without one."""
  allow_empty: bool = False
  """Whether an image missing in the proposer's file has no instances; otherwise it is an error."""
  skip: bool = False
  """Whether an invalid image or ref is left out; otherwise it is an error."""

  @property
  def num_folds(self) -> int:
    """The number of folds of train; 0 without folds."""
    return max(len(self.of_folds) - 1, 0)

  def proposer(self, fold: str = "") -> SelectingProposer:
    """Returns this process's proposer, which equal makers share, since some hold a network.

    Args:
      fold: a key of `of_folds`, if there are any.

    Raises:
      InputError: there is no such proposer, or its argument is invalid.
    """
    trained_on = self.of_folds[fold] if fold else self.trained_on
    return _open_proposer(folds.fill(self.instances, fold), self.selection, trained_on)

  def __call__(self, task: Task) -> TaskResult:
    """Makes the records of a task.

    Raises:
      InputError: an image, its refs or its instances are invalid, and `skip` is off.
    """
    images = [AnnotatedImage(**fields) for fields in task["images"]]
    try:
      return self._make(images)
    except InputError as error:
      if not self.skip:
        raise
      if len(images) == 1:
        return TaskResult([], (SkippedImage(images[0].image_id, str(error)),))
    # At least one image is invalid; making each alone shows which.
    results = [self({"images": [fields]}) for fields in task["images"]]
    return TaskResult(
      [fields for result in results for fields in result.records],
      tuple(skipped for result in results for skipped in result.skipped),
      sum(result.seconds for result in results),
      dict(sum((collections.Counter(result.notes) for result in results), collections.Counter())),
      tuple(row for result in results for row in result.hashes),
    )

  def _make(self, images: list[AnnotatedImage]) -> TaskResult:
    if errors := [image.error for image in images if image.error]:
      raise InputError(errors[0])
    read = _read_images(images)
    start = time.monotonic()
    proposals = self._propose([pixels for _, pixels in read], images)
    seconds = time.monotonic() - start
    notes = collections.Counter(
      f"instances: {note}" for instances in proposals for note in instances.notes
    )
    encoded = [
      records.encode_record(make_record(image, data, instances, notes, skip=self.skip))
      for image, (data, _), instances in zip(images, read, proposals, strict=True)
    ]
    hashes = (hash_image(fields["image_id"], fields["image"]) for fields in encoded)
    return TaskResult(encoded, (), seconds, dict(notes), tuple(hashes))

  def _propose(
    self, pixels: list[UInt8[np.ndarray, "_ _ 3"]], images: list[AnnotatedImage]
  ) -> list[records.Instances]:
    if len({image.fold for image in images}) > 1:
      return self._propose_each(pixels, images)
    proposer = self.proposer(images[0].fold)
    if isinstance(proposer.proposer, custom.CustomProposer):
      given = {image.image_id: image.instances or [] for image in images}
      proposer = SelectingProposer(
        custom.CustomProposer(given=given), self.selection, self.trained_on
      )
    for image in images:
      if image.upright:
        check_turn(proposer, image.path)
    own = isinstance(proposer.proposer, custom.CustomProposer)
    try:
      ids = [
        proposer.find_image(image.path, image.image_id if own or image.has_id else None, image.name)
        for image in images
      ]
      proposals = proposer.propose(pixels, ids)
    except UnknownImage as error:
      if not self.allow_empty:
        raise UnknownImage(f"{error} If it may have no instances, use --allow_empty") from error
      if len(images) == 1:
        nothing = records.no_instances(images[0].height, images[0].width)
        return [dataclasses.replace(nothing, notes=(NO_MASKS,))]
      return self._propose_each(pixels, images)
    for image_id, instances in zip(ids, proposals, strict=True):
      self._check_categories(image_id, instances)
    return proposals

  def _propose_each(
    self, pixels: list[UInt8[np.ndarray, "_ _ 3"]], images: list[AnnotatedImage]
  ) -> list[records.Instances]:
    return [self._propose([array], [image])[0] for array, image in zip(pixels, images, strict=True)]

  def _check_categories(self, image_id: int | str, instances: records.Instances) -> None:
    known = _category_ids(self.categories) if self.categories else frozenset()
    # 0 means no category.
    unknown = set(instances.categories.tolist()) - known - {0}
    if known and unknown:
      raise InputError(
        f"--instances {self.instances}: image {image_id} has category {min(unknown)}, which is not "
        f"in {self.categories}; name the COCO file with the categories of the masks with "
        "--categories FILE"
      )


def _read_images(images: list[AnnotatedImage]) -> list[tuple[bytes, UInt8[np.ndarray, "_ _ 3"]]]:
  """Reads images; those at addresses all at once, since each takes a while to come."""

  def read(image: AnnotatedImage) -> tuple[bytes, UInt8[np.ndarray, "_ _ 3"]]:
    return read_image(image.path, (image.height, image.width), upright=image.upright)

  if not any(buckets.is_remote(image.path) for image in images):
    return [read(image) for image in images]
  with concurrent.futures.ThreadPoolExecutor(len(images)) as pool:
    return list(pool.map(read, images))


def make_record(
  image: AnnotatedImage,
  data: bytes,
  instances: records.Instances,
  notes: collections.Counter[str] | None = None,
  *,
  skip: bool = False,
) -> records.ImageRecord:
  """Makes a record.

  Args:
    image: its refs' segmentations become targets.
    data: the bytes of the image's file.
    instances: at the image's size.
    notes: counts what is left out of targets or changed.
    skip: whether a ref with an invalid target is left out, unless it is the only one.

  Raises:
    InputError: a segmentation is invalid, or those of a ref cover no pixel.
  """
  notes = collections.Counter() if notes is None else notes
  refs, errors = [], []
  for ref in image.refs:
    try:
      target = _target(image, ref, notes)
    except InputError as error:
      errors.append(error)
      continue
    refs.append(records.Ref(ref["ref_id"], tuple(ref["ann_ids"]), target, tuple(ref["sentences"])))
  if errors and not (skip and refs):
    raise errors[0]
  notes.update(f"ref left out: {error}" for error in errors)
  name = places.name_in(image.path)
  return records.ImageRecord(
    data, image.image_id, name, image.height, image.width, instances, tuple(refs)
  )


def read_image(
  path: str, size: tuple[int, int], *, upright: bool = False
) -> tuple[bytes, UInt8[np.ndarray, "h w 3"]]:
  """Returns an image's bytes and pixels; only decoding shows that it is intact.

  Args:
    path: a file.
    size: the height and width that it must have.
    upright: whether it is rotated as its EXIF says; otherwise its bytes are those of the file.

  Raises:
    InputError: the file is missing, damaged, or of another size.
  """
  try:
    data = untrusted_files.read(path, f"image {path}", preprocess.MAX_FILE_BYTES)
  except InputError as error:
    raise InputError(
      f"{error}; set the folder of the images with --images (docs/guides/datasets.md lists their "
      "sources)"
    ) from error
  if upright:
    data, pixels = image_files.stored_upright(data, path)
  else:
    # The annotations apply to the pixels as they are stored.
    pixels = preprocess.decode_image(data, path, upright=False)
  if pixels.shape[:2] != size:
    raise InputError(
      f"image {path} is {pixels.shape[1]} x {pixels.shape[0]} pixels, but its annotations are for "
      f"{size[1]} x {size[0]}; use the original images, or skip such images with --on_error skip"
    )
  return data, pixels


def _target(
  image: AnnotatedImage, ref: dict[str, Any], notes: collections.Counter[str]
) -> Bool[np.ndarray, "h w"]:
  target = np.zeros((image.height, image.width), bool)
  rasterise = _RULES[image.rule]
  empty = []
  for number, segmentation in enumerate(ref["segmentations"]):
    where = _describe(image, ref, number)
    try:
      mask, changes = rasterise(segmentation, image.height, image.width)
    except EmptySegmentation as error:
      empty.append(f"{where} has no mask ({error})")
      continue
    except ValueError as error:
      raise InputError(f"{where} has an invalid segmentation ({error})") from error
    target |= mask
    notes.update(f"target: {note}" for note in changes)
  if ref["segmentations"] and not target.any():
    raise InputError(empty[0] if empty else f"{_describe(image, ref, 0)} covers no pixel")
  notes.update(f"target: annotation left out: {text}" for text in empty)
  return target


def _describe(image: AnnotatedImage, ref: dict[str, Any], number: int) -> str:
  """Returns what to call a segmentation of a ref in errors."""
  if image.rule == "coco":
    segmentation = f"COCO annotations {image.annotations}: annotation {ref['ann_ids'][number]}"
  elif image.rule == "custom":
    segmentation = f"{image.annotations}: target {number + 1}"
  else:
    segmentation = f"{image.annotations}: instance {number}"
  return f"{segmentation} of ref {ref['ref_id']}"


def _rasterise_coco(value: Any, height: int, width: int) -> tuple[np.ndarray, Sequence[str]]:
  segmentation = read_segmentation(value, height, width)
  return segmentation.mask(), segmentation.notes


def _rasterise_custom(value: Any, height: int, width: int) -> tuple[np.ndarray, Sequence[str]]:
  mask, warnings = masks.read(value, height, width)
  return mask, [warning.kind for warning in warnings]


# Each returns a mask, and notes on what was left out or changed.
_RULES = {
  "coco": _rasterise_coco,
  "phrasecut": lambda value, height, width: (decode_phrasecut(value, height, width), ()),
  "custom": _rasterise_custom,
}


@functools.cache
def _open_proposer(spec: str, selection: Selection, trained_on: str) -> SelectingProposer:
  return open_proposer(spec, selection, trained_on)


@functools.cache
def _category_ids(path: str) -> frozenset[int]:
  return CocoAnnotations(path).category_ids
