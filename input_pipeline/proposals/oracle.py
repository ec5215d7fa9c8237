"""The oracle: the best instance for each target, an upper bound for methods that select one."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from input_pipeline import records
from input_pipeline.records import OBJECT_SIZES, object_size

NOTE = (
  "This is the upper bound of any method that only selects an instance: every ref is assigned the "
  "instance that fits its target best. Only better masks, or a method that predicts its own, can "
  "exceed it."
)
THRESHOLDS = (0.5, 0.75, 0.9)
RECALL_AT = (8, 16, 32, 64)
"""Numbers of instances, the first ones, among which a target is looked for."""
RECALLED = 0.5
"""IoU of an instance that finds a target."""
HEADER = (
  "",
  "refs",
  "mIoU",
  *(f"P@{x}" for x in THRESHOLDS),
  *(f"R@{k}" for k in RECALL_AT),
  "images",
  "instances/image",
  "without",
  "s/image",
)
LEGEND = (
  "percent; every ref counts once; P@X: share of refs whose best instance has an IoU of at least "
  f"X; R@K: share of refs of which one of the first K instances has an IoU of at least {RECALLED}; "
  "small, medium, large: area of the target below 32 x 32, below 96 x 96, and larger, in pixels "
  "of the image; without: images without instances; s/image: time to compute the proposals"
)
_SIZE_INDENT = "  "


@dataclasses.dataclass(frozen=True)
class Match:
  """The instance that fits a target best."""

  iou: float
  """In [0, 1]; 0 if no instance overlaps the target."""
  instance: int | None
  """Its index, the first of equals; None if no instance overlaps the target."""
  area: int
  """Area of the target in pixels; 0 without a target."""
  found_at: int | None = None
  """The first instance whose IoU is at least RECALLED; None if there is none."""


def match_refs(record: records.ImageRecord) -> list[Match]:
  """Returns the best instance for each ref of an image."""
  count, pixels = len(record.instances.masks), record.height * record.width
  instances = np.packbits(record.instances.masks.reshape(count, pixels), axis=1)
  areas = _count_bits(instances)
  return [_match(np.packbits(ref.target), instances, areas) for ref in record.refs]


def _match(
  target: UInt8[np.ndarray, "bytes"],
  instances: UInt8[np.ndarray, "k bytes"],
  areas: Int64[np.ndarray, "k"],
) -> Match:
  area = int(_count_bits(target[None])[0])
  intersections = _count_bits(instances & target)
  if not intersections.any():
    return Match(0.0, None, area)
  ious = intersections / (areas + area - intersections)
  best = int(ious.argmax())
  found = np.flatnonzero(ious >= RECALLED)
  return Match(float(ious[best]), best, area, int(found[0]) if len(found) else None)


def _count_bits(bits: UInt8[np.ndarray, "k bytes"]) -> Int64[np.ndarray, "k"]:
  return np.bitwise_count(bits).sum(-1, dtype=np.int64)


class OracleGroup:
  """Running metrics of a group of refs."""

  def __init__(self):
    self._refs = 0
    self._sum = 0.0
    self._reached = dict.fromkeys(THRESHOLDS, 0)
    self._recalled = dict.fromkeys(RECALL_AT, 0)

  def add(self, match: Match) -> None:
    """Adds a ref."""
    self._refs += 1
    self._sum += match.iou
    for threshold in THRESHOLDS:
      self._reached[threshold] += match.iou >= threshold
    for count in RECALL_AT:
      self._recalled[count] += match.found_at is not None and match.found_at < count

  def metrics(self) -> dict[str, int | float | None]:
    """Returns `refs`, `mIoU`, `P@X`, the share of refs with an IoU of at least X, and `R@K`.

    `R@K` is the recall among the first K instances. The metrics of an empty group are None.
    """
    sums = {"mIoU": self._sum} | {f"P@{x}": count for x, count in self._reached.items()}
    sums |= {f"R@{k}": count for k, count in self._recalled.items()}
    means = {name: total / self._refs if self._refs else None for name, total in sums.items()}
    return {"refs": self._refs, **means}


class OracleMetrics:
  """Running metrics of a split; only sums are kept."""

  def __init__(self):
    self._counts = dict.fromkeys(("images", "images_without_instances", "refs_without_target"), 0)
    self._instances = 0
    self._groups = {name: OracleGroup() for name in ("all", *OBJECT_SIZES)}
    self._origins: collections.Counter[tuple[str, str]] = collections.Counter()

  def add(self, instances: records.Instances, matches: list[Match]) -> None:
    """Adds an image; refs without a target are only counted."""
    self._counts["images"] += 1
    self._counts["images_without_instances"] += not len(instances.masks)
    self._instances += len(instances.masks)
    self._origins[instances.source, instances.trained_on] += 1
    for match in matches:
      if match.area:
        self._groups["all"].add(match)
        self._groups[object_size(match.area)].add(match)
      else:
        self._counts["refs_without_target"] += 1

  def metrics(self, seconds_per_image: float | None = None) -> dict[str, Any]:
    """Returns all metrics as fractions, and the origins of the masks, the most frequent first."""
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
      **{name: group.metrics() for name, group in self._groups.items()},
    }


def table_rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
  """Returns a row per split and, indented below it, one per object size; a dash for no value.

  Args:
    results: what `OracleMetrics.metrics` returned, by data set and split.
  """
  rows = []
  for name, metrics in results.items():
    per_image = [
      f"{metrics['images']:,}",
      _number(metrics["instances_per_image"], 1),
      f"{metrics['images_without_instances']:,}",
      _number(metrics["seconds_per_image"], 3),
    ]
    rows.append([name, *_group_cells(metrics["all"]), *per_image])
    for size in OBJECT_SIZES:
      rows.append([_SIZE_INDENT + size, *_group_cells(metrics[size]), *[""] * len(per_image)])
  return rows


def _group_cells(metrics: Mapping[str, Any]) -> list[str]:
  shares = [_number(share, 2, 100) for name, share in metrics.items() if name != "refs"]
  return [f"{metrics['refs']:,}", *shares]


def _number(value: float | None, digits: int, scale: int = 1) -> str:
  return "-" if value is None else f"{scale * value:.{digits}f}"


def describe_origins(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Returns a line per data set: the origins of its masks, and how many refs have no target."""
  origins: dict[str, collections.Counter[str]] = {}
  without_target: collections.Counter[str] = collections.Counter()
  for name, metrics in results.items():
    dataset = name.rpartition("/")[0]
    images = origins.setdefault(dataset, collections.Counter())
    without_target[dataset] += metrics["refs_without_target"]
    for row in metrics["origins"]:
      origin = f"from {row['instances_from']}, trained on {row['instances_trained_on']}"
      images[origin] += row["images"]
  return [
    f"{dataset}: masks "
    + "; ".join(f"{origin} ({count:,} images)" for origin, count in images.most_common())
    + (
      f"; {skipped:,} refs without a target are left out"
      if (skipped := without_target[dataset])
      else ""
    )
    for dataset, images in origins.items()
  ]
