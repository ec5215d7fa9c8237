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
COLOURS = 7
"""Classes `c0` to `c6` of the page's look; an eighth series looks like the first."""


@dataclasses.dataclass(frozen=True)
class Scale:
  """An axis: the values that it shows, and how they are written."""

  low: Number
  high: Number
  ticks: Sequence[float]
  write: Callable[[Number], str]
  title: str = ""

  def share(self, value: Number) -> float:
    """Returns where a value stands between the ends, in [0, 1]; values beyond stand at an end."""
    return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def percent(value: Number) -> str:
  """Writes a fraction as whole percent."""
  return f"{100 * value:.0f}"


def plain(value: Number) -> str:
  """Writes a number in few characters: 12k, 3.5, 0.004."""
  size = abs(value)
  for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if size >= unit:
      return f"{value / unit:.4g}{letter}"
  return f"{value:.4g}" if size >= 1e-3 or not size else f"{value:.1e}".replace("e-0", "e-")


def fractions(title: str) -> Scale:
  """Returns the scale from 0 to 1, in percent."""
  return Scale(0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), percent, title)


def covering(values: Iterable[Number], title: str, from_zero: bool = True) -> Scale:
  """Returns a scale with round ends on which all values are.

  Args:
    values: finite, perhaps none.
    title: of the axis.
    from_zero: begins at 0 where no value is below.
  """
  found = [*values] or [0.0, 1.0]
  low, high = min(found), max(found)
  if from_zero:
    low, high = min(low, 0.0), max(high, 0.0)
  if high == low:
    high = low + (abs(low) or 1.0)
  step = _round_step((high - low) / 5)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  ticks = [number * step for number in range(first, last + 1)]
  return Scale(ticks[0], ticks[-1], ticks, plain, title)


def until(end: Number, title: str) -> Scale:
  """Returns a scale of whole numbers from 0 to exactly this end, above 0, with round ticks."""
  ticks = [tick for tick in covering([end], title).ticks if tick <= end and tick == round(tick)]
  return Scale(0.0, end, ticks, plain, title)


def _round_step(wanted: float) -> float:
  """The smallest of 1, 2, 2.5 and 5 times a power of ten that is not below."""
  power = 10.0 ** math.floor(math.log10(wanted))
  return next(n * power for n in (1, 2, 2.5, 5, 10) if n * power >= wanted * (1 - 1e-9))


@dataclasses.dataclass(frozen=True)
class Frame:
  """A chart's area with an axis below and one at its left, in the units of the drawing."""

  x: Scale
  y: Scale
  width: Number = 400
  height: Number = 250
  left: Number = 46
  bottom: Number = 42
  right: Number = 14
  top: Number = 12

  def at(self, x: Number, y: Number) -> tuple[float, float]:
    """Returns where a point is drawn."""
    across, up = self.width - self.left - self.right, self.height - self.top - self.bottom
    return (
      self.left + self.x.share(x) * across,
      self.top + (1 - self.y.share(y)) * up,
    )

  def draw(self) -> Iterator[str]:
    """Yields the grid, the axes, and what is written beside them."""
    for tick in self.y.ticks:
      x, y = self.at(self.x.low, tick)
      end = self.at(self.x.high, tick)[0]
      yield f'<path class="grid" d="M{x:.1f} {y:.1f}H{end:.1f}"/>'
      yield f'<text class="tick end" x="{x - 6:.1f}" y="{y + 4:.1f}">{escape(self.y.write(tick))}</text>'
    for tick in self.x.ticks:
      x, y = self.at(tick, self.y.low)
      yield f'<path class="axis" d="M{x:.1f} {y:.1f}v4"/>'
      yield f'<text class="tick middle" x="{x:.1f}" y="{y + 17:.1f}">{escape(self.x.write(tick))}</text>'
    (x, y), end = self.at(self.x.low, self.y.low), self.at(self.x.high, self.y.low)[0]
    yield f'<path class="axis" d="M{x:.1f} {y:.1f}H{end:.1f}"/>'
    yield f'<text class="title middle" x="{(x + end) / 2:.1f}" y="{self.height - 5:.1f}">{escape(self.x.title)}</text>'


def svg(width: Number, height: Number, says: str, parts: Iterable[str]) -> str:
  """Returns a chart as a picture with a description for screen readers.

  Args:
    width, height: of the drawing, in its own units; it is as wide as the page lets it.
    says: what it shows.
    parts: SVG.
  """
  return (
    f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(says)}">'
    + "".join(parts)
    + "</svg>"
  )


def colour(number: int) -> str:
  """Returns the class of the series of that number."""
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
  says: str,
  say_point: Callable[[str, float, float], str],
  mark: Number | None = None,
) -> str:
  """Returns a chart of lines.

  Args:
    series: a line each; of a single point only the point is seen.
    x, y: the
    says: what the chart shows, in words.
    say_point: (name, x, y) -> what a point says when it is pointed at.
    mark: an x with a dashed line through it.
  """
  frame = Frame(x, y)
  return svg(frame.width, frame.height, says, _lines(frame, series, say_point, mark))


def _lines(
  frame: Frame,
  series: Sequence[Series],
  say_point: Callable[[str, float, float], str],
  mark: Number | None,
) -> Iterator[str]:
  yield from frame.draw()
  if mark is not None and frame.x.low <= mark <= frame.x.high:
    (left, top), (_, bottom) = frame.at(mark, frame.y.high), frame.at(mark, frame.y.low)
    yield f'<path class="mark-line" d="M{left:.1f} {top:.1f}V{bottom:.1f}"/>'
  for number, one in enumerate(series):
    places = [frame.at(*point) for point in one.points]
    path = "L".join(f"{left:.1f} {top:.1f}" for left, top in places)
    if len(places) > 1:
      yield f'<path class="line {colour(number)}" d="M{path}"/>'
  # Above all lines, so that each can be pointed at.
  for number, one in enumerate(series):
    alone = " alone" if len(one.points) == 1 else ""
    for point in one.points:
      left, top = frame.at(*point)
      says = escape(say_point(one.name, *point))
      yield (
        f'<circle class="hit {colour(number)}{alone}" cx="{left:.1f}" cy="{top:.1f}" r="5">'
        f"<title>{says}</title></circle>"
      )


def columns(
  values: Sequence[Number], x: Scale, y: Scale, says: str, say: Sequence[str], number: int
) -> str:
  """Returns a histogram: columns side by side, which fill the x axis.

  Args:
    values: the height of each column.
    x, y: the
    says: what the chart shows, in words.
    say: what each column says when it is pointed at.
    number: of the colour.
  """
  frame = Frame(x, y, height=200)

  def draw() -> Iterator[str]:
    yield from frame.draw()
    step = (x.high - x.low) / len(values)
    for i, (value, text) in enumerate(zip(values, say, strict=True)):
      left, top = frame.at(x.low + i * step, value)
      right, bottom = frame.at(x.low + (i + 1) * step, y.low)
      wide, high = right - left - 1.5, bottom - top
      yield (
        f'<rect class="fill {colour(number)}" x="{left + 0.75:.1f}" y="{top:.1f}" width="{wide:.1f}" '
        f'height="{high:.1f}"><title>{escape(text)}</title></rect>'
      )

  return svg(frame.width, frame.height, says, draw())


@dataclasses.dataclass(frozen=True)
class Bar:
  """A bar from 0 to a share of 1; None where there is nothing to tell."""

  value: float | None
  says: str
  """When it is pointed at."""
  number: int
  """Of its colour."""


_BAR, _GAP, _HEAD = 15, 3, 24
_WIDTH = 400


def bars(groups: Sequence[tuple[str, Sequence[Bar]]], says: str) -> str:
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
  return svg(_WIDTH, height, says, draw())


def _bar(bar: Bar, top: Number) -> Iterator[str]:
  full = _WIDTH - 52
  yield f'<rect class="track" x="0" y="{top}" width="{full}" height="{_BAR}" rx="2"/>'
  text = "-" if bar.value is None else f"{100 * bar.value:.1f}"
  if bar.value:
    yield (
      f'<rect class="fill {colour(bar.number)}" x="0" y="{top}" width="{full * bar.value:.1f}" height="{_BAR}" '
      f'rx="2"><title>{escape(bar.says)}</title></rect>'
    )
  yield f'<text class="value end" x="{_WIDTH}" y="{top + 12}">{text}<title>{escape(bar.says)}</title></text>'


def shares(rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], says: str) -> str:
  """Returns bars that are each cut into parts of a whole.

  Args:
    rows: (name, parts) of each bar; a part is (what it says, its share of 1, its class in the page's look).
    says: what the chart shows, in words.
  """

  def draw() -> Iterator[str]:
    for i, (name, parts) in enumerate(rows):
      top, left = i * 56, 0.0
      yield f'<text class="label" x="0" y="{top + 16}">{escape(name)}</text>' if name else ""
      for text, share, look in parts:
        wide = share * _WIDTH
        if not wide:
          continue
        yield (
          f'<rect class="part {look}" x="{left:.2f}" y="{top + 24}" width="{wide:.2f}" height="22">'
          f"<title>{escape(text)}</title></rect>"
        )
        if share >= 0.07:
          yield f'<text class="inside middle" x="{left + wide / 2:.1f}" y="{top + 39}">{100 * share:.0f}</text>'
        left += wide

  return svg(_WIDTH, len(rows) * 56 - 6, says, draw())


def key(names: Sequence[str]) -> str:
  """Returns what the colours of series mean, as a list; nothing where there is one series."""
  if len(names) < 2:
    return ""
  return key_of([(name, f"swatch {colour(i)}") for i, name in enumerate(names)])


def key_of(entries: Sequence[tuple[str, str]]) -> str:
  """Returns what marks mean, as a list; an entry is (its meaning, the classes of its mark)."""
  items = "".join(f'<li><span class="{look}"></span> {escape(name)}</li>' for name, look in entries)
  return f'<ul class="key">{items}</ul>'


def panel(
  title: str,
  chart: str,
  key: str = "",
  text: str = "",
  numbers: tuple[Sequence[str], Iterable[Sequence[str]]] | None = None,
) -> str:
  """Returns a chart with what belongs to it.

  Args:
    title: plain text.
    chart: SVG.
    key: HTML; what its colours mean.
    text: plain text; how it is to be read.
    numbers: header and rows of the table of what it shows.
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
  """Yields a part of the page.

  Args:
    name: of the place that links lead to.
    title: plain text.
    body: HTML.
  """
  yield f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>'
  yield from body
  yield "</section>"


def grid(panels: Iterable[str]) -> Iterator[str]:
  """Yields panels side by side, as many as there is room for."""
  yield '<div class="charts">'
  yield from panels
  yield "</div>"
