"""What a run came to, as a short table at its end."""

from collections.abc import Mapping, Sequence
from typing import Any

from mail_jax.evaluate import table as evaluation_table
from mail_jax.train.logging.step_line import duration

# Those that a paper has in its table, and what the instance masks add; the rest is in the log.
_COLUMNS = (
  "mIoU", "oIoU", "gIoU", "cIoU", "P@0.5", "P@0.7", "P@0.9", "N-acc", "T-acc", "selection_accuracy", "oracle_mIoU",
)  # fmt: skip


def best_and_last(
  evaluations: Sequence[Mapping[str, Any]], split: str, metric: str
) -> dict[str, Mapping[str, Any]]:
  """The best and the last of all evaluations, by the words that say which they are.

  Args:
    evaluations: rows of the log, with `step` and the metrics as `SPLIT/NAME`.
    split: that was evaluated.
    metric: what is best has the highest; of equal ones the latest.
  """
  rows = [row for row in evaluations if f"{split}/{metric}" in row]
  if not rows:
    return {}
  best = max(rows, key=lambda row: (row[f"{split}/{metric}"], row["step"]))
  last = max(rows, key=lambda row: row["step"])
  if best is last:
    return {f"{split}, step {best['step']} (best and last)": _metrics(best, split)}
  return {
    f"{split}, step {best['step']} (best {metric})": _metrics(best, split),
    f"{split}, step {last['step']} (last)": _metrics(last, split),
  }


def _metrics(row: Mapping[str, Any], split: str) -> dict[str, Any]:
  return {name: row[f"{split}/{name}"] for name in _COLUMNS if f"{split}/{name}" in row}


def text(
  results: Mapping[str, Mapping[str, Any]],
  *,
  step: int,
  start_step: int,
  batch_size: int,
  seconds: Mapping[str, float],
  spent: str,
  places: Mapping[str, str],
) -> str:
  """The table, several lines.

  Args:
    results: of `best_and_last`.
    step, start_step: where this start ended and began.
    batch_size: samples of a step.
    seconds: of this start by what they were spent on, as `Goodput.seconds` has them.
    spent: the same in words.
    places: where things are, by their names.
  """
  trained = max(seconds["step"] + seconds["data"], 1e-9)
  rate = (step - start_step) * batch_size / trained
  since = f" since step {start_step}" if start_step else ""
  facts = {
    "time": f"{duration(sum(seconds.values()))}{since}  {rate:.0f} samples/s while it trained",
    "spent on": spent,
  } | dict(places)
  width = max(map(len, facts))
  lines = [f"{name.ljust(width)}  {fact}" for name, fact in facts.items()]
  table = evaluation_table.metrics(results).splitlines() if results else []
  return "\n".join([*table, *lines])


def places(workdir: str, tensorboard: bool) -> dict[str, str]:
  """Where what the run made is.

  Args:
    workdir: of the run.
    tensorboard: whether it has event files.
  """
  found = {"checkpoints": f"{workdir}/checkpoints", "log": f"{workdir}/metrics.jsonl"}
  return found | ({"tensorboard": f"{workdir}/tensorboard"} if tensorboard else {})
