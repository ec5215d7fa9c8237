"""Writes a report on a run: metrics, learning curves and drawn predictions, in one HTML file.

python -m mail_jax.report runs/demo --data_dir data --data shapes/val --data shapes/testC

Evaluates every expression first, unless --per_expression names the rows from `evaluate`. Runs in a
single process.
"""

import argparse
import datetime
import os
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline import left_out, mixture
from input_pipeline.common import atomic_files, buckets
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from mail_jax.evaluate import per_expression, protocols, runner
from mail_jax.evaluate.per_expression import Row
from mail_jax.export import load
from mail_jax.predict.segmenter import Segmenter
from mail_jax.report import curves, page, predictions
from mail_jax.report.predictions import DrawnPrediction
from mail_jax.report.quality import SplitResults

# The limit of pictures under each heading.
_MAX_COUNT = 100
# Of all pictures together. Base64 takes four bytes for three; the whole page stays below 10 MB.
_PICTURE_BYTES = 6_000_000
# The tolerated difference between the IoU of a picture and that of its row: pixels at the threshold
# may differ between machines.
_TOLERANCE = 0.02


def main(argv: list[str] | None = None) -> None:
  """Runs the command.

  Raises:
    InputError: an argument is wrong; raised before the evaluation where possible.
  """
  args = _parse(argv)
  out = _output_path(args.workdir, args.out)
  place = load.locate(args.workdir)
  log = curves.read_log(place)
  from_file = _read_rows(args.per_expression, args.data) if args.per_expression else None
  model = load.load(place, args.step)
  splits = _summarise(model, args.data_dir, from_file) if from_file else _evaluate(args, model)
  drawn, notes = _draw(model, args.data_dir, splits, args.count)
  names = [split.name for split in splits]
  described = runner.describe(model, args.data_dir, names, protocols.ORIGINAL.name)
  written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
  selected = f"The {args.step} checkpoint, " if isinstance(args.step, str) else ""
  report = page.Report(
    run=os.path.basename(os.path.abspath(args.workdir)),
    about=f"{selected}step {model.step:,}; {', '.join(names)}; written {written}",
    step=model.step,
    splits=splits,
    log=log,
    predictions=drawn,
    facts=page.facts(model, args.data_dir, described, written),
    config=page.config_text(model),
    notes=[*left_out.describe(model.left_out), *notes],
  )
  text = page.write(report)
  atomic_files.write_whole(out, text)
  print(f"wrote {out} ({len(text.encode()) / 1e6:.1f} MB)")


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = command_parser("mail_jax.report", __doc__)
  parser.add_argument("workdir", metavar="W", help="the --workdir of a training run, or a model")
  load.add_step_argument(parser)
  parser.add_argument(
    "--data_dir",
    default="data",
    help="the folder that input_pipeline.prepare wrote to (default: data)",
  )
  parser.add_argument(
    "--data",
    action="append",
    metavar="DATASET[/SPLIT]",
    help="repeatable; without SPLIT, all splits except train (default: the split that the run is "
    "evaluated on during training)",
  )
  parser.add_argument(
    "--per_expression",
    metavar="FILE.jsonl",
    help="rows that `evaluate --per_expression` wrote for this checkpoint",
  )
  parser.add_argument("--out", metavar="OUT.html", help="the page (default: W/report.html)")
  parser.add_argument(
    "--count",
    type=int,
    default=12,
    metavar="N",
    help=f"number of the best, worst and random predictions each, at most {_MAX_COUNT} "
    "(default: 12)",
  )
  args = parser.parse_args(argv)
  if not 0 <= args.count <= _MAX_COUNT:
    raise InputError(f"--count {args.count}: it must be between 0 and {_MAX_COUNT}")
  return args


def _output_path(workdir: str, out: str | None) -> str:
  """Returns the path of the page, and checks its folder before anything takes long."""
  if out is None and (buckets.is_remote(workdir) or load.locate(workdir) != workdir):
    raise InputError(f"{workdir} is not on this machine; set --out to a path that is")
  # For an exported model, W may be one of its files.
  folder = os.path.dirname(workdir) if os.path.isfile(workdir) else workdir
  out = out or os.path.join(folder, "report.html")
  atomic_files.check_folder(out)
  return out


def _evaluate(args: argparse.Namespace, model: load.LoadedModel) -> list[SplitResults]:
  """Runs the model on every expression."""
  names = runner.find_splits(args.data_dir, args.data or _eval_splits(model))
  results, rows = runner.evaluate(model, args.data_dir, names)
  by_split = _by_split(rows)
  return [_results(model, args.data_dir, name, results[name], by_split[name]) for name in names]


def _eval_splits(model: load.LoadedModel) -> list[str]:
  config = model.config
  if not config.eval_split:
    raise InputError("the run has no config.eval_split; set --data DATASET/SPLIT")
  return list(mixture.evaluated(config.dataset, config.eval_split).values())


def _read_rows(path: str, names: Sequence[str] | None) -> dict[str, list[Row]]:
  """Reads the rows of a file, by split.

  Raises:
    InputError: the file lacks a split in `names`, or its rows have another protocol.
  """
  by_split = _by_split(per_expression.read(path))
  for name in names or ():
    if name not in by_split:
      raise InputError(f"--data {name}: {path} only has rows of {', '.join(by_split)}")
  by_split = {name: rows for name, rows in by_split.items() if name in (names or by_split)}
  for name, rows in by_split.items():
    others = {row["protocol"] for row in rows} - {protocols.ORIGINAL.name}
    if others:
      raise InputError(
        f"{path}: {name} has rows of protocol {', '.join(sorted(others))}; write them with "
        "`evaluate --per_expression`, without --protocol"
      )
  return by_split


def _by_split(rows: Sequence[Row]) -> dict[str, list[Row]]:
  by_split: dict[str, list[Row]] = {}
  for row in rows:
    by_split.setdefault(row["data"], []).append(row)
  return by_split


def _summarise(
  model: load.LoadedModel, data_dir: str, by_split: Mapping[str, Sequence[Row]]
) -> list[SplitResults]:
  """Computes the metrics of rows from a file."""
  runner.find_splits(data_dir, [*by_split])
  return [
    _results(model, data_dir, name, runner.summarise_rows(rows, protocols.ORIGINAL, name), rows)
    for name, rows in by_split.items()
  ]


def _results(
  model: load.LoadedModel,
  data_dir: str,
  name: str,
  metrics: Mapping[str, Any],
  rows: Sequence[Row],
) -> SplitResults:
  numbers = {key: value for key, value in metrics.items() if isinstance(value, (int, float))}
  groups = {key: value for key, value in metrics.items() if isinstance(value, dict)}
  instances, seen = runner.recall_instances(data_dir, name), runner.find_seen(model, data_dir, name)
  return SplitResults(name, numbers, rows, groups, instances, seen)


def _draw(
  model: load.LoadedModel, data_dir: str, splits: Sequence[SplitResults], count: int
) -> tuple[dict[str, list[DrawnPrediction]], list[str]]:
  """Draws `count` predictions per heading, equally from all splits; and notes inconsistencies."""
  share = -(-count // len(splits))
  chosen = {split.name: predictions.choose(split.rows, share) for split in splits}
  total = sum(len(rows) for by_heading in chosen.values() for rows in by_heading.values())
  drawn: dict[str, list[DrawnPrediction]] = {heading: [] for heading in predictions.HEADINGS}
  if not total:
    return drawn, []
  segmenter = Segmenter(model)
  for name, by_heading in chosen.items():
    rows = [row for of_heading in by_heading.values() for row in of_heading]
    explained = [
      heading == predictions.EXPLAINED for heading, some in by_heading.items() for _ in some
    ]
    limit = _PICTURE_BYTES // total
    pictures = iter(predictions.draw(segmenter, data_dir, name, rows, limit, explained))
    for heading, of_heading in by_heading.items():
      drawn[heading] += [next(pictures) for _ in of_heading]
  differing = sum(
    abs(picture.iou - picture.row["iou"]) > _TOLERANCE
    for of_heading in drawn.values()
    for picture in of_heading
  )
  if not differing:
    return drawn, []
  note = (
    f"the IoU of {differing} of the {total} drawn predictions differs from their rows by more than "
    f"{_TOLERANCE}: were the rows written for another checkpoint?"
  )
  print(f"warning: {note}")
  return drawn, [note]
