"""The protocol of data sets: tasks, and what turns a task into records."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from input_pipeline.image_hashes import ImageHash

Task = dict[str, Any]
"""A unit of work as JSON: small and self-contained, so that any machine can do it."""


@dataclasses.dataclass(frozen=True)
class SkippedImage:
  """An image that was left out because of an error."""

  image_id: int
  reason: str


@dataclasses.dataclass(frozen=True)
class TaskResult:
  """The result of a task."""

  records: list[dict[str, Any]]
  """Encoded by `records.encode_record`."""
  skipped: tuple[SkippedImage, ...] = ()
  seconds: float = 0.0
  """Time to compute the proposals."""
  notes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  """Counts of what was left out of masks or changed."""
  hashes: tuple[ImageHash, ...] = ()
  """Hashes of the images in the records."""

  def counts(self) -> dict[str, int]:
    """Returns the number of records, refs and expressions."""
    refs = [ref for fields in self.records for ref in fields["refs"]]
    expressions = sum(len(ref["sentences"]) for ref in refs)
    return {"records": len(self.records), "refs": len(refs), "expressions": expressions}


@runtime_checkable
class Source(Protocol):
  """A data set: tasks, and a function that turns them into records, in this process or another."""

  splits: dict[str, int]
  """Number of images per split."""
  workers: int
  """Number of processes, unless a cluster does the work; 1 is this process alone."""
  provenance: dict[str, Any]
  """Origin and training data of the instance masks, for the metadata: `leakage.provenance`."""
  coco_ids: dict[str, dict[int, int]]
  """For each split, image id -> COCO id of the images that are COCO's."""

  @property
  def make(self) -> Callable[[Task], TaskResult]:
    """Does a task, with the same result in every process; cheap to pickle."""
    ...

  def tasks(self, split: str) -> Iterator[Task]:
    """Yields the tasks of a split in a fixed order."""
    ...
