"""A page about a run: its metrics, its learning curves, and its predictions drawn over the photos, in one HTML file.

python -m mail_jax.report runs/demo --data_dir data --data shapes/val --data shapes/testC

It evaluates every expression first, unless --per_expression names the rows that `evaluate` wrote. It is one process.
"""

import argparse
import datetime
import os
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.common import atomic_files, buckets
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from mail_jax.evaluate import per_expression, protocols, runner
from mail_jax.evaluate.per_expression import Row
from mail_jax.export import load
from mail_jax.predict.segmenter import Segmenter
from mail_jax.report import curves, page, predictions, provenance
from mail_jax.report.predictions import Drawn
from mail_jax.report.quality import SplitResults

_MOST = 100
"""Pictures of each kind; more than three hundred would be unreadable."""
_PICTURE_BYTES = 6_000_000
"""Of all pictures together. A page is text, where three bytes are four; with the rest it stays below 10 MB."""
_SAME = 0.02
"""By how much the IoU of a picture may differ from its row's, because of pixels at the threshold on another machine."""


def main(argv: list[str] | None = None) -> None:
  """The command.

  Raises:
    InputError: the input is invalid; raised before the evaluation where possible.
  """
  args = _parse(argv)
  out = _where(args.workdir, args.out)
  log = curves.read_log(args.workdir)
  given = _read_samples(args.per_expression, args.data) if args.per_expression else None
  model = load.load(args.workdir, args.step)
  splits = _judge(args.data_dir, given) if given else _evaluate(args, model)
  pictures, notes = _draw(model, args.data_dir, splits, args.count)
  described = runner.describe(
    model, args.data_dir, [split.name for split in splits], protocols.ORIGINAL.name
  )
  written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
  selected = f"The {args.step} checkpoint, " if isinstance(args.step, str) else ""
  report = page.Report(
    run=os.path.basename(os.path.abspath(args.workdir)),
    about=f"{selected}step {model.step:,}; {_names(splits)}; written {written}",
    step=model.step,
    splits=splits,
    log=log,
    pictures=pictures,
    facts=provenance.facts(model, args.data_dir, described, written),
    config=provenance.config_text(model),
    notes=notes,
  )
  text = page.write(report)
  atomic_files.write_whole(out, text)
  print(f"wrote {out} ({len(text.encode()) / 1e6:.1f} MB)")


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = command_parser("mail_jax.report", __doc__)
  parser.add_argument("workdir", metavar="W", help="the --workdir of a training run")
  load.add_step_argument(parser)
  parser.add_argument(
    "--data_dir",
    default="data",
    help="where input_pipeline.prepare wrote the records (default: data)",
  )
  parser.add_argument(
    "--data",
    action="append",
    metavar="DATASET[/SPLIT]",
    help="may be given again; without SPLIT, all splits but train (default: what the run is judged by as it trains)",
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
    help=f"best, worst and random predictions to draw, of each so many, at most {_MOST} (default: 12)",
  )
  args = parser.parse_args(argv)
  if not 0 <= args.count <= _MOST:
    raise InputError(f"--count {args.count}: it must be between 0 and {_MOST}")
  return args


def _where(workdir: str, out: str | None) -> str:
  """Where the page goes; that it can be put there is checked before anything takes long."""
  if out is None and buckets.is_remote(workdir):
    raise InputError(
      f"{workdir} is in a bucket; say with --out where on this machine the page goes"
    )
  # Of an exported model W may be one of its files.
  folder = os.path.dirname(workdir) if os.path.isfile(workdir) else workdir
  out = out or os.path.join(folder, "report.html")
  atomic_files.check_folder(out)
  return out


def _evaluate(args: argparse.Namespace, model: load.LoadedModel) -> list[SplitResults]:
  """Runs the model on every sentence."""
  names = runner.find_splits(args.data_dir, args.data or [_own_split(model)])
  results, rows = runner.evaluate(model, args.data_dir, names)
  by_name = _by_split(rows)
  return [_judged(args.data_dir, name, results[name], by_name[name]) for name in names]


def _own_split(model: load.LoadedModel) -> str:
  config = model.config
  if not config.eval_split:
    raise InputError(
      "the run has no config.eval_split; say with --data DATASET/SPLIT what to report on"
    )
  return f"{config.dataset}/{config.eval_split}"


def _read_samples(path: str, wanted: Sequence[str] | None) -> dict[str, list[Row]]:
  """The rows of a file by their split.

  Raises:
    InputError: a split is wanted that is not among them, or they were not counted as the page says.
  """
  found = _by_split(per_expression.read(path))
  for name in wanted or ():
    if name not in found:
      raise InputError(f"--data {name}: {path} has rows of {', '.join(found)} only")
  found = {name: rows for name, rows in found.items() if name in (wanted or found)}
  for name, rows in found.items():
    others = {row["protocol"] for row in rows} - {protocols.ORIGINAL.name}
    if others:
      raise InputError(
        f"{path}: {name} was counted by protocol {', '.join(sorted(others))}; a report is about the original masks, so "
        "write the rows with `evaluate --per_expression` and without --protocol"
      )
  return found


def _by_split(rows: Sequence[Row]) -> dict[str, list[Row]]:
  found: dict[str, list[Row]] = {}
  for row in rows:
    found.setdefault(row["data"], []).append(row)
  return found


def _judge(data_dir: str, found: Mapping[str, Sequence[Row]]) -> list[SplitResults]:
  """Computes the metrics of rows that were written before."""
  runner.find_splits(data_dir, [*found])
  splits = []
  for name, rows in found.items():
    metrics = runner.summarise_rows(rows, protocols.ORIGINAL, name)
    splits.append(_judged(data_dir, name, metrics, rows))
  return splits


def _judged(
  data_dir: str, name: str, results: Mapping[str, Any], rows: Sequence[Row]
) -> SplitResults:
  metrics = {key: value for key, value in results.items() if isinstance(value, (int, float))}
  groups = {key: value for key, value in results.items() if isinstance(value, dict)}
  return SplitResults(name, metrics, rows, groups, runner.recall_instances(data_dir, name))


def _names(splits: Sequence[SplitResults]) -> str:
  return ", ".join(split.name for split in splits)


def _draw(
  model: load.LoadedModel, data_dir: str, splits: Sequence[SplitResults], count: int
) -> tuple[dict[str, list[Drawn]], list[str]]:
  """Draws `count` sentences of each kind, the same number of every split; and says what is odd about them."""
  share = -(-count // len(splits))
  chosen = {split.name: predictions.choose(split.rows, share) for split in splits}
  total = sum(len(rows) for kinds in chosen.values() for rows in kinds.values())
  pictures: dict[str, list[Drawn]] = {kind: [] for kind in predictions.KINDS}
  if not total:
    return pictures, []
  segmenter = Segmenter(model)
  for name, kinds in chosen.items():
    rows = [row for own in kinds.values() for row in own]
    drawn = iter(predictions.draw(segmenter, data_dir, name, rows, _PICTURE_BYTES // total))
    for kind, own in kinds.items():
      pictures[kind] += [next(drawn) for _ in own]
  other = sum(abs(one.iou - one.row["iou"]) > _SAME for own in pictures.values() for one in own)
  if not other:
    return pictures, []
  note = (
    f"{other} of the {total} pictures show a mask whose IoU is not that of the rows (by more than {_SAME}): were these "
    "written for another checkpoint?"
  )
  print(f"warning: {note}")
  return pictures, [note]
