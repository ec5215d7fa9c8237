"""Where examples come from: one protocol for every data set."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

Task = dict[str, Any]
"""A piece of work, as JSON has it: small, complete in itself, for this machine or another one."""


@dataclasses.dataclass(frozen=True)
class Skipped:
  """An image that was left out because of what is wrong with it."""

  image_id: int
  reason: str


@dataclasses.dataclass(frozen=True)
class Made:
  """What a task gave."""

  examples: list[dict[str, Any]]
  """As `records.encode_record` makes them."""
  skipped: tuple[Skipped, ...] = ()
  seconds: float = 0.0
  """Time that the instance masks took."""

  def counts(self) -> dict[str, int]:
    """Returns how many records, refs and sentences there are."""
    refs = [ref for fields in self.examples for ref in fields["refs"]]
    sentences = sum(len(ref["sentences"]) for ref in refs)
    return {"records": len(self.examples), "refs": len(refs), "sentences": sentences}


@runtime_checkable
class Source(Protocol):
  """Where examples come from: tasks, and what makes examples of them, in this process or another."""

  splits: dict[str, int]
  """How many images each split has."""
  workers: int
  """How many processes make examples, unless a cluster does; 1 is this one."""
  provenance: dict[str, Any]
  """Where the instance masks come from and who has seen what, for the metadata: `leakage.provenance`."""

  @property
  def make(self) -> Callable[[Task], Made]:
    """Does a task: the same in every process. Picklable, and quickly so."""
    ...

  def tasks(self, split: str) -> Iterator[Task]:
    """Yields the tasks of a split in a fixed order."""
    ...
