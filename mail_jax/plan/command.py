"""Estimates memory and time on TPUs and GPUs, without them, by compiling a program for them:

python -m mail_jax.plan --config refcoco:unc --topology v5e:4x4 --batch_per_chip 8

Needs neither data nor weights, only the compiler (`make plan`). A step takes minutes to compile.
"""

import argparse
import dataclasses
import json
import math
import re
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from input_pipeline.common import atomic_files
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from mail_jax.config import add_config_argument, load_config, parse_overrides
from mail_jax.hardware import chips
from mail_jax.plan import ahead
from mail_jax.plan.estimate import Estimate, Plan, Wanted, make_plan, mesh_name, with_mesh
from mail_jax.plan.programs import PROGRAMS

_GIB = 2**30
# Compilations for the largest batch.
_SEARCH = 6


def splits(topology: chips.Topology) -> list[int]:
  """Returns the sizes of `fsdp` to try: 1, then along one more side of the slice each time."""
  sizes = [math.prod(topology.sides[:n]) for n in range(len(topology.sides) + 1)]
  return sorted(set(sizes))


def cases(
  config: ConfigDict,
  topologies: list[chips.Topology],
  batch_per_chip: int,
  sweep: bool,
  program: str = "train",
) -> Iterator[tuple[ConfigDict, chips.Topology]]:
  """Yields the config for each slice, and with `sweep` for each way to split it."""
  for topology in topologies:
    batch_size = batch_per_chip * topology.chips or config.batch_size
    if program == "evaluate":
      batch_size += -batch_size % topology.chips  # as `evaluate` does
    if sweep:
      for fsdp in splits(topology):
        yield with_mesh(config, -1, fsdp, batch_size), topology
    else:
      yield with_mesh(config, config.mesh.data, config.mesh.fsdp, batch_size), topology


def for_program(config: ConfigDict, program: str) -> ConfigDict:
  """Returns a copy of a config whose batch size and mesh are those of a program."""
  config = config.copy_and_resolve_references()
  if program != "train":
    config.grad_accum_steps, config.decode_every = 1, 1
    config.batch_size = config.eval_batch_size
  if program == "predict":
    # Every process predicts by itself, with the whole model on one device.
    config.mesh.data, config.mesh.fsdp = -1, 1
  return config


def make_parser() -> argparse.ArgumentParser:
  """Returns the parser of the command."""
  parser = command_parser("mail_jax.plan", __doc__)
  add_config_argument(parser)
  parser.add_argument(
    "--topology",
    required=True,
    action="append",
    metavar="CHIP:SIDES",
    help="a slice, such as v5e:4x4, several, 2*v5e:4x4, GPUs, h100:8, on several hosts, h100:4x8; "
    f"chips: {', '.join(chips.CHIPS)}; repeatable",
  )
  parser.add_argument(
    "--program",
    choices=PROGRAMS,
    default="train",
    help="train (default): a step of training; evaluate: a step of an evaluation, of "
    "config.eval_batch_size sentences; predict: a prediction, of one sentence per chip",
  )
  parser.add_argument(
    "--canvas",
    default="640x640",
    metavar="HEIGHTxWIDTH",
    help="size of the original images, for evaluate and predict (default: 640x640)",
  )
  parser.add_argument(
    "--batch_per_chip",
    type=int,
    default=0,
    help="batch size per chip (default: that of the program over all chips)",
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
  parser.add_argument(
    "--by",
    choices=("part",),
    help="also print a table of what each part of the model and of the step takes",
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


def read_canvas(text: str) -> tuple[int, int]:
  """Returns the height and width of `--canvas`.

  Raises:
    InputError: it is not two positive numbers.
  """
  match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
  if not match:
    raise InputError(f"--canvas {text}: write HEIGHTxWIDTH in pixels, such as 640x640")
  return int(match[1]), int(match[2])


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = make_parser()
  args, rest = parse_overrides(parser, argv)
  topologies, canvas = read_topologies(args), read_canvas(args.canvas)
  if args.sweep and args.program == "predict":
    raise InputError("--sweep: a prediction runs on one chip; leave it out")
  if args.json:
    atomic_files.check_folder(args.json)
  config = for_program(load_config(args.config, rest), args.program)
  search = args.search if args.search is not None else (0 if args.sweep else _SEARCH)
  wanted = Wanted(args.program, args.effort, search, canvas)
  batch_per_chip = args.batch_per_chip or (args.program == "predict")
  plans = []
  for case, topology in cases(config, topologies, batch_per_chip, args.sweep, args.program):
    plans.append(make_plan(case, topology, wanted))
    print(describe(plans[-1]), flush=True)
    if args.by == "part" and plans[-1].estimate:
      print(f"\n{table_of_parts(plans[-1].estimate)}\n", flush=True)
    # Written after each plan, so that a later failure does not lose the earlier ones.
    if args.json:
      _write(args, plans)
  if len(plans) > 1:
    print(table(plans))
  if args.json:
    print(f"wrote {args.json}")


def _write(args: argparse.Namespace, plans: list[Plan]) -> None:
  report = {
    "config": args.config,
    "jax": jax.__version__,
    "compilers": ahead.compiler_versions(),
    "chips": {name: dataclasses.asdict(chip) for name, chip in chips.CHIPS.items()},
    "plans": [dataclasses.asdict(plan) for plan in plans],
  }
  atomic_files.write_whole(args.json, json.dumps(report, indent=2) + "\n")


def describe(plan: Plan) -> str:
  """Formats one plan in a few lines."""
  lines = [
    f"{plan.program} on {plan.topology}: {plan.chips} chips, {plan.hosts} hosts, "
    f"{mesh_name(plan.mesh)}, batch {plan.batch_size} ({plan.batch_size / plan.chips:g} per chip), "
    f"{plan.parameters / 1e6:.1f} M parameters, {plan.dtype} multiplied as "
    f"{'TF32' if _on_gpus(plan) and plan.dtype == 'float32' else 'bf16'}"
  ]
  cost = plan.estimate
  if cost is None:
    lines.append(f"  does not fit: {plan.refused}")
  else:
    lines += [*_memory_lines(plan), *_work_lines(plan)]
    seconds = ", ".join(f"{name} {value * 1e3:.2f}" for name, value in cost.seconds.items())
    lines.append(
      f"  lower bound on its time: {cost.seconds[cost.bound] * 1e3:.2f} ms ({cost.bound}); each "
      f"alone, in ms: {seconds}"
    )
    if cost.whole.seconds:
      foreign = f" and {cost.foreign_kernels} kernels of Pallas" if cost.foreign_kernels else ""
      lines.append(
        f"  estimated by the compiler: {cost.whole.seconds * 1e3:.2f} ms without collectives"
        f"{foreign} ({cost.whole.cycles / 1e6:.1f} Mcycles), of which products "
        f"{cost.whole.products_share:.0%}"
      )
    lines.append(f"  compiled in {plan.compile_seconds:.0f} s ({plan.effort} effort)")
    if _on_gpus(plan):
      lines.append(f"  {ahead.UNTUNED}")
  if plan.largest_batch:
    lines.append(f"  largest batch: {_largest(plan)}")
  return "\n".join(lines)


def _on_gpus(plan: Plan) -> bool:
  return isinstance(chips.parse_topology(plan.topology).chip, chips.Gpu)


def _memory_lines(plan: Plan) -> list[str]:
  assert plan.estimate
  memory = plan.estimate.memory
  verdict = "" if memory.fits else ": does not fit"
  return [
    f"  memory per chip: {_gib(memory.total)} of {_gib(memory.available)} GiB "
    f"({memory.total / memory.available:.0%}{verdict}): arguments {_gib(memory.arguments)}, "
    f"temporaries {_gib(memory.temporaries)}, output {_gib(memory.output)} of which "
    f"{_gib(memory.aliased)} replace arguments, program {_gib(memory.code)}"
  ]


def _work_lines(plan: Plan) -> list[str]:
  cost = plan.estimate
  assert cost
  lines = [
    f"  GFLOP per chip: {cost.flops / 1e9:.5g} in the model's products, counted by hand; "
    f"{cost.flops_compiled / 1e9:.5g} in the program's"
    + (
      f"; {cost.flops_xla / 1e9:.5g} in all its operations, counted by XLA "
      f"({cost.flops_xla / cost.flops - 1:+.1%})"
      if cost.flops_xla
      else ""
    ),
    f"  HBM traffic: {cost.hbm_bytes / 1e9:.4g} GB; {cost.intensity:.3g} FLOP per byte; from "
    f"{cost.ridge:.0f} on, the products are the bound",
  ]
  if cost.libraries:
    lines.append(
      "  kernels not by XLA: " + ", ".join(f"{n} x {name}" for name, n in cost.libraries.items())
    )
  for kind, total in cost.collectives.items():
    far = f", and {total.sent_far / 1e6:.1f} MB over the network" if total.sent_far else ""
    lines.append(
      f"  {kind}: {total.count}, together {total.bytes / 1e6:.1f} MB; a chip sends "
      f"{total.sent / 1e6:.1f} MB{far}"
    )
  return lines


def _gib(count: int) -> str:
  return f"{count / _GIB:.2f}"


def _largest(plan: Plan) -> str:
  """Returns text such as `64 per chip, 1024 in all (72 per chip do not fit; 5 compilations)`."""
  largest = plan.largest_batch
  assert largest
  if not largest.fits:
    return f"{largest.too_large} per chip do not fit ({largest.compilations} compilations)"
  beyond = f"{largest.too_large} per chip do not fit" if largest.too_large else "no limit found"
  return (
    f"{largest.fits} per chip, {largest.fits * plan.chips} in all "
    f"({beyond}; {largest.compilations} compilations)"
  )


def table(plans: list[Plan]) -> str:
  """Formats plans as a Markdown table, one row each."""
  header = [
    "slice",
    "mesh",
    "batch per chip",
    "GiB per chip",
    "of",
    "TFLOP by hand",
    "program",
    "XLA",
    "HBM GB",
    "sent MB",
    "network MB",
    "compute ms",
    "HBM ms",
    "links ms",
    "network ms",
    "bound",
    "largest per chip",
  ]
  return _markdown([header, *(_row(plan) for plan in plans)])


def table_of_parts(cost: Estimate) -> str:
  """Formats the parts of a program as a Markdown table."""
  header = ["part", "Mcycles", "ms", "share", "TFLOP in products", "their share of the ms"]
  rows = [
    [
      name,
      f"{part.cycles / 1e6:.2f}",
      "-" if part.seconds is None else f"{part.seconds * 1e3:.2f}",
      f"{part.share:.1%}",
      f"{part.flops / 1e12:.4f}",
      "-" if part.products_share is None else f"{part.products_share:.0%}",
      f"{part.hbm_bytes / 1e9:.2f}",
    ]
    for name, part in [*cost.parts.items(), ("all", cost.whole)]
  ]
  return _markdown([[*header, "HBM GB"], *rows])


def _markdown(rows: list[list[str]]) -> str:
  """Formats rows, of which the first is the header."""
  rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
    for row in rows
  )


def _row(plan: Plan) -> list[str]:
  row = [plan.topology, mesh_name(plan.mesh)]
  row.append(f"{plan.batch_size / plan.chips:g}")
  cost = plan.estimate
  if cost is None:
    needed = re.search(r"Used ([\d.]+)G of ([\d.]+)G|\(([\d.]+)G\).*\(([\d.]+)G\)", plan.refused)
    numbers = [text for text in needed.groups() if text] if needed else ["?", "?"]
    row += [f"{numbers[0]}: does not fit", numbers[1], *["-"] * 11]
  else:
    memory, seconds = cost.memory, cost.seconds
    row += [_gib(memory.total), _gib(memory.available)]
    row.append(f"{cost.flops / 1e12:.3f}")
    row += [
      f"{count / cost.flops - 1:+.1%}" if count else "-"
      for count in (cost.flops_compiled, cost.flops_xla)
    ]
    row += [f"{cost.hbm_bytes / 1e9:.1f}", f"{cost.sent_bytes / 1e6:.0f}"]
    row.append(f"{cost.network_bytes / 1e6:.0f}")
    row += [f"{seconds[name] * 1e3:.2f}" for name in ("compute", "hbm", "interconnect", "network")]
    row.append(cost.bound)
  row.append(str(plan.largest_batch.fits) if plan.largest_batch else "-")
  return row
