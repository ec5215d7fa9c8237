"""Counts the collectives of a compiled program, and the bytes that devices send."""

import dataclasses
import math
import re

from mail_jax.plan.hlo import Instruction, Module

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)


@dataclasses.dataclass
class Collective:
  """All collectives of one kind.

  Attributes:
    count: the number that run; those in a loop count once per iteration.
    bytes: of the whole arrays on one device: the result of an all-gather, the input of the others.
    sent: bytes that a device sends with the ring algorithm.
  """

  count: int = 0
  bytes: int = 0
  sent: float = 0.0


def count_collectives(module: Module, devices: int) -> dict[str, Collective]:
  """Counts the collectives of a program by kind.

  Args:
    module: the program.
    devices: number of devices that run it.
  """
  by_kind: dict[str, Collective] = {}
  scattered = _reduce_scatters(module)
  for instruction, times in module.walk():
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
      continue
    if kind == "all-reduce" and instruction.computation in scattered:
      kind = "reduce-scatter"
    size, sent = _cost(module, instruction, kind, group_size(instruction.attributes, devices))
    total = by_kind.setdefault(kind, Collective())
    total.count += times
    total.bytes += times * size
    total.sent += times * sent
  return dict(sorted(by_kind.items()))


def _reduce_scatters(module: Module) -> set[str]:
  """Returns the kernels that keep a part of a sum, the reduce-scatter of TPUs."""
  return {name for name in module.computations if name.startswith("all-reduce-scatter")}


def _cost(module: Module, instruction: Instruction, kind: str, group: int) -> tuple[int, float]:
  given = sum(operand.bytes for operand in module.operands(instruction))
  others = (group - 1) / group
  if kind == "all-reduce":
    return given, 2 * others * given
  if kind == "all-gather":
    return group * given, others * group * given
  if kind in ("collective-permute", "collective-broadcast"):
    return given, float(given)
  return given, others * given


def group_size(attributes: str, devices: int) -> int:
  """Returns the number of devices in each group of a collective.

  Args:
    attributes: as in `replica_groups={{0,1},{2,3}}`, `replica_groups=[2,2]<=[4]` or
      `replica_groups=mesh['a'=2,'b'=2] {'b'}`; without groups, all devices are one.
    devices: number of all devices.
  """
  if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
    return len(listed[1].split(","))
  if counted := re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", attributes):
    return int(counted[1])
  if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", meshed[1]))
    # A part of an axis is written with the size outside it and its own size: 'a':(2)4.
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", meshed[2])
    return math.prod(int(part or sizes[name]) for name, part in axes)
  return devices
