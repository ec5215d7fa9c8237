"""The numbers of a table: means over seeds with intervals, and what they were made from."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.common.errors import InputError
from mail_jax.evaluate import compare, per_expression, protocols
from mail_jax.evaluate.per_expression import Row
from mail_jax.hardware import flops
from mail_jax.reproduce import published
from mail_jax.reproduce.budget import Length
from mail_jax.reproduce.stages import Table

SHOWN = ("oIoU", "mIoU", "P@0.5", "P@0.9", "selection_accuracy", "oracle_mIoU")
"""Metrics of the table, by their names in the files of `evaluate`."""


def collect(place: Table, lengths: Sequence[Length]) -> list[dict[str, Any]]:
  """Returns a row for each model, kind of masks, protocol and split.

  Args:
    place: where the metrics are.
    lengths: of runs that are evaluated.

  Raises:
    InputError: files of metrics are damaged, or the seeds of a model have other expressions.
  """
  models: dict[str, list[Length]] = {}
  for length in lengths:
    models.setdefault(length.run.model, []).append(length)
  rows = []
  for group in models.values():
    for masks in place.masks:
      for protocol in place.protocols:
        rows += _rows_of(place, group, masks, protocol)
  return rows


def _rows_of(
  place: Table, group: Sequence[Length], masks: str, protocol: str
) -> list[dict[str, Any]]:
  """Returns the rows of one model, from the files of all its seeds."""
  paths = [place.metrics(length, masks, protocol) for length in group]
  files = [read_metrics(path) for path in paths]
  by_split = [_by_split(path.with_suffix(".jsonl")) for path in paths]
  first, rows = group[0], []
  for name, metrics in files[0].items():
    dataset, _, split = name.partition("/")
    of_seeds = [file[name] for file in files]
    known = [metric for metric in SHOWN if metric in metrics]
    bounds = _intervals([own.get(name, []) for own in by_split], protocol, paths)
    rows.append(
      {
        "model": first.run.model,
        "trained_on": list(first.run.datasets),
        "start": first.run.config.init or "random weights",
        "set": dataset,
        "split": split,
        "masks": masks,
        "protocol": protocol,
        "seeds": [length.run.seed for length in group],
        "share_of_recipe": first.share,
        "steps": [own["step"] for own in of_seeds],
        "expressions": metrics["expressions"],
        "published_expressions": published.expressions(dataset, split),
        "images": len({row["image_id"] for row in by_split[0].get(name, [])}),
        "metrics": {
          metric: _summary([own[metric] for own in of_seeds], bounds.get(metric))
          for metric in known
        },
        "instances": metrics["instances"],
        "training_images": metrics["training_images"],
        "left_out": metrics["left_out"],
        "fingerprints": [own["fingerprints"] for own in of_seeds],
      }
    )
  return rows


def read_metrics(path: pathlib.Path) -> dict[str, Any]:
  """Returns the metrics that `evaluate --json` wrote, by DATASET/SPLIT.

  Raises:
    InputError: the file is damaged.
  """
  try:
    found = json.loads(path.read_text())
    for of_split in found.values():
      _ = of_split["expressions"], of_split["step"], of_split["oIoU"]
    return found
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(
      f"{path} cannot be read ({type(error).__name__}: {error}); remove it and run the "
      "command again"
    ) from error


def _by_split(path: pathlib.Path) -> dict[str, list[Row]]:
  found: dict[str, list[Row]] = {}
  for row in per_expression.read(str(path)):
    found.setdefault(row["data"], []).append(row)
  return found


def _summary(values: Sequence[float], bounds: tuple[float, float] | None) -> dict[str, Any]:
  """Returns the mean over seeds, their values and the interval, as fractions."""
  low, high = bounds or (math.nan, math.nan)
  return {
    "mean": float(np.mean(values)),
    "low": None if math.isnan(low) else low,
    "high": None if math.isnan(high) else high,
    "seeds": list(values),
  }


def _intervals(
  by_seed: Sequence[Sequence[Row]], protocol: str, paths: Sequence[pathlib.Path]
) -> Mapping[str, tuple[float, float]]:
  """Returns the interval of each metric's mean over seeds."""
  keys = [[(row["ref_id"], row["expression_index"]) for row in rows] for rows in by_seed]
  if not keys[0] or any(other != keys[0] for other in keys):
    raise InputError(
      f"{paths[0].with_suffix('.jsonl')}: has other expressions than its metrics or another seed; "
      "remove the folder `metrics` and run the command again"
    )
  columns = [per_expression.columns(rows) for rows in by_seed]
  definition = protocols.find(protocol)
  _, cluster = np.unique(columns[0]["image_id"], return_inverse=True)
  sides = [compare.ratios(own, definition) for own in columns]
  wanted = [{name: side[name] for name in side if name in SHOWN} for side in sides]
  return compare.intervals_of_mean(wanted, cluster)


def cost(lengths: Sequence[Length], seconds: Mapping[str, float]) -> list[dict[str, Any]]:
  """Returns the wall time of each kind of step, and the FLOPs of training.

  Args:
    lengths: of the runs.
    seconds: of each step, by its name.
  """
  total: dict[str, float] = {}
  for name, value in seconds.items():
    kind = name if name.startswith("train ") else name.partition(" ")[0]
    total[kind] = total.get(kind, 0.0) + value
  work = {
    f"train {length.run.name}": flops.train_step_flops(length.run.config) * length.steps
    for length in lengths
  }
  return [
    {"step": kind, "seconds": value, "training_flops": work.get(kind)}
    for kind, value in total.items()
  ]
