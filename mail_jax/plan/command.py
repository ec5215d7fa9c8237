"""Estimates memory and step time on TPUs, without TPUs, by compiling the step for them:

python -m mail_jax.plan --config refcoco:unc --topology v5e:4x4 --batch_per_chip 8

Needs neither data nor weights, only the package libtpu (`make plan`). A step takes minutes to
compile.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from input_pipeline.common import atomic_files
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from mail_jax.config import add_config_argument, load_config
from mail_jax.hardware import chips
from mail_jax.plan import ahead, table
from mail_jax.plan.estimate import Plan, make_plan, with_mesh

# Compilations for the largest batch.
_SEARCH = 6


def splits(topology: chips.Topology) -> list[int]:
  """Returns the sizes of `fsdp` to try: 1, then along one more side of the slice each time."""
  sizes = [math.prod(topology.sides[:n]) for n in range(len(topology.sides) + 1)]
  return sorted(set(sizes))


def cases(
  config: ConfigDict, topologies: list[chips.Topology], batch_per_chip: int, sweep: bool
) -> Iterator[tuple[ConfigDict, chips.Topology]]:
  """Yields the config for each slice, and with `sweep` for each way to split it."""
  for topology in topologies:
    batch_size = batch_per_chip * topology.chips or config.batch_size
    if sweep:
      for fsdp in splits(topology):
        yield with_mesh(config, -1, fsdp, batch_size), topology
    else:
      yield with_mesh(config, config.mesh.data, config.mesh.fsdp, batch_size), topology


def make_parser() -> argparse.ArgumentParser:
  """Returns the parser of the command."""
  parser = command_parser("mail_jax.plan", __doc__)
  add_config_argument(parser)
  parser.add_argument(
    "--topology",
    required=True,
    action="append",
    metavar="CHIP:SIDES",
    help=f"a slice, such as v5e:4x4; chips: {', '.join(chips.CHIPS)}; repeatable",
  )
  parser.add_argument(
    "--batch_per_chip",
    type=int,
    default=0,
    help="batch size per chip (default: config.batch_size over all chips)",
  )
  parser.add_argument(
    "--sweep",
    action="store_true",
    help="try every split of each slice into data and fsdp; prints a table",
  )
  parser.add_argument(
    "--search",
    type=int,
    help="limit of compilations to find the largest batch that fits (default: "
    f"{_SEARCH}; with --sweep: 0)",
  )
  parser.add_argument(
    "--effort",
    choices=tuple(ahead.EFFORTS),
    default="full",
    help="full (default): as in training; quick: a quarter of the time, the same memory, more HBM "
    "traffic",
  )
  parser.add_argument("--json", metavar="OUT", help="write the estimates to a file")
  return parser


def read_topologies(args: argparse.Namespace) -> list[chips.Topology]:
  """Returns the slices of the command, and checks its numbers.

  Raises:
    InputError: no such slice, or a number below 0.
  """
  for name in ("batch_per_chip", "search"):
    if (getattr(args, name) or 0) < 0:
      raise InputError(f"--{name} {getattr(args, name)}: it must be at least 0")
  return [chips.parse_topology(text) for text in args.topology]


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = make_parser()
  args, rest = parser.parse_known_args(argv)
  for extra in rest:
    if not extra.startswith("--config."):
      parser.error(f"unrecognized argument: {extra}")
  topologies = read_topologies(args)
  if args.json:
    atomic_files.check_folder(args.json)
  config = load_config(args.config, rest)
  search = args.search if args.search is not None else (0 if args.sweep else _SEARCH)
  plans = []
  for case, topology in cases(config, topologies, args.batch_per_chip, args.sweep):
    plans.append(make_plan(case, topology, args.effort, search))
    print(table.describe(plans[-1]), flush=True)
    # Written after each plan, so that a later failure does not lose the earlier ones.
    if args.json:
      _write(args, plans)
  if len(plans) > 1:
    print(table.table(plans))
  if args.json:
    print(f"wrote {args.json}")


def _write(args: argparse.Namespace, plans: list[Plan]) -> None:
  report = {
    "config": args.config,
    "jax": jax.__version__,
    "libtpu": ahead.compiler_version(),
    "chips": {name: dataclasses.asdict(chip) for name, chip in chips.CHIPS.items()},
    "plans": [dataclasses.asdict(plan) for plan in plans],
  }
  atomic_files.write_whole(args.json, json.dumps(report, indent=2) + "\n")
