"""A figure of a table: one bar per row and one dot per seed."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import pictures
from benchmarks.ablation.tables import Row
from input_pipeline.common.html import escape
from mail_jax.report import charts

_LEFT, _WIDTH, _ROW, _TOP = 280, 740, 24, 26
# In the names of rows with another colour.
_MARK = "default"


def draw(
  rows: Sequence[tuple[Row, Sequence[dict[str, Any]]]], title: str, metric: str = "mIoU"
) -> str:
  """Draws the rows with lines as an SVG file.

  Args:
    rows: with the lines of their runs, from `runs.of_table`.
    title: of the figure.
    metric: on val, a fraction.
  """
  named = [
    (row.name, [line["results"]["val"][metric] for line in found]) for row, found in rows if found
  ]
  scale = charts.fractions("")
  says = ", ".join(f"{name} {100 * statistics.mean(values):.1f}" for name, values in named)
  height = _TOP + _ROW * len(named) + 26
  drawn = charts.svg(_WIDTH, height, f"{title}: {says}", _parts(named, title, scale))
  return pictures.standalone(drawn, _WIDTH, height)


def _parts(
  named: Sequence[tuple[str, list[float]]], title: str, scale: charts.Scale
) -> Iterator[str]:
  bottom = _TOP + _ROW * len(named)
  yield f'<text x="{_LEFT}" y="14">{escape(title)}</text>'
  for tick in scale.ticks:
    yield f'<path class="grid" d="M{_at(tick):.1f} {_TOP}V{bottom}"/>'
    label = escape(scale.write(tick))
    yield f'<text class="middle" x="{_at(tick):.1f}" y="{bottom + 16}">{label}</text>'
  for number, (name, values) in enumerate(named):
    top, mean = _TOP + number * _ROW, statistics.mean(values)
    kind = " c1" if _MARK in name else ""
    yield f'<text class="end" x="{_LEFT - 8}" y="{top + 16}">{escape(name)}</text>'
    yield (
      f'<rect class="bar{kind}" x="{_LEFT}" y="{top + 4}" width="{_at(mean) - _LEFT:.1f}" '
      f'height="{_ROW - 8}"/>'
    )
    yield f'<text x="{_at(max(values)) + 8:.1f}" y="{top + 16}">{100 * mean:.1f}</text>'
    for value in values:
      yield f'<circle class="dot" cx="{_at(value):.1f}" cy="{top + _ROW / 2}" r="2"/>'


def _at(share: float) -> float:
  return _LEFT + share * (_WIDTH - _LEFT - 46)
