"""Evaluates a model on splits: every expression once, on all devices of all processes."""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from input_pipeline import left_out, storage
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import announce, progress_bar
from input_pipeline.proposers import leakage
from mail_jax.distributed import processes, sharding
from mail_jax.evaluate import dataset_metrics, per_expression, protocols, segmentation
from mail_jax.evaluate.segmentation import SegmentationEvaluator, jit_measure
from mail_jax.export import load
from mail_jax.hardware import memory

# Of a photo alone, where its pixels are counted; a CPU reads it, too. Measured with 12 and 48
# megapixels.
_BYTES_PER_PIXEL, _BYTES_READ_PER_PIXEL = 13, 8
Measure = Callable[[Any, dict[str, Any]], dict[str, jax.Array]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of every evaluation: data, protocol and files to write."""
  parser.add_argument(
    "--data_dir", required=True, help="the folder that input_pipeline.prepare wrote to"
  )
  parser.add_argument(
    "--data",
    required=True,
    action="append",
    metavar="DATASET[/SPLIT]",
    help="repeatable; without SPLIT, all splits except train",
  )
  parser.add_argument(
    "--protocol",
    choices=tuple(protocols.PROTOCOLS),
    default="original",
    help="how masks are compared: ours (default), or that of a paper, to compare with its numbers",
  )
  parser.add_argument(
    "--json", metavar="OUT", help="write the metrics as fractions, with the model and the data"
  )
  parser.add_argument("--per_expression", metavar="OUT.jsonl", help="write one row per expression")


def heading(what: str, protocol: str, model: load.LoadedModel | None = None) -> str:
  """Returns the line above the metrics.

  Args:
    what: was judged.
    protocol: by which.
    model: that was judged, if it is one of ours.
  """
  note = "" if model is None else left_out.heading(model.left_out)
  return f"{what}{'' if protocol == 'original' else f', protocol {protocol}'}{note}; percent"


def open_batches(
  model: load.LoadedModel,
  data_dir: str,
  name: str,
  limit: int | None = None,
  batch_size: int = 0,
  alone: bool = False,
):
  """Starts one pass over the expressions of a split.

  Args:
    model: the model that will run on them.
    data_dir: the folder that `prepare` wrote to.
    name: DATASET/SPLIT.
    limit: stop after this many expressions.
    batch_size: over all devices of all processes, rounded up to a multiple of their number; 0 takes
      the one that training evaluates with.
    alone: this process reads all of them, and the others none.
  """
  # Imports TensorFlow, which other uses of this module do not need.
  from input_pipeline.tf import loader

  dataset, slash, split = name.rpartition("/")
  if not slash:
    raise InputError(f"--data {name}: write DATASET/SPLIT, such as refcoco_unc/val")
  config = model.config
  index, count = (0, 1) if alone else (jax.process_index(), jax.process_count())
  mesh = sharding.make_mesh()
  rows = sharding.local_batch_size(mesh, batch_size or config.eval_batch_size)
  return loader.eval_batches(
    loader.Split(data_dir, dataset, split, index, count),
    model.tokenizer,
    loader.BatchShape(rows, config.image_size, config.max_instances, config.max_tokens),
    limit=limit,
    multiple=len(mesh.local_devices),
  )


def compile_measure(
  model: load.LoadedModel, protocol: protocols.Protocol = protocols.ORIGINAL
) -> Measure:
  """Returns the function that the evaluator runs.

  Every process passes its rows of a batch and gets the results of all rows.
  """
  mesh = sharding.make_mesh()
  measure = jit_measure(model.model, mesh, sharding.replicated(mesh), protocol, model.apply)

  def measured(variables: Any, batch: dict[str, Any]) -> dict[str, jax.Array]:
    with processes.announce("evaluating a batch; the first of a size is compiled"):
      return measure(variables, sharding.global_batch(mesh, model.complete(batch)))

  return measured


def summarise(
  columns: Mapping[str, np.ndarray], protocol: protocols.Protocol, name: str
) -> Iterator[tuple[str, int | float]]:
  """Yields all metrics as fractions: those common to all data sets, and the data set's own.

  Args:
    columns: as `per_expression.columns` returns them.
    protocol: that the pixels were counted by.
    name: DATASET/SPLIT.
  """
  metrics = dict(segmentation.summarise(columns, protocol))
  yield from dataset_metrics.with_own(metrics, name.partition("/")[0], columns).items()


def summarise_rows(
  rows: Sequence[per_expression.Row], protocol: protocols.Protocol, name: str
) -> dict[str, Any]:
  """Returns the metrics of a split from its rows, with `by_size` and `by_words`.

  Args:
    rows: of all expressions of the split.
    protocol: that the pixels were counted by.
    name: DATASET/SPLIT.
  """
  columns = per_expression.columns(rows)
  summary = functools.partial(summarise, protocol=protocol, name=name)
  return dict(summary(columns)) | per_expression.breakdowns(columns, summary)


def evaluate_split(
  model: load.LoadedModel,
  data_dir: str,
  name: str,
  batch_size: int = 0,
  protocol: str = "original",
  measure: Measure | None = None,
  limit: int | None = None,
) -> tuple[dict[str, Any], list[per_expression.Row]]:
  """Evaluates one split; all processes take part, and all get the result.

  Args:
    model: the model to evaluate.
    data_dir: the folder that `prepare` wrote to.
    name: DATASET/SPLIT.
    batch_size: over all devices of all processes; 0 takes the one that training evaluates with. It
      changes no metric.
    protocol: a key of `protocols.PROTOCOLS`.
    measure: from `compile_measure`, for the same model and protocol; compiled here by default.
    limit: stop after this many expressions.

  Returns:
    The metrics as fractions, with the metrics of groups of expressions in `by_size` and `by_words`;
    and one row per expression, in the order of the data, with the keys of `per_expression.FIELDS`.
    The metrics follow from the rows.

  Raises:
    InputError: no such protocol, data set or split.
  """
  definition = protocols.find(protocol)
  measure = measure or compile_measure(model, definition)
  batches = open_batches(model, data_dir, name, limit, batch_size)
  if (line := warn_of_large_photos(data_dir, name)) and processes.is_main():
    print(line, file=sys.stderr, flush=True)
  evaluator = SegmentationEvaluator(measure, lambda: _with_progress(batches, name), definition)
  for _ in evaluator.run(model.prepare(model.variables)):
    pass  # the metrics are computed from the rows below
  shares = processes.all_gather_object(evaluator.meta)
  meta = sorted((row for share in shares for row in share), key=lambda row: row["index"])
  rows = per_expression.make(name, evaluator.rows, meta, definition, model.config.max_instances)
  return summarise_rows(rows, definition, name), rows


def _with_progress(batches: Iterator[Any], name: str) -> Iterator[Any]:
  """Yields batches; process 0 shows how many expressions are done."""
  with contextlib.ExitStack() as stack:
    bar = None
    for batch in batches:
      if processes.is_main() and bar is None:
        total = int(np.max(batch["total"]))
        bar = stack.enter_context(progress_bar(name, total, "expressions"))
      yield batch
      if bar is not None:
        done = int((batch["index"] >= 0).sum()) * jax.process_count()
        bar.update(min(done, bar.total - bar.n))


def warn_of_large_photos(data_dir: str, name: str) -> str:
  """Returns a line if the largest photo of DATASET/SPLIT takes more memory than there is."""
  from input_pipeline.tf import loader

  dataset, _, split = name.rpartition("/")
  height, width = loader.largest_photo(data_dir, dataset, split)
  on_cpu = jax.default_backend() == "cpu"
  needed = height * width * (_BYTES_PER_PIXEL + on_cpu * _BYTES_READ_PER_PIXEL)
  free = memory.available()
  if free is None or needed <= free:
    return ""
  return (
    f"warning: {name}: a photo of {width} x {height} pixels takes about {needed / 1e9:.1f} GB to "
    f"evaluate, and {free / 1e9:.1f} GB are free; make it smaller and prepare the data set again, "
    "or use a machine with more memory"
  )


def ways_out_of_memory(model: load.LoadedModel, batch_size: int, names: Sequence[str]) -> list[str]:
  """Returns what helps an evaluation of `names` that ran out of memory, best first."""
  devices = jax.device_count()
  size = batch_size or model.config.eval_batch_size
  smaller = [f"--batch_size {max(devices, size // 4)} in place of {size}, which changes no metric"]
  return [
    *(smaller if size > devices else []),
    f"leave out photos that are too large, or make them smaller ({', '.join(names)})",
    "end other programs, or use a machine with more memory",
  ]


def evaluate(
  model: load.LoadedModel,
  data_dir: str,
  names: Sequence[str],
  batch_size: int = 0,
  protocol: str = "original",
) -> tuple[dict[str, dict[str, Any]], list[per_expression.Row]]:
  """Evaluates splits, each DATASET/SPLIT, with one compiled program; see `evaluate_split`."""
  measure = compile_measure(model, protocols.find(protocol))
  results, rows = {}, []
  for name in names:
    results[name], of_split = evaluate_split(model, data_dir, name, batch_size, protocol, measure)
    rows += of_split
  return results, rows


def find_splits(data_dir: str, data: Sequence[str]) -> list[str]:
  """Returns DATASET/SPLIT for each of `data`, without duplicates.

  A DATASET alone stands for all of its splits except `train`.

  Raises:
    InputError: there is no such data set or split.
  """
  with announce("importing TensorFlow"):
    from input_pipeline.tf import loader

  names = []
  for name in data:
    dataset, slash, split = name.partition("/")
    if not dataset or (slash and not split):
      raise InputError(f"--data {name}: write DATASET or DATASET/SPLIT, such as refcoco_unc/val")
    if slash:
      loader.num_refs(data_dir, dataset, split)  # fails early for an unknown name
    splits = [split] if slash else [s for s in loader.splits(data_dir, dataset) if s != "train"]
    if not splits:
      raise InputError(
        f"--data {name}: the only split is train; write {name}/train to evaluate on it"
      )
    names += [f"{dataset}/{split}" for split in splits]
  return list(dict.fromkeys(names))


def recall_instances(data_dir: str, name: str) -> dict[str, Any]:
  """Returns where the instance masks of DATASET/SPLIT came from, with a warning if they leak."""
  dataset, _, split = name.rpartition("/")
  return leakage.of_split(storage.read_metadata(data_dir, dataset) or {}, dataset, split)


def find_seen(model: load.LoadedModel, data_dir: str, name: str) -> dict[str, Any]:
  """Returns how many images of DATASET/SPLIT the model was trained on, with a warning if any."""
  dataset, _, split = name.rpartition("/")
  return leakage.of_model(model.images, storage.read_hashes(data_dir, dataset, split), split)


def describe(
  model: load.LoadedModel, data_dir: str, names: Sequence[str], protocol: str
) -> dict[str, dict[str, Any]]:
  """Returns, for each DATASET/SPLIT, the model, the data and the protocol behind its metrics."""
  prints = {
    "model": model.fingerprint(),
    "config": load.fingerprint_config(model.config),
  }
  about = {}
  for name in names:
    dataset, _, split = name.partition("/")
    data = storage.fingerprint_split(data_dir, dataset, split)
    about[name] = {
      "protocol": protocol,
      "instances": recall_instances(data_dir, name),
      "step": model.step,
      "left_out": model.left_out,
      "fingerprints": prints | {"data": data},
    }
  return about
