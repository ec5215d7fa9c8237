"""Writes a folder with photos, masks and mine.jsonl: generated scenes as if they were yours.

python -m input_pipeline.custom example --out example --train 8 --val 4
"""

import argparse

from input_pipeline.common.command_line import add_subparser
from input_pipeline.common.errors import InputError
from input_pipeline.custom import example
from input_pipeline.shapes import scenes


def add_parser(subparsers: argparse._SubParsersAction) -> None:
  """Adds `example`."""
  parser = add_subparser(
    subparsers,
    "example",
    "write generated scenes as data of your own, to try everything on",
    __doc__,
  )
  parser.add_argument(
    "--out", required=True, metavar="FOLDER", help="what is written: not there yet, or empty"
  )
  parser.add_argument("--train", type=int, default=64, help="photos to learn from (default: 64)")
  parser.add_argument("--val", type=int, default=16, help="photos to judge by (default: 16)")
  parser.add_argument(
    "--size", type=int, default=96, help="side of a photo in pixels (default: 96)"
  )
  parser.add_argument("--seed", type=int, default=0, help="of all that chance decides (default: 0)")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  if args.train < 1 or args.val < 0:
    raise InputError(
      "--train and --val: at least one photo for train, and no fewer than none for val"
    )
  if args.size < scenes.MIN_SIZE or args.seed < 0:
    raise InputError(f"--size is {scenes.MIN_SIZE} or more, and --seed not negative")
  counts = example.write(args.out, args.train, args.val, args.size, args.seed)
  print(f"wrote {args.out}/{example.FILE}: {counts['lines']} lines for {counts['photos']} photos")
