"""The number of steps of a run: given, or as many as its epochs or minutes have."""

import math
import time

from input_pipeline.common.errors import InputError
from mail_jax.distributed.processes import broadcast_from_main

# With `config.minutes`, the fraction of the time that is kept for evaluating and saving, and the
# fraction in which the speed is measured: a few seconds would be off by a tenth.
_RESERVE = 0.07
_MEASURED = 0.1
# The number of steps is estimated again after each quarter of the remaining ones, until so few
# remain, and changed if it is off by more than that; as fractions of all steps.
_LAST = 0.05
_TOLERANCE = 0.02


class TrainingLength:
  """The number of steps of a run: as configured, or as many as fit into the minutes.

  The speed is measured on real steps, those of the warm-up and of a tenth of the time. Until the
  number of steps is known the learning rate stays at its peak, where every schedule begins. If the
  speed changes, the number of steps does too; after a resume it does not.

  Attributes:
    steps: 0 until it is known.
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
    self._first_estimate_at = max(2, warmup_steps - 1)
    self._extended = False
    self.start()

  def start(self) -> None:
    """Starts the clock; a number of steps that is known by now stays."""
    self._estimate_at = 0 if self.steps else self._first_estimate_at
    self._began = time.monotonic()
    # When the steps began whose speed counts, and how many were done then.
    self._measured_from = self._began, 0

  def seconds_left(self) -> float:
    """Returns the remaining time of the minutes."""
    return self._seconds - (time.monotonic() - self._began)

  def update(self, step: int) -> bool:
    """Marks a step as done; returns whether this changed the number of steps."""
    now, done = time.monotonic(), step + 1
    if not self._measured_from[1]:
      # The first step compiles.
      self._measured_from = now, done
    if done != self._estimate_at:
      return False
    began, first = self._measured_from
    measured = now - began
    seconds_per_step = max(measured, 1e-9) / max(1, done - first)
    if not self._extended:
      self._extended = True
      missing = int((_MEASURED * self._seconds - measured) / seconds_per_step)
      self._estimate_at = done + max(0, broadcast_from_main(missing))
      if self._estimate_at > done:
        return False
    left = self._seconds * (1 - _RESERVE) - (now - self._began)
    steps = broadcast_from_main(done + max(1, int(left / seconds_per_step)))
    changed = abs(steps - self.steps) > _TOLERANCE * self.steps
    if changed:
      self.steps = steps
    remaining = self.steps - done
    self._estimate_at = done + remaining // 4 if remaining > _LAST * self.steps else 0
    self._measured_from = now, done
    return changed


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
