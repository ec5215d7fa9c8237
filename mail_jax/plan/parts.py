"""Which part of the model or of the step the instructions of a compiled program belong to."""

import re
from collections.abc import Callable, Iterator

from mail_jax.plan import costs, products
from mail_jax.plan.hlo import Instruction, Module

# The first that is found in the path of an operation decides, as JAX writes it into the program:
# the function, then its scopes and modules.
PARTS = (
  ("decoder", r"decode"),
  ("encoder", r"encode"),
  # Instance tokens, the selection, and what both read.
  ("masks", r"mask|select|MaIL\)*/(and|convert\w*|dot_general|[\w,]*->)"),
  ("embeddings", r"/(image|text)/|MaIL\)*/(sub|mul)"),
  ("loss", r"jvp\(\)"),
  ("augmentation", r"/augmentation/"),
  # And what gathers parameters for the model and spreads gradients for it.
  ("optimizer and average", r"/optimizer/|\(train_step\)/(sharding_constraint|convert_element)"),
  ("other", r""),
)
UNATTRIBUTED = "unattributed"
# These hold results of several others, or stand for arrays from outside.
_ENDS = ("tuple", "while", "conditional", "call", "parameter", "constant", "iota", "partition-id")


def part_of(path: str) -> str:
  """Returns the part that an operation belongs to, by its path (`op_name`)."""
  # The compiler's own operations have names without a path.
  if "/" not in path:
    return UNATTRIBUTED
  return next(part for part, pattern in PARTS if re.search(pattern, path))


def by_part(module: Module) -> dict[str, costs.Work]:
  """Sums the work of a program by part, in the order of `PARTS`."""
  find, total = finder(module), {name: costs.Work() for name, _ in PARTS}
  total[UNATTRIBUTED] = costs.Work()
  for instruction, work in costs.kernels(module):
    total[find(instruction)] += work
  return {part: work for part, work in total.items() if work != costs.Work()}


def finder(module: Module) -> Callable[[Instruction], str]:
  """Returns a function that finds the part of an instruction.

  One without a path belongs to the part of its operands and users, if that is one part.
  """
  users: dict[tuple[str, str], list[Instruction]] = {}
  for near in module.computations.values():
    for instruction in near.values():
      for name in instruction.operands:
        users.setdefault((instruction.computation, name), []).append(instruction)

  def neighbours(instruction: Instruction, forwards: bool) -> list[Instruction]:
    if forwards:
      return users.get((instruction.computation, instruction.name), [])
    return module.operands(instruction)

  def around(instruction: Instruction) -> Iterator[str]:
    """Yields the parts of the nearest instructions that have one, on both sides."""
    for forwards in (False, True):
      seen, ahead = set(), neighbours(instruction, forwards)
      while ahead:
        other = ahead.pop()
        if other.name in seen or other.opcode in _ENDS:
          continue
        seen.add(other.name)
        part = _own(module, other)
        if part == UNATTRIBUTED:
          ahead = ahead + neighbours(other, forwards)
        else:
          yield part

  def find(instruction: Instruction) -> str:
    part = _own(module, instruction)
    return _only(around(instruction)) if part == UNATTRIBUTED else part

  return find


def _own(module: Module, instruction: Instruction) -> str:
  """Returns the part of an instruction by its path, or of a fusion by those of its contents."""
  inside = []
  if instruction.opcode == "fusion":
    inside = [i for name in instruction.called for i, _ in module.walk(start=name)]
  # An update fused with the product of its gradient is there for the product.
  multiplied = _only(_part(i) for i in inside if products.is_product(i))
  if multiplied != UNATTRIBUTED:
    return multiplied
  part = _part(instruction)
  return _only(map(_part, inside)) if part == UNATTRIBUTED else part


def _part(instruction: Instruction) -> str:
  path = re.search(r'op_name="([^"]*)"', instruction.attributes)
  return part_of(path[1]) if path else UNATTRIBUTED


def _only(parts: Iterator[str]) -> str:
  """Returns the part that all agree on that have one."""
  found = set(parts) - {UNATTRIBUTED}
  return found.pop() if len(found) == 1 else UNATTRIBUTED
