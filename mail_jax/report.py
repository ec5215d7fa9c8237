"""A page about a run: its metrics, its learning curves, and its predictions drawn over the photos, in one HTML file.

python -m mail_jax.report runs/demo --data_dir data --data shapes/val --data shapes/testC

It evaluates every sentence first; --samples takes what `evaluate --samples` wrote instead. One process does it all.
"""

import argparse
import datetime
import os
from collections.abc import Sequence

from input_pipeline import remote, writing
from input_pipeline.errors import InputError, run_command
from mail_jax import evaluate, sentence_rows, trained
from mail_jax.evaluators import breakdowns, segmentation
from mail_jax.reporting import page, predictions, provenance, training_log
from mail_jax.reporting.judged import Judged
from mail_jax.reporting.predictions import Drawn
from mail_jax.segmenter import Segmenter

_MOST = 100
"""Pictures of each kind; more than three hundred are no report."""
_PICTURE_BYTES = 6_000_000
"""Of all pictures together. A page is text, where three bytes are four; with the rest it stays below 10 MB."""
_SAME = 0.02
"""By how much the IoU of a picture may differ from its row's, because of pixels at the threshold on another machine."""


def main(argv: list[str] | None = None) -> None:
  """The command.

  Raises:
    InputError: something is wrong with what was given; it is told before the evaluation where that can be.
  """
  args = _parse(argv)
  out = _where(args.workdir, args.out)
  log = training_log.read(args.workdir)
  model = trained.load(args.workdir, args.which)
  splits = _read(args, model) if args.samples else _evaluate(args, model)
  pictures, notes = _draw(model, args.data_dir, splits, args.count)
  written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
  parameters = provenance.count_parameters(model)
  report = page.Report(
    run=os.path.basename(os.path.abspath(args.workdir)),
    about=f"{args.which} checkpoint, step {model.step:,}; {parameters / 1e6:.2f} M parameters; {written}",
    step=model.step,
    splits=splits,
    log=log,
    pictures=pictures,
    facts=provenance.facts(model, args.data_dir, splits, written),
    config=provenance.config_text(model),
    notes=notes,
  )
  text = page.write(report)
  writing.write_whole(out, text)
  print(f"wrote {out} ({len(text.encode()) / 1e6:.1f} MB)")


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("workdir", metavar="W", help="the --workdir of a training run")
  trained.add_which(parser)
  parser.add_argument(
    "--data_dir", default="data", help="where input_pipeline.prepare wrote the records (default: data)"
  )
  parser.add_argument(
    "--data",
    action="append",
    metavar="DATASET/SPLIT",
    help="may be given again (default: what the run was judged by)",
  )
  parser.add_argument(
    "--samples", metavar="FILE.jsonl", help="rows that `evaluate --samples` wrote for this checkpoint"
  )
  parser.add_argument("--out", metavar="OUT.html", help="(default: W/report.html)")
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
  if out is None and remote.is_remote(workdir):
    raise InputError(f"{workdir} is in a bucket; say with --out where on this machine the page goes")
  out = out or os.path.join(workdir, "report.html")
  writing.check_folder(out)
  return out


def _evaluate(args: argparse.Namespace, model: trained.Trained) -> list[Judged]:
  """Runs the model on every sentence."""
  names = list(dict.fromkeys(args.data or [_own_split(model)]))
  evaluate.check_data(args.data_dir, names)
  splits = []
  for name in names:
    metrics, rows = evaluate.evaluate_split(model, args.data_dir, name)
    splits.append(_judged(name, metrics, rows, args.data_dir))
  return splits


def _own_split(model: trained.Trained) -> str:
  config = model.config
  if not config.eval_split:
    raise InputError("the run has no config.eval_split; say with --data DATASET/SPLIT what to report on")
  return f"{config.dataset}/{config.eval_split}"
