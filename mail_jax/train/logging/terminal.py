"""Lines for whoever watches a run; on a terminal also a last line that changes."""

import math
import os
import sys
import time

from tqdm import tqdm

# Seconds between two drawings of the line that changes: more than the eye needs, and too few to slow a run.
_REDRAW_EVERY = 0.2
_BAR_WIDTH = 14
# Columns of a terminal that does not say, as in a container.
_COLUMNS = 120


class _Bar(tqdm):
  """A line of tqdm's that is drawn when we say so, and by no thread of its own."""

  monitor_interval = 0


class Terminal:
  """Standard output.

  Attributes:
    is_live: whether it is a terminal, on which `show` draws. Elsewhere, in a file or a pipe, there are only lines.
  """

  def __init__(self):
    self._began = time.monotonic()
    self._drawn = -math.inf
    self._bar: tqdm | None = None
    self.is_live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

  def line(self, text: str) -> None:
    """Prints a line that stays, with the minutes since the start; above the one that changes."""
    seconds = int(time.monotonic() - self._began)
    stamped = f"[{seconds // 60:3d}:{seconds % 60:02d}] {text}"
    if self._bar is None:
      print(stamped, flush=True)
      return
    self._bar.clear()
    print(stamped, flush=True)
    self._bar.refresh()

  def show(self, before: str, after: str, done: int, of: int) -> None:
    """Draws the line that changes, if it was not drawn just now: text, a bar, and text that a narrow terminal cuts.

    Args:
      before, after: left and right of the bar.
      done, of: how far the bar goes; without an end (0) there is none.
    """
    now = time.monotonic()
    if not self.is_live or now - self._drawn < _REDRAW_EVERY:
      return
    self._drawn = now
    if self._bar is None:
      self._bar = _Bar(file=sys.stdout, leave=False, bar_format=" ", total=1, ncols=1, nrows=20)
    self._bar.ncols = _columns()
    bar = f"|{{bar:{_BAR_WIDTH}}}| " if of else ""
    self._bar.bar_format = _plain(f"{before} ") + bar + _plain(after)
    self._bar.total, self._bar.n = of or None, min(done, of) if of else done
    self._bar.refresh()

  def redraw(self) -> None:
    """Makes the next `show` draw."""
    self._drawn = -math.inf

  def close(self) -> None:
    """Removes the line that changes; lines can follow."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None


def _columns() -> int:
  """As many as fit into a line of the terminal as it is now, and no line break after them."""
  columns = os.get_terminal_size(sys.stdout.fileno()).columns
  return (columns or _COLUMNS) - 1


def _plain(text: str) -> str:
  """Text in which tqdm finds nothing to fill in."""
  return text.replace("{", "{{").replace("}", "}}")
