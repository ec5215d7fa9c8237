"""SIGTERM: a machine that is about to be taken away asks the run to save and end."""

import contextlib
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class Preemption:
  """Knows whether the run was asked to end.

  With several processes all of them learn of it at the same call of `reached`, whichever was asked.

  Attributes:
    asked: whether it was, as of the last call.
  """

  def __init__(self):
    self.asked = False
    self._signalled = False
    self._calls = 0

  @contextlib.contextmanager
  def watch(self) -> Iterator["Preemption"]:
    """Inside the context SIGTERM ends nothing by itself.

    With several processes JAX's own service has caught the signal since they joined.
    """
    if jax.process_count() > 1:
      yield self
      return
    try:
      before = signal.signal(signal.SIGTERM, self._note)
    except ValueError:  # not the main thread: whoever started it there minds its signals
      yield self
      return
    try:
      yield self
    finally:
      signal.signal(signal.SIGTERM, before)

  def _note(self, number, frame) -> None:
    del number, frame
    self._signalled = True

  def reached(self) -> bool:
    """Whether to end now; every process calls it equally often, at the same places."""
    self._calls += 1
    several = jax.process_count() > 1
    self.asked |= (
      multihost_utils.reached_preemption_sync_point(self._calls) if several else self._signalled
    )
    return self.asked
