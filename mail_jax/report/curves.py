"""The learning curves of a run: its losses, what it was judged by, its speed, and where the time went."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mail_jax.report import axes, charts, training_log
from mail_jax.report.charts import Series
from mail_jax.report.panels import grid, panel
from mail_jax.report.training_log import Curve

_LOSSES = ("loss", "bce", "dice", "selection", "no_target")
_LOSS_TEXT = "The loss and its terms, before they are weighed; a point is the mean of the steps since the last one."
_JUDGED = ("mIoU", "oIoU", "gIoU", "P@0.5", "P@0.9", "selection_accuracy", "oracle_mIoU")
_JUDGED_TEXT = "On the sentences that the run was judged by as it trained, perhaps not all of the split. Percent."
_TIME = {
  "step": "c0", "data": "c1", "evaluation": "c2", "checkpoint": "c3", "compile": "c4", "other": "c5",
}  # fmt: skip


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
  curves = training_log.curves(rows)
  if not curves:
    yield "<p>metrics.jsonl is empty: the run has logged nothing yet.</p>"
    return
  yield "<p>The dashed line is the checkpoint of this page.</p>"
  yield from grid(_panels(curves, training_log.time_spent(rows), step))


def _panels(curves: Mapping[str, Curve], spent: Mapping[str, float], step: int) -> Iterator[str]:
  losses = {name: curves[name] for name in _LOSSES if name in curves}
  if losses:
    yield _panel("Loss", losses, step, _LOSS_TEXT)
  for split, judged in _by_split(curves).items():
    yield _panel(f"Metrics on {split}", judged, step, _JUDGED_TEXT, _percent)
  alone = {
    "lr": ("Learning rate", "Of the step; parts of the model may have a multiple of it."),
    "samples_per_second": ("Samples a second", "Over all devices, while training."),
    "mfu": ("Model FLOPs utilisation", "Share of the devices' peak, in percent."),
    "data_wait": ("Waiting for data", "Share of the time of training, in percent."),
    "grad_norm": ("Norm of the gradient", "Before it is clipped."),
  }
  for name, (title, text) in alone.items():
    if name in curves:
      write = _percent if name in ("mfu", "data_wait") else axes.plain
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
  write: Callable[[axes.Number], str] = axes.plain,
) -> str:
  values = [y for curve in curves.values() for _, y in curve]
  tick = _percent_tick if write is _percent else write
  y = dataclasses.replace(axes.covering(values, ""), write=tick)
  x = axes.until(max(x for curve in curves.values() for x, _ in curve), "step")
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


def _percent(value: axes.Number) -> str:
  return f"{100 * value:.1f}"


def _percent_tick(value: axes.Number) -> str:
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
