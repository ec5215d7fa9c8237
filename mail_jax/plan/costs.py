"""Counts the FLOPs, the memory traffic and the collectives of a compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from mail_jax.plan import products
from mail_jax.plan.hlo import Instruction, Module, Shape, trip_count

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
# These name existing arrays, or stand for other instructions.
_NO_TRAFFIC = frozenset((
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
  "after-all", "async-start", "partition-id", "replica-id", "opt-barrier", "add-dependency",
  "domain",
))  # fmt: skip
# Their time is that of the computations that they run.
_RUN_OTHERS = ("while", "conditional", "call", "async-start")
# What the TPU compiler makes of a collective between slices: a transfer to the host and back.
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
# These read as much of their first operand as they return.
_PARTS = ("slice", "dynamic-slice", "gather", "slice-start", "copy-start")


@dataclasses.dataclass
class Work:
  """What kernels do in one run of a program on a device.

  Attributes:
    cycles: the TPU compiler's estimate; 0 where it has none, as for collectives and for kernels
      that are not its own.
    flops: of products.
    hbm_bytes: moved between the main memory of the device and its cores.
  """

  cycles: int = 0
  flops: float = 0.0
  hbm_bytes: int = 0

  def __add__(self, other: "Work") -> "Work":
    """Returns the sum."""
    return Work(
      self.cycles + other.cycles, self.flops + other.flops, self.hbm_bytes + other.hbm_bytes
    )


def kernels(module: Module) -> Iterator[tuple[Instruction, Work]]:
  """Yields the instructions that run, fusions as one, with the work of all their iterations."""
  for instruction, times in module.walk(into_fusions=False):
    flops = products.flops(module, instruction)
    if instruction.opcode == "fusion":
      flops = math.fsum(
        n * products.flops(module, i) for f in instruction.called for i, n in module.walk(start=f)
      )
    yield (
      instruction,
      Work(
        times * estimated_cycles(instruction),
        times * flops,
        times * _moved(module, instruction, every_space=False),
      ),
    )


def estimated_cycles(instruction: Instruction) -> int:
  """Returns the TPU compiler's estimate of an instruction's time.

  It is that of a chip: both cores of a megacore chip work on an instruction together. Half of an
  asynchronous pair has it, and so has what a loop, a call or an asynchronous pair runs, not itself.
  """
  if instruction.opcode.endswith(("-done", "-update")) or (
    instruction.called and instruction.opcode in _RUN_OTHERS
  ):
    return 0
  estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
  return int(estimate[1]) if estimate else 0


def foreign_kernels(module: Module) -> int:
  """Counts the runs of kernels that are not the compiler's own, such as JAX's attention for TPUs.

  It estimates no cycles for them, and their products are not counted.
  """
  return sum(
    times
    for instruction, times in module.walk(into_fusions=False)
    if 'custom_call_target="tpu_custom_call"' in instruction.attributes
  )


def product_flops(module: Module) -> float:
  """Returns the FLOPs of all products in one run of the program on a device."""
  return sum(times * products.flops(module, instruction) for instruction, times in module.walk())


def flops_of_further_iterations(module: Module) -> float:
  """Returns the FLOPs of products in loops after the first iteration.

  XLA's own cost analysis counts one iteration only.
  """
  total = 0.0
  for loop, times in module.walk():
    if loop.opcode == "while":
      inside = sum(
        products.flops(module, instruction)
        for name in loop.called
        for instruction, _ in module.walk(start=name)
      )
      total += times * ((trip_count(module, loop) or 1) - 1) * inside
  return total


def memory_bytes(module: Module, every_space: bool = False) -> int:
  """Returns the bytes that one run moves between the main memory of a device and its cores.

  Each kernel reads its operands and writes its results once. If a kernel uses a part of an operand,
  that part counts, and so does the part of a result that is written in place. Arrays in another
  memory (VMEM) cost nothing.

  Args:
    module: the program.
    every_space: counts arrays in other memories as well, as `Compiled.cost_analysis()` does.
  """
  total = 0
  for instruction, times in module.walk(into_fusions=False):
    total += times * _moved(module, instruction, every_space)
  return total


def _moved(module: Module, instruction: Instruction, every_space: bool) -> int:
  opcode = instruction.opcode
  if opcode in _NO_TRAFFIC or opcode.endswith(("-done", "-update")):
    return 0

  def here(shapes: tuple[Shape, ...]) -> int:
    return sum(s.bytes_stored for s in shapes if every_space or s.space == 0)

  operands = module.operands(instruction)
  if opcode == "fusion" and instruction.called and instruction.called[0] in module.roots:
    return _of_fusion(module, instruction, operands, here)
  if opcode in ("send", "recv"):
    return here(instruction.shapes[:1])
  if opcode in _PARTS:
    # The result of `slice-start` begins with its operand.
    result = instruction.shapes[opcode == "slice-start"]
    read = result.bytes_stored if here(operands[0].shapes) else 0
    return read + here((result,)) + sum(here(o.shapes) for o in operands[1:])
  if opcode == "dynamic-update-slice":
    update = operands[1].shapes
    return here(update) + (sum(s.bytes_stored for s in update) if here(instruction.shapes) else 0)
  results = instruction.shapes
  if products.library(instruction) and len(results) > 1 and results[-1].dtype in ("s8", "u8"):
    results = results[:-1]  # what follows the results is scratch space
  if opcode.endswith("-start"):
    results = tuple(s for o in operands for s in o.shapes)
  return here(results) + sum(here(o.shapes) for o in operands)


def _of_fusion(module: Module, fusion: Instruction, operands: list[Instruction], here) -> int:
  inner = module.computations[fusion.called[0]]
  users: dict[str, list[Instruction]] = {}
  for instruction in inner.values():
    for name in instruction.operands:
      users.setdefault(name, []).append(instruction)
  moved = 0
  for parameter in (i for i in inner.values() if i.opcode == "parameter"):
    outer = operands[int(parameter.inside)]
    whole, takes = here(outer.shapes), _reached(parameter, users)
    if whole and takes and all(_takes_part(name, user) for name, user in takes):
      moved += min(whole, sum(_part(user) for _, user in takes))
    else:
      moved += whole
  root = module.roots[fusion.called[0]]
  results = module.operands(root) if root.opcode == "tuple" else [root]
  for shape, result in zip(fusion.shapes, results, strict=False):
    result = _before_bitcasts(module, result)
    if result.opcode == "dynamic-update-slice" and here((shape,)):
      moved += min(here((shape,)), sum(s.bytes_stored for s in module.operands(result)[1].shapes))
    else:
      moved += here((shape,))
  return moved


def _reached(value: Instruction, users: dict) -> list[tuple[str, Instruction]]:
  """Returns the users of a value in a fusion, through bitcasts: (name of the operand, user)."""
  reached = []
  for user in users.get(value.name, []):
    if user.opcode == "bitcast":
      reached += _reached(user, users)
    else:
      reached.append((value.name, user))
  return reached


def _takes_part(name: str, user: Instruction) -> bool:
  return user.opcode in (*_PARTS, "dynamic-update-slice") and user.operands[0] == name


def _part(user: Instruction) -> int:
  """Returns the bytes that the user reads of its first operand; none if it overwrites them."""
  return 0 if user.opcode == "dynamic-update-slice" else sum(s.bytes_stored for s in user.shapes)


def _before_bitcasts(module: Module, value: Instruction) -> Instruction:
  while value.opcode == "bitcast":
    value = module.operands(value)[0]
  return value


@dataclasses.dataclass
class Collective:
  """All collectives of one kind.

  Attributes:
    count: the number that run; those in a loop count once per iteration.
    bytes: of the whole arrays on one device: the result of an all-gather, the input of the others.
    sent: bytes that a device sends to others of its island, with the ring algorithm.
    sent_far: bytes that it sends to other islands, over the network. Devices of an island share
      the work: each sends only its part, in a ring of islands, as the TPU compiler has it.
  """

  count: int = 0
  bytes: int = 0
  sent: float = 0.0
  sent_far: float = 0.0


def count_collectives(module: Module, islands: Sequence[int]) -> dict[str, Collective]:
  """Counts the collectives of a program by kind.

  Args:
    module: the program.
    islands: number of the slice or host of each device, in the order of the program's mesh.
  """
  by_kind: dict[str, Collective] = {}
  scattered, begun = _reduce_scatters(module), set()
  for instruction, times in module.walk():
    kind = instruction.opcode.removesuffix("-start")
    if transfer := _TRANSFER.search(instruction.attributes) if kind == "send" else None:
      kind = transfer[1].lower().replace("_", "-")
      size, near, far = _between_slices(module, instruction, kind)
      kind += " between slices"
    elif kind in KINDS:
      # On TPUs the kernels that a collective runs beside repeat it.
      channel = re.search(r"channel_id=\d+", instruction.attributes)
      if channel and instruction.computation.startswith(("async_collective", "fused_computation")):
        if (kind, channel[0]) in begun:
          continue
        begun.add((kind, channel[0]))
      if kind == "all-reduce" and instruction.computation in scattered:
        kind = "reduce-scatter"
      size, near, far = _cost(module, instruction, kind, islands)
    else:
      continue
    total = by_kind.setdefault(kind, Collective())
    total.count += times
    total.bytes += times * size
    total.sent += times * near
    total.sent_far += times * far
  return dict(sorted(by_kind.items()))


def _reduce_scatters(module: Module) -> set[str]:
  """Returns the kernels that keep a part of a sum, the reduce-scatter of TPUs."""
  return {name for name in module.computations if name.startswith("all-reduce-scatter")}


def _between_slices(module: Module, send: Instruction, kind: str) -> tuple[int, float, float]:
  """Returns the cost of what the hosts of TPUs do over the network with what a chip sends them."""
  size = module.operands(send)[0].bytes
  target = re.search(r'_xla_megascale_target="\{([^}]*)\}', send.attributes)
  # Such as `1,2` or `1:4`.
  ends = [_numbers(part) for part in target[1].split(",")] if target else [[1, 2]]
  slices = sum(part[-1] - part[0] + 1 for part in ends)
  rounds = {
    "all-reduce": 2 * (slices - 1) / slices,
    "reduce-scatter": (slices - 1) / slices,
    "all-to-all": (slices - 1) / slices,
    "all-gather": slices - 1,
  }
  return size, 0.0, float(rounds.get(kind, 1) * size)


def _cost(
  module: Module, instruction: Instruction, kind: str, islands: Sequence[int]
) -> tuple[int, float, float]:
  """Returns the bytes of the arrays, and those that a device sends in and beyond its island."""
  size = sum(operand.bytes for operand in module.operands(instruction))
  if pairs := re.search(r"source_target_pairs=\{([{}\d,]*)\}", instruction.attributes):
    far = any(
      islands[int(a)] != islands[int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])
    )
    return size, 0.0 if far else float(size), float(size) if far else 0.0
  groups = np.asarray(islands)[replica_groups(instruction.attributes, len(islands))]
  group = groups.shape[1]
  crossed = len(np.unique(groups[0]))
  near = group // crossed
  if kind == "all-gather":
    size *= group
  if kind == "collective-broadcast":
    return size, float(size) if near > 1 else 0.0, float(size) if crossed > 1 else 0.0
  if kind in ("all-to-all", "ragged-all-to-all"):
    return size, (near - 1) / group * size, (group - near) / group * size
  twice = 2 if kind == "all-reduce" else 1
  return size, twice * (near - 1) / near * size, twice * (crossed - 1) / group * size


def replica_groups(attributes: str, devices: int) -> np.ndarray:
  """Returns the devices of each group of a collective, one group a row.

  Args:
    attributes: as in `replica_groups={{0,1},{2,3}}`, `replica_groups=[2,2]<=[4]` or
      `replica_groups=mesh['a'=2,'b'=2] {'b'}`; without groups, all devices are one.
    devices: number of all devices.
  """
  if listed := re.search(r"replica_groups=\{(\{[{}\d,]*\})\}", attributes):
    return np.array([row.split(",") for row in re.findall(r"\{([\d,]+)\}", listed[1])], int)
  if counted := re.search(r"replica_groups=\[([\d,]+)\]<=(\S*)", attributes):
    return _enumerated(counted[2]).reshape(_numbers(counted[1]))
  if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", attributes):
    return _of_mesh(*meshed.groups())
  return np.arange(devices)[None]


def _numbers(text: str) -> list[int]:
  return [int(number) for number in re.findall(r"\d+", text)]


def _enumerated(text: str) -> np.ndarray:
  """Returns the devices in the order of `[4,2]T(1,0)`."""
  sides, _, order = text.partition("T")
  numbered = np.arange(math.prod(_numbers(sides))).reshape(_numbers(sides))
  return numbered.transpose(_numbers(order)) if order else numbered


def _of_mesh(sizes: str, order: str, axes: str) -> np.ndarray:
  """Returns the groups along axes, or along parts of them, as in `'a':(2)4` of 2 x 4 x rest."""
  shape: list[int] = []
  along: dict[tuple[str, int], int] = {}  # (axis, what is outside the part) -> dimension
  parts = [(name, int(a or 1), int(b or 0)) for name, a, b in re.findall(_AXIS, axes)]
  for name, size in re.findall(r"'([^']+)'=(\d+)", sizes):
    before = 1
    for _, outer, part in sorted(entry for entry in parts if entry[0] == name):
      along[name, outer] = len(shape) + 1
      shape += [outer // before, part or int(size)]
      before = outer * (part or int(size))
    shape.append(int(size) // before)
  listed = re.search(r"device_ids=\((.*)\)", order)
  every = _enumerated(listed[1]) if listed else np.arange(math.prod(shape))
  chosen = [along[name, outer] for name, outer, _ in parts]
  rest = [axis for axis in range(len(shape)) if axis not in chosen]
  size = math.prod(shape[axis] for axis in chosen)
  return every.reshape(shape).transpose([*rest, *chosen]).reshape(-1, size)
