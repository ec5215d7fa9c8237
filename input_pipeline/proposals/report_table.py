"""The figures of a report as rows of text, for the terminal and for the page."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.proposals.oracle import SIZES, THRESHOLDS

HEADER = (
  "", "refs", "mIoU", *(f"P@{x}" for x in THRESHOLDS), "images", "instances/image", "without", "s/image"
)  # fmt: skip
LEGEND = (
  "percent; every ref counts once; P@X: share of refs whose best mask has an IoU of at least X; small, medium, large: "
  "area of the target below 32 x 32, below 96 x 96, and larger, in pixels of the photo; without: images without any "
  "instance; s/image: how long their masks took"
)
_SIZE_INDENT = "  "


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
  """Returns a row for each split and, indented below it, one for each size; a dash where there is nothing to tell.

  Args:
    results: what `Ceiling.figures` gave, by data set and split.
  """
  table = []
  for name, figures in results.items():
    per_image = [
      f"{figures['images']:,}",
      _number(figures["instances_per_image"], 1),
      f"{figures['images_without_instances']:,}",
      _number(figures["seconds_per_image"], 3),
    ]
    table.append([name, *_group(figures["all"]), *per_image])
    for size in SIZES:
      table.append([_SIZE_INDENT + size, *_group(figures[size]), *[""] * len(per_image)])
  return table


def _group(figures: Mapping[str, Any]) -> list[str]:
  shares = [_number(share, 2, 100) for name, share in figures.items() if name != "refs"]
  return [f"{figures['refs']:,}", *shares]


def _number(value: float | None, digits: int, scale: int = 1) -> str:
  return "-" if value is None else f"{scale * value:.{digits}f}"


def text(results: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns the rows one below the other, in columns."""
  lines: list[Sequence[str]] = [HEADER, *rows(results)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )


def origins(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Returns a line for each data set: who made its masks, what they learned from, and which refs are left out."""
  by_dataset: dict[str, collections.Counter[str]] = {}
  left_out: collections.Counter[str] = collections.Counter()
  for name, figures in results.items():
    dataset = name.rpartition("/")[0]
    images = by_dataset.setdefault(dataset, collections.Counter())
    left_out[dataset] += figures["refs_without_target"]
    for row in figures["origins"]:
      images[f"from {row['instances_from']}, trained on {row['instances_trained_on']}"] += row[
        "images"
      ]
  return [
    f"{dataset}: masks "
    + "; ".join(f"{origin} ({count:,} images)" for origin, count in images.most_common())
    + (f"; {left_out[dataset]:,} refs without a target are left out" if left_out[dataset] else "")
    for dataset, images in by_dataset.items()
  ]
