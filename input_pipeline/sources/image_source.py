"""Photos with refs as a source of examples, whichever data set's files name them."""

import os
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from input_pipeline.common.errors import InputError
from input_pipeline.sources import annotated_images
from input_pipeline.sources.source import Task

BATCH_SIZE = 4
"""Photos that a proposer of instances gets at once, unless someone says otherwise."""


@runtime_checkable
class Reader(Protocol):
  """The refs of a data set, read from its own files and checked against each other."""

  dataset: str
  """Its name, as users know it."""
  annotations_path: str
  """The COCO file with the refs' objects and the list of their categories; empty where there is none."""
  splits: dict[str, list[int]]
  """For each split that has refs, its image ids, ascending."""

  def coco_ids(self) -> dict[str, list[int]]:
    """Returns the COCO ids of the photos of each split, as far as they are COCO's."""
    ...

  def warning(self) -> str | None:
    """Returns how the data differs from the published data set, None where it does not or nobody knows."""
    ...

  def image_path(self, images: str, image_id: int) -> str:
    """Returns the file of an image in the folder of photos."""
    ...

  def photo(self, split: str, image_id: int, images: str) -> annotated_images.Photo:
    """Returns one photo with the refs that it has in a split.

    Args:
      split: a key of `splits`.
      image_id: one of `splits[split]`.
      images: the folder of photos.
    """
    ...


class PhotoSet:
  """A data set of photos as a source of examples, one an image and split."""

  def __init__(
    self,
    reader: Reader,
    images: str,
    make: annotated_images.PhotoMaker,
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
      batch_size: photos that the proposer of instances gets at once.

    Raises:
      InputError: the folder or, unless `make.skip` is on, a photo is missing.
    """
    if not os.path.isdir(images):
      raise InputError(
        f"--images {images}: no such folder; docs/guides/datasets.md says what goes where"
      )
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
        "missing); --images names the folder of the photos, and docs/guides/datasets.md says where to get them"
      )

  def tasks(self, split: str) -> Iterator[Task]:
    """Yields the photos of a split, ordered by image id."""
    image_ids = self._reader.splits[split]
    for first in range(0, len(image_ids), self._batch_size):
      batch = image_ids[first : first + self._batch_size]
      found = [self._reader.photo(split, image_id, self._images) for image_id in batch]
      yield {"photos": [dict(vars(photo)) for photo in found]}
