"""How good the masks are, in charts: at which IoU, for which targets and sentences, and what stands in the way."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mail_jax.evaluate.per_expression import Row
from mail_jax.report import charts
from mail_jax.report.charts import Bar, Series, grid, panel

STEPS = 100
"""The P@X curve has a point each hundredth from 0 to 1."""
BINS = 20
_HIT = 0.5
_GROUPS = {
  "by_size": (
    "Mean IoU by the size of the target",
    "Small: an area below 32 x 32 pixels of the photo; medium: below 96 x 96; large: the others. Percent.",
  ),
  "by_words": ("Mean IoU by the length of the expression", "In words. Percent."),
}
_COLUMNS = (
  "expressions", "mIoU", "boundary_mIoU", "oIoU", "P@0.5", "selection_accuracy", "oracle_mIoU",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SplitResults:
  """The results of a split.

  Attributes:
    name: DATASET/SPLIT.
    metrics: fractions and counts by their name.
    rows: a sentence each, in the order of the data; at least one.
    groups: metrics of a part of the sentences, by what parts them (`by_size`, `by_words`) and the name of the part.
    instances: who made its instance masks, as `leakage.recall` says.
  """

  name: str
  metrics: Mapping[str, int | float]
  rows: Sequence[Row]
  groups: Mapping[str, Mapping[str, Mapping[str, int | float]]]
  instances: Mapping[str, Any]


def precision_curve(rows: Sequence[Row]) -> list[float]:
  """Returns P@X, the share of rows with an IoU of at least X, for X = 0, 1/STEPS, ..., 1."""
  ious = np.sort([row["iou"] for row in rows])
  below = np.searchsorted(ious, np.arange(STEPS + 1) / STEPS, side="left")
  return ((len(ious) - below) / len(ious)).tolist()


def histogram(rows: Sequence[Row]) -> list[int]:
  """Returns how many rows have an IoU in [0, 1/BINS), [1/BINS, 2/BINS), ...; the last bin has those of 1 too.

  Counted in whole numbers, so that no IoU lands in its neighbour's bin.
  """
  counts = [0] * BINS
  for row in rows:
    full = row["intersection"] * BINS // row["union"] if row["union"] else BINS
    counts[min(full, BINS - 1)] += 1
  return counts


@dataclasses.dataclass(frozen=True)
class Reason:
  """One of the ways in which a sentence ends; `look` is its class in the page's look."""

  name: str
  meaning: str
  look: str


REASONS = (
  Reason("found", "the mask has an IoU of at least 0.5", "found"),
  Reason(
    "poor outline", "the right instance was chosen, and the mask is below 0.5 all the same", "poor"
  ),
  Reason(
    "wrong instance", "an instance mask fits the target, and another or none was chosen", "wrong"
  ),
  Reason("no instance fits", "no instance mask overlaps the target by more than 0.5", "none"),
)


def reasons(rows: Sequence[Row]) -> list[int]:
  """Returns how many of the rows that have a target end in each of REASONS."""
  counts = dict.fromkeys(REASONS, 0)
  for row in rows:
    if row["area"]:
      counts[_reason(row)] += 1
  return [*counts.values()]


def _reason(row: Row) -> Reason:
  found, poor, wrong, impossible = REASONS
  if row["iou"] >= _HIT:
    return found
  if row["selected_iou"] > _HIT:
    return poor
  return wrong if row["oracle_iou"] > _HIT else impossible


def draw(splits: Sequence[SplitResults]) -> Iterator[str]:
  """Yields the panels."""
  yield from grid(_panels(splits))


def _panels(splits: Sequence[SplitResults]) -> Iterator[str]:
  yield _precision(splits)
  for number, split in enumerate(splits):
    yield _histogram(split, number, alone=len(splits) == 1)
  yield _reasons(splits)
  yield _ceiling(splits)
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
    f"{one.name} {_percent(curve[STEPS // 2])} % at 0.5"
    for one, curve in zip(series, curves, strict=True)
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
    charts.key([one.name for one in series]),
    "Share of sentences whose mask has an IoU of at least X, in percent.",
    (["X", *(one.name for one in series)], rows),
  )


def _histogram(split: SplitResults, number: int, alone: bool) -> str:
  counts = histogram(split.rows)
  names = [f"{i / BINS:.2f} to {(i + 1) / BINS:.2f}" for i in range(BINS)]
  say = [
    f"IoU {name}: {count:,} sentences, {count / len(split.rows):.1%}"
    for name, count in zip(names, counts, strict=True)
  ]
  x = charts.Scale(0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), charts.plain, "IoU")
  low, high = counts[0] / len(split.rows), counts[-1] / len(split.rows)
  says = f"Histogram of the IoU on {split.name}: {low:.1%} of the sentences below 0.05, {high:.1%} from 0.95 on"
  chart = charts.columns(counts, x, charts.covering(counts, ""), says, say, number)
  title = "Sentences by IoU" if alone else f"Sentences by IoU, {split.name}"
  rows = [[name, f"{count:,}"] for name, count in zip(names, counts, strict=True)]
  return panel(
    title, chart, "", "How many sentences have a mask of that IoU.", (["IoU", "expressions"], rows)
  )


def _reasons(splits: Sequence[SplitResults]) -> str:
  found = {split.name: reasons(split.rows) for split in splits}
  bars, table = [], []
  for name, counts in found.items():
    total = max(sum(counts), 1)
    texts = [
      f"{reason.name}: {count:,} sentences, {count / total:.1%}"
      for reason, count in zip(REASONS, counts, strict=True)
    ]
    parts = [
      (text, count / total, reason.look)
      for text, count, reason in zip(texts, counts, REASONS, strict=True)
    ]
    bars.append((name, parts))
    table.append([name, *(f"{count:,}" for count in counts)])
  chart = charts.shares(
    bars,
    "Found or not, and why: "
    + "; ".join(f"{name} {', '.join(text for text, _, _ in parts)}" for name, parts in bars),
  )
  key = charts.key_of(
    [(f"{reason.name}: {reason.meaning}", f"swatch {reason.look}") for reason in REASONS]
  )
  text = "Of the sentences with a target, in percent."
  return panel("Found or not, and why", chart, key, text, (["", *(r.name for r in REASONS)], table))


def _ceiling(splits: Sequence[SplitResults]) -> str:
  marks = {
    "selected_mIoU": "the chosen instance mask, as it is",
    "mIoU": "the model's mask",
    "oracle_mIoU": "the best instance mask",
  }
  groups = []
  for split in splits:
    bars = []
    for number, (name, meaning) in enumerate(marks.items()):
      value = split.metrics.get(name)
      says = f"{split.name}, {meaning}: mean IoU {_percent(value)} %"
      bars.append(Bar(None if value is None else float(value), says, number))
    groups.append((split.name, bars))
  table = [[split.name, *(_percent(split.metrics.get(name)) for name in marks)] for split in splits]
  return panel(
    "What the instance masks allow",
    charts.bars(groups, "; ".join(bar.says for _, bars in groups for bar in bars)),
    charts.key([*marks.values()]),
    "Mean IoU in percent. The best mask is the ceiling of any method that only picks one; a model that draws its own "
    "outline can pass it.",
    (["", "chosen mask", "model", "best mask"], table),
  )


def _groups(splits: Sequence[SplitResults], name: str, title: str, text: str) -> str:
  parts = list(dict.fromkeys(part for split in splits for part in split.groups.get(name, {})))
  drawn, table = [], []
  for part in parts:
    bars = []
    for number, split in enumerate(splits):
      metrics = split.groups.get(name, {}).get(part, {})
      value, count = metrics.get("mIoU"), int(metrics.get("expressions", 0))
      says = f"{split.name}, {part}: mean IoU {_percent(value)} %, {count:,} sentences"
      bars.append(Bar(None if value is None else float(value), says, number))
      cells = [_cell(column, metrics.get(column)) for column in _COLUMNS]
      table.append([f"{part}, {split.name}" if len(splits) > 1 else part, *cells])
    drawn.append((part, bars))
  says = f"{title}: " + "; ".join(bar.says for _, bars in drawn for bar in bars)
  return panel(
    title,
    charts.bars(drawn, says),
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
