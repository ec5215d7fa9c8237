"""Which images a report draws: those whose masks fit worst, and others by chance; one ref of each image."""

import dataclasses
import heapq
from collections.abc import Mapping
from typing import Any

import numpy as np

from input_pipeline.proposals.oracle import Match

COUNT = 50
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Picture:
  """A ref to be drawn."""

  name: str
  """Its data set and split, as in refcoco_unc/val."""
  fields: Mapping[str, Any]
  """The record, undecoded: a hundred of these are held while a data set is read."""
  ref: int
  """Which of the record's refs."""
  match: Match


class Gallery:
  """Chooses as the images come; the same images in the same order give the same choice."""

  def __init__(self, count: int = COUNT):
    """Args: count is how many of the worst, and how many by chance."""
    self._worst, self._random = _Smallest(count), _Smallest(count)
    self._seen = 0

  def add(self, name: str, fields: Mapping[str, Any], matches: list[Match]) -> None:
    """Looks at an image, of which the worst ref counts, the first of equals; one of which nothing is meant is left out.

    Args:
      name: of its data set and split.
      fields: its record, undecoded.
      matches: one for each of its refs.
    """
    meant = [i for i, match in enumerate(matches) if match.area]
    if not meant:
      return
    worst = min(meant, key=lambda i: matches[i].iou)
    order, choice = np.random.default_rng((_SEED, self._seen)).random(2)
    chance = meant[int(choice * len(meant))]
    self._worst.add(matches[worst].iou, Picture(name, fields, worst, matches[worst]))
    self._random.add(order, Picture(name, fields, chance, matches[chance]))
    self._seen += 1

  def worst(self) -> list[Picture]:
    """Returns the images with the lowest IoU, lowest first; of equals those that came first."""
    return self._worst.pictures()

  def random(self) -> list[Picture]:
    """Returns images drawn by chance, every image as likely as any other."""
    return self._random.pictures()


class _Smallest:
  """Keeps the pictures with the smallest keys; of equal keys those that came first."""

  def __init__(self, count: int):
    self._count, self._added = count, 0
    self._heap: list[tuple[float, int, Picture]] = []

  def add(self, key: float, picture: Picture) -> None:
    # The heap's top is what goes first: the largest key, and of equal ones the latest.
    item = (-key, -self._added, picture)
    self._added += 1
    if len(self._heap) < self._count:
      heapq.heappush(self._heap, item)
    else:
      heapq.heappushpop(self._heap, item)

  def pictures(self) -> list[Picture]:
    return [
      picture for _, _, picture in sorted(self._heap, key=lambda item: item[:2], reverse=True)
    ]
