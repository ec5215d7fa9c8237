r"""Measures what it is worth to train on two data sets together:

  python -m benchmarks.mixed --workdir runs/mixed --seeds 0,1,2 --steps 500 --config demo \
      --config.minutes=0.0
  python -m benchmarks.mixed --workdir runs/mixed_photos --data_dir data \
      --datasets refcoco_unc,grefcoco_unc --config demo --config.minutes=0.0

Without --datasets these are two sets of generated scenes with grammars of their own: `attributes`
names colours, textures, sizes and shapes and never a place, as RefCOCO+ does, `places` compares
positions and sizes. Each seed trains three times with the same recipe and number of samples: on
either, and on both as `config.dataset = "A,B"`, by size, without the photos that one of them
evaluates on. All are evaluated on the `val` of both. Runs that exist are resumed, or read if they
are finished.
"""

import argparse
import os

from benchmarks import scene_sets
from input_pipeline.common.errors import InputError, run_command
from input_pipeline.common.terminal import text_table
from mail_jax.config import add_config_argument, parse_overrides
from mail_jax.evaluate import runner
from mail_jax.export import load
from mail_jax.train import command as train

GRAMMARS = {"attributes": "testA", "places": "testB"}
"""The split of `shapes` that has the expressions of a data set."""
METRICS = ("mIoU", "oIoU", "selection_accuracy")


def prepare(data_dir: str, train_scenes: int, eval_scenes: int) -> tuple[str, ...]:
  """Writes the two data sets of scenes, unless they are there; returns their names."""
  for name, like in GRAMMARS.items():
    source = scene_sets.Source(like, train_scenes, eval_scenes, noise="default", seed=2)
    scene_sets.prepare(data_dir, name, source)
  return tuple(GRAMMARS)


def measure(args: argparse.Namespace) -> list[list[str]]:
  """Trains and evaluates all runs; returns a row for each data set and their mixture."""
  if args.datasets:
    data_dir, names = args.data_dir, tuple(args.datasets.split(","))
  else:
    data_dir = os.path.join(args.workdir, "data")
    names = prepare(data_dir, args.train_scenes, args.eval_scenes)
  if len(names) != 2:
    raise InputError(f"--datasets {args.datasets}: name two data sets, as in A,B")
  titles = [f"{name} {key}" for name in names for key in METRICS]
  table = [["trained on", *titles]]
  for dataset in (*names, ",".join(names)):
    found: dict[str, list[float]] = {title: [] for title in titles}
    for seed in args.seeds:
      workdir = os.path.join(args.workdir, f"{dataset.replace(',', '+')}_{seed}")
      train.main(
        ["--config", args.config, "--data_dir", data_dir, "--workdir", workdir, *args.overrides,
         f"--config.steps={args.steps}", f"--config.seed={seed}", f"--config.dataset={dataset}"]
      )  # fmt: skip
      model = load.load(workdir, "last")
      for name in names:
        metrics, _ = runner.evaluate_split(model, data_dir, f"{name}/val")
        for key in METRICS:
          found[f"{name} {key}"].append(float(metrics[key]))
    table.append([dataset, *map(scene_sets.spread, found.values())])
  return table


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add_config_argument(parser)
  parser.add_argument("--workdir", required=True, help="folder of the scenes and of all runs")
  parser.add_argument("--datasets", default="", metavar="A,B", help="prepared, in --data_dir")
  parser.add_argument("--data_dir", default="data", help="where --datasets are (default: data)")
  parser.add_argument("--seeds", default="0,1,2", help="separated by commas (default: 0,1,2)")
  parser.add_argument("--steps", type=int, default=500, help="of each run (default: 500)")
  parser.add_argument("--train_scenes", type=int, default=2000, help="per set (default: 2000)")
  parser.add_argument("--eval_scenes", type=int, default=300, help="per set (default: 300)")
  args, args.overrides = parse_overrides(parser, argv)
  args.seeds = [int(seed) for seed in args.seeds.split(",")]
  print(text_table(measure(args)))


if __name__ == "__main__":
  run_command(main)
