"""The terminal of a run: lines, a last line that changes, and a table at the end."""

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from mail_jax.evaluate import table

# Seconds between two drawings of the changing line: enough for the eye, and too few to slow a run.
_REDRAW_EVERY = 0.2
_BAR_WIDTH = 14
# Columns of a terminal that does not say, as in a container.
_COLUMNS = 120
# Metrics in the line of an evaluation, where they are known.
_IN_LINE = ("mIoU", "oIoU", "P@0.5", "selection_accuracy", "gIoU", "cIoU", "N-acc", "T-acc")
# Metrics in the final table; the others are in the log.
_IN_TABLE = (
  "mIoU",
  "oIoU",
  "gIoU",
  "cIoU",
  "P@0.5",
  "P@0.7",
  "P@0.9",
  "N-acc",
  "T-acc",
  "selection_accuracy",
  "oracle_mIoU",
)


class _Bar(tqdm):
  """A tqdm line that is only drawn on request, without a monitor thread."""

  monitor_interval = 0


class Terminal:
  """Standard output.

  Attributes:
    is_live: whether it is a terminal, where `show` draws. A file or a pipe gets lines only.
  """

  def __init__(self):
    self._began = time.monotonic()
    self._drawn = -math.inf
    self._bar: tqdm | None = None
    self.is_live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

  def line(self, text: str) -> None:
    """Prints a permanent line, with the time since the start, above the changing one."""
    seconds = int(time.monotonic() - self._began)
    stamped = f"[{seconds // 60:3d}:{seconds % 60:02d}] {text}"
    if self._bar is None:
      print(stamped, flush=True)
      return
    self._bar.clear()
    print(stamped, flush=True)
    self._bar.refresh()

  def show(self, before: str, after: str, done: int, total: int) -> None:
    """Draws the changing line, unless it was drawn a moment ago.

    Args:
      before: text left of the bar.
      after: text right of the bar; a narrow terminal cuts it.
      done: progress of the bar.
      total: end of the bar; 0 draws no bar.
    """
    now = time.monotonic()
    if not self.is_live or now - self._drawn < _REDRAW_EVERY:
      return
    self._drawn = now
    if self._bar is None:
      self._bar = _Bar(file=sys.stdout, leave=False, bar_format=" ", total=1, ncols=1, nrows=20)
    self._bar.ncols = _columns()
    bar = f"|{{bar:{_BAR_WIDTH}}}| " if total else ""
    self._bar.bar_format = _escape(f"{before} ") + bar + _escape(after)
    self._bar.total, self._bar.n = total or None, min(done, total) if total else done
    self._bar.refresh()

  def redraw(self) -> None:
    """Makes the next `show` draw."""
    self._drawn = -math.inf

  def close(self) -> None:
    """Removes the changing line; other lines can follow."""
    if self._bar is not None:
      # tqdm erases what it knows to have drawn, and does not know of an interrupted drawing.
      sys.stdout.write(f"\r{' ' * _columns()}\r")
      self._bar.close()
      self._bar = None


def _columns() -> int:
  """Returns the columns of the terminal at this moment, without a last one for the line break."""
  columns = os.get_terminal_size(sys.stdout.fileno()).columns
  return (columns or _COLUMNS) - 1


def _escape(text: str) -> str:
  """Escapes the placeholders of tqdm."""
  return text.replace("{", "{{").replace("}", "}}")


def duration(seconds: float) -> str:
  """Formats seconds as `42 s`, `3 min` or `2 h 05 min`."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def time_left(seconds: float | None) -> str:
  """Formats the remaining time; `?` if it is unknown."""
  return "? left" if seconds is None else f"{duration(max(0.0, seconds))} left"


def position(step: int, steps: int) -> str:
  """Formats `step 12/400`, or `step 12` if the number of steps is unknown (0)."""
  return f"step {step}/{steps}" if steps else f"step {step}"


def losses(values: Mapping[str, Any], terms: Sequence[str]) -> str:
  """Formats the loss, and in brackets the terms of which it is the weighted sum.

  Args:
    values: of a row of the log; there is no loss if all updates were skipped.
    terms: names of the terms.
  """
  if "loss" not in values:
    return "loss none"
  known = [f"{name} {values[name]:.3f}" for name in terms if name in values]
  return f"loss {values['loss']:.4f}" + (f" ({', '.join(known)})" if len(known) > 1 else "")


def by_dataset(values: Mapping[str, Any]) -> str:
  """Formats the loss of each data set of a mixture, after two spaces; empty without a mixture."""
  names = [key.partition("/")[2] for key in values if key.startswith("samples/")]
  known = [f"{n} {values[f'loss/{n}']:.3f}" for n in names if f"loss/{n}" in values]
  return f"  of {', '.join(known)}" if known else ""


def speed(values: Mapping[str, Any]) -> str:
  """Formats the samples per second, and the MFU if the device is known."""
  mfu = f"  MFU {values['mfu']:.1%}" if "mfu" in values else ""
  return f"{values['samples_per_second']:.0f} samples/s{mfu}"


def data_wait(values: Mapping[str, Any]) -> str:
  """Formats the fraction of the time spent waiting for data."""
  return f"data wait {values['data_wait']:.1%}"


def skipped(values: Mapping[str, Any]) -> str:
  """Formats the number of skipped updates, after two spaces; empty if there are none."""
  return f"  {values['skipped_steps']} skipped" if values.get("skipped_steps") else ""


def evaluation(split: str, metrics: Mapping[str, Any]) -> str:
  """Formats the main metrics of an evaluation."""
  known = "  ".join(f"{name} {metrics[name]:.3f}" for name in _IN_LINE if name in metrics)
  return f"{split}: {known}"


def seconds_left(
  steps_left: int, seconds_per_step: float, overhead: float, steps_done: int
) -> float:
  """Estimates the remaining time, with as much overhead per step as so far.

  Args:
    steps_left: updates to come.
    seconds_per_step: recently.
    overhead: seconds that evaluations and checkpoints took since this start.
    steps_done: updates since this start.
  """
  return steps_left * (seconds_per_step + overhead / max(1, steps_done))


def best_and_last(
  evaluations: Sequence[Mapping[str, Any]], split: str, metric: str, parts: Sequence[str] = ()
) -> dict[str, Mapping[str, Any]]:
  """Returns the metrics of the best and of the last evaluation, by their headings.

  Args:
    evaluations: rows of the log, with `step` and the metrics as `SPLIT/NAME`.
    split: the evaluated split, or the mean of several.
    metric: decides which is the best; of equal ones the latest.
    parts: the splits that it is the mean of.
  """
  rows = [row for row in evaluations if f"{split}/{metric}" in row]
  best = best_row(rows, split, metric)
  if best is None:
    return {}
  last = max(rows, key=lambda row: row["step"])
  names = [split, *parts]
  if best is last:
    return {f"{name}, step {best['step']} (best and last)": _metrics(best, name) for name in names}
  return {
    f"{name}, step {row['step']} ({which})": _metrics(row, name)
    for row, which in ((best, f"best {metric}"), (last, "last"))
    for name in names
  }


def best_row(
  evaluations: Sequence[Mapping[str, Any]], split: str, metric: str
) -> Mapping[str, Any] | None:
  """Returns the best evaluation; see `best_and_last`."""
  rows = [row for row in evaluations if f"{split}/{metric}" in row]
  return max(rows, key=lambda row: (row[f"{split}/{metric}"], row["step"]), default=None)


def _metrics(row: Mapping[str, Any], split: str) -> dict[str, Any]:
  return {name: row[f"{split}/{name}"] for name in _IN_TABLE if f"{split}/{name}" in row}


def final_table(
  results: Mapping[str, Mapping[str, Any]],
  *,
  step: int,
  start_step: int,
  batch_size: int,
  seconds: Mapping[str, float],
  spent: str,
  places: Mapping[str, str],
) -> str:
  """Formats the table at the end of a run, several lines.

  Args:
    results: of `best_and_last`.
    step: the last step.
    start_step: the step at which this start began.
    batch_size: samples per step.
    seconds: of this start by phase, as in `Goodput.seconds`.
    spent: the same in words.
    places: of the outputs, by name.
  """
  trained = max(seconds["step"] + seconds["data"], 1e-9)
  rate = (step - start_step) * batch_size / trained
  since = f" since step {start_step}" if start_step else ""
  facts = {
    "time": f"{duration(sum(seconds.values()))}{since}  {rate:.0f} samples/s in training",
    "spent on": spent,
  } | dict(places)
  width = max(map(len, facts))
  lines = [f"{name.ljust(width)}  {fact}" for name, fact in facts.items()]
  rows = table.metrics(results).splitlines() if results else []
  return "\n".join([*rows, *lines])


def places(workdir: str, tensorboard: bool) -> dict[str, str]:
  """Returns the places of a run's outputs, by name.

  Args:
    workdir: of the run.
    tensorboard: whether it has event files.
  """
  outputs = {"checkpoints": f"{workdir}/checkpoints", "log": f"{workdir}/metrics.jsonl"}
  return outputs | ({"tensorboard": f"{workdir}/tensorboard"} if tensorboard else {})
