"""Where numbers stand in a chart: scales, ticks, and the frame that charts share."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

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


def drawing(width: Number, height: Number, says: str, parts: Iterable[str]) -> str:
  """Returns a chart as a picture that those who cannot see it are told of.

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
