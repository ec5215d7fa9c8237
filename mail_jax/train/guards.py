"""Guards of a run: updates that are not finite, SIGTERM and Ctrl-C."""

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from input_pipeline.common import buckets
from input_pipeline.common.errors import InputError
from mail_jax.distributed import processes

FILE = "skipped_batches.json"


class NonFiniteGuard:
  """Counts skipped updates, whose loss or gradient was not finite, and ends the run at a limit.

  A skipped update does not change the state (`step.make_train_step`), so it loses nothing.
  """

  def __init__(self, workdir: str, limit: int, meta: dict[str, int]):
    """Starts counting.

    Args:
      workdir: where `skipped_batches.json` is written.
      limit: this many in a row end the run; 0 is no limit.
      meta: of the resumed run; see `meta`.
    """
    self._path, self._limit = buckets.folder(workdir, "--workdir") / FILE, limit
    self.total, self.in_a_row = meta.get("total", 0), meta.get("in_a_row", 0)

  def meta(self) -> dict[str, int]:
    """Returns the counts, for a checkpoint."""
    return {"total": self.total, "in_a_row": self.in_a_row}

  def update(self, step: int, skipped: bool, describe: Callable[[list[int]], Any]) -> None:
    """Counts one update.

    Args:
      step: the number of the update, from 1.
      skipped: whether it was skipped.
      describe: returns the batches of updates; only called when the run ends.

    Raises:
      InputError: the limit is reached.
    """
    if not skipped:
      self.in_a_row = 0
      return
    self.total += 1
    self.in_a_row += 1
    if not self._limit or self.in_a_row < self._limit:
      return
    steps = list(range(step - self.in_a_row + 1, step + 1))
    rows = describe(steps)
    where = ""
    if processes.is_main():
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._path.write_text(json.dumps(rows, indent=1) + "\n")
      where = f"; {self._path} lists their batches"
    raise InputError(
      f"the loss or its gradient was not finite in {self.in_a_row} steps in a row, {steps[0]} to "
      f"{step}{where}; lower config.optimizer.lr, or check these samples"
    )


class Preemption:
  """Tells a run to save and end on SIGTERM, which precedes the loss of a machine.

  With several processes all of them end at the same call of `reached`, no matter which of them
  gets the signal.

  Attributes:
    asked: whether the run has to end, as of the last call.
  """

  def __init__(self):
    self.asked = False
    self._signalled = self._interrupted = False
    self._calls = 0

  @contextlib.contextmanager
  def watch(self) -> Iterator["Preemption"]:
    """Handles SIGTERM and Ctrl-C inside the context.

    With several processes JAX's own service has handled SIGTERM since they connected.
    """
    handlers: dict[int, Callable] = {}
    if jax.process_count() == 1:
      handlers[signal.SIGTERM] = self._note
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
      handlers[signal.SIGINT] = self._interrupt
    if threading.current_thread() is not threading.main_thread():
      # Python handles signals in the main thread, which belongs to the program that trains.
      handlers = {}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
      yield self
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def ask(self) -> None:
    """Asks the run to save and end, as SIGTERM does."""
    self._signalled = True

  def _note(self, number, frame) -> None:
    del number, frame
    self.ask()

  def _interrupt(self, number, frame) -> None:
    # Python only prints an exception that is raised in a callback of the garbage collector, so
    # `reached` raises it again.
    self._interrupted = True
    signal.default_int_handler(number, frame)

  def reached(self) -> bool:
    """Returns whether to end now; all processes must call it equally often, at the same places.

    Raises:
      KeyboardInterrupt: it was raised before, and lost.
    """
    if self._interrupted:
      raise KeyboardInterrupt
    self._calls += 1
    several = jax.process_count() > 1
    self.asked |= (
      multihost_utils.reached_preemption_sync_point(self._calls) if several else self._signalled
    )
    return self.asked
