"""Metrics of a checkpoint, at original resolution, every sentence once, on all devices of all hosts:

python -m mail_jax.evaluate --checkpoint runs/demo --data_dir data --data shapes/val --json metrics.json
"""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax

from input_pipeline import drawing, records, storage, writing
from input_pipeline.errors import InputError
from input_pipeline.instances import leakage
from mail_jax import distributed, sharding, trained
from mail_jax.evaluators import generalized
from mail_jax.evaluators.segmentation import SegmentationEvaluator
from mail_jax.models.mail import find_mask
from mail_jax.program import jit_measure
from mail_jax.resize import resize_logits
from mail_jax.train_step import apply_model


def open_batches(
  model: trained.Trained,
  data_dir: str,
  name: str,
  limit: int | None = None,
  batch_size: int = 0,
  alone: bool = False,
):
  """Starts one pass over the sentences of `name`, which is DATASET/SPLIT.

  Args:
    model: that will see them.
    data_dir: what `prepare` was given.
    name: of the data.
    limit: stop after so many sentences.
    batch_size: over all devices of all processes, rounded up to a multiple of their number; 0: as in training.
    alone: this process reads all of them, and the others none.
  """
  from input_pipeline import (
    loader,
  )  # the only import that needs more than this package's own requirements

  dataset, slash, split = name.rpartition("/")
  if not slash:
    raise InputError(f"--data {name}: write DATASET/SPLIT, such as refcoco_unc/val")
  config = model.config
  return loader.eval_batches(
    data_dir, dataset, split, model.tokenizer,
    image_size=config.image_size, max_instances=config.max_instances, max_tokens=config.max_tokens,
    batch_size=sharding.local_batch_size(sharding.make_mesh(), batch_size or config.eval_batch_size),
    process_index=0 if alone else jax.process_index(),
    process_count=1 if alone else jax.process_count(),
    limit=limit,
  )  # fmt: skip


def compile_measure(
  model: trained.Trained,
) -> Callable[[Any, dict[str, Any]], dict[str, jax.Array]]:
  """Makes what the evaluator runs: every process gives its rows of a batch, and has the results of all."""
  mesh = sharding.make_mesh()
  measure = jit_measure(model.model, mesh, sharding.replicated(mesh))
  return lambda variables, batch: measure(variables, sharding.global_batch(mesh, batch))


def table(results: dict[str, dict[str, int | float]]) -> str:
  """Metrics as a table in percent, one row a split."""
  columns = list(dict.fromkeys(name for metrics in results.values() for name in metrics))
  rows = [["", *columns]]
  for name, metrics in results.items():
    rows.append(
      [
        name,
        *(_cell(c, metrics.get(c)) for c in columns),
      ]
    )
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return "\n".join(
    row[0].ljust(widths[0])
    + "  "
    + "  ".join(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))
    for row in rows
  )


def _cell(column: str, value: int | float | None) -> str:
  if value is None:
    return ""  # another data set's metric
  return f"{value:.0f}" if column in ("sentences", "no_targets") else f"{100 * value:.2f}"


def recall_instances(data_dir: str, name: str) -> dict[str, Any]:
  """Who made the instance masks of `name`, which is DATASET/SPLIT, and what that means for its numbers."""
  dataset, _, split = name.rpartition("/")
  return leakage.recall(storage.read_metadata(data_dir, dataset) or {}, dataset, split)


def draw_sheet(model: trained.Trained, data_dir: str, names: Sequence[str], count: int) -> Any:
  """A contact sheet of predictions, `count` sentences spread evenly over each split; one process draws it."""
  variables = model.on_one_device()

  @jax.jit
  def predict(variables, batch):
    output = apply_model(model.model, variables, batch)
    shape = batch["original_target"].shape[1:]
    logits = resize_logits(output.logits, batch["original_size"], shape)
    return find_mask(logits, output.no_target), output.selection_logits.argmax(-1)

  tiles, captions = [], []
  for name in names:
    from input_pipeline import loader

    dataset, _, split = name.rpartition("/")
    stride = max(1, loader.num_refs(data_dir, dataset, split) // count)
    seen: set[int] = set()
    for batch in open_batches(model, data_dir, name, alone=True):
      if len(seen) >= count * stride:
        break
      meta = batch.pop("meta")
      wanted = []
      for i, row in enumerate(meta):
        if row is not None and row["ref_id"] not in seen:
          seen.add(row["ref_id"])
          if len(seen) % stride == 0 and len(seen) <= count * stride:
            wanted.append(i)
      if not wanted:
        continue
      masks, chosen = jax.device_get(predict(variables, batch))
      for i in wanted:
        tile, caption = _tile(batch, meta[i], masks, chosen, i)
        tiles.append(tile)
        captions.append(f"{name}: {caption}")
  return drawing.contact_sheet(tiles, captions)


def _tile(batch, row, masks, chosen, i):
  """The picture at the model's resolution, stretched back to the photo's shape, with everything drawn on it."""
  height, width = (int(n) for n in batch["original_size"][i])
  size = drawing.fitting_size(height, width, 240)
  target, mask = batch["original_target"][i, :height, :width], masks[i, :height, :width]
  planes = records.unpack_planes(batch["instances"][i], int(batch["num_instances"][i]))
  picked = planes[chosen[i]] if chosen[i] < len(planes) else None
  picture = drawing.overlay(
    drawing.stretch(batch["image"][i], size), drawing.stretch(mask, size), drawing.stretch(target, size),
    None if picked is None else drawing.stretch(picked, size),
  )  # fmt: skip
  union = (target | mask).sum()
  iou = (target & mask).sum() / union if union else 1.0
  return picture, f"{row['sentence']}\nIoU {iou:.2f}" + (
    "" if picked is not None else ", no instance chosen"
  )


def main(argv: list[str] | None = None) -> None:
  """The command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  trained.add_arguments(parser)
  parser.add_argument(
    "--data_dir", required=True, help="where input_pipeline.prepare wrote the records"
  )
  parser.add_argument(
    "--data", required=True, action="append", metavar="DATASET/SPLIT", help="may be given again"
  )
  parser.add_argument(
    "--json",
    metavar="OUT",
    help="write the metrics as fractions, and whose instance masks they rest on",
  )
  parser.add_argument("--overlays", metavar="OUT.png", help="draw a contact sheet of predictions")
  parser.add_argument(
    "--overlay_count", type=int, default=24, help="predictions on the sheet (default: 24)"
  )
  parser.add_argument(
    "--batch_size",
    type=int,
    default=0,
    metavar="B",
    help="sentences at a time, over all devices (default: as in training); it changes no metric",
  )
  distributed.add_arguments(parser)
  args = parser.parse_args(argv)

  distributed.initialize(args, saves_on_sigterm=False)
  if args.overlays and distributed.is_main():
    drawing.check_writable(args.overlays)
  model = trained.load(args.checkpoint, args.which)
  results = evaluate(model, args.data_dir, args.data, args.batch_size)
  if distributed.is_main():
    write_report(model, results, args)


def evaluate(
  model: trained.Trained, data_dir: str, names: Sequence[str], batch_size: int = 0
) -> dict[str, dict[str, int | float]]:
  """Metrics of each of `names`, which are DATASET/SPLIT; all processes take part."""
  measure, results = compile_measure(model), {}
  # All are opened first, so that a wrong name is told at once.
  opened = [(name, open_batches(model, data_dir, name, batch_size=batch_size)) for name in names]
  for name, batches in opened:
    evaluator = SegmentationEvaluator(measure, lambda batches=batches: batches)
    results[name] = dict(evaluator.run(model.variables))
    own = generalized.summarise(name.rpartition("/")[0], evaluator.rows)
    results[name] = own or results[name]
    results[name]["text_cut"] = float(evaluator.rows["cut"].mean())
  return results


def write_report(
  model: trained.Trained, results: dict[str, dict[str, int | float]], args: argparse.Namespace
) -> None:
  """Prints the metrics and writes what was asked for."""
  print(f"{args.checkpoint}, step {model.step}; percent\n{table(results)}")
  instances = {name: recall_instances(args.data_dir, name) for name in results}
  for line in leakage.warnings(instances):
    print(line)
  if args.json:
    report = {name: row | {"instances": instances[name]} for name, row in results.items()}
    writing.write_whole(args.json, json.dumps(report, indent=2) + "\n")
    print(f"wrote {args.json}")
  if args.overlays:
    share = -(-args.overlay_count // len(args.data))
    drawing.save(draw_sheet(model, args.data_dir, args.data, share), args.overlays)
    print(f"wrote {args.overlays} ({drawing.legend()})")


if __name__ == "__main__":
  distributed.run_command(main)
