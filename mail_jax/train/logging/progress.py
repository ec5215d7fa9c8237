"""What a run tells while it works: on the terminal, in `metrics.jsonl`, and to whatever else was asked for."""

import contextlib
import json
import time
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from input_pipeline.common import atomic_files, buckets
from input_pipeline.common.errors import InputError
from mail_jax.distributed import processes
from mail_jax.train.logging import step_line
from mail_jax.train.logging.samples import Picture
from mail_jax.train.logging.terminal import Terminal

# What is in a bucket cannot be appended to; the file is written anew, not more often than this (seconds).
_REWRITE_EVERY = 60.0


@runtime_checkable
class Sink(Protocol):
  """Whatever else takes what a run tells: TensorBoard, Weights & Biases."""

  def row(self, step: int, values: dict[str, Any]) -> None:
    """Takes a row of the log."""

  def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
    """Takes what the model makes of the samples that are drawn at every evaluation."""

  def flush(self) -> None:
    """Makes sure that all it was told is kept: a checkpoint is about to be."""

  def close(self, failed: bool) -> None:
    """Ends; `failed` says whether the run did by an error."""


class Progress:
  """Writes the log of a run; a resumed run drops the rows that it makes again.

  Only process 0 prints and writes; on the others nothing happens.
  """

  def __init__(self, workdir: str, start_step: int):
    """Opens `workdir/metrics.jsonl` and keeps its rows up to `start_step`."""
    self._written = time.monotonic()
    self._is_main = processes.is_main()
    self._terminal = Terminal()
    self._sinks: list[Sink] = []
    self._rows, self._file = [], None
    self._rewrites = buckets.is_remote(workdir)
    self._latest, self._ends_at = "", None
    self._path = buckets.folder(workdir, "--workdir") / "metrics.jsonl"
    if not self._is_main:
      return
    self._rows = _rows_until(start_step, self._path.read_text() if self._path.exists() else "")
    if self._rewrites:
      self._path.write_text("".join(self._rows))
    else:
      atomic_files.write_whole(self._path, "".join(self._rows))
      self._file = self._path.open("a")

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    self.close(failed=kind is not None)

  def rows(self) -> list[dict[str, Any]]:
    """All rows of the log, of this start and those before; empty but on process 0."""
    return [json.loads(row) for row in self._rows]

  def add(self, sink: Sink) -> None:
    """Tells a sink, too, from now on."""
    self._sinks.append(sink)

  def row(self, step: int, values: dict[str, Any]) -> None:
    """Adds one row."""
    if not self._is_main:
      return
    row = json.dumps({"step": step, **values}) + "\n"
    self._rows.append(row)
    if self._file:
      try:
        self._file.write(row)
        self._file.flush()
      except OSError as error:
        self._lose_file()
        raise InputError(
          f"{self._path} cannot be written: "
          f"{atomic_files.describe_error(error, str(self._path), len(row))}; fix this, and "
          "the same command goes on from the last whole checkpoint"
        ) from error
    elif self._rewrites and time.monotonic() - self._written > _REWRITE_EVERY:
      self._rewrite()
    for sink in self._sinks:
      sink.row(step, values)

  def _lose_file(self) -> None:
    """Closes a file that cannot be written to, with what it holds still unwritten."""
    file, self._file = self._file, None
    if file:
      with contextlib.suppress(OSError):
        file.close()

  def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
    """Hands on what was drawn of an evaluation."""
    for sink in self._sinks:
      sink.pictures(step, pictures)

  def flush(self) -> None:
    """Makes sure that all rows are in the file: a checkpoint is not to be ahead of the log."""
    if self._is_main and self._rewrites:
      self._rewrite()
    for sink in self._sinks:
      sink.flush()

  def _rewrite(self) -> None:
    self._path.write_text("".join(self._rows))
    self._written = time.monotonic()

  def line(self, text: str) -> None:
    """Prints one line, with the minutes since the start."""
    if self._is_main:
      self._terminal.line(text)

  def trained(self, plain: str, latest: str, seconds_left: float | None) -> None:
    """Says how training goes: a line where there is no terminal, else part of the line that changes.

    Args:
      plain: the whole line.
      latest: what the changing line says until the next call.
      seconds_left: until the end of the run; None where nobody knows.
    """
    self._latest = latest
    self._ends_at = None if seconds_left is None else time.monotonic() + seconds_left
    self._terminal.redraw()
    if not self._terminal.is_live:
      self.line(plain)

  def at(self, step: int, steps: int, epoch: float | None) -> None:
    """Moves the changing line to a step; it asks no device for anything.

    Args:
      step: how many are done.
      steps: how many there will be; 0 where that is not known yet.
      epoch: passes over the data that are done; None where there are no passes.
    """
    if not self._is_main or not self._terminal.is_live:
      return
    ends = None if self._ends_at is None else self._ends_at - time.monotonic()
    passes = "" if epoch is None else f"epoch {epoch:.2f}  "
    after = f"{passes}{step_line.left(ends)}  {self._latest}"
    self._terminal.show(step_line.position(step, steps), after, step, steps)

  def evaluating(self, step: int, split: str, done: int, of: int) -> None:
    """Moves the changing line through an evaluation: so many sentences of so many."""
    if self._is_main and self._terminal.is_live:
      self._terminal.show(f"step {step}  evaluating {split}", f"{done}/{of} sentences", done, of)

  def close(self, failed: bool = False) -> None:
    """Closes the file, with all rows in it, and leaves the terminal as it was; lines can follow."""
    self._terminal.close()
    self.flush()
    if self._file:
      self._file.close()
    sinks, self._sinks = self._sinks, []
    for sink in sinks:
      sink.close(failed)


def _rows_until(step: int, text: str) -> list[str]:
  """The whole rows of a log, each with its end of line, up to a step."""
  kept = []
  for line in text.splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:  # the process died while it wrote this line
      continue
    if row["step"] <= step:
      kept.append(line + "\n")
  return kept
