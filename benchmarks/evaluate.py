r"""Measures which fraction of an evaluation is the model:

  python -m benchmarks.evaluate --config configs/demo.py --data_dir data --data shapes/val \
      --sentences 512

Runs the evaluation from the records to the metrics, and then the same compiled function on the same
batches, already on the device: that is the time of the model. They take turns (A B A B); the
figures are medians over the turns. The weights are random; the time does not depend on them.
"""

import argparse
import statistics

import jax

from benchmarks import paired
from input_pipeline.common.errors import run_command
from input_pipeline.tf import loader
from mail_jax.config import load_config
from mail_jax.distributed import sharding
from mail_jax.evaluate.segmentation import SegmentationEvaluator
from mail_jax.train.data import make_tokenizer
from mail_jax.train.program import build_program


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="configs/demo.py", metavar="FILE.py[:ARGUMENT]")
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--data", required=True, metavar="NAME/SPLIT")
  parser.add_argument("--sentences", type=int, default=512)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--json", metavar="FILE")
  args, rest = parser.parse_known_args(argv)
  config = load_config(args.config, rest)
  name, _, split = args.data.partition("/")
  tokenizer = make_tokenizer(config, lambda: loader.train_expressions(args.data_dir, name))
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  program = build_program(config, tokenizer.vocab_size, mesh)
  variables = program.create().averaged
  shape = loader.BatchShape(
    config.eval_batch_size, config.image_size, config.max_instances, config.max_tokens
  )

  def batches():
    return loader.eval_batches(
      loader.Split(args.data_dir, name, split),
      tokenizer,
      shape,
      limit=args.sentences,
      threads=config.loader.threads,
    )

  def measure(variables, batch):
    return program.measure(variables, sharding.global_batch(mesh, batch))

  evaluator = SegmentationEvaluator(measure, batches)
  held = [
    sharding.global_batch(mesh, {name: x for name, x in batch.items() if name != "meta"})
    for batch in batches()
  ]
  expected = dict(evaluator.run(variables))  # compiles every size of canvas

  def whole() -> None:
    assert dict(evaluator.run(variables)) == expected

  def model() -> None:
    jax.block_until_ready([program.measure(variables, batch) for batch in held])

  model()
  runs = {"evaluation": lambda: paired.seconds(whole), "model": lambda: paired.seconds(model)}
  times = paired.interleave(runs, args.rounds)
  count = int(expected["expressions"])
  rows = [
    {
      "contestant": contestant,
      "s": statistics.median(seconds),
      "sentences/s": count / statistics.median(seconds),
      "share of the evaluation": f"{paired.ratio(seconds, times['evaluation']):.1%}",
    }
    for contestant, seconds in times.items()
  ]
  print(f"{paired.machine()}\n\n{paired.table(rows)}")
  paired.write_json(args.json, {"sentences": count, "rows": rows})


if __name__ == "__main__":
  run_command(main)
