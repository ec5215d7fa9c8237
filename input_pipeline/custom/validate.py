"""Reports all problems in a file of annotations; the exit code is 2 if there are errors.

python -m input_pipeline.custom validate mine.jsonl
python -m input_pipeline.custom validate mine.jsonl --whole --all
"""

import argparse
import collections
import sys
from collections.abc import Iterable, Iterator

import numpy as np

from input_pipeline.common.command_line import add_subparser
from input_pipeline.common.terminal import counted
from input_pipeline.custom import scan
from input_pipeline.custom.check import CheckLevel
from input_pipeline.custom.schema import Problem

SHOWN = 5
"""Problems of a kind that are printed without `--all`."""
_LINE_NUMBERS = 20
_QUANTILES = (0.0, 0.5, 1.0)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
  """Adds `validate`."""
  parser = add_subparser(
    subparsers, "validate", "report all problems in a file of annotations", __doc__
  )
  parser.add_argument("file", metavar="FILE.jsonl", help="see docs/guides/custom-data.md")
  parser.add_argument("--images", help="folder that paths are relative to (default: that of FILE)")
  parser.add_argument(
    "--annotations", help="COCO file that ann_id refers to (default: the one that a line names)"
  )
  parser.add_argument("--all", action="store_true", help="print every problem of each kind")
  depth = parser.add_mutually_exclusive_group()
  depth.add_argument("--fast", action="store_true", help="do not open images or rasterise masks")
  depth.add_argument(
    "--whole", action="store_true", help="decode images completely, as prepare does"
  )
  parser.add_argument("--workers", type=int, help="processes (default: one per core)")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  level = CheckLevel.HEADERS
  if args.fast or args.whole:
    level = CheckLevel.FAST if args.fast else CheckLevel.WHOLE
  scanned = scan.scan(args.file, args.images, args.annotations, level, args.workers)
  for text in describe_problems(scanned.problems, args.all):
    print(text)
  if scanned.problems and scanned.lines:
    print()
  for text in describe_lines(scanned) if scanned.lines else ():
    print(text)
  errors, warnings = scanned.errors(), scanned.warnings()
  suffix = f", {counted(len(warnings), 'warning')}" if warnings else ""
  if not errors:
    print(f"{args.file}: no errors{suffix}")
    return
  lines = {problem.line for problem in errors}
  print(f"{args.file}: {counted(len(errors), 'error')} in {counted(len(lines), 'line')}{suffix}")
  sys.exit(2)


def describe_problems(problems: Iterable[Problem], everything: bool = False) -> Iterator[str]:
  """Yields lines of text: problems by kind, errors first, then by frequency.

  Args:
    problems: in any order.
    everything: whether all problems are printed; otherwise SHOWN of each kind, and line numbers.
  """
  kinds: dict[tuple[bool, str], list[Problem]] = collections.defaultdict(list)
  for problem in problems:
    kinds[problem.warning, problem.kind].append(problem)
  for (warning, kind), group in sorted(kinds.items(), key=lambda row: (row[0][0], -len(row[1]))):
    group.sort()
    prefix = "warning: " if warning else ""
    yield f"{prefix}{kind} ({len(group):,})"
    shown = group if everything or len(group) <= SHOWN + 1 else group[:SHOWN]
    for problem in shown:
      yield f"  {problem}"
    if rest := group[len(shown) :]:
      numbers = list(dict.fromkeys(problem.line for problem in rest))
      few = ", ".join(map(str, numbers[:_LINE_NUMBERS]))
      yield f"  and {len(rest):,} more, lines {few}{', ...' * (len(numbers) > _LINE_NUMBERS)}"


def describe_lines(scanned: scan.Scan) -> Iterator[str]:
  """Yields lines of text: counts per split, expressions per image, sizes of targets."""
  header = f"{'split':10}{'images':>10}{'lines':>10}{'expressions':>13}{'no target':>11}"
  yield f"{header}   expressions per image: min / median / max"
  lines = scanned.lines
  for split in scanned.splits():
    of_image = "SELECT sum(num_expressions) FROM lines WHERE split = ? GROUP BY image"
    per_image = np.array([count for (count,) in lines.query(of_image, split)])
    whole = "SELECT count(*), total(area = 0) FROM lines WHERE split = ?"
    count, without_target = next(lines.query(whole, split))
    counts = f"{len(per_image):10,}{count:10,}{per_image.sum():13,}{int(without_target):11,}"
    quantiles = np.quantile(per_image, _QUANTILES)
    yield f"{split:10}{counts}   {' / '.join(f'{n:g}' for n in quantiles)}"
  share = "SELECT 1.0 * area / (height * width) FROM lines WHERE area > 0 AND height NOTNULL"
  shares = np.fromiter((value for (value,) in lines.query(share)), float)
  if len(shares):
    low, median, high = np.quantile(shares, _QUANTILES)
    yield f"target area / image area: min {low:.2%}, median {median:.2%}, max {high:.2%}"
  images = lines.one("SELECT count(DISTINCT image) FROM lines")
  given = lines.one("SELECT count(DISTINCT image) FROM lines WHERE instances_hash != ''")
  yield f"images with instances: {given:,} of {images:,}"
