"""Ends a run whose evaluations no longer get better: `config.early_stop`."""

from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.common.errors import InputError
from mail_jax.distributed import processes


class EarlyStop:
  """Counts the evaluations since the best one, in the rows of the log, which a resumed run keeps.

  Attributes:
    reason: why the run ends; empty if it goes on.
  """

  def __init__(self, limit: int, split: str, metric: str):
    """Checks the limit.

    Args:
      limit: `config.early_stop`, evaluations.
      split: name in the log of what decides; see `mixture.judged`. Empty if nothing is evaluated.
      metric: of it; higher is better.

    Raises:
      InputError: `early_stop` is negative, or nothing is evaluated.
    """
    self._limit, self._split, self._metric, self.reason = limit, split, metric, ""
    if self._limit < 0:
      raise InputError(f"config.early_stop is {self._limit}; it must be 0 or more")
    if self._limit and not self._split:
      raise InputError(
        f"config.early_stop is {self._limit}, but nothing is evaluated; set config.eval_split"
      )

  def update(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Looks at the rows of the log so far, those of process 0."""
    if not self._limit:
      return
    self.reason = processes.all_gather_object(self._reason(rows))[0]

  def _reason(self, rows: Sequence[Mapping[str, Any]]) -> str:
    since, best, step = self._since_best(rows)
    if since < self._limit:
      return ""
    return (
      f"{since} evaluations in a row without a better {self._split}/{self._metric} than {best:.4f} "
      f"at step {step}"
    )

  def _since_best(self, rows: Sequence[Mapping[str, Any]]) -> tuple[int, float, int]:
    """Returns the evaluations after the best one, its value and its step."""
    key, count = f"{self._split}/{self._metric}", f"{self._split}/expressions"
    judged = [row for row in rows if key in row]
    # Values on other numbers of expressions do not compare.
    alike = [row for row in judged if row.get(count) == judged[-1].get(count)]
    if not alike:
      return 0, 0.0, 0
    best = max(range(len(alike)), key=lambda i: (alike[i][key], -i))
    return len(alike) - 1 - best, alike[best][key], alike[best]["step"]
