"""Photos with refs and proposed instance masks to examples: the work that `prepare` gives to processes and clusters."""

import dataclasses
import functools
import time
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from input_pipeline import preprocess, records
from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.custom import image_files, masks
from input_pipeline.masks import phrasecut
from input_pipeline.masks.coco import CocoAnnotations, decode_segmentation
from input_pipeline.proposers import custom
from input_pipeline.proposers.registry import SelectingProposer, UnknownImage, open_proposer
from input_pipeline.proposers.selection import Selection
from input_pipeline.sources.source import Made, Skipped, Task


@dataclasses.dataclass(frozen=True)
class Photo:
  """A photo and its refs; everything that a worker has to know, as JSON has it."""

  path: str
  image_id: int
  height: int
  width: int
  """Height and width in pixels, as the annotations have them."""
  annotations: str
  """The file that the segmentations are from, for errors."""
  refs: list[dict[str, Any]]
  """`ref_id`, `ann_ids`, `segmentations`, `sentences`. The target is the union of the segmentations; none of them, and
  nothing is meant."""
  rule: str = "coco"
  """What the segmentations are, and which pixels they cover: `coco` (polygons or run lengths, one an annotation, as
  pycocotools has them), `phrasecut` (polygons, one list an instance, see `phrasecut_polygons`) or `own` (see
  `own_data.masks.rasterise`)."""
  upright: bool = False
  """Whether the annotations are for the photo as its EXIF turns it; otherwise for the pixels as they are stored."""
  instances: list[dict[str, Any]] | None = None
  """The instances that the photo comes with, as `CustomProposer` takes them; None where it comes with none."""


@dataclasses.dataclass(frozen=True)
class PhotoMaker:
  """Makes examples of photos; called with `{"photos": [...]}`, each a `Photo` as a dict."""

  instances: str
  """`NAME` or `NAME:ARGUMENT`, as for `open_proposer`."""
  selection: Selection = dataclasses.field(default_factory=Selection)
  trained_on: str = ""
  """What the masks were learned from, where the user says so."""
  categories: str = ""
  """A COCO file whose `categories` the instances must be of; not checked without one."""
  allow_empty: bool = False
  """Whether a photo that the proposer's file does not know has no instances; otherwise it is an error."""
  skip: bool = False
  """Whether a photo with which something is wrong is left out; otherwise it is an error."""

  def proposer(self) -> SelectingProposer:
    """Returns this process's proposer: one for all makers that are alike, since some hold a network.

    Raises:
      InputError: there is no such proposer, or its argument is wrong.
    """
    return _open_proposer(self.instances, self.selection, self.trained_on)

  def __call__(self, task: Task) -> Made:
    """Makes the examples of a task.

    Raises:
      InputError: something is wrong with a photo, its refs or its instances, and `skip` is off.
    """
    photos = [Photo(**fields) for fields in task["photos"]]
    try:
      return self._make(photos)
    except InputError as error:
      if not self.skip:
        raise
      if len(photos) == 1:
        return Made([], (Skipped(photos[0].image_id, str(error)),))
    # One of them is broken; which one is seen when each is made alone.
    alone = [self({"photos": [fields]}) for fields in task["photos"]]
    return Made(
      [fields for made in alone for fields in made.examples],
      tuple(skipped for made in alone for skipped in made.skipped),
      sum(made.seconds for made in alone),
    )

  def _make(self, photos: list[Photo]) -> Made:
    read = [read_photo(p.path, (p.height, p.width), upright=p.upright) for p in photos]
    began = time.monotonic()
    found = self._propose([pixels for _, pixels in read], photos)
    seconds = time.monotonic() - began
    made = [
      records.encode_record(make_record(photo, data, instances))
      for photo, (data, _), instances in zip(photos, read, found, strict=True)
    ]
    return Made(made, (), seconds)

  def _propose(
    self, images: list[UInt8[np.ndarray, "_ _ 3"]], photos: list[Photo]
  ) -> list[records.Instances]:
    ids = [photo.image_id for photo in photos]
    proposer = self.proposer()
    if isinstance(proposer.proposer, custom.CustomProposer):
      given = {photo.image_id: photo.instances or [] for photo in photos}
      proposer = SelectingProposer(
        custom.CustomProposer(given=given), self.selection, self.trained_on
      )
    try:
      found = proposer.propose(images, ids)
    except UnknownImage:
      if not self.allow_empty:
        raise
      if len(ids) == 1:
        return [records.no_instances(photos[0].height, photos[0].width)]
      return [
        self._propose([image], [photo])[0] for image, photo in zip(images, photos, strict=True)
      ]
    for image_id, instances in zip(ids, found, strict=True):
      self._check_categories(image_id, instances)
    return found

  def _check_categories(self, image_id: int, instances: records.Instances) -> None:
    known = _category_ids(self.categories) if self.categories else frozenset()
    strange = set(instances.categories.tolist()) - known - {0}  # 0: of no category
    if known and strange:
      raise InputError(
        f"--instances {self.instances}: image {image_id} has category {min(strange)}, which is not in the list of "
        f"{self.categories}; name the COCO file with the masks' own list: --categories FILE"
      )


def make_record(photo: Photo, data: bytes, instances: records.Instances) -> records.ImageRecord:
  """Puts a record together.

  Args:
    photo: its refs' segmentations become targets.
    data: the photo's file.
    instances: at the photo's size.

  Raises:
    InputError: a segmentation is unusable, or those of a ref cover nothing.
  """
  refs = tuple(
    records.Ref(ref["ref_id"], tuple(ref["ann_ids"]), _target(photo, ref), tuple(ref["sentences"]))
    for ref in photo.refs
  )
  name = photo.path.rpartition("/")[2]
  return records.ImageRecord(data, photo.image_id, name, photo.height, photo.width, instances, refs)


def read_photo(
  path: str, size: tuple[int, int], *, upright: bool = False
) -> tuple[bytes, UInt8[np.ndarray, "h w 3"]]:
  """Returns a photo's bytes and pixels; decoding it whole is the only way to know it is sound.

  Args:
    path: a file.
    size: height and width that it must have.
    upright: whether it is turned as its EXIF says; otherwise its bytes are those of the file.

  Raises:
    InputError: the file is missing, damaged, or of another size.
  """
  try:
    data = untrusted_files.read(path, f"image {path}", preprocess.MAX_FILE_BYTES)
  except InputError as error:
    raise InputError(
      f"{error}; --images names the folder of the photos, and docs/guides/datasets.md says where to get them"
    ) from error
  if upright:
    data, photo = image_files.stored_upright(data, path)
  else:
    photo = preprocess.decode_image(data, path, upright=False)  # annotations are for what is stored
  if photo.shape[:2] != size:
    raise InputError(
      f"image {path} is {photo.shape[1]} x {photo.shape[0]} pixels, but its annotations are for "
      f"{size[1]} x {size[0]}; use the original photos"
    )
  return data, photo


def _target(photo: Photo, ref: dict[str, Any]) -> Bool[np.ndarray, "h w"]:
  target = np.zeros((photo.height, photo.width), bool)
  rasterise = _RULES[photo.rule]
  for number, segmentation in enumerate(ref["segmentations"]):
    try:
      target |= rasterise(segmentation, photo.height, photo.width)
    except ValueError as error:
      raise InputError(
        f"{_name(photo, ref, number)} has no usable segmentation ({error}); is the file damaged?"
      ) from error
  if ref["segmentations"] and not target.any():
    raise InputError(f"{_name(photo, ref, 0)} covers no pixel")
  return target


def _name(photo: Photo, ref: dict[str, Any], number: int) -> str:
  """A segmentation of a ref, for errors."""
  if photo.rule == "coco":
    which = f"COCO annotations {photo.annotations}: annotation {ref['ann_ids'][number]}"
  elif photo.rule == "custom":
    which = f"{photo.annotations}: target {number + 1}"
  else:
    which = f"{photo.annotations}: instance {number}"
  return f"{which} of ref {ref['ref_id']}"


_RULES = {
  "coco": decode_segmentation,
  "phrasecut": phrasecut.decode,
  "custom": masks.rasterise,
}


@functools.cache
def _open_proposer(spec: str, selection: Selection, trained_on: str) -> SelectingProposer:
  return open_proposer(spec, selection, trained_on)


@functools.cache
def _category_ids(path: str) -> frozenset[int]:
  return CocoAnnotations(path).category_ids
