"""Where a run's wall time goes: the part that trains is its goodput."""

import contextlib
import time
from collections.abc import Iterator

import jax

PHASES = ("step", "data", "checkpoint", "evaluation", "compile")
_COMPILING = "/jax/core/compile/"  # tracing, lowering and compiling all report under this name
_compiled = [0.0]  # seconds, of this process


def _listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
  del kwargs
  if event.startswith(_COMPILING) and event.endswith("_duration"):
    _compiled[0] += duration_secs


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
    self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)

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


class Rate:
  """How fast a run trains, between two lines of its log."""

  def __init__(self, goodput: Goodput, batch_size: int):
    """Args: goodput: of the run; batch_size: over all devices."""
    self._goodput, self._batch_size = goodput, batch_size
    self._before: tuple[int, dict[str, float]] | None = None

  def start(self, step: int) -> None:
    """Begins to measure after so many steps."""
    self._before = step, self._goodput.seconds()

  def lap(self, step: int) -> tuple[float, float]:
    """Samples a second and the share of that time that waited for data, since the last call."""
    assert self._before is not None
    (last, before), now = self._before, self._goodput.seconds()
    self.start(step)
    spent = {phase: now[phase] - before[phase] for phase in ("step", "data")}
    seconds = max(sum(spent.values()), 1e-9)
    return (step - last) * self._batch_size / seconds, spent["data"] / seconds
