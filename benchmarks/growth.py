r"""Measures how the cost grows with image size, instance masks, text and model size:

  python -m benchmarks.growth --batch_size 1 --config.image_size=384 --config.model.dtype=float32
  python -m benchmarks.growth --train --batch_size 4 --config.image_size=384 \
      --config.model.dtype=float32

Changes one setting at a time. The changed and the original config take turns (A B A B) in one
process; the figures are medians over the turns, and the ratios are within a turn. The weights are
random.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import contestants, paired
from input_pipeline.common.errors import run_command
from mail_jax.config import load_config
from mail_jax.distributed import sharding
from mail_jax.hardware import flops
from mail_jax.models.build import apply_model
from mail_jax.train.program import build_program

# Widths, depths and heads of ViT's Tiny, Small, Base and Large (arXiv 2010.11929, 2012.12877).
SIZES = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}


def changes(dimension: str) -> dict[str, list[str]]:
  """Returns overrides by the name of the row."""
  if dimension == "model":
    return {
      f"model {name}: {width} x {depth}": [
        f"model.width={width}", f"model.depth={depth}", f"model.heads={heads}"
      ]
      for name, (width, depth, heads) in SIZES.items()
    }  # fmt: skip
  key, values = {
    "image": ("image_size", (192, 288, 384, 480, 640)),
    "instances": ("max_instances", (0, 4, 16, 32, 64)),
    "text": ("max_tokens", (10, 20, 40)),
  }[dimension]
  return {f"{key} = {value}": [f"{key}={value}"] for value in values}


def make_run(config: ConfigDict, train: bool) -> Callable[[], Any]:
  """Compiles a training step or a prediction; returns a function that runs it and waits."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  program = build_program(config, contestants.VOCAB, mesh)
  batch = sharding.global_batch(mesh, contestants.make_batch(config, config.batch_size))
  state = program.create()
  if train:
    held = [state]

    def run() -> None:
      held[0], _ = program.step(held[0], batch, np.float32(1e-5))
      jax.block_until_ready(held[0])
  else:
    variables = state.variables
    predict = jax.jit(lambda variables, batch: apply_model(program.model, variables, batch).logits)

    def run() -> None:
      jax.block_until_ready(predict(variables, batch))

  run()
  return run


def measure(args: argparse.Namespace, overrides: list[str]) -> Iterator[dict[str, object]]:
  """Measures one row per change; the row without changes is the config itself."""

  def load(change: list[str]) -> ConfigDict:
    return load_config(args.config, [*overrides, f"batch_size={args.batch_size}", *change])

  def work(config: ConfigDict) -> float:
    return (
      flops.train_step_flops(config)
      if args.train
      else flops.forward_flops(config) * args.batch_size
    )

  config = load([])
  base = make_run(config, args.train)
  for dimension in args.dimension:
    for name, change in changes(dimension).items():
      changed = load(change)
      runs = {"base": lambda: paired.seconds(base)}
      same = changed == config
      if not same:
        run = make_run(changed, args.train)
        runs["changed"] = lambda run=run: paired.seconds(run)
      times = paired.interleave(runs, args.rounds)
      seconds = times["base" if same else "changed"]
      yield {
        "": name,
        "ms": 1e3 * statistics.median(seconds),
        "TFLOP": work(changed) / 1e12,
        "time": paired.ratio(seconds, times["base"]),
        "products": work(changed) / work(config),
      }


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  every = ("image", "instances", "text", "model")
  parser.add_argument("--config", default="configs/refcoco.py:unc", metavar="FILE.py[:ARGUMENT]")
  parser.add_argument("--dimension", nargs="+", choices=every, default=list(every))
  parser.add_argument(
    "--train", action="store_true", help="measure training steps instead of predictions"
  )
  parser.add_argument("--batch_size", type=int, default=1)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--json", metavar="FILE")
  args, rest = parser.parse_known_args(argv)
  rows = list(measure(args, rest))
  print(f"{paired.machine()}\n\n{paired.table(rows)}")
  paired.write_json(args.json, {"train": args.train, "rows": rows})


if __name__ == "__main__":
  run_command(main)
