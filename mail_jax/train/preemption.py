"""SIGTERM: a machine that is about to be taken away asks the run to save and end. And Ctrl-C, which ends it at once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

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
    self._signalled = self._interrupted = False
    self._calls = 0

  @contextlib.contextmanager
  def watch(self) -> Iterator["Preemption"]:
    """Inside the context SIGTERM ends nothing by itself, and no Ctrl-C is lost.

    With several processes JAX's own service has caught SIGTERM since they joined.
    """
    handlers: dict[int, Callable] = {}
    if jax.process_count() == 1:
      handlers[signal.SIGTERM] = self._note
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
      handlers[signal.SIGINT] = self._interrupt
    if threading.current_thread() is not threading.main_thread():
      handlers = {}  # whoever started it there minds its signals
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
      yield self
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def ask(self) -> None:
    """Asks the run to save and end, as SIGTERM does; for programs that train in a process of their own."""
    self._signalled = True

  def _note(self, number, frame) -> None:
    del number, frame
    self.ask()

  def _interrupt(self, number, frame) -> None:
    """Raises as Python does, which only prints it where it hits a callback of the garbage collector; hence noted."""
    self._interrupted = True
    signal.default_int_handler(number, frame)

  def reached(self) -> bool:
    """Whether to end now; every process calls it equally often, at the same places.

    Raises:
      KeyboardInterrupt: there was one, and something has swallowed it.
    """
    if self._interrupted:
      raise KeyboardInterrupt
    self._calls += 1
    several = jax.process_count() > 1
    self.asked |= (
      multihost_utils.reached_preemption_sync_point(self._calls) if several else self._signalled
    )
    return self.asked
