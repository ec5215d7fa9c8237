"""What a training step needs on TPUs that one does not own, from the real TPU compiler:

python -m mail_jax.plan --config refcoco:unc --topology v5e:4x4 --batch_per_chip 8

No data, no weights and no TPU are needed, but the package libtpu (`make plan`). A step takes minutes to compile.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline.common import atomic_files
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import open_tokenizer
from mail_jax import recipes
from mail_jax.config import load_config
from mail_jax.hardware import chips
from mail_jax.plan import ahead, table
from mail_jax.plan.estimate import Estimate, estimate, memory_of
from mail_jax.plan.largest_batch import LargestBatch, find_largest

# Word pieces of bert-base-uncased, which ViLT has.
_BERT_VOCABULARY = 30522
_SEARCH = 6


@dataclasses.dataclass(frozen=True)
class Plan:
  """A config on a slice.

  Attributes:
    topology, chips, hosts: the slice.
    mesh: how it is used: `data` x `fsdp`.
    batch_size: over all chips.
    parameters: of the model.
    dtype: of its products.
    effort: that the compiler took.
    compile_seconds: that it took here.
    refused: what it says where the step does not fit; `estimate` is None then.
    estimate: what the step needs on a chip.
    largest_batch: a chip; None where it was not searched.
  """

  topology: str
  chips: int
  hosts: int
  mesh: dict[str, int]
  batch_size: int
  parameters: int
  dtype: str
  effort: str
  compile_seconds: float
  refused: str
  estimate: Estimate | None
  largest_batch: LargestBatch | None


def vocab_size(config: ConfigDict) -> int:
  """Word pieces of the tokenizer that training would have, as far as that can be known without data or weights."""
  if pathlib.Path(config.tokenizer.partition(":")[2]).is_file():
    return open_tokenizer(config.tokenizer).vocab_size
  return _BERT_VOCABULARY if config.init.startswith("vilt:") else config.vocab_size


def with_mesh(config: ConfigDict, data: int, fsdp: int, batch_size: int) -> ConfigDict:
  """A copy of a config on another mesh, with another batch."""
  changed = config.copy_and_resolve_references().unlock()
  changed.mesh.data, changed.mesh.fsdp, changed.batch_size = data, fsdp, batch_size
  return changed.lock()


def make_plan(config: ConfigDict, topology: chips.Topology, effort: str, search: int) -> Plan:
  """Compiles the step of a config for a slice, and searches the largest batch.

  Args:
    config: a whole config; its mesh is that of the slice.
    topology: the slice.
    effort: see `ahead.compile_step`.
    search: compilations to spend on the largest batch.

  Raises:
    InputError: the config does not fit the slice, or there is no such slice or no compiler.
  """
  devices = ahead.open_topology(topology)
  program = ahead.make_program(config, vocab_size(config), devices)
  parameters = sum(x.size for x in jax.tree.leaves(program.shapes.variables["params"]))
  mesh = dict(program.mesh.shape)
  _tell(f"compiling for {topology.name}, {table.mesh_name(mesh)}, batch {config.batch_size}")
  refused, found, seconds = "", None, 0.0
  try:
    compiled, seconds = ahead.compile_step(program, effort)
    found = estimate(program, compiled, topology)
  except ahead.DoesNotFitError as error:
    refused = " ".join(str(error).split("\n\n")[0].split())
  largest = _search(config, topology, devices, search) if search else None
  return Plan(
    topology.name,
    topology.chips,
    len({device.process_index for device in devices}),
    mesh,
    config.batch_size,
    parameters,
    config.model.dtype,
    effort,
    seconds,
    refused,
    found,
    largest,
  )


def _search(
  config: ConfigDict, topology: chips.Topology, devices: list[Any], budget: int
) -> LargestBatch:
  def needs(batch_per_chip: int) -> float | None:
    batch_size = batch_per_chip * topology.chips
    _tell(f"  does a batch of {batch_per_chip} a chip fit?")
    tried = with_mesh(config, config.mesh.data, config.mesh.fsdp, batch_size)
    program = ahead.make_program(tried, vocab_size(tried), devices)
    try:
      compiled, _ = ahead.compile_step(program, "quick")
    except ahead.DoesNotFitError:
      return None
    return float(memory_of(compiled, topology.chip).total)

  unit = config.grad_accum_steps * config.decode_every
  start = max(unit, config.batch_size // topology.chips // unit * unit)
  return find_largest(needs, float(topology.chip.memory), start, unit, budget)


def _tell(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def splits(topology: chips.Topology) -> list[int]:
  """Sizes of `fsdp` to try: no cut at all, then along one more side of the slice each time."""
  sizes = [math.prod(topology.sides[:n]) for n in range(len(topology.sides) + 1)]
  return sorted(set(sizes))


def cases(
  config: ConfigDict, topologies: list[chips.Topology], batch_per_chip: int, sweep: bool
) -> Iterator[tuple[ConfigDict, chips.Topology]]:
  """The config for each slice, and with `sweep` for each way to split it."""
  for topology in topologies:
    batch_size = batch_per_chip * topology.chips or config.batch_size
    if sweep:
      for fsdp in splits(topology):
        yield with_mesh(config, -1, fsdp, batch_size), topology
    else:
      yield with_mesh(config, config.mesh.data, config.mesh.fsdp, batch_size), topology


def make_parser() -> argparse.ArgumentParser:
  """The options of the command."""
  parser = command_parser("mail_jax.plan", __doc__)
  recipes.add_argument(parser)
  parser.add_argument(
    "--topology",
    required=True,
    action="append",
    metavar="CHIP:SIDES",
    help=f"a slice, such as v5e:4x4; the chips are {', '.join(chips.CHIPS)}; may be given again",
  )
  parser.add_argument(
    "--batch_per_chip", type=int, default=0, help="instead of config.batch_size over all chips"
  )
  parser.add_argument(
    "--sweep", action="store_true", help="every split of each slice into data and fsdp; a table"
  )
  parser.add_argument(
    "--search",
    type=int,
    help=f"compilations to spend on the largest batch that fits (default: {_SEARCH}; with --sweep 0)",
  )
  parser.add_argument(
    "--effort",
    choices=tuple(ahead.EFFORTS),
    default="full",
    help="full (default): as training compiles. quick: a quarter of the time, as much memory, more traffic with HBM",
  )
  parser.add_argument("--json", metavar="OUT", help="write what was found to a file")
  return parser


def read_topologies(args: argparse.Namespace) -> list[chips.Topology]:
  """The slices that the command names, and whether the other numbers can be.

  Raises:
    InputError: no such slice, or a number below 0.
  """
  for name in ("batch_per_chip", "search"):
    if (getattr(args, name) or 0) < 0:
      raise InputError(f"--{name} {getattr(args, name)}: it must be at least 0")
  return [chips.parse_topology(text) for text in args.topology]


def main(argv: list[str] | None = None) -> None:
  """The command."""
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
    # What took so long is not lost where a later one fails.
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
