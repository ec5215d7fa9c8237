"""A data set of annotated images as a source of records."""

import os
from collections.abc import Iterator
from typing import Any

from input_pipeline.common.errors import InputError
from input_pipeline.sources.annotated_images import RecordMaker
from input_pipeline.sources.readers import Reader
from input_pipeline.sources.source import Task

BATCH_SIZE = 4
"""Images that a proposer processes at once by default."""


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
    if not os.path.isdir(images):
      raise InputError(
        f"--images {images}: no such folder; docs/guides/datasets.md says what it must contain"
      )
    self._reader, self._images, self._batch_size = reader, images, batch_size
    self.make, self.provenance, self.workers = make, provenance, workers
    self.splits = {split: len(image_ids) for split, image_ids in reader.splits.items()}
    if not make.skip:
      self._check_images()

  def _check_images(self) -> None:
    needed = sorted({image_id for ids in self._reader.splits.values() for image_id in ids})
    missing = [
      path
      for path in (self._reader.image_path(self._images, image_id) for image_id in needed)
      if not os.path.isfile(path)
    ]
    if missing:
      raise InputError(
        f"image {missing[0]}: no such file ({len(missing):,} of {len(needed):,} images are "
        "missing); --images names the folder of the images, and docs/guides/datasets.md says where "
        "to get them"
      )

  def tasks(self, split: str) -> Iterator[Task]:
    """Yields the images of a split, ordered by image id."""
    image_ids = self._reader.splits[split]
    for first in range(0, len(image_ids), self._batch_size):
      batch = image_ids[first : first + self._batch_size]
      images = [self._reader.annotated_image(split, image_id, self._images) for image_id in batch]
      yield {"images": [dict(vars(image)) for image in images]}
