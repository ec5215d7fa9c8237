r"""Trains and evaluates one run of the tables, in one process on one core:

  python -m benchmarks.ablation.one_run --data_dir data --workdir runs/ablate/ID \
      --out result.json OVERRIDE ...

`benchmarks.ablate` starts it. An interrupted run is resumed.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks import paired
from benchmarks.ablation.documents import crossing
from benchmarks.ablation.runs import SPLITS
from input_pipeline.common import atomic_files
from input_pipeline.common.errors import InputError, run_command
from mail_jax.config import load_config
from mail_jax.evaluate import runner
from mail_jax.export import load
from mail_jax.hardware import flops
from mail_jax.models.build import HostBatch
from mail_jax.train import loop
from mail_jax.train.data import Data, open_data

METRICS = (
  "expressions",
  "mIoU",
  "oIoU",
  "boundary_mIoU",
  "P@0.5",
  "P@0.9",
  "selection_accuracy",
  "oracle_mIoU",
)


def measure(
  recipe: str,
  overrides: list[str],
  data_dir: str,
  workdir: str,
  tests: list[str],
  tests_dir: str,
  until: float = 0.0,
  train_dir: str = "",
) -> dict[str, Any]:
  """Trains and evaluates a run; returns the fields of its line.

  Args:
    recipe: of the config.
    overrides: of the recipe.
    data_dir: to train on, and to evaluate on.
    workdir: of the run; a finished run is only evaluated.
    tests: splits, or DETECTOR/SPLIT of the data in the folder DETECTOR of `tests_dir`.
    tests_dir: see `tests`.
    until: ends the run at an evaluation with this mIoU; 0 trains all steps.
    train_dir: to train on instead of `data_dir`, if it is not empty.

  Raises:
    InputError: the run was stopped before its end.
  """
  config = load_config(recipe, overrides)
  curve = _train(config, open_data(config, train_dir or data_dir), workdir, until)
  model = load.load(workdir, "last")
  if model.step < model.config.steps and not (until and crossing(curve, until)):
    raise InputError(
      f"{workdir} was stopped at step {model.step}; run the same command again to resume"
    )
  results = {}
  for test in tests:
    noise, _, split = test.rpartition("/")
    where = os.path.join(tests_dir, noise) if noise else data_dir
    measured, _ = runner.evaluate(model, where, [f"shapes/{split}"])
    results[test] = {name: measured[f"shapes/{split}"].get(name) for name in METRICS}
  return {
    "seed": model.config.seed,
    "samples": model.step * config.batch_size,
    "parameters": sum(x.size for x in jax.tree.leaves(model.variables["params"])),
    "gflop": flops.forward_flops(model.config) / 1e9,
    "results": results,
    "curve": curve,
    "machine": paired.machine(),
  }  # fmt: skip


def _train(config: ConfigDict, data: Data, workdir: str, until: float) -> list[list[float]]:
  """Trains, perhaps until an mIoU; returns the samples and mIoU of each evaluation."""

  def batches(start: int) -> Iterator[HostBatch]:
    for step, batch in enumerate(data.train(start), start):
      due = step == start or step % config.eval_every == 0
      if until and due and crossing(_curve(trainer), until):
        trainer.preemption.ask()
      yield batch

  trainer = loop.Trainer(config, workdir, dataclasses.replace(data, train=batches))
  trainer.run()
  return _curve(trainer)


def _curve(trainer: loop.Trainer) -> list[list[float]]:
  rows = [row for row in trainer.progress.rows() if "val/mIoU" in row]
  return [[row["step"] * trainer.config.batch_size, row["val/mIoU"]] for row in rows]


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="demo", help="recipe")
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--train_dir", default="", help="data to train on (default: --data_dir)")
  parser.add_argument("--workdir", required=True)
  parser.add_argument(
    "--tests_dir", default="", help="folder of the data of other detectors, one folder each"
  )
  parser.add_argument("--tests", nargs="*", default=list(SPLITS), metavar="[DETECTOR/]SPLIT")
  parser.add_argument(
    "--until", type=float, default=0.0, metavar="MIOU", help="mIoU that ends the run"
  )
  parser.add_argument("--core", type=int, help="number of the core to run on")
  parser.add_argument("--out", required=True, metavar="FILE.json")
  parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
  args = parser.parse_args(argv)
  if args.core is not None and hasattr(os, "sched_setaffinity"):
    with contextlib.suppress(OSError):
      os.sched_setaffinity(0, {args.core})
  try:
    measured = measure(
      args.config,
      args.overrides,
      args.data_dir,
      args.workdir,
      args.tests,
      args.tests_dir,
      args.until,
      args.train_dir,
    )
  finally:
    seconds = _spent(args.out + ".seconds")
  atomic_files.write_whole(args.out, json.dumps(measured | {"core_seconds": seconds}) + "\n")


def _spent(path: str) -> float:
  """Adds the CPU seconds of this process to those of earlier ones, and returns the sum.

  Independent of other load, this is about the time that a run takes on an idle core.
  """
  os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
  with open(path, "a") as times:
    times.write(f"{time.process_time():.1f}\n")
  with open(path) as times:
    return sum(map(float, times))


if __name__ == "__main__":
  run_command(main)
