r"""Computes metrics of a model or of given masks on every expression, or compares two evaluations:

python -m mail_jax.evaluate --checkpoint runs/demo --data_dir data --data shapes \
    --per_expression demo.jsonl
python -m mail_jax.evaluate --compare demo.jsonl other.jsonl
python -m mail_jax.evaluate --predictions masks.json --data_dir data --data shapes/val

docs/guides/evaluate.md defines the metrics.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from input_pipeline import left_out
from input_pipeline.common import atomic_files, drawing
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import memory_errors
from input_pipeline.common.terminal import announce
from input_pipeline.preprocess import bit_planes
from input_pipeline.proposers import leakage
from mail_jax.distributed import processes
from mail_jax.evaluate import compare, given_masks, per_expression, runner, table
from mail_jax.export import load
from mail_jax.models.mail import find_mask
from mail_jax.models.resize import resize_logits

# The height and width that a tile of the contact sheet fits into, in pixels.
_TILE = 240


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  words = sys.argv[1:] if argv is None else argv
  for option, other in (("--compare", compare), ("--predictions", given_masks)):
    if any(word.partition("=")[0] == option for word in words):
      other.main(words)
      return
  args = _parser().parse_args(words)
  processes.initialize(args, saves_on_sigterm=False)
  if args.overlays and processes.is_main():
    drawing.check_writable(args.overlays)
  model = load.load(args.checkpoint, args.step, backend=args.backend)
  names = runner.find_splits(args.data_dir, args.data)
  with memory_errors(lambda: runner.ways_out_of_memory(model, args.batch_size, names)):
    results, rows = runner.evaluate(model, args.data_dir, names, args.batch_size, args.protocol)
  if processes.is_main():
    _write(model, results, rows, args)


def _parser() -> argparse.ArgumentParser:
  parser = command_parser("mail_jax.evaluate", __doc__)
  load.add_arguments(parser)
  load.add_backend_argument(parser)
  runner.add_arguments(parser)
  parser.add_argument("--overlays", metavar="OUT.png", help="draw a contact sheet of predictions")
  parser.add_argument(
    "--overlay_count", type=int, default=24, help="predictions on the sheet (default: 24)"
  )
  parser.add_argument(
    "--batch_size",
    type=int,
    default=0,
    metavar="B",
    help="expressions per batch, over all devices (default: as in training); changes no metric",
  )
  parser.add_argument(
    "--compare",
    nargs=2,
    metavar=("A.jsonl", "B.jsonl"),
    help="compare two files from --per_expression without evaluating; of the other options only "
    "--json applies",
  )
  parser.add_argument(
    "--predictions",
    metavar="FILE_OR_FOLDER",
    help="evaluate masks of any model instead of a checkpoint; `--predictions x --help` has the "
    "options",
  )
  processes.add_arguments(parser)
  return parser


def _write(
  model: load.LoadedModel,
  results: dict[str, dict[str, Any]],
  rows: list[per_expression.Row],
  args: argparse.Namespace,
) -> None:
  """Prints the metrics and writes the requested files."""
  print(runner.heading(f"{args.checkpoint}, step {model.step}", args.protocol, model))
  print(table.metrics(results))
  origins = {name: runner.recall_instances(args.data_dir, name) for name in results}
  seen = {name: runner.find_seen(model, args.data_dir, name) for name in results}
  noted = left_out.describe(model.left_out)
  for line in [*leakage.warnings(origins), *leakage.warnings(seen), *noted]:
    print(line)
  print(f"\n{table.groups(results)}")
  if args.per_expression:
    per_expression.write(args.per_expression, rows)
    print(f"wrote {args.per_expression}")
  if args.json:
    about = runner.describe(model, args.data_dir, list(results), args.protocol)
    report = {
      name: metrics | about[name] | {"training_images": seen[name]}
      for name, metrics in results.items()
    }
    atomic_files.write_whole(args.json, json.dumps(report, indent=2) + "\n")
    print(f"wrote {args.json}")
  if args.overlays:
    share = -(-args.overlay_count // len(results))
    with announce("drawing predictions"):
      sheet = draw_sheet(model, args.data_dir, list(results), share)
    drawing.save(sheet, args.overlays)
    print(f"wrote {args.overlays} ({drawing.LEGEND})")


def draw_sheet(
  model: load.LoadedModel, data_dir: str, names: Sequence[str], count: int
) -> Image.Image:
  """Draws a contact sheet of predictions, in one process.

  Args:
    model: the model to evaluate.
    data_dir: the folder that `prepare` wrote to.
    names: DATASET/SPLIT each.
    count: expressions per split, evenly spread over its refs.
  """
  variables = model.prepare(model.on_one_device())

  @jax.jit
  def predict(variables, batch):
    output = model.apply(variables, batch)
    shape = batch["original_target"].shape[1:]
    logits = resize_logits(output.tiles, batch["original_size"], shape)
    return find_mask(logits, output.no_target), output.selection_logits.argmax(-1)

  tiles, captions = [], []
  for name in names:
    for batch, rows in _spread(model, data_dir, name, count):
      meta = batch.pop("meta")
      masks, selected = jax.device_get(predict(variables, model.complete(batch)))
      for i in rows:
        tile, caption = _tile(batch, meta[i], masks[i], int(selected[i]), i)
        tiles.append(tile)
        captions.append(f"{name}: {caption}")
  return drawing.contact_sheet(tiles, captions)


def _spread(
  model: load.LoadedModel, data_dir: str, name: str, count: int
) -> Iterator[tuple[dict[str, Any], list[int]]]:
  """Yields batches and the rows to draw: the first expression of `count` evenly spread refs."""
  from input_pipeline.tf import loader

  dataset, _, split = name.rpartition("/")
  stride = max(1, loader.num_refs(data_dir, dataset, split) // count)
  seen: set[int] = set()
  for batch in runner.open_batches(model, data_dir, name, alone=True):
    if len(seen) >= count * stride:
      return
    rows = []
    for i, row in enumerate(batch["meta"]):
      if row is not None and row["ref_id"] not in seen:
        seen.add(row["ref_id"])
        if len(seen) % stride == 0 and len(seen) <= count * stride:
          rows.append(i)
    if rows:
      yield batch, rows


def _tile(
  batch: dict[str, Any], meta: dict[str, Any], mask: np.ndarray, selected: int, i: int
) -> tuple[np.ndarray, str]:
  """Returns row i, drawn at the model's resolution in the image's shape, and its caption."""
  height, width = (int(n) for n in batch["original_size"][i])
  size = drawing.fitting_size(height, width, _TILE)
  target, mask = batch["original_target"][i, :height, :width], mask[:height, :width]
  masks = bit_planes.unpackbits(batch["instances"][i], int(batch["num_instances"][i]))
  instance = masks[selected] if selected < len(masks) else None
  picture = drawing.overlay(
    drawing.stretch(batch["image"][i], size),
    drawing.stretch(mask, size),
    drawing.stretch(target, size),
    None if instance is None else drawing.stretch(instance, size),
  )
  union = (target | mask).sum()
  iou = (target & mask).sum() / union if union else 1.0
  note = "" if instance is not None else ", no instance selected"
  return picture, f"{meta['expression']}\nIoU {iou:.2f}{note}"
