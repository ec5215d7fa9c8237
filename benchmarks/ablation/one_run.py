"""Trains a run of the tables and judges it, in a process of its own, on a core of its own:

  python -m benchmarks.ablation.one_run --data_dir data --workdir runs/ablate/ID --out result.json OVERRIDE ...

`benchmarks.ablate` starts it. A run that was interrupted goes on.
"""

import argparse
import contextlib
import json
import os
import time
from typing import Any

import jax

from benchmarks import paired
from benchmarks.ablation.runs import SPLITS
from input_pipeline import writing
from input_pipeline.errors import InputError, run_command
from mail_jax import evaluate, flops, train, trained

METRICS = (
  "sentences",
  "mIoU",
  "oIoU",
  "boundary_mIoU",
  "P@0.5",
  "P@0.9",
  "selection_accuracy",
  "oracle_mIoU",
)


def measure(
  recipe: str, overrides: list[str], data_dir: str, workdir: str, tests: list[str], tests_dir: str
) -> dict[str, Any]:
  """Trains, judges, and returns what the run's line says of it.

  Args:
    recipe: that is changed.
    overrides: of it.
    data_dir: what it is trained on.
    workdir: of the run; where it is finished it is only judged.
    tests: splits, or DETECTOR/SPLIT of the data in a folder of `tests_dir` with that name.
    tests_dir: where these lie.

  Raises:
    InputError: it was asked to end before it was finished.
  """
  train.main(
    [
      "--config",
      recipe,
      "--data_dir",
      data_dir,
      "--workdir",
      workdir,
      *(f"--config.{word}" for word in overrides),
    ]
  )
  model = trained.load(workdir, "last")
  if model.step < model.config.steps:
    raise InputError(
      f"{workdir} was asked to end at step {model.step}; the same command goes on with it"
    )
  results = {}
  for test in tests:
    noise, _, split = test.rpartition("/")
    where = os.path.join(tests_dir, noise) if noise else data_dir
    found, _ = evaluate.evaluate(model, where, [f"shapes/{split}"])
    results[test] = {name: found[f"shapes/{split}"].get(name) for name in METRICS}
  with open(os.path.join(workdir, "metrics.jsonl")) as lines:
    log = [json.loads(line) for line in lines]
  batch = model.config.batch_size
  return {
    "seed": model.config.seed,
    "samples": model.step * batch,
    "parameters": sum(x.size for x in jax.tree.leaves(model.variables["params"])),
    "gflop": flops.forward_flops(model.config) / 1e9,
    "results": results,
    "curve": [[row["step"] * batch, row["val/mIoU"]] for row in log if "val/mIoU" in row],
    "machine": paired.machine(),
  }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
  """The command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="demo", help="the recipe")
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--workdir", required=True)
  parser.add_argument(
    "--tests_dir", default="", help="where the data of other detectors are, a folder each"
  )
  parser.add_argument("--tests", nargs="+", default=list(SPLITS), metavar="[DETECTOR/]SPLIT")
  parser.add_argument("--core", type=int, help="where all of it runs")
  parser.add_argument("--out", required=True, metavar="FILE.json")
  parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
  args = parser.parse_args(argv)
  if args.core is not None and hasattr(os, "sched_setaffinity"):
    with contextlib.suppress(OSError):
      os.sched_setaffinity(0, {args.core})
  try:
    found = measure(
      args.config, args.overrides, args.data_dir, args.workdir, args.tests, args.tests_dir
    )
  finally:
    seconds = _spent(args.out + ".seconds")
  writing.write_whole(args.out, json.dumps(found | {"core_seconds": seconds}) + "\n")


def _spent(path: str) -> float:
  """Adds what this process took of its core to what the ones before it did, and returns the sum.

  Whatever else the machine does, that is about the time which a run takes on a core of its own.
  """
  os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
  with open(path, "a") as times:
    times.write(f"{time.process_time():.1f}\n")
  with open(path) as times:
    return sum(map(float, times))


if __name__ == "__main__":
  run_command(main)
