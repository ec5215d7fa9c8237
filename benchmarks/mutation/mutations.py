"""Wrong lines: small changes of a module's source, by the operators of Cosmic Ray.

Only code that computes is changed: not annotations, messages of errors, `assert`s, or decorators.
"""

import dataclasses
import random

# What they change is mostly seen by the type checker, or is text.
_LEFT_OUT = ("ExceptionReplacer", "RemoveDecorator", "VariableReplacer", "VariableInserter")
# Mutants that differ only in how wrong they are say little: one of each pair of operators.
_BINARY = {
  "Add": "Sub", "Sub": "Add", "Mul": "Div", "Div": "Mul", "FloorDiv": "Mul", "Mod": "FloorDiv",
  "Pow": "Mul", "RShift": "LShift", "LShift": "RShift", "BitOr": "BitAnd", "BitAnd": "BitOr",
  "BitXor": "BitOr",
}  # fmt: skip
_PREFIX = "ReplaceBinaryOperator_"
# Ancestors of code that computes nothing.
_IGNORED = ("raise_stmt", "assert_stmt", "annassign", "tfpdef", "decorator", "import_from")


@dataclasses.dataclass(frozen=True)
class Mutation:
  """A change of one place of a module.

  Attributes:
    path: of the module, relative to the checkout.
    operator: of Cosmic Ray.
    line: from 1.
    before, after: the line.
    source: of the whole module, changed.
  """

  path: str
  operator: str
  line: int
  before: str
  after: str
  source: str = dataclasses.field(repr=False)

  @property
  def key(self) -> str:
    """What it is called in files; the same when other lines move."""
    return f"{self.path}: {self.before} -> {self.after}"


def find(path: str, source: str) -> list[Mutation]:
  """Returns the mutations of a module, in the order of its lines."""
  # Only `make mutants` installs it.
  from cosmic_ray.ast import ast_nodes, get_ast  # pyright: ignore[reportMissingImports]
  from cosmic_ray.mutating import mutate_code  # pyright: ignore[reportMissingImports]
  from cosmic_ray.operators.provider import (  # pyright: ignore[reportMissingImports]
    OperatorProvider,
  )

  lines, found = source.splitlines(), []
  tree = get_ast(source)
  provider = OperatorProvider()
  for name in provider:
    if name in _LEFT_OUT or not _is_chosen(name):
      continue
    operator = provider[name]()
    # In the order in which `mutate_code` counts them.
    places = [node for node in ast_nodes(tree) for _ in operator.mutation_positions(node)]
    for occurrence, node in enumerate(places):
      if _is_ignored(node):
        continue
      mutated = mutate_code(source, operator, occurrence)
      if mutated is None or mutated == source:
        continue
      after = mutated.splitlines()
      changed = next((k for k, (a, b) in enumerate(zip(lines, after, strict=False)) if a != b), 0)
      found.append(
        Mutation(path, name, changed + 1, lines[changed].strip(), after[changed].strip(), mutated)
      )
  unique = {mutation.source: mutation for mutation in found}
  return sorted(unique.values(), key=lambda mutation: (mutation.line, mutation.operator))


def sample(mutations: list[Mutation], count: int, seed: int) -> list[Mutation]:
  """Returns at most `count` of them, at most one per line, in the order of the lines."""
  chosen = random.Random(f"{seed} {mutations[0].path}" if mutations else seed)
  by_line: dict[int, list[Mutation]] = {}
  for mutation in mutations:
    by_line.setdefault(mutation.line, []).append(mutation)
  lines = sorted(chosen.sample(sorted(by_line), min(count, len(by_line))))
  return [chosen.choice(by_line[line]) for line in lines]


def _is_chosen(name: str) -> bool:
  if not name.startswith(_PREFIX):
    return True
  before, after = name.removeprefix(_PREFIX).split("_")
  return _BINARY[before] == after


def _is_ignored(node) -> bool:
  while node is not None:
    if node.type in _IGNORED:
      return True
    parent = node.parent
    if parent is not None and parent.type == "funcdef" and node is parent.annotation:
      return True
    if parent is not None and parent.type == "param" and node is parent.annotation:
      return True
    node = parent
  return False
