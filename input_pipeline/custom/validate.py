"""Tells everything that is wrong with a file of lines; exit code 2 where anything is.

python -m input_pipeline.custom validate mine.jsonl
python -m input_pipeline.custom validate mine.jsonl --whole --all
"""

import argparse
import sys

from input_pipeline.common.command_line import add_subparser
from input_pipeline.custom import problems, scan, summary
from input_pipeline.custom.check import How


def add_parser(subparsers: argparse._SubParsersAction) -> None:
  """Adds `validate`."""
  parser = add_subparser(
    subparsers,
    "validate",
    "tell everything that is wrong with a file of lines, with its line",
    __doc__,
  )
  parser.add_argument(
    "file", metavar="FILE.jsonl", help="docs/guides/custom-data.md says what it holds"
  )
  parser.add_argument("--images", help="folder that paths start in (default: that of FILE)")
  parser.add_argument(
    "--annotations", help="COCO file of ann_id (default: the one that a line names)"
  )
  parser.add_argument("--all", action="store_true", help="write out every problem of a kind")
  depth = parser.add_mutually_exclusive_group()
  depth.add_argument("--fast", action="store_true", help="open no photo and draw no mask")
  depth.add_argument(
    "--whole", action="store_true", help="decode photos to their end, as prepare does"
  )
  parser.add_argument("--workers", type=int, help="processes (default: one a core)")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  found = scan.scan(
    args.file, args.images, args.annotations, How(fast=args.fast, whole=args.whole), args.workers
  )
  for line in problems.describe(found.problems, args.all):
    print(line)
  if found.problems and found.facts:
    print()
  for line in summary.describe(found) if found.facts else ():
    print(line)
  wrong = problems.errors(found.problems)
  count = len({problem.line for problem in wrong})
  warnings = len(found.problems) - len(wrong)
  more = f", {warnings:,} warning{'s' * (warnings != 1)}" if warnings else ""
  if not wrong:
    print(f"{args.file}: nothing is wrong{more}")
    return
  print(
    f"{args.file}: {len(wrong):,} problem{'s' * (len(wrong) != 1)} in {count:,} line{'s' * (count != 1)}{more}"
  )
  sys.exit(2)
