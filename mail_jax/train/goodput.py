"""The wall time of a run by phase; the fraction that trains is its goodput."""

import contextlib
import functools
import time
from collections.abc import Iterator

import jax

PHASES = ("step", "data", "load", "checkpoint", "evaluation", "compile")
# Tracing, lowering and compiling all report under this prefix.
_COMPILING = "/jax/core/compile/"
# Seconds of this process.
_compiled = [0.0]


def _listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
  del kwargs
  if event.startswith(_COMPILING) and event.endswith("_duration"):
    _compiled[0] += duration_secs


@functools.cache
def _register() -> None:
  """Registers the listener, once per process: JAX's listeners cannot be removed one by one."""
  jax.monitoring.register_event_duration_secs_listener(_listen)


class Goodput:
  """Counts the seconds of a run by phase.

  `step` is training, `data` is waiting for batches, `load` is the time until the first batch is
  there, such as that of filling `loader.cache`. `checkpoint` and `evaluation` are the time that
  training waits for them. `compile` is subtracted from the phase in which it happens. The rest,
  such as opening the run, is `other`.
  """

  def __init__(self):
    self._began = time.monotonic()
    _register()
    self._compiled = _compiled[0]
    self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)

  @contextlib.contextmanager
  def spend(self, phase: str) -> Iterator[None]:
    """Counts the time inside the context for a phase, except for compiling."""
    began, compiled = time.monotonic(), _compiled[0]
    try:
      yield
    finally:
      self._seconds[phase] += time.monotonic() - began - (_compiled[0] - compiled)

  def seconds(self) -> dict[str, float]:
    """Returns the seconds of every phase and of `other` until now; they sum to the wall time."""
    spent = self._seconds | {"compile": _compiled[0] - self._compiled}
    return spent | {"other": time.monotonic() - self._began - sum(spent.values())}

  def line(self) -> str:
    """Formats the fractions in percent, largest first."""
    seconds = self.seconds()
    total = max(sum(seconds.values()), 1e-9)
    parts = sorted(seconds.items(), key=lambda item: -item[1])
    return "  ".join(f"{name} {value / total:.1%}" for name, value in parts)


class Rate:
  """The speed of a run between two rows of its log."""

  def __init__(self, goodput: Goodput, batch_size: int):
    """Measures nothing until `start`.

    Args:
      goodput: the clock of the run.
      batch_size: over all devices.
    """
    self._goodput, self._batch_size = goodput, batch_size
    self._before: tuple[int, dict[str, float]] | None = None

  def start(self, step: int) -> None:
    """Starts measuring at a step."""
    self._before = step, self._goodput.seconds()

  def lap(self, step: int) -> tuple[float, float]:
    """Returns samples per second and the fraction spent waiting for data since the last call."""
    assert self._before is not None
    (last, before), now = self._before, self._goodput.seconds()
    self.start(step)
    spent = {phase: now[phase] - before[phase] for phase in ("step", "data")}
    seconds = max(sum(spent.values()), 1e-9)
    return (step - last) * self._batch_size / seconds, spent["data"] / seconds
