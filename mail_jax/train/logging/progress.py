"""The progress of a run: on the terminal, in `metrics.jsonl`, and in the sinks of `config.log`."""

import contextlib
import json
import time
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from ml_collections import ConfigDict

from input_pipeline.common import atomic_files, buckets
from input_pipeline.common.errors import InputError
from mail_jax.config import to_json
from mail_jax.distributed import processes
from mail_jax.train.logging import samples, tensorboard, wandb
from mail_jax.train.logging.samples import FixedSamples, Picture
from mail_jax.train.logging.terminal import Terminal, position, time_left
from mail_jax.train.program import Program

# Seconds between lines of a long evaluation where there is no terminal.
_LINE_INTERVAL = 30


@runtime_checkable
class Sink(Protocol):
  """The interface of TensorBoard and Weights & Biases."""

  def row(self, step: int, values: dict[str, Any]) -> None:
    """Logs a row."""

  def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
    """Logs the drawn samples of an evaluation."""

  def flush(self) -> None:
    """Writes everything; a checkpoint follows."""

  def close(self, failed: bool) -> None:
    """Closes the sink; `failed` is whether the run ended with an error."""


class Progress:
  """Writes the log of a run; a resumed run drops the rows after the step it resumes at.

  Only process 0 prints and writes.
  """

  def __init__(self, workdir: str, start_step: int):
    """Opens `workdir/metrics.jsonl` and keeps its rows up to `start_step`."""
    self._written = self._said = time.monotonic()
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
    """Returns all rows of the log, also of earlier starts; on other processes than 0 none."""
    return [json.loads(row) for row in self._rows]

  def add(self, sink: Sink) -> None:
    """Adds a sink, for what follows."""
    self._sinks.append(sink)

  def row(self, step: int, values: dict[str, Any]) -> None:
    """Logs a row."""
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
          f"cannot write {self._path}: "
          f"{atomic_files.describe_error(error, str(self._path), len(row))}; fix this and run the "
          "same command again to resume from the last intact checkpoint"
        ) from error
    elif self._rewrites and time.monotonic() - self._written > buckets.REWRITE_EVERY:
      self._rewrite()
    for sink in self._sinks:
      sink.row(step, values)

  def _lose_file(self) -> None:
    """Closes a file that cannot be written, and drops its buffer."""
    file, self._file = self._file, None
    if file:
      with contextlib.suppress(OSError):
        file.close()

  def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
    """Logs the drawn samples of an evaluation to the sinks."""
    for sink in self._sinks:
      sink.pictures(step, pictures)

  def flush(self) -> None:
    """Writes all rows, so that a checkpoint is never ahead of the log."""
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
      self._said = time.monotonic()
      self._terminal.line(text)

  def trained(self, plain: str, latest: str, seconds_left: float | None) -> None:
    """Shows the metrics of training: in the changing line of a terminal, or as a line elsewhere.

    Args:
      plain: the line.
      latest: the text of the changing line until the next call.
      seconds_left: until the end of the run; None if unknown.
    """
    self._latest = latest
    self._ends_at = None if seconds_left is None else time.monotonic() + seconds_left
    self._terminal.redraw()
    if not self._terminal.is_live:
      self.line(plain)

  def at(self, step: int, steps: int, epoch: float | None) -> None:
    """Moves the changing line to a step, without waiting for a device.

    Args:
      step: the last step.
      steps: of the whole run; 0 if unknown.
      epoch: passes over the data so far; None for data without epochs.
    """
    if not self._is_main or not self._terminal.is_live:
      return
    ends = None if self._ends_at is None else self._ends_at - time.monotonic()
    passes = "" if epoch is None else f"epoch {epoch:.2f}  "
    after = f"{passes}{time_left(ends)}  {self._latest}"
    self._terminal.show(position(step, steps), after, step, steps)

  def evaluating(self, step: int, split: str, done: int, total: int) -> None:
    """Moves the changing line through an evaluation of `total` expressions."""
    if not self._is_main:
      return
    doing, how_far = f"step {step}  evaluating {split}", f"{done}/{total} expressions"
    self._terminal.show(doing, how_far, done, total)
    if not self._terminal.is_live and time.monotonic() - self._said > _LINE_INTERVAL:
      self.line(f"{doing}  {how_far}")

  def close(self, failed: bool = False) -> None:
    """Closes the file and the sinks, and clears the changing line; lines can follow."""
    self._terminal.close()
    self.flush()
    if self._file:
      self._file.close()
    sinks, self._sinks = self._sinks, []
    for sink in sinks:
      sink.close(failed)


def _rows_until(step: int, text: str) -> list[str]:
  """Returns the complete rows of a log up to a step, with their line ends."""
  kept = []
  for line in text.splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      # The process died while it wrote this line.
      continue
    if row["step"] <= step:
      kept.append(line + "\n")
  return kept


def check(config: ConfigDict) -> None:
  """Checks that the sinks can be opened, before anything takes long.

  Raises:
    InputError: a package is missing, or a value is invalid.
  """
  if config.log.images < 0:
    raise InputError(f"config.log.images is {config.log.images}; it must be 0 or more")
  if config.log.picture_every < 0:
    raise InputError(
      f"config.log.picture_every is {config.log.picture_every}; it must be 0, for none, or more"
    )
  if config.log.tensorboard:
    tensorboard.check_installed()
  if config.log.wandb:
    wandb.check_installed()


def open_sinks(config: ConfigDict, workdir: str, start_step: int, progress: Progress) -> None:
  """Opens the sinks and adds them to the log; on process 0."""
  if not processes.is_main():
    return
  plain = to_json(config)
  if config.log.tensorboard:
    progress.add(tensorboard.TensorBoard(workdir, start_step, plain, progress.rows()))
  if config.log.wandb:
    run = wandb.WandbRun(config.log.wandb, workdir, plain, progress.line, progress.rows())
    progress.add(run)


def pictured_samples(
  config: ConfigDict, program: Program, splits: Sequence[str]
) -> FixedSamples | None:
  """Returns the samples of `progress.png`, of the first split; None if it is not drawn."""
  if not splits or not config.log.images or not config.log.picture_every:
    return None
  predict = samples.make_predict(program.model, program.mesh, quick=True)
  return FixedSamples(predict, program.mesh, splits[0], config.log.images, config.seed)


def fixed_samples(
  config: ConfigDict, program: Program, splits: Sequence[str]
) -> dict[str, FixedSamples]:
  """Returns the samples to draw at every evaluation, by split; none without a sink."""
  if not splits or not config.log.images or not (config.log.tensorboard or config.log.wandb):
    return {}
  predict = samples.make_predict(program.model, program.mesh)
  each = -(-config.log.images // len(splits))
  return {split: FixedSamples(predict, program.mesh, split, each, config.seed) for split in splits}
