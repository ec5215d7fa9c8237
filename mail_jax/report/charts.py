"""Charts as SVG, made without a program in the page: lines, columns, bars, shares of a whole.

The look, light and dark, is the page's: elements have classes and no colours. Whatever is pointed at says its number.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from input_pipeline.common.html import escape
from mail_jax.report import axes
from mail_jax.report.axes import Frame, Number, Scale, colour


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
    x, y: the axes.
    says: what the chart shows, in words.
    say_point: (name, x, y) -> what a point says when it is pointed at.
    mark: an x with a dashed line through it.
  """
  frame = Frame(x, y)
  return axes.drawing(frame.width, frame.height, says, _lines(frame, series, say_point, mark))


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
    x, y: the axes.
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

  return axes.drawing(frame.width, frame.height, says, draw())


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
  return axes.drawing(_WIDTH, height, says, draw())


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

  return axes.drawing(_WIDTH, len(rows) * 56 - 6, says, draw())


def key(names: Sequence[str]) -> str:
  """Returns what the colours of series mean, as a list; nothing where there is one series."""
  if len(names) < 2:
    return ""
  return key_of([(name, f"swatch {colour(i)}") for i, name in enumerate(names)])


def key_of(entries: Sequence[tuple[str, str]]) -> str:
  """Returns what marks mean, as a list; an entry is (its meaning, the classes of its mark)."""
  items = "".join(f'<li><span class="{look}"></span> {escape(name)}</li>' for name, look in entries)
  return f'<ul class="key">{items}</ul>'
