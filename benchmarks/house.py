"""Measures how a source tree is laid out, so that two versions of it can be compared.

  python -m benchmarks.house
  python -m benchmarks.house --root ../before . --json

Each tree is a column. Modules are the `.py` files of mail_jax and input_pipeline, without
`__init__.py`; what else is measured takes in `__init__.py`, unless it is empty, and configs.

An import counts wherever it stands, in a function too, except under `if TYPE_CHECKING`.
`from a import b` is an import of `a.b` where that is a module, otherwise of `a`. An importer is any
module of the three packages, of benchmarks or of docs; commands (`command.py`, and files that can
be run) need none. A circle is a set of modules, or of folders, that import one another directly or
through others. A folder is a package at depth two (`mail_jax.train` with all that is inside); a
module that lies flat in its package counts as itself.

The docstring of a public function or method begins with a verb if its first word ends in "s", is
not one of `NOT_VERBS` and is not one of `ALSO_NOUNS` used as a noun ("Samples of", "Names and
numbers"). Only the third person counts ("Returns", not "Return"). Properties are left out: they are
attributes, which nouns describe. Parameters are counted without `self`, `cls`, `*args` and
`**kwargs`; fields are those of dataclasses, named tuples and Flax modules.
"""

import argparse
import ast
import json
import pathlib
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

PACKAGES = ("mail_jax", "input_pipeline", "configs")
# Also import from the packages, but are not measured.
AROUND = ("benchmarks", "docs")
PAGES = ("*.md", "docs/**/*.md", "docker/**/*.md")
# Reports, which are dated and may be long, by name: in an older tree they are not in docs/reports.
REPORTS = ("results.md", "performance.md", "reliability.md", "licences.md")
SHORT_LINES = 60
MOST_PARAMETERS = 8


def _words(text: str) -> frozenset[str]:
  return frozenset(text.split())


# First words that end in "s" and are never verbs in a docstring.
NOT_VERBS = _words("""
  address always arguments args as attributes axes bias boxes brightness bytes candidates
  centres class colors colours computations coordinates devices expressions floats hues ids
  images indices instances integers intervals its kernels less loss metrics numbers operations
  parameters photos pictures pixels points probabilities process records refs rows seconds
  sentences tensors tfds this those tokens us various weights words yes
""")
# First words that are verbs or plural nouns.
ALSO_NOUNS = _words("""
  answers chips copies counts crops draws examples groups hashes labels lines links lists marks
  masks matches means names packs pads pairs places plans positions ranks reads results runs samples
  scales scores sections shapes shares sizes splits stacks starts states steps sums takes tests
  updates values views writes
""")
# The word before one of these is a noun.
_AFTER_NOUNS = _words("""
  after and are around as at by for from in of on over per that to under which whose with within
  without
""")


class Module(NamedTuple):
  """A parsed file.

  Attributes:
    name: dotted; a package is its `__init__.py`.
    path: relative to the root of the tree.
    lines: in the file.
    tree: its syntax.
  """

  name: str
  path: pathlib.PurePosixPath
  lines: int
  tree: ast.Module


def read_modules(root: pathlib.Path, packages: Iterable[str]) -> dict[str, Module]:
  """Returns the modules of some packages by their dotted names."""
  modules = {}
  for package in packages:
    for file in sorted((root / package).rglob("*.py")):
      text = file.read_text(encoding="utf-8")
      if file.name == "__init__.py" and not text.strip():
        continue
      path = file.relative_to(root)
      parts = path.with_suffix("").parts
      name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
      modules[name] = Module(
        name, pathlib.PurePosixPath(path.as_posix()), len(text.splitlines()), ast.parse(text)
      )
  return modules


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
  """Yields what runs: everything but the bodies of `if TYPE_CHECKING`."""
  for child in ast.iter_child_nodes(node):
    if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
      for other in child.orelse:
        yield other
        yield from _runtime_nodes(other)
      continue
    yield child
    yield from _runtime_nodes(child)


def imports(module: Module, known: Mapping[str, Module]) -> set[str]:
  """Returns the known modules that a module imports."""
  found = set()
  for node in _runtime_nodes(module.tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        parts = module.name.split(".")
        drop = node.level - (module.path.name == "__init__.py")
        base = ".".join([*parts[: len(parts) - drop], *([base] if base else [])])
      for alias in node.names:
        inner = f"{base}.{alias.name}"
        found.add(inner if inner in known else base)
  return (found & known.keys()) - {module.name}


def folder(name: str) -> str:
  """Returns the folder of a module, or the module itself if it lies flat in its package."""
  return ".".join(name.split(".")[:2])


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
  """Returns the sets of nodes that reach one another, each sorted; a node alone is not a circle."""
  reach = {}
  for start in graph:
    seen, todo = set(), [start]
    while todo:
      for other in graph.get(todo.pop(), ()):
        if other not in seen:
          seen.add(other)
          todo.append(other)
    reach[start] = seen
  rings = {
    tuple(sorted(other for other in reach[node] if node in reach.get(other, ())))
    for node in graph
    if node in reach[node]
  }
  return sorted(list(ring) for ring in rings if len(ring) > 1)


def begins_with_verb(docstring: str) -> bool:
  """Decides whether a docstring begins with a verb in the third person."""
  first, *rest = docstring.split()[:2] or [""]
  word = first.strip("`'\"*.,;()").lower()
  if not word.isalpha() or not word.endswith("s") or word in NOT_VERBS:
    return False
  following = rest[0].lower() if rest else ""
  noun = first[-1] in ",;" or following in _AFTER_NOUNS or not re.match(r"[\w`]", following)
  return not (word in ALSO_NOUNS and noun)


def _is_command(module: Module) -> bool:
  runs = any(
    isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
    for node in module.tree.body
  )
  return runs or module.path.name in ("__main__.py", "command.py")


def _decorators(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> set[str]:
  names = set()
  for decorator in node.decorator_list:
    call = decorator.func if isinstance(decorator, ast.Call) else decorator
    names.add(ast.unparse(call).rpartition(".")[2])
  return names


def docstrings_without_verb(module: Module) -> list[str]:
  """Returns public functions and methods whose docstrings do not begin with a verb."""
  bad = []

  def visit(body: list[ast.stmt], prefix: str) -> None:
    for node in body:
      if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        visit(node.body, f"{node.name}.")
      elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        is_property = any("property" in name for name in _decorators(node))
        if node.name.startswith("_") or is_property or not text:
          continue
        if not begins_with_verb(text):
          bad.append(f"{module.path}:{node.lineno} {prefix}{node.name}: {text.splitlines()[0]}")

  visit(module.tree.body, "")
  return bad


def long_signatures(module: Module) -> list[str]:
  """Returns functions and methods with more than eight parameters, with their number."""
  found = []
  for node in ast.walk(module.tree):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
      number = sum(argument.arg not in ("self", "cls") for argument in arguments)
      if number > MOST_PARAMETERS:
        found.append(f"{module.path}:{node.lineno} {node.name}: {number}")
  return found


def long_records(module: Module) -> list[str]:
  """Returns classes of data and of Flax with more than eight fields, with their number."""
  found = []
  for node in ast.walk(module.tree):
    if isinstance(node, ast.ClassDef):
      bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
      if not ("dataclass" in _decorators(node) or bases & {"NamedTuple", "Module"}):
        continue
      number = sum(
        isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation)
        for item in node.body
      )
      if number > MOST_PARAMETERS:
        found.append(f"{module.path}:{node.lineno} {node.name}: {number}")
  return found


def _count_words(root: pathlib.Path) -> tuple[int, int]:
  """Counts the words of all pages, and of those that are neither reports nor the changelog."""
  pages = sorted({page for pattern in PAGES for page in root.glob(pattern)})
  total = outside = 0
  for page in pages:
    words = len(page.read_text(encoding="utf-8").split())
    total += words
    parts = page.relative_to(root).parts
    is_report = parts[:2] == ("docs", "reports") or (parts[0] == "docs" and parts[-1] in REPORTS)
    if not is_report and parts[-1] != "CHANGELOG.md":
      outside += words
  return total, outside


def measure(root: pathlib.Path) -> dict[str, int | float | list]:
  """Measures a tree.

  Args:
    root: the top folder of a checkout.

  Returns:
    Numbers, and lists of the names behind them.
  """
  modules = read_modules(root, PACKAGES)
  known = modules | read_modules(root, AROUND)
  graph = {name: imports(module, known) for name, module in known.items()}
  importers = {name: sorted(n for n in graph if name in graph[n]) for name in modules}
  ours = {name: graph[name] & modules.keys() for name in modules}
  folders: dict[str, set[str]] = {}
  for name, targets in ours.items():
    outside = {folder(target) for target in targets} - {folder(name)}
    folders.setdefault(folder(name), set()).update(outside)
  measured = [
    module
    for module in modules.values()
    if module.path.name != "__init__.py" and module.path.parts[0] != "configs"
  ]
  lines = [module.lines for module in measured] or [0]
  total, outside = _count_words(root)
  return {
    "modules": len(lines),
    "modules, with `__init__.py` and configs": len(modules),
    "mean lines": round(statistics.mean(lines), 1),
    "median lines": statistics.median(lines),
    f"files below {SHORT_LINES} lines": sum(n < SHORT_LINES for n in lines),
    "flat files in mail_jax": len(list((root / "mail_jax").glob("*.py"))),
    "flat files in input_pipeline": len(list((root / "input_pipeline").glob("*.py"))),
    "modules with at most one importer": sorted(
      module.name
      for module in measured
      if not _is_command(module) and len(importers[module.name]) <= 1
    ),
    "circles of files": circles(ours),
    "circles of folders": circles(folders),
    "words of docs outside reports": outside,
    "words of docs": total,
    "docstrings without a verb": [
      line for module in modules.values() for line in docstrings_without_verb(module)
    ],
    f"functions with more than {MOST_PARAMETERS} parameters": [
      line for module in modules.values() for line in long_signatures(module)
    ],
    f"classes with more than {MOST_PARAMETERS} fields": [
      line for module in modules.values() for line in long_records(module)
    ],
  }


def _table(columns: Mapping[str, Mapping[str, int | float | list]]) -> Iterator[str]:
  rows = [["", *columns]]
  for label in next(iter(columns.values())):
    values = [column[label] for column in columns.values()]
    rows.append(
      [label, *(f"{len(v) if isinstance(v, list) else v:,}".removesuffix(".0") for v in values)]
    )
  rows.insert(1, ["---"] * len(rows[0]))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    yield f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"


def main(argv: list[str] | None = None) -> None:
  """Prints a table, and the names behind its last column; or everything as JSON."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.house",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--root", nargs="+", default=["."], help="checkouts, each a column (default: this folder)"
  )
  parser.add_argument("--json", action="store_true", help="all figures and names as JSON")
  args = parser.parse_args(argv)
  columns = {}
  for root in args.root:
    if not (pathlib.Path(root) / PACKAGES[0]).is_dir():
      parser.error(f"--root {root}: no folder {PACKAGES[0]}/ in it")
    columns[root] = measure(pathlib.Path(root))
  if args.json:
    print(json.dumps(columns, indent=2))
    return
  print(*_table(columns), sep="\n")
  for label, value in columns[args.root[-1]].items():
    if isinstance(value, list) and value:
      print(f"\n{label}:")
      print(*(f"  {' <-> '.join(v) if isinstance(v, list) else v}" for v in value), sep="\n")


if __name__ == "__main__":
  main()
