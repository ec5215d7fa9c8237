"""Evaluates a run as one of several processes: `python tests/support/evaluated_by_several.py`.

Besides, the rows of all sentences of the last data, at the last batch size, in PROCESS.jsonl.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from mail_jax.distributed import processes, sharding
from mail_jax.evaluate import per_expression, runner
from mail_jax.evaluate.segmentation import SegmentationEvaluator, count
from mail_jax.export import load
from mail_jax.models.build import apply_model
from mail_jax.models.resize import resize_logits

# Pixels whose probability is closer to the threshold may fall on either side of it.
MARGIN = 1e-4


def make_measure(model: load.LoadedModel):
  """Counts as every evaluation, and also the pixels of each expression near the threshold."""
  mesh = sharding.make_mesh()
  spread, same = sharding.batch_sharding(mesh), sharding.replicated(mesh)

  def measure(variables, batch):
    output = apply_model(model.model, variables, batch)
    canvas = batch["original_target"].shape[1:]
    probability = jax.nn.sigmoid(resize_logits(output.tiles, batch["original_size"], canvas))
    height, width = batch["original_size"][:, 0], batch["original_size"][:, 1]
    inside = (jnp.arange(canvas[0]) < height[:, None])[:, :, None]
    inside &= (jnp.arange(canvas[1]) < width[:, None])[:, None, :]
    close = ((jnp.abs(probability - 0.5) < MARGIN) & inside).sum((1, 2), dtype=jnp.int32)
    return count(output, batch, model.model.max_instances) | {"close": close}

  measure = jax.jit(measure, in_shardings=(same, spread), out_shardings=same)
  return lambda variables, batch: measure(variables, sharding.global_batch(mesh, batch))


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--checkpoint")
  parser.add_argument("--data_dir")
  parser.add_argument("--data", nargs="+")
  parser.add_argument("--batch_sizes", type=int, nargs="+")
  parser.add_argument("--limit", type=int)
  parser.add_argument(
    "--out", help="folder for PROCESS.npz, with the rows under BATCH_SIZE/DATA/NAME"
  )
  processes.add_arguments(parser)
  args = parser.parse_args()
  processes.initialize(args)
  model = load.load(args.checkpoint, "last")
  measure, found, read = make_measure(model), {}, {}
  for size in args.batch_sizes:
    for name in args.data:
      batches = runner.open_batches(model, args.data_dir, name, args.limit, size)
      evaluator = SegmentationEvaluator(measure, lambda batches=batches: batches)
      metrics = dict(evaluator.run(model.variables))
      key = f"{size}/{name}"
      found |= {f"{key}/{column}": values for column, values in evaluator.rows.items()}
      found |= {f"{key}/metric {name}": np.array(value) for name, value in metrics.items()}
      read[key] = [
        [row[k] for k in ("image_id", "ref_id", "expression_index")] for row in evaluator.meta
      ]
  out = pathlib.Path(args.out)
  _, rows = runner.evaluate_split(
    model, args.data_dir, args.data[-1], args.batch_sizes[-1], measure=measure, limit=args.limit
  )
  per_expression.write(out / f"{jax.process_index()}.jsonl", rows)
  np.savez(out / f"{jax.process_index()}.npz", **found)
  (out / f"{jax.process_index()}.json").write_text(json.dumps(read))


if __name__ == "__main__":
  processes.run_command(main)
