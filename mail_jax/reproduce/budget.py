"""How long the runs of a table train, and what of it fits into a budget."""

import dataclasses
from collections.abc import Sequence

from input_pipeline.common.errors import InputError
from mail_jax.reproduce.runs import Run

# A schedule needs some steps after its warm-up.
_WARMUPS = 2
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclasses.dataclass(frozen=True)
class Length:
  """How long a run trains.

  Attributes:
    run: of the table.
    steps: updates that it makes; 0 if the recipe has minutes.
    recipe_steps: that its recipe has; 0 if the recipe has minutes.
    minutes, recipe_minutes: the same for recipes with minutes; otherwise 0.
    seconds: that training takes, with its evaluations.
  """

  run: Run
  steps: int
  recipe_steps: int
  minutes: float
  recipe_minutes: float
  seconds: float

  @property
  def share(self) -> float:
    """The share of the recipe's length."""
    if self.recipe_minutes:
      return self.minutes / self.recipe_minutes
    return self.steps / self.recipe_steps if self.recipe_steps else 1.0

  @property
  def overrides(self) -> tuple[str, ...]:
    """Arguments for `train`; none if the recipe's length is kept."""
    if self.share == 1:
      return ()
    if self.recipe_minutes:
      return (f"--config.minutes={self.minutes!r}",)
    return ("--config.epochs=0.0", f"--config.steps={self.steps}")

  def shortened(self, share: float) -> "Length":
    """Returns the length with this share of the steps or minutes."""
    steps, minutes = int(self.steps * share), self.minutes * share
    return dataclasses.replace(self, steps=steps, minutes=minutes, seconds=self.seconds * share)


def parse(text: str) -> float:
  """Returns the seconds of a text such as `90m`, `4h` or `1.5d`.

  Raises:
    InputError: it has another form.
  """
  try:
    seconds = float(text[:-1]) * _UNITS[text[-1:]]
  except (KeyError, ValueError):
    seconds = 0.0
  if not 0 < seconds < float("inf"):
    raise InputError(f"--budget {text}: write a time such as 90m, 4h or 2d")
  return seconds


def fit(lengths: Sequence[Length], seconds: float) -> list[Length]:
  """Returns what fits into a budget: with fewer seeds, and then with fewer steps in every run.

  Args:
    lengths: of all runs, at their recipes' length.
    seconds: that all of them may train together.

  Returns:
    The lengths of the runs that are left. All are shortened by the same factor.

  Raises:
    InputError: a run would end before its learning rate has come down again.
  """
  kept = list(lengths)
  while _total(kept) > seconds and (last := max(length.run.seed for length in kept)):
    kept = [length for length in kept if length.run.seed < last]
  total = _total(kept)
  if total <= seconds:
    return kept
  share, least = seconds / total, max(_least_share(length) for length in kept)
  if share < least:
    raise InputError(
      f"--budget: {describe(seconds)} of training are {share:.1%} of the {describe(total)} that "
      f"one seed of every model takes, and the learning rate's warm-up needs {least:.1%}; give at "
      f"least {describe(least * total, up=True)}, or train fewer models with --train"
    )
  return [length.shortened(share) for length in kept]


def _total(lengths: Sequence[Length]) -> float:
  return sum(length.seconds for length in lengths)


def _least_share(length: Length) -> float:
  warmup = max(1, length.run.config.optimizer.warmup_steps)
  return _WARMUPS * warmup / length.steps if length.steps else 0.0


def describe(seconds: float, up: bool = False) -> str:
  """Formats a time in two digits or more: 40 s, 12 min, 3.5 h, 1,200 h.

  Args:
    seconds: not negative.
    up: rounds upwards.
  """
  unit, size = ("s", 1.0) if seconds < 90 else ("min", 60.0) if seconds < 5400 else ("h", 3600.0)
  value = seconds / size
  digits = 1 if value < 10 and unit == "h" else 0
  step = 10**-digits
  value = -(-value // step) * step if up else value
  return f"{value:,.{digits}f} {unit}"
