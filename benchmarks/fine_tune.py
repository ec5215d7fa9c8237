r"""Measures what it is worth to start from a trained model on data of another distribution:

  python -m benchmarks.fine_tune --pretrained runs/demo --workdir runs/fine_tune --seeds 0,1,2 \
      --steps 500 --config demo --config.minutes=0.0

The other data are scenes whose referents are the pairs of colour and shape that the training scenes
of `shapes` leave out, seen by a detector with twice the errors. Each seed trains twice with the
same recipe, on the same batches: from random weights, and from the pretrained run; `before` is that
run on the other data without training. Runs that exist are resumed, or read if they are finished.
Without --pretrained, a run on the scenes of `shapes` in --data_dir is trained first, for
--pretrain_steps.
"""

import argparse
import os

from benchmarks import scene_sets
from input_pipeline.common.errors import run_command
from input_pipeline.common.terminal import text_table
from mail_jax.config import add_config_argument, parse_overrides
from mail_jax.evaluate import runner
from mail_jax.export import load
from mail_jax.train import command as train

METRICS = ("mIoU", "oIoU", "selection_accuracy")


def train_run(args: argparse.Namespace, data_dir: str, name: str, *more: str) -> str:
  """Trains a run, or what is left of it; returns its folder."""
  workdir = os.path.join(args.workdir, name)
  length = [] if any("config.steps=" in word for word in more) else [f"--config.steps={args.steps}"]
  words = ["--config", args.config, "--data_dir", data_dir, "--workdir", workdir]
  train.main([*words, *args.overrides, *length, *more])
  return workdir


def evaluate(workdir: str, data_dir: str) -> dict[str, float]:
  """Returns the metrics of the last checkpoint of a run on the shifted `val`."""
  metrics, _ = runner.evaluate_split(load.load(workdir, "last"), data_dir, "shapes/val")
  return {name: float(metrics[name]) for name in METRICS}


def measure(args: argparse.Namespace) -> list[list[str]]:
  """Trains and evaluates all runs; returns a row for each."""
  shifted = os.path.join(args.workdir, "data")
  source = scene_sets.Source("testC", args.train_scenes, args.eval_scenes, noise="x2", seed=1)
  scene_sets.prepare(shifted, "shapes", source)
  pretrained = args.pretrained
  if not pretrained:
    steps = f"--config.steps={args.pretrain_steps}"
    pretrained = train_run(args, args.data_dir, "pretrained", steps)
  results = {"before": [evaluate(pretrained, shifted)]}
  for seed in args.seeds:
    for name, init in (("from scratch", ""), ("fine-tuned", f"run:{pretrained}@last")):
      options = [f"--config.seed={seed}", f"--config.init={init}"]
      workdir = train_run(args, shifted, f"{name.replace(' ', '_')}_{seed}", *options)
      results.setdefault(name, []).append(evaluate(workdir, shifted))
  return [[name, *(scene_sets.spread([row[key] for row in rows]) for key in METRICS)]
          for name, rows in results.items()]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add_config_argument(parser)
  parser.add_argument("--pretrained", default="", help="run to start from")
  parser.add_argument("--data_dir", default="data", help="where `shapes` is, to pretrain on")
  parser.add_argument("--workdir", required=True, help="folder of the shifted data and of all runs")
  parser.add_argument("--seeds", default="0,1,2", help="separated by commas (default: 0,1,2)")
  parser.add_argument("--steps", type=int, default=500, help="of each run (default: 500)")
  parser.add_argument("--pretrain_steps", type=int, default=2000, help="(default: 2000)")
  parser.add_argument("--train_scenes", type=int, default=1000, help="shifted (default: 1000)")
  parser.add_argument("--eval_scenes", type=int, default=300, help="shifted (default: 300)")
  args, args.overrides = parse_overrides(parser, argv)
  args.seeds = [int(seed) for seed in args.seeds.split(",")]
  print(text_table([["", *METRICS], *measure(args)]))


if __name__ == "__main__":
  run_command(main)
