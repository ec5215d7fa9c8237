"""The protocol of readers, and the reader of each published data set.

To add a data set, write a class with the methods of `Reader` in a module of this folder, name it in
`open_reader` and `locate`, and add it to `storage.CONFIGS`.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from input_pipeline.common import buckets, places
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted
from input_pipeline.proposers import folds
from input_pipeline.sources import phrasecut, refer
from input_pipeline.sources.annotated_images import AnnotatedImage, RecordMaker
from input_pipeline.sources.source import Task

BATCH_SIZE = 4
"""Images that a proposer processes at once by default."""
# Proposers that look masks up by COCO's image ids.
_COCO_ONLY = ("coco",)


@runtime_checkable
class Reader(Protocol):
  """The refs of a data set, read from its files and checked against each other."""

  dataset: str
  """Its name on the command line."""
  annotations_path: str
  """The COCO file with the refs' objects and the list of categories; empty without one."""
  splits: dict[str, list[int]]
  """For each split with refs, its image ids, ascending."""

  def coco_ids(self) -> dict[str, dict[int, int]]:
    """Returns, for each split, image id -> COCO id of the images that are COCO's."""
    ...

  def warnings(self) -> list[str]:
    """Returns warnings about unusual data and what was left out, one line per kind."""
    ...

  def more_metadata(self) -> dict[str, Any]:
    """Returns further metadata of the data set."""
    ...

  def image_path(self, images: str, image_id: int) -> str:
    """Returns the path of an image in the folder of images.

    Raises:
      InputError: the image is missing or ambiguous.
    """
    ...

  def annotated_image(self, split: str, image_id: int, images: str) -> AnnotatedImage:
    """Returns an image with its refs in a split.

    Args:
      split: a key of `splits`.
      image_id: one of `splits[split]`.
      images: the folder of images.
    """
    ...


def open_reader(
  dataset: str, refer_root: str, annotations: str | None = None, name: str = ""
) -> Reader:
  """Reads the refs of a data set.

  Args:
    dataset: a name in `storage.CONFIGS` other than `shapes`, or `refer:FOLDER:SPLITBY`.
    refer_root: the folder that contains the data set's folder; unused for `refer:`.
    annotations: the COCO file with the refs' objects, if not beside them; unused for PhraseCut.
    name: of a data set given by path.

  Raises:
    InputError: a file is missing or damaged, or the files do not belong together.
  """
  if dataset == phrasecut.DATASET:
    return phrasecut.PhraseCutReader(refer_root)
  if dataset.startswith(refer.PREFIX):
    folder, split_by = refer.parse_path(dataset)
    return refer.RefReader(name, folder, annotations, refer.layout_of(split_by))
  return refer.RefReader(dataset, refer_root, annotations)


def locate(dataset: str, refer_root: str, annotations: str | None) -> tuple[Sequence[str], str]:
  """Returns the files of the refs, and the file of their annotations or images.

  Raises:
    InputError: one is missing.
  """
  if dataset == phrasecut.DATASET:
    files, images = phrasecut.locate(refer_root)
    return list(files.values()), images
  layout = refer.LAYOUTS.get(dataset)
  if layout is None:
    refer_root, split_by = refer.parse_path(dataset)
    layout = refer.layout_of(split_by)
  refs, instances = refer.locate(layout, refer_root, annotations)
  return [refs], instances


def check_proposer(dataset: str, spec: str) -> None:
  """Checks that a proposer does not look masks up by the ids of other images.

  Raises:
    InputError: the proposer uses COCO's ids, and the data set has others.
  """
  if dataset == phrasecut.DATASET and spec.partition(":")[0] in _COCO_ONLY:
    raise InputError(
      f"--instances {spec}: uses COCO's image ids, but the ids of {dataset} are Visual Genome's; "
      "use a detector (huggingface:, onnx:), its results by Visual Genome's ids (results:), "
      "felzenszwalb or none"
    )


class ImageSource:
  """A data set of images as a source of records, one per image and split."""

  def __init__(
    self,
    reader: Reader,
    images: str,
    make: RecordMaker,
    provenance: dict[str, Any],
    workers: int = 1,
    batch_size: int = BATCH_SIZE,
  ):
    """Checks that all images exist, so that a missing one is found within a second.

    Args:
      reader: the refs.
      images: the folder of images.
      make: makes records of them.
      provenance: of the instance masks: `leakage.provenance`.
      workers: number of processes.
      batch_size: images that the proposer processes at once.

    Raises:
      InputError: the folder or, unless `make.skip` is on, an image is missing.
    """
    if not places.is_folder(images):
      raise InputError(
        f"--images {images}: no such folder; docs/guides/datasets.md says what it must contain"
      )
    self._reader, self._images, self._batch_size = reader, images, batch_size
    self.make, self.provenance, self.workers = make, provenance, workers
    self.splits = {split: len(image_ids) for split, image_ids in reader.splits.items()}
    self.coco_ids = reader.coco_ids()
    self.warnings: list[str] = []
    """Warnings about the images, one line per kind."""
    self._check_images()

  def _check_images(self) -> None:
    """Checks that the images exist.

    Raises:
      InputError: an image is missing or ambiguous, and `make.skip` is off.
    """
    needed = sorted({image_id for ids in self._reader.splits.values() for image_id in ids})
    local, paths, errors = not buckets.is_remote(self._images), [], []
    for image_id in needed:
      try:
        path = self._reader.image_path(self._images, image_id)
        # Buckets list their files; of those of a web server only the first is asked for.
        if not (os.path.isfile(path) if local else errors or paths or places.is_file(path)):
          raise InputError(f"image {path}: no such file")
        paths.append(path)
      except InputError as error:
        errors.append(error)
    if errors and not self.make.skip:
      raise InputError(
        f"{errors[0]} ({len(errors):,} of {len(needed):,} images are missing or ambiguous); "
        "set the folder of the images with --images (docs/guides/datasets.md lists their sources)"
      ) from errors[0]
    if local:
      self._warn_of_links(paths)

  def _warn_of_links(self, paths: Sequence[str]) -> None:
    root = os.path.join(os.path.realpath(self._images), "")
    outside = [path for path in paths if not os.path.realpath(path).startswith(root)]
    if outside:
      self.warnings.append(
        f"--images {self._images}: {counted(len(outside), 'image')} "
        f"{'is' if len(outside) == 1 else 'are'} outside the folder (through links), such as "
        f"{outside[0]} -> {os.path.realpath(outside[0])}"
      )

  def tasks(self, split: str) -> Iterator[Task]:
    """Yields the images of a split, ordered by image id."""
    image_ids = self._reader.splits[split]
    for first in range(0, len(image_ids), self._batch_size):
      batch = image_ids[first : first + self._batch_size]
      yield {"images": [self._fields(split, image_id) for image_id in batch]}

  def _fields(self, split: str, image_id: int) -> dict[str, Any]:
    image = self._reader.annotated_image(split, image_id, self._images)
    fold = folds.fold_of(split, image_id, self.coco_ids, self.make.num_folds)
    return vars(image) | {"fold": fold}
