"""Charts as SVG, drawn without a script in the page: lines, columns, bars, shares of a whole.

A chart stands in a panel with its heading, its key and its numbers. Elements have classes and no
colors: the style sheet of the page has them, for light and dark. Pointing at an element shows its
number.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from input_pipeline.common import html
from input_pipeline.common.html import escape

Number = int | float
# Classes `c0` to `c6` of the style sheet; an eighth series looks like the first.
COLOURS = 7


@dataclasses.dataclass(frozen=True)
class Scale:
  """An axis: its range, its ticks, and how values are written."""

  low: Number
  high: Number
  ticks: Sequence[float]
  write: Callable[[Number], str]
  title: str = ""

  def share(self, value: Number) -> float:
    """Returns the position of a value between the ends, clipped to [0, 1]."""
    return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def percent(value: Number) -> str:
  """Formats a fraction as whole percent."""
  return f"{100 * value:.0f}"


def plain(value: Number) -> str:
  """Formats a number in few characters: 12k, 3.5, 0.004."""
  size = abs(value)
  for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if size >= unit:
      return f"{value / unit:.4g}{letter}"
  return f"{value:.4g}" if size >= 1e-3 or not size else f"{value:.1e}".replace("e-0", "e-")


def fractions(title: str) -> Scale:
  """Returns the scale from 0 to 1, in percent."""
  return Scale(0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), percent, title)


def covering(values: Iterable[Number], title: str, from_zero: bool = True) -> Scale:
  """Returns a scale with round ends that covers all values.

  Args:
    values: finite; may be empty.
    title: of the axis.
    from_zero: include 0.
  """
  values = [*values] or [0.0, 1.0]
  low, high = min(values), max(values)
  if from_zero:
    low, high = min(low, 0.0), max(high, 0.0)
  if high == low:
    high = low + (abs(low) or 1.0)
  step = _round_step((high - low) / 5)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  ticks = [number * step for number in range(first, last + 1)]
  return Scale(ticks[0], ticks[-1], ticks, plain, title)


def until(end: Number, title: str) -> Scale:
  """Returns a scale from 0 to exactly this end, which is above 0, with round integer ticks."""
  ticks = [tick for tick in covering([end], title).ticks if tick <= end and tick == round(tick)]
  return Scale(0.0, end, ticks, plain, title)


def _round_step(wanted: float) -> float:
  """Returns the smallest of 1, 2, 2.5 and 5 times a power of ten that is at least as large."""
  power = 10.0 ** math.floor(math.log10(wanted))
  return next(n * power for n in (1, 2, 2.5, 5, 10) if n * power >= wanted * (1 - 1e-9))


@dataclasses.dataclass(frozen=True)
class Frame:
  """The area of a chart with an axis below and one on its left, in the units of the drawing."""

  x: Scale
  y: Scale
  width: Number = 400
  height: Number = 250
  left: Number = 46
  bottom: Number = 42
  right: Number = 14
  top: Number = 12

  def at(self, x: Number, y: Number) -> tuple[float, float]:
    """Returns the position at which a point is drawn."""
    across, up = self.width - self.left - self.right, self.height - self.top - self.bottom
    return (
      self.left + self.x.share(x) * across,
      self.top + (1 - self.y.share(y)) * up,
    )

  def draw(self) -> Iterator[str]:
    """Yields the grid, the axes and their labels."""
    for tick in self.y.ticks:
      x, y = self.at(self.x.low, tick)
      end = self.at(self.x.high, tick)[0]
      yield f'<path class="grid" d="M{x:.1f} {y:.1f}H{end:.1f}"/>'
      yield _text("tick end", x - 6, y + 4, self.y.write(tick))
    for tick in self.x.ticks:
      x, y = self.at(tick, self.y.low)
      yield f'<path class="axis" d="M{x:.1f} {y:.1f}v4"/>'
      yield _text("tick middle", x, y + 17, self.x.write(tick))
    (x, y), end = self.at(self.x.low, self.y.low), self.at(self.x.high, self.y.low)[0]
    yield f'<path class="axis" d="M{x:.1f} {y:.1f}H{end:.1f}"/>'
    yield _text("title middle", (x + end) / 2, self.height - 5, self.x.title)


def _text(css_class: str, x: Number, y: Number, text: str) -> str:
  return f'<text class="{css_class}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def svg(width: Number, height: Number, alt_text: str, parts: Iterable[str]) -> str:
  """Returns a chart as an SVG element with a description for screen readers.

  Args:
    width, height: of the drawing, in its own units; it is scaled to the width of the page.
    alt_text: describes the chart.
    parts: SVG.
  """
  return (
    f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(alt_text)}">'
    + "".join(parts)
    + "</svg>"
  )


def colour(number: int) -> str:
  """Returns the CSS class of a series by its number."""
  return f"c{number % COLOURS}"


@dataclasses.dataclass(frozen=True)
class Series:
  """Points with a name, from left to right."""

  name: str
  points: Sequence[tuple[float, float]]


def lines(
  series: Sequence[Series],
  x: Scale,
  y: Scale,
  alt_text: str,
  tooltip: Callable[[str, float, float], str],
  mark: Number | None = None,
) -> str:
  """Returns a chart of lines.

  Args:
    series: one line each; a series of a single point is drawn as a point.
    x, y: the axes.
    alt_text: describes the chart.
    tooltip: (name, x, y) -> the tooltip of a point.
    mark: an x that is marked by a dashed line.
  """
  frame = Frame(x, y)
  return svg(frame.width, frame.height, alt_text, _lines(frame, series, tooltip, mark))


def _lines(
  frame: Frame,
  series: Sequence[Series],
  tooltip: Callable[[str, float, float], str],
  mark: Number | None,
) -> Iterator[str]:
  yield from frame.draw()
  if mark is not None and frame.x.low <= mark <= frame.x.high:
    (left, top), (_, bottom) = frame.at(mark, frame.y.high), frame.at(mark, frame.y.low)
    yield f'<path class="mark-line" d="M{left:.1f} {top:.1f}V{bottom:.1f}"/>'
  for number, line in enumerate(series):
    places = [frame.at(*point) for point in line.points]
    path = "L".join(f"{left:.1f} {top:.1f}" for left, top in places)
    if len(places) > 1:
      yield f'<path class="line {colour(number)}" d="M{path}"/>'
  # Above all lines, so that the pointer reaches every point.
  for number, line in enumerate(series):
    alone = " alone" if len(line.points) == 1 else ""
    for point in line.points:
      left, top = frame.at(*point)
      title = escape(tooltip(line.name, *point))
      yield (
        f'<circle class="hit {colour(number)}{alone}" cx="{left:.1f}" cy="{top:.1f}" r="5">'
        f"<title>{title}</title></circle>"
      )


def columns(
  values: Sequence[Number],
  x: Scale,
  y: Scale,
  alt_text: str,
  tooltips: Sequence[str],
  number: int,
) -> str:
  """Returns a histogram: columns side by side that fill the x axis.

  Args:
    values: the height of each column.
    x, y: the axes.
    alt_text: describes the chart.
    tooltips: of the columns.
    number: of the colour.
  """
  frame = Frame(x, y, height=200)

  def draw() -> Iterator[str]:
    yield from frame.draw()
    step = (x.high - x.low) / len(values)
    for i, (value, text) in enumerate(zip(values, tooltips, strict=True)):
      left, top = frame.at(x.low + i * step, value)
      right, bottom = frame.at(x.low + (i + 1) * step, y.low)
      wide, high = right - left - 1.5, bottom - top
      yield (
        f'<rect class="fill {colour(number)}" x="{left + 0.75:.1f}" y="{top:.1f}" '
        f'width="{wide:.1f}" height="{high:.1f}"><title>{escape(text)}</title></rect>'
      )

  return svg(frame.width, frame.height, alt_text, draw())


@dataclasses.dataclass(frozen=True)
class Bar:
  """A bar in a group.

  Attributes:
    value: length as a share of 1; None if there is no value.
    tooltip: shown when the pointer is on the bar.
    number: of its colour.
  """

  value: float | None
  tooltip: str
  number: int


_BAR, _GAP, _HEAD = 15, 3, 24
_WIDTH = 400


def bars(groups: Sequence[tuple[str, Sequence[Bar]]], alt_text: str) -> str:
  """Returns groups of horizontal bars with their values in percent, each group below its name."""

  def draw() -> Iterator[str]:
    top = 0
    for name, group in groups:
      yield f'<text class="label" x="0" y="{top + 16}">{escape(name)}</text>'
      top += _HEAD
      for bar in group:
        yield from _bar(bar, top)
        top += _BAR + _GAP
      top += 8

  height = sum(_HEAD + 8 + len(group) * (_BAR + _GAP) for _, group in groups)
  return svg(_WIDTH, height, alt_text, draw())


def _bar(bar: Bar, top: Number) -> Iterator[str]:
  full = _WIDTH - 52
  yield f'<rect class="track" x="0" y="{top}" width="{full}" height="{_BAR}" rx="2"/>'
  text = "-" if bar.value is None else f"{100 * bar.value:.1f}"
  if bar.value:
    yield (
      f'<rect class="fill {colour(bar.number)}" x="0" y="{top}" width="{full * bar.value:.1f}" '
      f'height="{_BAR}" rx="2"><title>{escape(bar.tooltip)}</title></rect>'
    )
  yield (
    f'<text class="value end" x="{_WIDTH}" y="{top + 12}">{text}'
    f"<title>{escape(bar.tooltip)}</title></text>"
  )


def shares(rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], alt_text: str) -> str:
  """Returns stacked bars, each of a whole in parts.

  Args:
    rows: (name, parts) of each bar; a part is (tooltip, share of 1, CSS class).
    alt_text: describes the chart.
  """

  def draw() -> Iterator[str]:
    for i, (name, parts) in enumerate(rows):
      top, left = i * 56, 0.0
      yield f'<text class="label" x="0" y="{top + 16}">{escape(name)}</text>' if name else ""
      for text, share, css_class in parts:
        wide = share * _WIDTH
        if not wide:
          continue
        yield (
          f'<rect class="part {css_class}" x="{left:.2f}" y="{top + 24}" width="{wide:.2f}" '
          'height="22">'
          f"<title>{escape(text)}</title></rect>"
        )
        if share >= 0.07:
          yield _text("inside middle", left + wide / 2, top + 39, f"{100 * share:.0f}")
        left += wide

  return svg(_WIDTH, len(rows) * 56 - 6, alt_text, draw())


def key(names: Sequence[str]) -> str:
  """Returns the legend of several series as a list; empty for a single one."""
  if len(names) < 2:
    return ""
  return key_of([(name, f"swatch {colour(i)}") for i, name in enumerate(names)])


def key_of(entries: Sequence[tuple[str, str]]) -> str:
  """Returns a legend as a list; an entry is (meaning, CSS classes of the mark)."""
  items = "".join(
    f'<li><span class="{css_class}"></span> {escape(name)}</li>' for name, css_class in entries
  )
  return f'<ul class="key">{items}</ul>'


def panel(
  title: str,
  chart: str,
  key: str = "",
  text: str = "",
  numbers: tuple[Sequence[str], Iterable[Sequence[str]]] | None = None,
) -> str:
  """Returns a chart with its heading, legend, explanation and numbers.

  Args:
    title: plain text.
    chart: SVG.
    key: HTML; the legend.
    text: plain text; how to read the chart.
    numbers: header and rows of a table of the values.
  """
  parts = [f'<div class="chart"><h3>{escape(title)}</h3>', key, chart]
  parts += [f"<p>{escape(text)}</p>"] if text else []
  parts += [*_fold(title, *numbers)] if numbers else []
  return "".join([*parts, "</div>"])


def _fold(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
  yield "<details><summary>Numbers</summary>"
  yield from html.table(f"{title}: numbers", header, rows)
  yield "</details>"


def section(name: str, title: str, body: Iterable[str]) -> Iterator[str]:
  """Yields a section of the page.

  Args:
    name: the anchor of links.
    title: plain text.
    body: HTML.
  """
  yield f'<section id="{name}" aria-labelledby="{name}-title">'
  yield f'<h2 id="{name}-title">{escape(title)}</h2>'
  yield from body
  yield "</section>"


def grid(panels: Iterable[str]) -> Iterator[str]:
  """Yields panels in a grid."""
  yield '<div class="charts">'
  yield from panels
  yield "</div>"
