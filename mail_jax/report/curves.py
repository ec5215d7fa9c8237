"""The learning curves of a run: its losses, what it was judged by, its speed, and where the time went."""

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
POINTS = 160
"""A curve has no more: what is between two of them cannot be seen."""

Curve = list[tuple[float, float]]
_LOSSES = ("loss", "bce", "dice", "selection", "no_target")
_LOSS_TEXT = "The loss and its terms, before they are weighed; a point is the mean of the steps since the last one."
_JUDGED = ("mIoU", "oIoU", "gIoU", "P@0.5", "P@0.9", "selection_accuracy", "oracle_mIoU")
_JUDGED_TEXT = "On the sentences that the run was judged by as it trained, perhaps not all of the split. Percent."
_TIME = {
  "step": "c0", "data": "c1", "evaluation": "c2", "checkpoint": "c3", "compile": "c4", "other": "c5",
}  # fmt: skip


def read_log(workdir: str) -> list[dict[str, Any]] | None:
  """Returns the rows of a run's log; None where there is none, as beside an exported model.

  A last line without its end is passed over: the run was stopped, or is writing it.

  Raises:
    InputError: the file cannot be read, or a line of it is not a row.
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
      f"{where}: {error}; remove the line, or the file to do without curves"
    ) from error
  step = row.get("step") if isinstance(row, dict) else None
  if type(step) is not int:
    raise InputError(
      f"{where}: no row of a training log, which has a whole number as its step; remove the line"
    )
  return row


def read_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
  """Returns (step, value) of every number in a log, by its name, in the order of steps, thinned to POINTS.

  What is not finite is left out.
  """
  found: dict[str, Curve] = {}
  for row in sorted(rows, key=lambda row: row["step"]):
    for name, value in row.items():
      if name != "step" and type(value) in (int, float) and math.isfinite(value):
        found.setdefault(name, []).append((float(row["step"]), float(value)))
  return {name: thin(curve) for name, curve in found.items()}


def thin(curve: Curve, points: int = POINTS) -> Curve:
  """Returns a curve of so many points at most: each the mean of as many that follow each other, but for the ends.

  The first and the last point stay as they are.
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
  """Returns the seconds that the last start of a run spent on each phase, the longest first; empty if none is known."""
  logged = [row["seconds"] for row in rows if isinstance(row.get("seconds"), dict)]
  return dict(sorted(logged[-1].items(), key=lambda item: -item[1])) if logged else {}


def draw(rows: Sequence[Mapping[str, Any]] | None, step: int) -> Iterator[str]:
  """Yields the panels.

  Args:
    rows: of the log; None where there is none.
    step: of the checkpoint that the page is about.
  """
  if rows is None:
    yield (
      "<p>There is no metrics.jsonl in this folder, so there are no learning curves: a training run writes it, an "
      "exported model has none.</p>"
    )
    return
  curves = read_curves(rows)
  if not curves:
    yield "<p>metrics.jsonl is empty: the run has logged nothing yet.</p>"
    return
  yield "<p>The dashed line is the checkpoint of this page.</p>"
  yield from grid(_panels(curves, time_spent(rows), step))


def _panels(curves: Mapping[str, Curve], spent: Mapping[str, float], step: int) -> Iterator[str]:
  losses = {name: curves[name] for name in _LOSSES if name in curves}
  if losses:
    yield _panel("Loss", losses, step, _LOSS_TEXT)
  for split, judged in _by_split(curves).items():
    yield _panel(f"Metrics on {split}", judged, step, _JUDGED_TEXT, _percent)
  alone = {
    "lr": ("Learning rate", "Of the step; parts of the model may have a multiple of it."),
    "samples_per_second": ("Samples per second", "Over all devices, while training."),
    "mfu": ("Model FLOPs utilisation", "Share of the devices' peak, in percent."),
    "data_wait": ("Waiting for data", "Share of the time of training, in percent."),
    "grad_norm": ("Norm of the gradient", "Before it is clipped."),
  }
  for name, (title, text) in alone.items():
    if name in curves:
      write = _percent if name in ("mfu", "data_wait") else charts.plain
      yield _panel(title, {name: curves[name]}, step, text, write)
  if sum(spent.values()) > 0:
    yield _time(spent)


def _by_split(curves: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
  """The metrics of `SPLIT/METRIC` by split, those of _JUDGED that are there."""
  splits = dict.fromkeys(name.rpartition("/")[0] for name in curves if "/" in name)
  found = {
    split: {
      metric: curves[f"{split}/{metric}"] for metric in _JUDGED if f"{split}/{metric}" in curves
    }
    for split in splits
  }
  return {split: judged for split, judged in found.items() if judged}


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
  looked_up = {name: dict(curve) for name, curve in curves.items()}
  table = [
    [f"{x:,.0f}", *(write(own[x]) if x in own else "" for own in looked_up.values())] for x in steps
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
  chart = charts.shares([("", parts)], f"Where the time went: {', '.join(texts.values())}")
  key = charts.key_of([(name, f"swatch {_TIME.get(name, 'none')}") for name in spent])
  rows = [[name, f"{value:,.1f}", _percent(value / total)] for name, value in spent.items()]
  text = "Percent of the wall time of the run's last start; step is training."
  return panel("Where the time went", chart, key, text, (["phase", "seconds", "percent"], rows))
