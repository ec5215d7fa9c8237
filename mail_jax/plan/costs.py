"""Counts the FLOPs, the memory traffic and the collectives of a compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

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
  "after-all", "partition-id", "replica-id", "opt-barrier", "add-dependency", "domain",
))  # fmt: skip
# Their time is that of the computations that they run.
_RUN_OTHERS = ("while", "conditional", "call", "async-start")
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
    flops = _flops(module, instruction)
    if instruction.opcode == "fusion":
      flops = math.fsum(
        n * _flops(module, i) for f in instruction.called for i, n in module.walk(start=f)
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
  return sum(times * _flops(module, instruction) for instruction, times in module.walk())


def is_product(instruction: Instruction) -> bool:
  """Returns whether an instruction is a matrix product or a convolution."""
  return instruction.opcode in ("dot", "convolution")


def flops_of_further_iterations(module: Module) -> float:
  """Returns the FLOPs of products in loops after the first iteration.

  XLA's own cost analysis counts one iteration only.
  """
  total = 0.0
  for loop, times in module.walk():
    if loop.opcode == "while":
      inside = sum(
        _flops(module, instruction)
        for name in loop.called
        for instruction, _ in module.walk(start=name)
      )
      total += times * ((trip_count(module, loop) or 1) - 1) * inside
  return total


def _flops(module: Module, instruction: Instruction) -> float:
  if instruction.opcode == "dot":
    left = module.operands(instruction)[0].shapes[0].dims
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    dims = [int(d) for d in contracted[1].split(",") if d] if contracted else []
    return 2.0 * instruction.shapes[0].elements * math.prod(left[d] for d in dims)
  if instruction.opcode == "convolution":
    return _of_convolution(module, instruction)
  return 0.0


def _of_convolution(module: Module, instruction: Instruction) -> float:
  """Counts two FLOPs per tap on the input; on TPUs, matrix products are convolutions, too."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
  if not labels:
    return 0.0
  data, kernel = (operand.shapes[0].dims for operand in module.operands(instruction)[:2])
  result = instruction.shapes[0].dims
  window = _window(instruction.attributes)
  taps = 1
  for i, axis in enumerate(sorted(set(labels[1]) - {"b", "f"})):
    sizes = (
      data[labels[1].index(axis)],
      kernel[labels[2].index(axis)],
      result[labels[3].index(axis)],
    )
    taps *= _taps(*sizes, **{name: values[i] for name, values in window.items()})
  features = data[labels[1].index("f")] // _number(instruction.attributes, "feature_group_count")
  batch = data[labels[1].index("b")] // _number(instruction.attributes, "batch_group_count")
  return 2.0 * batch * features * result[labels[3].index("f")] * taps


def _number(attributes: str, name: str) -> int:
  match = re.search(rf"{name}=(\d+)", attributes)
  return int(match[1]) if match else 1


def _window(attributes: str) -> dict[str, list[int]]:
  """Returns stride, leading padding, and dilation of input and kernel, for each axis."""
  window = re.search(r"window=\{([^}]*)\}", attributes)
  fields = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}
  axes = len(fields.get("size", "").split("x")) if "size" in fields else 0

  def numbers(name: str, default: int) -> list[int]:
    if name not in fields:
      return [default] * axes
    return [int(part.split("_")[0]) for part in fields[name].split("x")]

  return {
    "stride": numbers("stride", 1),
    "pad": numbers("pad", 0),
    "input_dilation": numbers("lhs_dilate", 1),
    "kernel_dilation": numbers("rhs_dilate", 1),
  }


def _taps(
  data: int,
  kernel: int,
  result: int,
  stride: int,
  pad: int,
  input_dilation: int,
  kernel_dilation: int,
) -> int:
  """Counts the pairs of positions in the result and the kernel that fall on the input."""
  place = np.arange(result)[:, None] * stride + np.arange(kernel) * kernel_dilation - pad
  on_input = (place >= 0) & (place % input_dilation == 0) & (place // input_dilation < data)
  return int(on_input.sum())


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
  if opcode in _PARTS:
    # The result of `slice-start` begins with its operand.
    result = instruction.shapes[opcode == "slice-start"]
    read = result.bytes_stored if here(operands[0].shapes) else 0
    return read + here((result,)) + sum(here(o.shapes) for o in operands[1:])
  if opcode == "dynamic-update-slice":
    update = operands[1].shapes
    return here(update) + (sum(s.bytes_stored for s in update) if here(instruction.shapes) else 0)
  results = instruction.shapes
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
  scattered, begun = _reduce_scatters(module), set()
  for instruction, times in module.walk():
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
      continue
    # On TPUs the kernels that a collective runs beside repeat it.
    channel = re.search(r"channel_id=\d+", instruction.attributes)
    if channel and instruction.computation.startswith(("async_collective", "fused_computation")):
      if (kind, channel[0]) in begun:
        continue
      begun.add((kind, channel[0]))
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
  operand_bytes = sum(operand.bytes for operand in module.operands(instruction))
  others = (group - 1) / group
  if kind == "all-reduce":
    return operand_bytes, 2 * others * operand_bytes
  if kind == "all-gather":
    return group * operand_bytes, others * group * operand_bytes
  if kind in ("collective-permute", "collective-broadcast"):
    return operand_bytes, float(operand_bytes)
  return operand_bytes, others * operand_bytes


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
