"""What the best instance mask of an image is worth: the ceiling of any method that only picks a mask."""

import collections
import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from input_pipeline import records

CEILING = (
  "This is the ceiling of any method that only picks a mask: every ref is given the instance mask that fits its target "
  "best. Only better masks, or a method that draws its own, can go beyond."
)
THRESHOLDS = (0.5, 0.75, 0.9)
SIZES = {"small": 32**2, "medium": 96**2, "large": math.inf}
"""COCO's sizes of objects, and the area that each stays below, in pixels of the photo."""


@dataclasses.dataclass(frozen=True)
class Match:
  """The instance that fits a target best."""

  iou: float
  """In [0, 1]; 0 where no instance overlaps the target."""
  instance: int | None
  """Which one, the first of equals; None where no instance overlaps the target."""
  area: int
  """Of the target, in pixels; 0 where nothing is meant."""


def match_refs(record: records.ImageRecord) -> list[Match]:
  """Returns the best instance for each ref of an image."""
  count, pixels = len(record.instances.masks), record.height * record.width
  instances = np.packbits(record.instances.masks.reshape(count, pixels), axis=1)
  areas = _count(instances)
  return [_match(np.packbits(ref.target), instances, areas) for ref in record.refs]


def _match(
  target: UInt8[np.ndarray, "bytes"],
  instances: UInt8[np.ndarray, "k bytes"],
  areas: Int64[np.ndarray, "k"],
) -> Match:
  area = int(_count(target[None])[0])
  intersections = _count(instances & target)
  if not intersections.any():
    return Match(0.0, None, area)
  ious = intersections / (areas + area - intersections)
  best = int(ious.argmax())
  return Match(float(ious[best]), best, area)


def _count(bits: UInt8[np.ndarray, "k bytes"]) -> Int64[np.ndarray, "k"]:
  return np.bitwise_count(bits).sum(-1, dtype=np.int64)


def size_of(area: int) -> str:
  """Returns COCO's word for an object of so many pixels."""
  return next(size for size, limit in SIZES.items() if area < limit)


class Group:
  """Refs of one kind, counted as they come."""

  def __init__(self):
    self._refs = 0
    self._sum = 0.0
    self._reached = dict.fromkeys(THRESHOLDS, 0)

  def add(self, iou: float) -> None:
    """Counts a ref."""
    self._refs += 1
    self._sum += iou
    for threshold in THRESHOLDS:
      self._reached[threshold] += iou >= threshold

  def figures(self) -> dict[str, int | float | None]:
    """Returns `refs`, `mIoU` and `P@X`, the share with an IoU of at least X; None for the figures of no refs."""
    shares: dict[str, int | float | None] = {"refs": self._refs}
    sums = {"mIoU": self._sum} | {f"P@{x}": count for x, count in self._reached.items()}
    return shares | {
      name: total / self._refs if self._refs else None for name, total in sums.items()
    }


class Ceiling:
  """The figures of a split, of which nothing but sums is kept."""

  def __init__(self):
    self._counts = dict.fromkeys(("images", "images_without_instances", "refs_without_target"), 0)
    self._instances = 0
    self._groups = {name: Group() for name in ("all", *SIZES)}
    self._origins: collections.Counter[tuple[str, str]] = collections.Counter()

  def add(self, instances: records.Instances, matches: list[Match]) -> None:
    """Counts an image; a ref that means nothing has no best mask and is left out of the figures."""
    self._counts["images"] += 1
    self._counts["images_without_instances"] += not len(instances.masks)
    self._instances += len(instances.masks)
    self._origins[instances.source, instances.trained_on] += 1
    for match in matches:
      if match.area:
        self._groups["all"].add(match.iou)
        self._groups[size_of(match.area)].add(match.iou)
      else:
        self._counts["refs_without_target"] += 1

  def figures(self, seconds_per_image: float | None = None) -> dict[str, Any]:
    """Returns all figures, shares as fractions; who made the masks under `origins`, most images first."""
    images = self._counts["images"]
    return {
      **self._counts,
      "instances_per_image": self._instances / images if images else None,
      "seconds_per_image": seconds_per_image,
      "origins": [
        {"instances_from": source, "instances_trained_on": trained_on, "images": count}
        for (source, trained_on), count in sorted(
          self._origins.items(), key=lambda origin: (-origin[1], origin[0])
        )
      ],
      **{name: group.figures() for name, group in self._groups.items()},
    }
