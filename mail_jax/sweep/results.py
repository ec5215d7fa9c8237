"""What the runs of a sweep reached: one table, the best setting first."""

import dataclasses
import json
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from input_pipeline import mixture
from input_pipeline.common.terminal import text_table
from mail_jax.checkpoints import checkpoint
from mail_jax.config import to_json
from mail_jax.sweep.grid import Trial
from mail_jax.train.logging import terminal

_LOG = "metrics.jsonl"


@dataclasses.dataclass(frozen=True)
class Result:
  """The best evaluation of a run.

  Attributes:
    trial: the run.
    score: its `best_metric`, as a fraction.
    step: of that evaluation.
    metrics: all metrics of it, as fractions.
  """

  trial: Trial
  score: float
  step: int
  metrics: Mapping[str, int | float]


def is_finished(workdir: str | os.PathLike, config: ConfigDict) -> bool:
  """Returns whether a run with this config has made all of its steps."""
  if not checkpoint.exists(str(workdir)):
    return False
  checkpoints = checkpoint.Checkpoints(str(workdir), read_only=True)
  try:
    latest = checkpoints.latest()
    meta = checkpoints.meta(latest) if latest else {}
    done = bool(latest) and latest >= meta["steps"] > 0 and bool(checkpoints.metrics(latest))
    return done and meta["config"] == to_json(config)
  finally:
    checkpoints.close()


def read(trial: Trial, workdir: pathlib.Path, config: ConfigDict) -> Result | None:
  """Returns the best evaluation of a run; None if it has none."""
  path = workdir / _LOG
  rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
  split = mixture.judged(mixture.evaluated(config.dataset, config.eval_split))
  metric = config.best_metric
  best = terminal.best_row(rows, split, metric)
  if best is None:
    return None
  metrics = {
    key.removeprefix(f"{split}/"): value
    for key, value in best.items()
    if key.startswith(f"{split}/")
  }
  return Result(trial, metrics[metric], best["step"], metrics)


def by_setting(results: Sequence[Result]) -> list[list[Result]]:
  """Returns the results of each setting, the best first; settings by the mean of their runs."""
  groups: dict[str, list[Result]] = {}
  for result in sorted(results, key=lambda result: -result.score):
    groups.setdefault(result.trial.setting, []).append(result)
  return sorted(groups.values(), key=lambda group: -_mean(group))


def _mean(group: Sequence[Result]) -> float:
  return statistics.fmean(result.score for result in group)


def text(results: Sequence[Result], metric: str, splits: Sequence[str]) -> str:
  """Formats the table, in percent: a row per setting, the mean and the range over its seeds.

  Args:
    results: of all runs.
    metric: that decides.
    splits: DATASET/SPLIT, of which it is the mean.
  """
  rows = [["", "runs", metric, "lowest", "highest", "oIoU", "P@0.5", "best step"]]
  for group in by_setting(results):
    scores = [result.score for result in group]
    means = [
      statistics.fmean(result.metrics[name] for result in group)
      if all(name in result.metrics for result in group)
      else None
      for name in ("oIoU", "P@0.5")
    ]
    numbers = [_mean(group), min(scores), max(scores), *means]
    steps = ", ".join(f"{result.step:,}" for result in group)
    rows.append([group[0].trial.setting, str(len(group)), *map(_percent, numbers), steps])
  names = ", ".join(splits)
  return f"{names}, percent; the best evaluation of each run, means over seeds\n{text_table(rows)}"


def _percent(value: float | None) -> str:
  return "-" if value is None else f"{100 * value:.2f}"


def to_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
  """Returns a row per run, for a file."""
  return [
    {**dict(r.trial.values), "run": r.trial.name, "step": r.step, **r.metrics} for r in results
  ]
