r"""Checks that a model uses its inputs: one checkpoint, with each input corrupted in turn:

  python -m benchmarks.right_reason --checkpoint runs/demo --data_dir data --data shapes/val

One row per condition; see docs/reports/results.md. Exact masks of generated scenes are prepared
separately and passed with --oracle_data_dir data_oracle:

  python -m input_pipeline.prepare --dataset shapes --data_dir data_oracle --train_scenes 1 \
      --noise oracle
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from input_pipeline.common import atomic_files
from input_pipeline.common.errors import InputError, run_command
from mail_jax.evaluate import runner
from mail_jax.evaluate.segmentation import SegmentationEvaluator, make_measure
from mail_jax.export import load
from mail_jax.models.build import HostBatch

Row = dict[str, Any]
Result = dict[str, int | float | None]
GREY = 128
COLUMNS = ("expressions", "mIoU", "P@0.5", "selection_accuracy")


def blank_sentences(batches: Iterable[HostBatch], bos_id: int, eos_id: int) -> Iterator[HostBatch]:
  """Every sentence becomes the empty one: its marks of beginning and end."""
  for batch in batches:
    tokens = np.zeros_like(batch["tokens"])
    tokens[:, :2] = bos_id, eos_id
    yield batch | {"tokens": tokens, "num_tokens": np.full_like(batch["num_tokens"], 2)}


def blank_instances(batches: Iterable[HostBatch]) -> Iterator[HostBatch]:
  """Removes all instance masks."""
  for batch in batches:
    yield batch | {name: np.zeros_like(batch[name]) for name in ("instances", "num_instances")}


def blank_images(batches: Iterable[HostBatch]) -> Iterator[HostBatch]:
  """Replaces every image by uniform grey."""
  for batch in batches:
    yield batch | {"image": np.full_like(batch["image"], GREY)}


def swap_sentences(batches: Iterable[HostBatch], move_target: bool) -> Iterator[HostBatch]:
  """Every row gets a sentence of the next object of its image; an only object is left out.

  Args:
    batches: as evaluation reads them, the rows of an image one after the other.
    move_target: whether the target becomes that of the new sentence too.

  Yields:
    Batches as large as those that came; padding fills the last one.

  Raises:
    InputError: no image has two objects that sentences refer to.
  """
  moved = ("tokens", "num_tokens", "cut", *(("target", "original_target") if move_target else ()))
  batches = iter(batches)
  first = next(batches)
  size = len(first["weight"])
  swapped = (
    row | {name: other[name] for name in moved} | {"meta": row["meta"] | _sentence(other)}
    for image in _images(itertools.chain([first], batches))
    for row, other in _pairs(image)
  )
  rows = list(itertools.islice(swapped, size))
  if not rows:
    raise InputError("sentences cannot be swapped: no image has two objects they refer to")
  for start in itertools.count(0, size):
    if not rows:
      return
    yield _batch(rows, size) | {"index": _numbers(start, len(rows), size)}
    rows = list(itertools.islice(swapped, size))


def _numbers(first: int, count: int, size: int) -> np.ndarray:
  return np.where(np.arange(size) < count, np.arange(first, first + size), -1).astype(np.int32)


def _images(batches: Iterable[HostBatch]) -> Iterator[list[Row]]:
  """Yields the rows of each image."""
  rows = (
    {name: values[i] for name, values in batch.items()}
    for batch in batches
    for i in range(len(batch["weight"]))
    if batch["weight"][i]
  )
  for _, image in itertools.groupby(rows, key=lambda row: row["meta"]["image_id"]):
    yield list(image)


def _pairs(image: list[Row]) -> Iterator[tuple[Row, Row]]:
  """Yields each row of an image with one of the next object, cyclically."""
  objects: dict[bytes, list[Row]] = {}
  for row in image:
    height, width = row["original_size"]
    # Not by ref: RefCOCOg has several refs of one object.
    objects.setdefault(row["original_target"][:height, :width].tobytes(), []).append(row)
  groups = list(objects.values())
  if len(groups) < 2:
    return
  for rows, others in zip(groups, [*groups[1:], groups[0]], strict=True):
    for i, row in enumerate(rows):
      yield row, others[i % len(others)]


def _sentence(row: Row) -> dict[str, Any]:
  return {name: row["meta"][name] for name in ("ref_id", "expression_index", "expression")}


def _batch(rows: list[Row], size: int) -> HostBatch:
  """Makes a batch of `size` rows; the canvases of the rows may differ."""
  sides = np.max([row["original_target"].shape for row in rows], axis=0)
  batch: HostBatch = {"meta": [row["meta"] for row in rows] + [None] * (size - len(rows))}
  for name in rows[0].keys() - {"meta", "index", "total"}:  # a row that is left out changes them
    values = [np.asarray(row[name]) for row in rows]
    shape = tuple(sides) if name == "original_target" else values[0].shape
    batch[name] = np.zeros((size, *shape), values[0].dtype)
    for i, value in enumerate(values):
      batch[name][(i, *map(slice, value.shape))] = value
  return batch


def score(
  measure: Callable[..., Any], variables: Any, batches: Iterable[HostBatch]
) -> tuple[Result, SegmentationEvaluator]:
  """Evaluates; the selection accuracy is None if no instance is right in any row."""
  evaluator = SegmentationEvaluator(measure, lambda: batches)
  result: Result = dict(evaluator.run(variables))
  if not (evaluator.rows["oracle_iou"] > 0.5).any():
    result["selection_accuracy"] = None
  return {name: result[name] for name in COLUMNS}, evaluator


def score_raw(iou: Float[np.ndarray, "n"]) -> Result:
  """Scores raw instance masks by their IoU with the target."""
  values = len(iou), float(iou.mean()), float((iou >= 0.5).mean()), None
  return dict(zip(COLUMNS, values, strict=True))


def judge(
  model: load.LoadedModel,
  open_batches: Callable[[], Iterable[HostBatch]],
  open_oracle: Callable[[], Iterable[HostBatch]] | None = None,
) -> Iterator[tuple[str, Result]]:
  """Yields each condition and what the model scores under it, in fractions.

  Args:
    model: to evaluate.
    open_batches: starts one pass over the sentences.
    open_oracle: likewise, with exact instance masks; None leaves that condition out.

  Raises:
    InputError: the two do not hold the same sentences.
  """
  compiled = jax.jit(make_measure(model.model, apply=model.apply))

  def measure(variables: Any, batch: Any) -> Any:
    return compiled(variables, model.complete(batch))

  marks = model.tokenizer.bos_id, model.tokenizer.eos_id
  result, plain = score(measure, model.variables, open_batches())
  yield "as it is", result
  spoiled: dict[str, Callable[[Iterable[HostBatch]], Iterable[HostBatch]]] = {
    "sentences blanked": lambda batches: blank_sentences(batches, *marks),
    "sentences swapped, old target": lambda batches: swap_sentences(batches, move_target=False),
    "sentences swapped, new target": lambda batches: swap_sentences(batches, move_target=True),
    "instance masks blanked": blank_instances,
    "image blanked": blank_images,
  }
  for name, spoil in spoiled.items():
    yield name, score(measure, model.variables, spoil(open_batches()))[0]
  if open_oracle is not None:
    result, oracle = score(measure, model.variables, open_oracle())
    if oracle.meta != plain.meta:
      raise InputError(
        "--oracle_data_dir: its sentences are not those of --data_dir; prepare both with the same "
        "--size, --seed and --eval_scenes"
      )
    yield "exact instance masks", result
  yield "best raw instance mask", score_raw(plain.rows["oracle_iou"])
  yield "picked raw instance mask", score_raw(plain.rows["selected_iou"])


def table(results: dict[str, Result], markdown: bool = False) -> str:
  """Formats results in percent, one row per condition."""
  rows: list[tuple[str, ...]] = [("", *COLUMNS)]
  for name, result in results.items():
    numbers = (result[column] for column in COLUMNS[1:])
    cells = ("-" if number is None else f"{100 * number:.2f}" for number in numbers)
    rows.append((name, f"{result['expressions']:.0f}", *cells))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
  if not markdown:
    return "\n".join("  ".join(line) for line in lines)
  lines.insert(1, ["---", *["---:"] * len(COLUMNS)])
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  load.add_arguments(parser)
  parser.add_argument("--data_dir", required=True, help="folder that prepare wrote")
  parser.add_argument("--oracle_data_dir", help="the same with exact instance masks")
  parser.add_argument("--data", required=True, metavar="DATASET/SPLIT")
  parser.add_argument("--json", metavar="OUT", help="write the results as fractions")
  parser.add_argument("--markdown", action="store_true", help="print the table for a document")
  args = parser.parse_args(argv)

  model = load.load(args.checkpoint, args.step)

  def batches_of(data_dir: str) -> Callable[[], Iterable[HostBatch]]:
    runner.open_batches(model, data_dir, args.data)  # reports invalid data early
    return lambda: runner.open_batches(model, data_dir, args.data)

  oracle = batches_of(args.oracle_data_dir) if args.oracle_data_dir else None
  results = {}
  for name, result in judge(model, batches_of(args.data_dir), oracle):
    results[name] = result
    print(f"{len(results)}: {name}", flush=True)
  print(f"{args.checkpoint}, step {model.step}, {args.data}; percent\n")
  print(table(results, args.markdown))
  if args.json:
    atomic_files.write_whole(args.json, json.dumps({args.data: results}, indent=2) + "\n")
    print(f"\nwrote {args.json}")


if __name__ == "__main__":
  run_command(main)
