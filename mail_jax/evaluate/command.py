"""Metrics of a checkpoint, every sentence once, on all devices of all hosts; and whether two checkpoints differ:

python -m mail_jax.evaluate --checkpoint runs/demo --data_dir data --data shapes --per_expression demo.jsonl
python -m mail_jax.evaluate --compare demo.jsonl other.jsonl

docs/guides/evaluate.md says what the metrics are.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from input_pipeline import records, storage
from input_pipeline.common import atomic_files, drawing
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from input_pipeline.proposers import leakage
from mail_jax.distributed import processes, sharding
from mail_jax.evaluate import (
  breakdowns,
  compare,
  dataset_metrics,
  per_expression,
  protocols,
  segmentation,
  table,
)
from mail_jax.evaluate.segmentation import SegmentationEvaluator
from mail_jax.export import fingerprints, load
from mail_jax.models.mail import find_mask
from mail_jax.models.resize import resize_logits
from mail_jax.train.program import jit_measure


def open_batches(
  model: load.LoadedModel,
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
  from input_pipeline.tf import (
    loader,  # the only import that needs more than this package's own requirements
  )

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
  model: load.LoadedModel, protocol: protocols.Protocol = protocols.ORIGINAL
) -> Callable[[Any, dict[str, Any]], dict[str, jax.Array]]:
  """Makes what the evaluator runs: every process gives its rows of a batch, and has the results of all."""
  mesh = sharding.make_mesh()
  measure = jit_measure(model.model, mesh, sharding.replicated(mesh), protocol, model.apply)
  return lambda variables, batch: measure(variables, sharding.global_batch(mesh, batch))


def summarise(
  columns: Mapping[str, np.ndarray], protocol: protocols.Protocol, name: str
) -> Iterator[tuple[str, int | float]]:
  """All metrics of sentences, as fractions: those that every data set has, and those that only this one has.

  Args:
    columns: as `sentence_rows.columns` gives them.
    protocol: by which they were counted.
    name: of the data that they are from, DATASET/SPLIT.
  """
  found = dict(segmentation.summarise(columns, protocol))
  yield from dataset_metrics.with_own(found, name.partition("/")[0], columns).items()


def evaluate_split(
  model: load.LoadedModel,
  data_dir: str,
  name: str,
  batch_size: int = 0,
  protocol: str = "original",
  measure: Callable[[Any, dict[str, Any]], dict[str, jax.Array]] | None = None,
  limit: int | None = None,
) -> tuple[dict[str, Any], list[per_expression.Row]]:
  """Evaluates one split; all processes take part, and all have the result.

  Args:
    model: what is judged.
    data_dir: what `prepare` was given.
    name: DATASET/SPLIT.
    batch_size: over all devices of all processes; 0: as in training. It changes no metric.
    protocol: `original`, `lavt` or `cris`.
    measure: of `compile_measure`, for the same model and protocol; by default it is compiled.
    limit: stop after so many sentences.

  Returns:
    The metrics as fractions, with `by_size` and `by_words` the same of kinds of sentences; and a row a sentence, in the
    order of the data, with the keys of `sentence_rows.FIELDS`. The metrics follow from the rows.

  Raises:
    InputError: no such protocol, data set or split.
  """
  how = protocols.find(protocol)
  measure = measure or compile_measure(model, how)
  batches = open_batches(model, data_dir, name, limit, batch_size)
  evaluator = SegmentationEvaluator(measure, lambda: batches, how)
  for _ in evaluator.run(model.variables):
    pass  # what it yields follows from the rows, as what is said below does
  shares = processes.all_gather_object(evaluator.meta)
  meta = sorted((row for share in shares for row in share), key=lambda row: row["index"])
  rows = per_expression.make(name, evaluator.rows, meta, how, model.config.max_instances)
  columns = per_expression.columns(rows)
  summary = functools.partial(summarise, protocol=how, name=name)
  return dict(summary(columns)) | breakdowns.breakdowns(columns, summary), rows


def find_splits(data_dir: str, data: Sequence[str]) -> list[str]:
  """Returns DATASET/SPLIT for each of `data`, each once; a DATASET stands for all of its splits but `train`.

  Raises:
    InputError: there is no such data set or split.
  """
  from input_pipeline.tf import loader

  names = []
  for name in data:
    dataset, slash, split = name.partition("/")
    if not dataset or (slash and not split):
      raise InputError(f"--data {name}: write DATASET or DATASET/SPLIT, such as refcoco_unc/val")
    if slash:
      loader.num_refs(data_dir, dataset, split)  # a wrong name is told now
    found = [split] if slash else [s for s in loader.splits(data_dir, dataset) if s != "train"]
    if not found:
      raise InputError(
        f"--data {name}: it has no split but train; write {name}/train to evaluate that"
      )
    names += [f"{dataset}/{split}" for split in found]
  return list(dict.fromkeys(names))


def _cell(column: str, value: int | float | None) -> str:
  if value is None:
    return ""  # another data set's metric
  return f"{value:.0f}" if column in ("sentences", "no_targets") else f"{100 * value:.2f}"


def recall_instances(data_dir: str, name: str) -> dict[str, Any]:
  """Who made the instance masks of `name`, which is DATASET/SPLIT, and what that means for its numbers."""
  dataset, _, split = name.rpartition("/")
  return leakage.recall(storage.read_metadata(data_dir, dataset) or {}, dataset, split)


def draw_sheet(model: load.LoadedModel, data_dir: str, names: Sequence[str], count: int) -> Any:
  """A contact sheet of predictions, `count` sentences spread evenly over each split; one process draws it."""
  variables = model.on_one_device()

  @jax.jit
  def predict(variables, batch):
    output = model.apply(variables, batch)
    shape = batch["original_target"].shape[1:]
    logits = resize_logits(output.logits, batch["original_size"], shape)
    return find_mask(logits, output.no_target), output.selection_logits.argmax(-1)

  tiles, captions = [], []
  for name in names:
    from input_pipeline.tf import loader

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
  words = sys.argv[1:] if argv is None else argv
  if any(word.partition("=")[0] == "--compare" for word in words):
    compare.main(words)
    return
  args = _parser().parse_args(words)
  processes.initialize(args, saves_on_sigterm=False)
  if args.overlays and processes.is_main():
    drawing.check_writable(args.overlays)
  model = load.load(args.checkpoint, args.step)
  names = find_splits(args.data_dir, args.data)
  results, rows = evaluate(model, args.data_dir, names, args.batch_size, args.protocol)
  if processes.is_main():
    write_report(model, results, rows, args)


def _parser() -> argparse.ArgumentParser:
  parser = command_parser("mail_jax.evaluate", __doc__)
  load.add_arguments(parser)
  parser.add_argument(
    "--data_dir", required=True, help="where input_pipeline.prepare wrote the records"
  )
  parser.add_argument(
    "--data",
    required=True,
    action="append",
    metavar="DATASET[/SPLIT]",
    help="may be given again; without SPLIT, all splits but train",
  )
  parser.add_argument(
    "--protocol",
    choices=tuple(protocols.PROTOCOLS),
    default="original",
    help="how masks are compared: ours (default), or as LAVT or CRIS do it, to compare with their numbers",
  )
  parser.add_argument(
    "--json", metavar="OUT", help="write the metrics as fractions, and what they were measured on"
  )
  parser.add_argument("--per_expression", metavar="OUT.jsonl", help="write a row a sentence")
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
  parser.add_argument(
    "--compare",
    nargs=2,
    metavar=("A.jsonl", "B.jsonl"),
    help="compare two files of --per_expression, and evaluate nothing; of the other options only --json counts",
  )
  processes.add_arguments(parser)
  return parser


def evaluate(
  model: load.LoadedModel,
  data_dir: str,
  names: Sequence[str],
  batch_size: int = 0,
  protocol: str = "original",
) -> tuple[dict[str, dict[str, Any]], list[per_expression.Row]]:
  """Evaluates each of `names`, which are DATASET/SPLIT, by one compiled program; see `evaluate_split`."""
  measure = compile_measure(model, protocols.find(protocol))
  results, rows = {}, []
  for name in names:
    results[name], found = evaluate_split(model, data_dir, name, batch_size, protocol, measure)
    rows += found
  return results, rows


def describe(
  model: load.LoadedModel, data_dir: str, names: Sequence[str], protocol: str
) -> dict[str, dict[str, Any]]:
  """What the metrics of each of `names`, which are DATASET/SPLIT, were measured on, and how."""
  prints = {
    "model": fingerprints.of_model(model),
    "config": fingerprints.of_config(model.config),
  }
  found = {}
  for name in names:
    dataset, _, split = name.partition("/")
    data = storage.fingerprint_split(data_dir, dataset, split)
    found[name] = {
      "protocol": protocol,
      "instances": recall_instances(data_dir, name),
      "step": model.step,
      "fingerprints": prints | {"data": data},
    }
  return found


def write_report(
  model: load.LoadedModel,
  results: dict[str, dict[str, Any]],
  rows: list[per_expression.Row],
  args: argparse.Namespace,
) -> None:
  """Prints the metrics and writes what was asked for."""
  how = "" if args.protocol == "original" else f", protocol {args.protocol}"
  print(f"{args.checkpoint}, step {model.step}{how}; percent\n{table.metrics(results)}")
  for line in leakage.warnings({name: recall_instances(args.data_dir, name) for name in results}):
    print(line)
  print(f"\n{table.kinds(results)}")
  if args.per_expression:
    per_expression.write(args.per_expression, rows)
    print(f"wrote {args.per_expression}")
  if args.json:
    about = describe(model, args.data_dir, list(results), args.protocol)
    report = {name: found | about[name] for name, found in results.items()}
    atomic_files.write_whole(args.json, json.dumps(report, indent=2) + "\n")
    print(f"wrote {args.json}")
  if args.overlays:
    share = -(-args.overlay_count // len(results))
    drawing.save(draw_sheet(model, args.data_dir, list(results), share), args.overlays)
    print(f"wrote {args.overlays} ({drawing.legend()})")
