"""Computes metrics of masks that any model predicted, on every expression of a split:

python -m mail_jax.evaluate --predictions masks.json --data_dir data --data refcoco_unc/val \
    --per_expression rows.jsonl

No model runs. docs/guides/evaluate.md describes the files.
"""

import collections
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from input_pipeline import records, storage
from input_pipeline.common import atomic_files, fingerprint
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import announce, counted, with_progress
from mail_jax.evaluate import boundary, matching, per_expression, protocols, runner, table
from mail_jax.evaluate import predictions as files
from mail_jax.evaluate.matching import Question
from mail_jax.evaluate.per_expression import Row
from mail_jax.evaluate.predictions import Prediction
from mail_jax.evaluate.protocols import Protocol

_decode_target = functools.lru_cache(maxsize=4)(records.decode_target)


def evaluate(
  predictions: Sequence[Prediction],
  questions: Sequence[Question],
  targets: Sequence[bytes],
  protocol: Protocol,
  name: str,
  allow_missing: bool = False,
) -> tuple[list[Row], list[str]]:
  """Returns a row per question, and lines about what was not as expected.

  Args:
    predictions: from one file or folder.
    questions: all expressions of the evaluated splits.
    targets: of the questions, as `records.encode_target` returns them.
    protocol: that pixels are counted by.
    name: of the file, for error messages.
    allow_missing: whether an expression without a prediction counts as one with an empty mask.

  Raises:
    InputError: predictions are missing, or one cannot be used.
  """
  answers = matching.match(predictions, questions, name)
  gap = matching.missing(answers, questions)
  if gap and not allow_missing:
    raise InputError(f"{name}: {gap}; --allow_missing counts them as empty masks")
  lines = [f"warning: {name}: {gap}; they count as empty masks"] if gap else []
  knowing = sum(a is not None and a.no_target_probability() is not None for a in answers)
  if 0 < knowing < len(answers) - answers.count(None):
    raise InputError(
      f"{name}: {knowing:,} of {counted(len(predictions), 'prediction')} have a "
      "no_target_probability; give it for all or none"
    )
  notes: collections.Counter[str] = collections.Counter()
  rows = []
  asked = with_progress(
    zip(questions, answers, targets, strict=True), "evaluate", len(questions), "expressions"
  )
  for _, answer, png in asked:
    counts, of_mask = _judge(answer, _decode_target(png), protocol)
    if knowing and answer is None:
      counts |= {"no_target_probability": 1.0, "raw_union": counts["union"]}
    notes.update(of_mask)
    rows.append(counts)
  lines += [f"{name}: {counted(count, 'mask')}: {note}" for note, count in notes.items()]
  return _join(questions, rows, protocol), lines


def _judge(
  answer: Prediction | None, target: Bool[np.ndarray, "h w"], protocol: Protocol
) -> tuple[dict[str, int | float], set[str]]:
  """Returns the counts of an expression, and what is to be said about its mask."""
  height, width = target.shape
  probability = None
  notes: set[str] = set()
  drawn = np.zeros(target.shape, bool)
  if answer is not None:
    drawn, of_mask = answer.mask(height, width, protocol.side)
    notes.update(of_mask)
    probability = answer.no_target_probability()
  true = protocol.fit(target)
  if drawn.shape != target.shape:
    notes.add(f"of {protocol.side} x {protocol.side} pixels, compared as it is")
  else:
    if answer is not None and target.shape != (protocol.side, protocol.side):
      notes.update(_without_logits(protocol))
    drawn = protocol.fit(drawn)
  predicted = drawn & (probability is None or probability <= 0.5)
  counts: dict[str, int | float] = {
    "height": height,
    "width": width,
    "area": int(target.sum()),
    **_compare("", predicted, true),
  }
  if protocol.boundary:
    outlines = (boundary.take_boundary(mask) for mask in (predicted, true))
    counts |= _compare("boundary_", *outlines)
  if probability is not None:
    counts |= {"no_target_probability": probability, "raw_union": int((drawn | true).sum())}
  return counts, notes


def _without_logits(protocol: Protocol) -> Iterator[str]:
  """Yields what a protocol does to logits and cannot do to a mask of the image's size."""
  if protocol.side:
    square = f"{protocol.side} x {protocol.side}"
    yield (
      f"resized like the target; {protocol.name} resizes logits, so that only masks of {square} "
      "pixels give the numbers of its paper"
    )
  elif protocol.name != protocols.ORIGINAL.name:
    yield f"has its own threshold; {protocol.name} resizes probabilities and sets another"


def _compare(
  prefix: str, predicted: Bool[np.ndarray, "y x"], true: Bool[np.ndarray, "y x"]
) -> dict[str, int]:
  return {
    f"{prefix}intersection": int((predicted & true).sum()),
    f"{prefix}union": int((predicted | true).sum()),
  }


def _join(
  questions: Sequence[Question], counts: Sequence[Mapping[str, int | float]], protocol: Protocol
) -> list[Row]:
  """Returns the rows of all splits, numbered from 0 in each."""
  rows = []
  for name in dict.fromkeys(question.data for question in questions):
    members = [n for n, question in enumerate(questions) if question.data == name]
    keys = [key for key in counts[members[0]] if all(key in counts[n] for n in members)]
    columns = {key: np.array([counts[n][key] for n in members]) for key in keys}
    meta = [{"index": index} | _origin(questions[n]) for index, n in enumerate(members)]
    rows += per_expression.make(name, columns, meta, protocol)
  return rows


def _origin(question: Question) -> dict[str, Any]:
  return {
    "image_id": question.image_id,
    "file_name": question.file_name,
    "ref_id": question.ref_id,
    "expression_index": question.expression_index,
    "expression": question.expression,
  }


def read_questions(data_dir: str, names: Sequence[str]) -> tuple[list[Question], list[bytes]]:
  """Returns every expression of splits, each DATASET/SPLIT, and its encoded target.

  Raises:
    InputError: there are none, or records cannot be read.
  """
  questions, targets = [], []
  for name in names:
    for fields in _read_records(data_dir, name):
      for ref in fields["refs"]:
        for number, expression in enumerate(ref["sentences"]):
          questions.append(
            Question(
              name, int(fields["image_id"]), fields["file_name"], ref["ref_id"], number, expression
            )
          )
          targets.append(ref["target"])
  if not questions:
    raise InputError("there are no expressions to evaluate")
  return questions, targets


def _read_records(data_dir: str, name: str) -> Iterator[dict[str, Any]]:
  # Imports TensorFlow, which takes seconds.
  from input_pipeline.tf import record_reader

  dataset, _, split = name.rpartition("/")
  return record_reader.read_records(record_reader.Split(data_dir, dataset, split))


def main(argv: Sequence[str]) -> None:
  """Runs the command `evaluate --predictions`."""
  parser = command_parser("mail_jax.evaluate", __doc__)
  parser.add_argument(
    "--predictions",
    required=True,
    metavar="FILE_OR_FOLDER",
    help="masks as JSON or JSON lines, what `predict` wrote, or a folder of REFID_INDEX.png",
  )
  runner.add_arguments(parser)
  parser.add_argument(
    "--allow_missing",
    action="store_true",
    help="count expressions without a prediction as empty masks",
  )
  args = parser.parse_args(argv)
  protocol = protocols.find(args.protocol)
  with announce(f"reading {args.predictions}"):
    predictions = files.read(args.predictions)
  names = runner.find_splits(args.data_dir, args.data)
  with announce(f"reading {', '.join(names)}"):
    questions, targets = read_questions(args.data_dir, names)
  rows, lines = evaluate(
    predictions, questions, targets, protocol, args.predictions, args.allow_missing
  )
  results = {
    name: runner.summarise_rows([row for row in rows if row["data"] == name], protocol, name)
    for name in names
  }
  print(runner.heading(args.predictions, args.protocol))
  print(table.metrics(results))
  for line in lines:
    print(line)
  print(f"\n{table.groups(results)}")
  if args.per_expression:
    per_expression.write(args.per_expression, rows)
    print(f"wrote {args.per_expression}")
  if args.json:
    report = {
      name: metrics | _describe(args.data_dir, name, args.protocol, args.predictions)
      for name, metrics in results.items()
    }
    atomic_files.write_whole(args.json, json.dumps(report, indent=2) + "\n")
    print(f"wrote {args.json}")


def _describe(data_dir: str, name: str, protocol: str, path: str) -> dict[str, Any]:
  dataset, _, split = name.partition("/")
  prints = {"data": storage.fingerprint_split(data_dir, dataset, split)}
  if os.path.isfile(path):
    prints["predictions"] = fingerprint.of_file(path)
  return {"protocol": protocol, "predictions": path, "fingerprints": prints}
