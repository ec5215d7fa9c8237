"""Charts of the quality of masks: by IoU, by target and expression, and an error analysis."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mail_jax.evaluate.per_expression import Row
from mail_jax.report import charts
from mail_jax.report.charts import Bar, Series, grid, panel

# The P@X curve has a point at every hundredth from 0 to 1.
STEPS = 100
BINS = 20
_HIT = 0.5
_GROUPS = {
  "by_size": (
    "Mean IoU by the size of the target",
    "Small: an area below 32 x 32 pixels of the image; medium: below 96 x 96; large: the others. "
    "Percent.",
  ),
  "by_words": ("Mean IoU by the length of the expression", "Number of words. Percent."),
}
_COLUMNS = (
  "expressions",
  "mIoU",
  "boundary_mIoU",
  "oIoU",
  "P@0.5",
  "selection_accuracy",
  "oracle_mIoU",
)


@dataclasses.dataclass(frozen=True)
class SplitResults:
  """The results of a split.

  Attributes:
    name: DATASET/SPLIT.
    metrics: fractions and counts by name.
    rows: one per expression, in the order of the data; at least one.
    groups: metrics of groups of expressions, by breakdown (`by_size`, `by_words`) and group.
    instances: the origin of its instance masks, as `leakage.of_split` returns it.
    training_images: how many of its images the model was trained on, as `leakage.of_model` returns
      it.
  """

  name: str
  metrics: Mapping[str, int | float]
  rows: Sequence[Row]
  groups: Mapping[str, Mapping[str, Mapping[str, int | float]]]
  instances: Mapping[str, Any]
  training_images: Mapping[str, Any]


def precision_curve(rows: Sequence[Row]) -> list[float]:
  """Returns P@X, the share of rows with an IoU of at least X, for X = 0, 1/STEPS, ..., 1."""
  ious = np.sort([row["iou"] for row in rows])
  below = np.searchsorted(ious, np.arange(STEPS + 1) / STEPS, side="left")
  return ((len(ious) - below) / len(ious)).tolist()


def histogram(rows: Sequence[Row]) -> list[int]:
  """Counts the rows with an IoU in [0, 1/BINS), [1/BINS, 2/BINS), ...; the last bin includes 1.

  The bins are computed in integers, so that rounding puts no IoU into the neighbouring bin.
  """
  counts = [0] * BINS
  for row in rows:
    full = row["intersection"] * BINS // row["union"] if row["union"] else BINS
    counts[min(full, BINS - 1)] += 1
  return counts


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A class of the error analysis; `css_class` is its class in the style sheet."""

  name: str
  meaning: str
  css_class: str


OUTCOMES = (
  Outcome("found", "the mask has an IoU of at least 0.5", "found"),
  Outcome("poor outline", "the right instance is selected, but the IoU is below 0.5", "poor"),
  Outcome(
    "wrong instance", "an instance fits the target, but another or none is selected", "wrong"
  ),
  Outcome("no instance fits", "no instance has an IoU above 0.5 with the target", "none"),
)


def count_outcomes(rows: Sequence[Row]) -> list[int]:
  """Counts the rows with a target by each of OUTCOMES."""
  counts = dict.fromkeys(OUTCOMES, 0)
  for row in rows:
    if row["area"]:
      counts[outcome_of(row)] += 1
  return [*counts.values()]


def outcome_of(row: Row) -> Outcome:
  """Returns the outcome of an expression with a target."""
  found, poor, wrong, impossible = OUTCOMES
  if row["iou"] >= _HIT:
    return found
  if row["selected_iou"] > _HIT:
    return poor
  return wrong if row["oracle_iou"] > _HIT else impossible


def draw(splits: Sequence[SplitResults]) -> Iterator[str]:
  """Yields the panels of the section."""
  yield from grid(_panels(splits))


def _panels(splits: Sequence[SplitResults]) -> Iterator[str]:
  yield _precision(splits)
  for number, split in enumerate(splits):
    yield _histogram(split, number, alone=len(splits) == 1)
  # Rows of given masks do not know the instances.
  if selecting := [split for split in splits if "oracle_mIoU" in split.metrics]:
    yield _error_analysis(selecting)
    yield _upper_limit(selecting)
  for name, (title, text) in _GROUPS.items():
    if any(name in split.groups for split in splits):
      yield _groups(splits, name, title, text)


def _precision(splits: Sequence[SplitResults]) -> str:
  curves = [precision_curve(split.rows) for split in splits]
  at = [x / STEPS for x in range(STEPS + 1)]
  series = [
    Series(split.name, [*zip(at, curve, strict=True)])
    for split, curve in zip(splits, curves, strict=True)
  ]
  half = ", ".join(
    f"{line.name} {_percent(curve[STEPS // 2])} % at 0.5"
    for line, curve in zip(series, curves, strict=True)
  )
  tick = charts.Scale(0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), charts.plain, "X")
  chart = charts.lines(
    series, tick, charts.fractions(""), f"P@X for X from 0 to 1: {half}",
    lambda name, x, y: f"{name}: P@{x:.2f} = {_percent(y)} %",
  )  # fmt: skip
  rows = [
    [f"{x / STEPS:.2f}", *(_percent(curve[x]) for curve in curves)] for x in range(0, STEPS + 1, 5)
  ]
  return panel(
    "Precision at X",
    chart,
    charts.key([line.name for line in series]),
    "Share of expressions with an IoU of at least X, in percent.",
    (["X", *(line.name for line in series)], rows),
  )


def _histogram(split: SplitResults, number: int, alone: bool) -> str:
  counts = histogram(split.rows)
  names = [f"{i / BINS:.2f} to {(i + 1) / BINS:.2f}" for i in range(BINS)]
  tooltips = [
    f"IoU {name}: {count:,} expressions, {count / len(split.rows):.1%}"
    for name, count in zip(names, counts, strict=True)
  ]
  x = charts.Scale(0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), charts.plain, "IoU")
  low, high = counts[0] / len(split.rows), counts[-1] / len(split.rows)
  alt_text = (
    f"Histogram of the IoU on {split.name}: {low:.1%} of the expressions below 0.05, {high:.1%} at "
    "0.95 or above"
  )
  chart = charts.columns(counts, x, charts.covering(counts, ""), alt_text, tooltips, number)
  title = "Expressions by IoU" if alone else f"Expressions by IoU, {split.name}"
  rows = [[name, f"{count:,}"] for name, count in zip(names, counts, strict=True)]
  return panel(
    title,
    chart,
    "",
    "Number of expressions by the IoU of the mask.",
    (["IoU", "expressions"], rows),
  )


def _error_analysis(splits: Sequence[SplitResults]) -> str:
  by_split = {split.name: count_outcomes(split.rows) for split in splits}
  bars, table = [], []
  for name, counts in by_split.items():
    total = max(sum(counts), 1)
    texts = [
      f"{outcome.name}: {count:,} expressions, {count / total:.1%}"
      for outcome, count in zip(OUTCOMES, counts, strict=True)
    ]
    parts = [
      (text, count / total, outcome.css_class)
      for text, count, outcome in zip(texts, counts, OUTCOMES, strict=True)
    ]
    bars.append((name, parts))
    table.append([name, *(f"{count:,}" for count in counts)])
  chart = charts.shares(
    bars,
    "Error analysis: "
    + "; ".join(f"{name} {', '.join(text for text, _, _ in parts)}" for name, parts in bars),
  )
  key = charts.key_of([(f"{o.name}: {o.meaning}", f"swatch {o.css_class}") for o in OUTCOMES])
  text = "Share of the expressions with a target, in percent."
  return panel("Error analysis", chart, key, text, (["", *(o.name for o in OUTCOMES)], table))


def _upper_limit(splits: Sequence[SplitResults]) -> str:
  marks = {
    "selected_mIoU": "the selected instance mask",
    "mIoU": "the model's mask",
    "oracle_mIoU": "the best instance mask",
  }
  groups = []
  for split in splits:
    bars = []
    for number, (name, meaning) in enumerate(marks.items()):
      value = split.metrics.get(name)
      tooltip = f"{split.name}, {meaning}: mean IoU {_percent(value)} %"
      bars.append(Bar(None if value is None else float(value), tooltip, number))
    groups.append((split.name, bars))
  table = [[split.name, *(_percent(split.metrics.get(name)) for name in marks)] for split in splits]
  return panel(
    "Upper limit of the instance masks",
    charts.bars(groups, "; ".join(bar.tooltip for _, bars in groups for bar in bars)),
    charts.key([*marks.values()]),
    "Mean IoU in percent. The best instance mask is the upper limit of methods that only select "
    "one; a model that draws its own outline can exceed it.",
    (["", "selected mask", "model", "best mask"], table),
  )


def _groups(splits: Sequence[SplitResults], name: str, title: str, text: str) -> str:
  parts = list(dict.fromkeys(part for split in splits for part in split.groups.get(name, {})))
  drawn, table = [], []
  for part in parts:
    bars = []
    for number, split in enumerate(splits):
      metrics = split.groups.get(name, {}).get(part, {})
      value, count = metrics.get("mIoU"), int(metrics.get("expressions", 0))
      tooltip = f"{split.name}, {part}: mean IoU {_percent(value)} %, {count:,} expressions"
      bars.append(Bar(None if value is None else float(value), tooltip, number))
      cells = [_cell(column, metrics.get(column)) for column in _COLUMNS]
      table.append([f"{part}, {split.name}" if len(splits) > 1 else part, *cells])
    drawn.append((part, bars))
  alt_text = f"{title}: " + "; ".join(bar.tooltip for _, bars in drawn for bar in bars)
  return panel(
    title,
    charts.bars(drawn, alt_text),
    charts.key([split.name for split in splits]),
    text,
    (["", *_COLUMNS], table),
  )


def _cell(column: str, value: int | float | None) -> str:
  if column == "expressions":
    return f"{int(value or 0):,}"
  return _percent(value)


def _percent(value: float | None) -> str:
  return "-" if value is None else f"{100 * value:.1f}"
