"""Wrong lines: small changes of a module's source, by the operators of Cosmic Ray.

Only code that computes is changed: no annotations, errors and their messages, assertions or
decorators.
"""

import ast
import collections
import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

from cosmic_ray.ast import get_ast  # pyright: ignore[reportMissingImports]
from cosmic_ray.mutating import MutationVisitor  # pyright: ignore[reportMissingImports]
from cosmic_ray.operators.provider import (  # pyright: ignore[reportMissingImports]
  OperatorProvider,
)

from benchmarks.mutation.modules import Change

# Mutants of one place that differ only in how wrong they are say no more than one of them: of the
# replacements of an operator, a boundary and an opposite.
_REPLACEMENTS = {
  "Binary": "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul RShift_LShift"
  " LShift_RShift BitOr_BitAnd BitAnd_BitOr BitXor_BitOr",
  "Comparison": "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt"
  " Is_IsNot IsNot_Is",
  "Unary": "Delete_USub Delete_Invert Delete_Not",
}
OPERATORS = (
  *(f"Replace{kind}Operator_{x}" for kind, some in _REPLACEMENTS.items() for x in some.split()),
  *("AddNot", "NumberReplacer", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue"),
  *("ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceBreakWithContinue"),
  *("ReplaceContinueWithBreak", "ZeroIterationForLoop"),
)
# In place of an operator, for a `Change`.
BY_NAME = "by name"
# Code that computes nothing.
_IGNORED = ("raise_stmt", "assert_stmt", "decorator", "import_from", "import_name")


@dataclasses.dataclass(frozen=True)
class Mutation:
  """A change of one place of a module.

  Attributes:
    path: of the module, relative to the checkout.
    operator: of Cosmic Ray; `BY_NAME` for a `Change`.
    line: from 1.
    before, after: the line.
    number: of several such changes of equal lines, from 0.
    source: of the whole module, changed.
  """

  path: str
  operator: str
  line: int
  before: str
  after: str
  number: int
  source: str = dataclasses.field(repr=False)

  @property
  def key(self) -> str:
    """What it is called in files; it stays the same when other lines change."""
    return name(self.path, self.operator, self.before, self.number)


def name(path: str, operator: str, before: str, number: int) -> str:
  """Returns the key of a mutation."""
  return f"{path}: {before} [{operator} {number}]"


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an operator of Cosmic Ray can change a module.

  Attributes:
    occurrence: the number that Cosmic Ray gives it.
    others: see `Mutation`.
  """

  path: str
  operator: str
  occurrence: int
  line: int
  before: str
  number: int

  @property
  def key(self) -> str:
    """That of its mutation."""
    return name(self.path, self.operator, self.before, self.number)

  def mutate(self, source: str) -> Mutation | None:
    """Returns the mutation; None if it changes nothing but spaces."""
    operator = OperatorProvider()[self.operator]()
    mutated = MutationVisitor.mutate_code(source, operator, self.occurrence)
    before, after = source.splitlines(), (mutated or source).splitlines()
    changed = [k for k, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
    if not mutated or not changed:
      return None
    # A change can be below the line on which its place begins.
    shown = after[changed[0]].strip()
    if changed[0] + 1 != self.line:
      shown = f"{before[changed[0]].strip()} -> {shown}"
    return Mutation(self.path, self.operator, self.line, self.before, shown, self.number, mutated)


def find(path: str, source: str) -> list[Place]:
  """Returns the places of a module that can be changed, in the order of its lines."""
  lines, tree, places = source.splitlines(), get_ast(source), []
  for operator in OPERATORS:
    changing = OperatorProvider()[operator]()
    seen = collections.Counter()
    for occurrence, (node, line) in enumerate(_positions(changing, tree)):
      before = lines[line - 1].strip()
      if not _is_ignored(node):
        places.append(Place(path, operator, occurrence, line, before, seen[before]))
      seen[before] += 1
  return sorted(places, key=lambda place: (place.line, place.operator, place.occurrence))


def sample(places: list[Place], count: int, seed: int) -> list[Place]:
  """Returns at most `count` places, at most one per line, drawn by their keys.

  So a larger sample contains a smaller one, and other lines may change.
  """
  drawn: dict[int, Place] = {}
  for place in sorted(places, key=lambda place: _draw(place.key, seed)):
    if len(drawn) < count:
      drawn.setdefault(place.line, place)
  return [drawn[line] for line in sorted(drawn)]


def _draw(key: str, seed: int) -> bytes:
  return hashlib.sha256(f"{seed} {key}".encode()).digest()


def _positions(operator: Any, node: Any) -> Iterator[tuple[Any, int]]:
  """Yields the places in the order in which Cosmic Ray counts them, with their lines."""
  for (line, _), _ in operator.mutation_positions(node):
    yield node, line
  for child in getattr(node, "children", ()):
    yield from _positions(operator, child)


def _is_ignored(node: Any) -> bool:
  """Returns whether a node belongs to code that computes nothing."""
  while (parent := node.parent) is not None:
    if node.type in _IGNORED or _is_annotation(node, parent) or _is_detail(node):
      return True
    node = parent
  return False


def _is_annotation(node: Any, parent: Any) -> bool:
  if parent.type == "annassign":
    return node is parent.children[1]
  if parent.type == "tfpdef":
    return node is not parent.children[0]
  return parent.type in ("funcdef", "lambdef") and node is parent.annotation


def _is_detail(node: Any) -> bool:
  """Returns whether a node makes an error, checks a length, begins a program, or is "infinite"."""
  code = node.get_code(include_prefix=False)
  if node.type in ("atom_expr", "power"):
    return node.children[0].get_code(include_prefix=False).endswith(("Error", "Warning"))
  if node.type == "number":
    return code.isascii() and abs(float(ast.literal_eval(code))) > 1e6
  if node.type == "argument":
    return code.startswith("strict=")
  return node.type == "if_stmt" and code.startswith("if __name__")


def change_of(change: Change) -> Mutation:
  """Returns a mistake known by name as a mutation."""
  line, mutated = change.apply()
  return Mutation(change.path, BY_NAME, line, change.name, change.after, 0, mutated)
