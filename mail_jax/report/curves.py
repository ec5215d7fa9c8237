"""Learning curves of a run: losses, metrics, speed and time spent, from `metrics.jsonl`."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.common import buckets
from input_pipeline.common.errors import InputError
from mail_jax.report import charts
from mail_jax.report.charts import Series, grid, panel

FILE = "metrics.jsonl"
# The limit of points per curve; more cannot be seen.
POINTS = 160

Curve = list[tuple[float, float]]
_LOSSES = ("loss", "bce", "dice", "selection", "no_target")
_LOSS_TEXT = (
  "The loss and its unweighted terms; a point is the mean over the steps since the previous point."
)
_DATASETS_TEXT = "The loss of the examples of each data set of the mixture."
_METRICS = ("mIoU", "oIoU", "gIoU", "P@0.5", "P@0.9", "selection_accuracy", "oracle_mIoU")
_METRICS_TEXT = "On the expressions evaluated during training, perhaps part of the split. Percent."
_TIME = {
  "step": "c0",
  "data": "c1",
  "evaluation": "c2",
  "checkpoint": "c3",
  "compile": "c4",
  "other": "c5",
  "load": "c6",
}


def read_log(workdir: str) -> list[dict[str, Any]] | None:
  """Reads the rows of a run's log; None without a log, as for an exported model.

  An incomplete last line is ignored: the run was stopped, or is writing it.

  Raises:
    InputError: the file cannot be read, or a line is not a row.
  """
  path = buckets.folder(workdir, "W") / FILE
  try:
    if not path.exists():
      return None
    text = path.read_text()
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path} cannot be read: {error}") from error
  *whole, _ = text.split("\n")
  return [_row(f"{path}, line {number}", line) for number, line in enumerate(whole, 1)]


def _row(where: str, line: str) -> dict[str, Any]:
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise InputError(
      f"{where}: {error}; remove the line, or the file to omit the curves"
    ) from error
  step = row.get("step") if isinstance(row, dict) else None
  if type(step) is not int:
    raise InputError(
      f"{where}: not a row of a training log, which has an integer `step`; remove the line"
    )
  return row


def read_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
  """Returns the curve of every number in a log: (step, value) by step, thinned to POINTS.

  Values that are not finite are left out.
  """
  curves: dict[str, Curve] = {}
  for row in sorted(rows, key=lambda row: row["step"]):
    for name, value in row.items():
      if name != "step" and type(value) in (int, float) and math.isfinite(value):
        curves.setdefault(name, []).append((float(row["step"]), float(value)))
  return {name: thin(curve) for name, curve in curves.items()}


def thin(curve: Curve, points: int = POINTS) -> Curve:
  """Returns a curve of at most this many points, the means of equal stretches.

  The first and the last point are kept.
  """
  if len(curve) <= points:
    return curve
  inner, parts = curve[1:-1], points - 2
  thinned = [curve[0]]
  for part in range(parts):
    few = inner[part * len(inner) // parts : (part + 1) * len(inner) // parts]
    thinned.append(
      (math.fsum(x for x, _ in few) / len(few), math.fsum(y for _, y in few) / len(few))
    )
  return [*thinned, curve[-1]]


def time_spent(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Returns the seconds per phase since the last start of a run, longest first; may be empty."""
  logged = [row["seconds"] for row in rows if isinstance(row.get("seconds"), dict)]
  return dict(sorted(logged[-1].items(), key=lambda item: -item[1])) if logged else {}


def draw(rows: Sequence[Mapping[str, Any]] | None, step: int) -> Iterator[str]:
  """Yields the panels of the section.

  Args:
    rows: of the log; None without a log.
    step: of the checkpoint that the page describes.
  """
  if rows is None:
    yield (
      "<p>No learning curves: this folder has no metrics.jsonl. Training runs write it; exported "
      "models have none.</p>"
    )
    return
  curves = read_curves(rows)
  if not curves:
    yield "<p>metrics.jsonl is empty: nothing has been logged yet.</p>"
    return
  yield "<p>The dashed line marks the checkpoint of this report.</p>"
  yield from grid(_panels(curves, time_spent(rows), step))


def _panels(curves: Mapping[str, Curve], spent: Mapping[str, float], step: int) -> Iterator[str]:
  losses = {name: curves[name] for name in _LOSSES if name in curves}
  if losses:
    yield _panel("Loss", losses, step, _LOSS_TEXT)
  of_datasets = {
    name.partition("/")[2]: curve for name, curve in curves.items() if name.startswith("loss/")
  }
  if of_datasets:
    yield _panel("Loss by data set", of_datasets, step, _DATASETS_TEXT)
  for split, metrics in _by_split(curves).items():
    yield _panel(f"Metrics on {split}", metrics, step, _METRICS_TEXT, _percent)
  alone = {
    "lr": ("Learning rate", "Parts of the model may have a multiple of it."),
    "samples_per_second": ("Samples per second", "Over all devices, while training."),
    "mfu": ("Model FLOPs utilisation", "Share of the devices' peak, in percent."),
    "data_wait": ("Waiting for data", "Share of the training time, in percent."),
    "grad_norm": ("Gradient norm", "Before clipping."),
  }
  for name, (title, text) in alone.items():
    if name in curves:
      write = _percent if name in ("mfu", "data_wait") else charts.plain
      yield _panel(title, {name: curves[name]}, step, text, write)
  if sum(spent.values()) > 0:
    yield _time(spent)


def _by_split(curves: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
  """Returns the curves of `SPLIT/METRIC` by split, for the metrics in _METRICS."""
  splits = dict.fromkeys(name.rpartition("/")[0] for name in curves if "/" in name)
  by_split = {
    split: {
      metric: curves[f"{split}/{metric}"] for metric in _METRICS if f"{split}/{metric}" in curves
    }
    for split in splits
  }
  return {split: metrics for split, metrics in by_split.items() if metrics}


def _panel(
  title: str,
  curves: Mapping[str, Curve],
  step: int,
  text: str,
  write: Callable[[charts.Number], str] = charts.plain,
) -> str:
  values = [y for curve in curves.values() for _, y in curve]
  tick = _percent_tick if write is _percent else write
  y = dataclasses.replace(charts.covering(values, ""), write=tick)
  x = charts.until(max(x for curve in curves.values() for x, _ in curve), "step")
  ends = ", ".join(f"{name} {write(curve[-1][1])}" for name, curve in curves.items())
  steps = sorted({x for curve in curves.values() for x, _ in curve})
  values_at = {name: dict(curve) for name, curve in curves.items()}
  table = [
    [f"{x:,.0f}", *(write(curve[x]) if x in curve else "" for curve in values_at.values())]
    for x in steps
  ]
  chart = charts.lines(
    [Series(name, curve) for name, curve in curves.items()],
    x,
    y,
    f"{title} by step; at the end: {ends}",
    lambda name, x, y: f"{name} {write(y)} at step {x:,.0f}",
    mark=step,
  )
  return panel(title, chart, charts.key([*curves]), text, (["step", *curves], table))


def _percent(value: charts.Number) -> str:
  return f"{100 * value:.1f}"


def _percent_tick(value: charts.Number) -> str:
  return f"{100 * value:.3g}"


def _time(spent: Mapping[str, float]) -> str:
  total = sum(spent.values())
  texts = {name: f"{name} {value / total:.1%}, {value:,.0f} s" for name, value in spent.items()}
  parts = [(texts[name], value / total, _TIME.get(name, "none")) for name, value in spent.items()]
  chart = charts.shares([("", parts)], f"Time spent: {', '.join(texts.values())}")
  key = charts.key_of([(name, f"swatch {_TIME.get(name, 'none')}") for name in spent])
  rows = [[name, f"{value:,.1f}", _percent(value / total)] for name, value in spent.items()]
  text = "Percent of the wall time since the last start; the training itself is called step."
  return panel("Time spent", chart, key, text, (["phase", "seconds", "percent"], rows))
