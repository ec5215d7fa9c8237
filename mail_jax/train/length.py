"""The number of steps of a run: given, or as many as its epochs or minutes have."""

import math
import time

from input_pipeline.common.errors import InputError
from mail_jax.distributed.processes import broadcast_from_main

# With `config.minutes`, the fraction of the time that is kept for evaluating and saving, and the
# fraction in which the speed is measured: a few seconds would be off by a tenth.
_RESERVE = 0.07
_MEASURED = 0.1


class TrainingLength:
  """The number of steps of a run: as configured, or as many as fit into the minutes.

  The speed is measured on real steps, those of the warm-up and of a tenth of the time. Until the
  number of steps is fixed the learning rate stays at its peak, where every schedule begins.

  Attributes:
    steps: 0 until it is fixed.
  """

  def __init__(self, steps: int, minutes: float, warmup_steps: int):
    """Starts the clock; one of `steps` and `minutes` must be set.

    Args:
      steps: as in `configs/base.py`.
      minutes: as in `configs/base.py`.
      warmup_steps: as in `configs/base.py`, in `optimizer`.
    """
    if bool(steps) == bool(minutes):
      raise InputError(
        "config.steps, config.epochs and config.minutes: set one of them, and leave the others 0"
      )
    self.steps = steps
    self._seconds = minutes * 60
    self._decide_at = max(2, warmup_steps - 1)
    self._extended = False
    self.start()

  def start(self) -> None:
    """Starts the clock."""
    self._began = time.monotonic()
    self._warm = self._began, 0

  def seconds_left(self) -> float:
    """Returns the remaining time of the minutes."""
    return self._seconds - (time.monotonic() - self._began)

  def update(self, step: int) -> bool:
    """Marks a step as done; returns whether this fixed the number of steps."""
    now = time.monotonic()
    if step == 0 or not self._warm[1]:
      # The first step compiles.
      self._warm = now, step + 1
    if self.steps or step + 1 < self._decide_at:
      return False
    measured = now - self._warm[0]
    seconds_per_step = max(measured, 1e-9) / max(1, step + 1 - self._warm[1])
    missing = int((_MEASURED * self._seconds - measured) / seconds_per_step)
    if not self._extended:
      self._extended = True
      self._decide_at = step + 1 + max(0, broadcast_from_main(missing))
      if self._decide_at > step + 1:
        return False
    left = self._seconds * (1 - _RESERVE) - (now - self._began)
    self.steps = broadcast_from_main(step + 1 + max(1, int(left / seconds_per_step)))
    return True


def count_steps(steps: int, epochs: float, samples: int, batch_size: int) -> int:
  """Returns the updates of a config with `steps` or `epochs`; 0 if neither is set.

  Args:
    steps, epochs: as configured.
    samples: of one epoch; 0 for data without epochs.
    batch_size: over all devices.
  """
  if not epochs:
    return steps
  if steps or not samples:
    problem = "is set too" if steps else "has to be set: this data has no epochs"
    raise InputError(f"config.epochs {epochs:g}: config.steps {problem}")
  return math.ceil(epochs * samples / batch_size)
