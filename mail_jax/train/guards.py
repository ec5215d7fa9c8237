"""Updates that were not made: their loss or gradient was not finite."""

import json
from collections.abc import Callable
from typing import Any

from input_pipeline.common import buckets
from input_pipeline.common.errors import InputError
from mail_jax.distributed import processes

FILE = "skipped_batches.json"


class Skipped:
  """Counts skipped updates, and ends the run when too many follow each other.

  The state does not change in a skipped update (`train_step.keep_where_unsound`), so nothing is lost by that.
  """

  def __init__(self, workdir: str, limit: int, meta: dict[str, int]):
    """Starts counting.

    Args:
      workdir: where `skipped_batches.json` is written.
      limit: so many in a row end the run; 0 is no limit.
      meta: of the run that is resumed; see `meta`.
    """
    self._path, self._limit = buckets.folder(workdir, "--workdir") / FILE, limit
    self.total, self.in_a_row = meta.get("total", 0), meta.get("in_a_row", 0)

  def meta(self) -> dict[str, int]:
    """What a checkpoint keeps."""
    return {"total": self.total, "in_a_row": self.in_a_row}

  def after(self, step: int, skipped: bool, describe: Callable[[list[int]], Any]) -> None:
    """Counts one update.

    Args:
      step: the number of the update, from 1.
      skipped: whether it was.
      describe: says of updates what was in their batches; only called when the run ends.

    Raises:
      InputError: as many as the limit allows have been skipped in a row.
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
      where = f"; what was in their batches is in {self._path}"
    raise InputError(
      f"the loss or its gradient was not finite in {self.in_a_row} steps in a row, {steps[0]} to {step}{where}; "
      "lower config.optimizer.lr, or look at these samples"
    )
