"""Parses compiled programs as XLA prints them (HLO text): instructions, shapes, trip counts."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# The size of a type is the first number in its name, in bits, except for these, in bytes.
_BYTES = {"pred": 1, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
_LEAF = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|branch_computations|true_computation|false_computation)="
  r"(\{[^}]*\}|%?[\w.-]+)"
)


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array.

  Attributes:
    dtype: such as `bf16`.
    dims: its sizes.
    space: the memory it lies in; 0 is the main memory of the device.
    stored: the sizes in memory; tiles of a TPU are padded.
  """

  dtype: str
  dims: tuple[int, ...]
  space: int = 0
  stored: tuple[int, ...] = ()

  @functools.cached_property
  def elements(self) -> int:
    """Number of elements."""
    return math.prod(self.dims)

  @functools.cached_property
  def bytes(self) -> int:
    """Size without padding."""
    return _size(self.dtype, self.elements)

  @functools.cached_property
  def bytes_stored(self) -> int:
    """Size with padding."""
    return _size(self.dtype, math.prod(self.stored or self.dims))


def _size(dtype: str, elements: int) -> int:
  if dtype in _BYTES:
    return _BYTES[dtype] * elements
  bits = re.search(r"\d+", dtype)
  return -(-int(bits[0]) * elements // 8) if bits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program.

  Attributes:
    name: that other instructions refer to.
    shapes: of its result; several for a tuple, nested ones flattened.
    opcode: such as `fusion` or `all-reduce-start`.
    operands: names of other instructions of its computation.
    inside: the text between the parentheses after the opcode.
    attributes: the text after them.
    computation: name of the one it belongs to.
  """

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  operands: tuple[str, ...]
  inside: str
  attributes: str
  computation: str

  @functools.cached_property
  def bytes(self) -> int:
    """Size of the result."""
    return sum(shape.bytes for shape in self.shapes)

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """Computations that it runs, without the condition of a loop."""
    texts = _CALLED.findall(self.attributes)
    return tuple(name for text in texts for name in re.findall(r"[\w.-]+", text))


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program.

  Attributes:
    computations: by name, with their instructions by name, in order.
    roots: the instruction that is the result of each computation.
    entry: name of the computation that runs.
  """

  computations: dict[str, dict[str, Instruction]]
  roots: dict[str, Instruction]
  entry: str

  def operands(self, instruction: Instruction) -> list[Instruction]:
    """Returns the instructions whose results an instruction takes."""
    near = self.computations[instruction.computation]
    return [near[name] for name in instruction.operands if name in near]

  def walk(
    self, into_fusions: bool = True, start: str | None = None, times: int = 1
  ) -> Iterator[tuple[Instruction, int]]:
    """Yields all instructions that run, and how often; see `trip_count` for loops.

    Args:
      into_fusions: whether to descend into fusions, which run as one kernel.
      start: the computation to start with; by default the entry of the program.
      times: how often that one runs.
    """
    for instruction in self.computations[start or self.entry].values():
      yield instruction, times
      # The second half of an asynchronous pair names the same computation again.
      if instruction.opcode.endswith(("-done", "-update")):
        continue
      if instruction.opcode == "fusion" and not into_fusions:
        continue
      # The function that a reduction applies to pairs of numbers is not a separate program.
      if "to_apply=" in instruction.attributes and instruction.opcode != "call":
        continue
      again = (trip_count(self, instruction) or 1) if instruction.opcode == "while" else 1
      for name in instruction.called:
        if name in self.computations:
          yield from self.walk(into_fusions, name, times * again)


def parse(text: str) -> Module:
  """Parses the text of a compiled program, `jax.stages.Compiled.as_text()`.

  Raises:
    ValueError: the text is not a program.
  """
  computations: dict[str, dict[str, Instruction]] = {}
  roots: dict[str, Instruction] = {}
  entry = here = ""
  for line in text.splitlines():
    if head := _HEAD.match(line):
      here = head[2]
      computations[here] = {}
      entry = here if head[1] else entry
    elif here and (start := _LINE.match(line)):
      instruction = _parse_line(start[2], line[start.end() :], here)
      computations[here][instruction.name] = instruction
      if start[1]:
        roots[here] = instruction
    elif line.startswith("}"):
      here = ""
  if not entry:
    raise ValueError("the text has no ENTRY computation: it is not HLO")
  return Module(computations, roots, entry)


def _parse_line(name: str, text: str, computation: str) -> Instruction:
  end = _closing(text, 0) if text.startswith("(") else text.index(" ")
  shape, rest = text[:end], text[end:].lstrip()
  opening = rest.index("(")
  closing = _closing(rest, opening)
  inside = rest[opening + 1 : closing - 1]
  operands = tuple(re.findall(r"%([\w.-]+)", inside))
  return Instruction(
    name, _shapes(shape), rest[:opening], operands, inside, rest[closing:], computation
  )


def _closing(text: str, opening: int) -> int:
  """Returns the position after the parenthesis that closes the one at `opening`."""
  depth = 0
  for match in re.compile(r"[()]").finditer(text, opening):
    depth += 1 if match[0] == "(" else -1
    if not depth:
      return match.end()
  raise ValueError(f"unbalanced parentheses: {text[:100]}")


def _shapes(text: str) -> tuple[Shape, ...]:
  shapes = []
  for dtype, dims, layout in _LEAF.findall(text):
    space = re.search(r"S\((\d+)\)", layout)
    sizes = tuple(int(d.strip(" <=")) for d in dims.split(",") if d.strip(" <="))
    shapes.append(Shape(dtype, sizes, int(space[1]) if space else 0, _stored(sizes, layout)))
  return tuple(shapes)


def _stored(sizes: tuple[int, ...], layout: str) -> tuple[int, ...]:
  """Returns padded sizes: `{0,1:T(8,128)}` has dimension 0 in the lanes, in tiles of 8 x 128."""
  order, tile = re.match(r"\{([\d,]*)", layout), re.search(r":T\(([\d,]+)\)", layout)
  if not order or not order[1] or not tile:
    return sizes
  stored = list(sizes)
  for dim, part in zip(order[1].split(","), reversed(tile[1].split(",")), strict=False):
    stored[int(dim)] = -(-stored[int(dim)] // int(part)) * int(part)
  return tuple(stored)


def trip_count(module: Module, loop: Instruction) -> int | None:
  """Returns how often the body of a loop runs; None if the text does not say.

  The text has the number, or a counter that starts at a constant, grows by a constant and is
  compared with a constant.
  """
  if known := re.search(r'known_trip_count["\s:={]*n["\s:]*"?(\d+)', loop.attributes):
    return int(known[1])
  condition = re.search(r"condition=%?([\w.-]+)", loop.attributes)
  body = re.search(r"body=%?([\w.-]+)", loop.attributes)
  if not condition or not body or condition[1] not in module.roots or body[1] not in module.roots:
    return None
  start = module.operands(loop)
  root = module.roots[condition[1]]
  direction = re.search(r"direction=(\w+)", root.attributes)
  if root.opcode != "compare" or direction is None or not start or start[0].opcode != "tuple":
    return None
  carried = module.operands(start[0])
  left, right = (_resolve(module, side) for side in module.operands(root))
  if left is None or right is None or left[0] is None or left[0] >= len(carried):
    return None
  counter, (limit_slot, limit) = left[0], right
  if limit_slot is not None:
    limit = _constant(module, carried[limit_slot]) if limit_slot < len(carried) else None
  first = _constant(module, carried[counter])
  step = _step(module, body[1], counter)
  if first is None or limit is None or not step or direction[1] not in ("LT", "LE"):
    return None
  return max(0, -(-(limit + (direction[1] == "LE") - first) // step))


def _resolve(module: Module, value: Instruction) -> tuple[int | None, int | None] | None:
  """Returns (slot of the loop's tuple, None) or (None, constant) for a value that is either."""
  while value.opcode in ("copy", "bitcast", "convert", "reshape"):
    value = module.operands(value)[0]
  if value.opcode == "constant":
    return (None, int(value.inside)) if re.fullmatch(r"-?\d+", value.inside) else None
  slot = re.search(r"index=(\d+)", value.attributes)
  if value.opcode == "get-tuple-element" and slot:
    source = module.operands(value)
    return (int(slot[1]), None) if source and source[0].opcode == "parameter" else None
  return None


def _constant(module: Module, value: Instruction) -> int | None:
  resolved = _resolve(module, value)
  return resolved[1] if resolved else None


def _step(module: Module, body: str, counter: int) -> int | None:
  """Returns the increment of the counter in the body."""
  root = module.roots[body]
  results = module.operands(root)
  if root.opcode != "tuple" or counter >= len(results):
    return None
  grown = results[counter]
  while grown.opcode in ("copy", "bitcast"):
    grown = module.operands(grown)[0]
  if grown.opcode != "add":
    return None
  terms = [_resolve(module, term) for term in module.operands(grown)]
  if (counter, None) not in terms:
    return None
  return next((term[1] for term in terms if term and term[1] is not None), None)
