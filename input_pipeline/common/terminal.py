"""What commands print: progress, counts and tables."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

# Seconds between lines where stderr is not a terminal.
_LINE_INTERVAL = 30.0
# Seconds that may pass in silence.
_SILENCE = 5


def progress_bar(label: str, total: int, unit: str, done: int = 0) -> tqdm:
  """Returns a bar with the time left; where stderr is not a terminal, a line now and then.

  Args:
    label: what is being done, in a word.
    total: number of items.
    unit: of the items, in the plural.
    done: items that were done before.
  """
  if sys.stderr.isatty():
    return tqdm(desc=label, total=total, unit=f" {unit}", initial=done)
  return tqdm(
    desc=label,
    total=total,
    initial=done,
    bar_format=f"{{desc}}: {{n_fmt}} of {{total_fmt}} {unit}, {{rate_fmt}}, {{remaining}} left\n",
    mininterval=_LINE_INTERVAL,
    delay=_SILENCE,
  )


def with_progress(items: Iterable[Item], label: str, total: int, unit: str) -> Iterator[Item]:
  """Yields the items, with a progress bar; see `progress_bar`."""
  with progress_bar(label, total, unit) as bar:
    for item in items:
      yield item
      bar.update()


def say(text: str) -> None:
  """Prints a line to standard error, at once."""
  print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def announce(
  doing: str | Callable[[], str],
  say: Callable[[str], None] = say,
  every: float = _LINE_INTERVAL,
) -> Iterator[None]:
  """Says what is being done once it takes longer than a few seconds, and again now and then.

  For work that has nothing to count; otherwise see `progress_bar`.

  Args:
    doing: what is being done, such as `compiling the training step`; a function can say how far it
      is.
    say: prints a line; another thread calls it.
    every: seconds between lines after the first.
  """
  ended, began = threading.Event(), time.monotonic()

  def speak() -> None:
    wait = _SILENCE
    while not ended.wait(wait):
      passed = time.monotonic() - began
      so_far = f" ({passed:.0f} s so far)" if wait > _SILENCE else " ..."
      say(f"{doing if isinstance(doing, str) else doing()}{so_far}")
      wait = every

  thread = threading.Thread(target=speak, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()


def counted(number: int, noun: str) -> str:
  """Returns a number with its noun, such as "1 line" or "2,000 lines"."""
  return f"{number:,} {noun}{'s' * (number != 1)}"


def list_counts(counts: Mapping[str, int]) -> str:
  """Returns what happened how often, such as "crowd left out (2); polygon clipped (1)"."""
  return "; ".join(f"{what} ({count:,})" for what, count in sorted(counts.items()))


def text_table(rows: Sequence[Sequence[str]]) -> str:
  """Aligns rows in columns: the first to the left, the others to the right.

  Args:
    rows: of equally many cells each; a row of one cell is a title.
  """
  full = [row for row in rows if len(row) > 1]
  widths = [max(map(len, column)) for column in zip(*full, strict=True)]
  return "\n".join(_line(row, widths) if len(row) > 1 else row[0] for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
  cells = [
    cell.rjust(width) if column else cell.ljust(width)
    for column, (cell, width) in enumerate(zip(row, widths, strict=True))
  ]
  return "  ".join(cells).rstrip()
