"""Where a run's wall time goes: the part that trains is its goodput."""

import contextlib
import time
from collections.abc import Iterator

import jax

PHASES = ("step", "data", "checkpoint", "evaluation", "compile")
_COMPILING = "/jax/core/compile/"  # tracing, lowering and compiling all report under this name
_compiled = [0.0]  # seconds, of this process


def _listen(event: str, seconds: float, **details) -> None:
  del details
  if event.startswith(_COMPILING) and event.endswith("_duration"):
    _compiled[0] += seconds


# Once a process: listeners cannot be taken back one by one.
jax.monitoring.register_event_duration_secs_listener(_listen)


class Goodput:
  """Seconds of a run by what they were spent on.

  `step` is training, `data` waiting for batches, `checkpoint` and `evaluation` what keeps training from going on, and
  `compile` is taken out of whichever of them it happens in. What is left, such as opening the run, is `other`.
  """

  def __init__(self):
    self._began = time.monotonic()
    self._compiled = _compiled[0]
    self._seconds = dict.fromkeys(PHASES, 0.0)

  @contextlib.contextmanager
  def spend(self, phase: str) -> Iterator[None]:
    """Counts the time inside the context for a phase, except what the compiler takes of it."""
    began, compiled = time.monotonic(), _compiled[0]
    try:
      yield
    finally:
      self._seconds[phase] += time.monotonic() - began - (_compiled[0] - compiled)

  def seconds(self) -> dict[str, float]:
    """Seconds of every phase and of `other` until now; they add up to the wall time."""
    spent = self._seconds | {"compile": _compiled[0] - self._compiled}
    return spent | {"other": time.monotonic() - self._began - sum(spent.values())}

  def line(self) -> str:
    """The shares in percent, largest first."""
    seconds = self.seconds()
    total = max(sum(seconds.values()), 1e-9)
    parts = sorted(seconds.items(), key=lambda item: -item[1])
    return "  ".join(f"{name} {value / total:.1%}" for name, value in parts)
