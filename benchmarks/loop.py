"""Measures the cost of the training loop around its step:

  python -m benchmarks.loop --config configs/demo.py --steps 200

Trains like `mail_jax.train`, including logging and metrics, on one batch in host memory, and then
calls the same compiled step alone, on the same batch on the device. They take turns (A B A B); the
figures are medians over the turns. Compiling, evaluations and checkpoints are left out.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import tempfile

import jax
import numpy as np

from benchmarks import contestants, paired
from input_pipeline.common.errors import InputError, run_command
from input_pipeline.preprocess import tokenizer
from mail_jax.config import load_config
from mail_jax.distributed import sharding
from mail_jax.train import loop
from mail_jax.train.data import Data

# Steps before the measurement.
_WARM_UP = 10


def loop_seconds(workdir: pathlib.Path) -> float:
  """Returns seconds per step from a run's log, without compilation, evaluation and checkpoints."""
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  first, last = (
    sum(row["seconds"][phase] for phase in ("step", "data", "other")) for row in (rows[0], rows[-1])
  )
  return (last - first) / (rows[-1]["step"] - rows[0]["step"])


def step_seconds(trainer: loop.Trainer, batch: dict[str, np.ndarray], steps: int) -> float:
  """Returns the seconds of a step alone, one ahead of the device as in the loop."""
  spread, lr = sharding.global_batch(trainer.program.mesh, batch), np.float32(0)

  def run(count: int) -> None:
    before = None
    for _ in range(count):
      trainer.state, metrics = trainer.program.step(trainer.state, spread, lr)
      jax.block_until_ready(before)
      before = metrics
    jax.block_until_ready(trainer.state)

  run(_WARM_UP)
  return paired.seconds(lambda: run(steps)) / steps


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="configs/demo.py", metavar="FILE.py[:ARGUMENT]")
  parser.add_argument("--steps", type=int, default=200, help="steps per turn")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--json", metavar="FILE")
  args, rest = parser.parse_known_args(argv)
  config = load_config(args.config, rest).unlock()
  if args.steps < config.log_every:
    raise InputError(f"--steps {args.steps}: must be at least config.log_every, {config.log_every}")
  warm_up = -(-_WARM_UP // config.log_every) * config.log_every
  config.update(steps=warm_up + args.steps, epochs=0.0, minutes=0.0, eval_split="")
  config.save_every = config.steps
  words = tokenizer.SentencePieceTokenizer.train(
    [f"the {i}th red thing left of blue thing {i * i}" for i in range(500)], 300
  )
  batch = contestants.make_batch(config, config.batch_size)
  batch["tokens"] %= words.vocab_size
  held = Data(words, lambda _: itertools.repeat(batch), samples=1)
  times: dict[str, list[float]] = {"the loop": [], "the bare step": []}
  for _ in range(args.rounds):
    with tempfile.TemporaryDirectory() as folder:
      trainer = loop.Trainer(config, folder, held)
      trainer.run()
      times["the loop"].append(loop_seconds(pathlib.Path(folder)))
      times["the bare step"].append(step_seconds(trainer, batch, args.steps))
  rows = [
    {
      "": name,
      "ms per step": 1e3 * statistics.median(seconds),
      "times the bare step": f"{paired.ratio(seconds, times['the bare step']):.3f}",
    }
    for name, seconds in times.items()
  ]
  print(f"{paired.machine()}\n\n{paired.table(rows)}")
  paired.write_json(args.json, {"steps": args.steps, "rows": rows})


if __name__ == "__main__":
  run_command(main)
