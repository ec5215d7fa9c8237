"""Which tests execute which lines of the modules, and how long each file of tests takes."""

import ast
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.mutation import server
from input_pipeline.common import atomic_files

# Files of tests that take longer are left out.
_LONGEST = 120.0


def measure(files: Iterable[str], modules: Sequence[str], kept: pathlib.Path) -> dict[str, Any]:
  """Runs every file of tests once, on unchanged source.

  Args:
    files: of tests.
    modules: paths of the modules whose lines are of interest.
    kept: file for the results; only files that changed, or execute something that did, are run
      again.

  Returns:
    By file: `seconds`, `problem` (empty if all tests passed), and by module the executed `lines`.
  """
  found = json.loads(kept.read_text()) if kept.exists() else {}
  for file in files:
    row = found.get(file)
    if row is None or row["of"] != _state(file, row["lines"]):
      outcome = server.run([file], _LONGEST, watched=modules)
      row = {
        "of": _state(file, outcome.lines),
        "seconds": round(outcome.seconds, 1),
        "problem": outcome.reason,
        "lines": outcome.lines,
      }
      found[file] = row
      atomic_files.write_whole(kept, json.dumps(found))
      problem = row["problem"] or f"{len(row['lines'])} modules"
      print(f"{file}  {row['seconds']} s  {problem}", flush=True)
  return {file: found[file] for file in files}


def _state(file: str, modules: Iterable[str]) -> dict[str, str]:
  return {path: digest(pathlib.Path(path).read_bytes()) for path in (file, *modules)}


def digest(data: bytes) -> str:
  """Returns a short fingerprint."""
  return hashlib.sha256(data).hexdigest()[:16]


def choose(reach: dict[str, Any], path: str, source: str, line: int) -> list[str]:
  """Returns the files of tests that execute a line, the fastest first.

  Those that execute anything of the module if none does, or if it belongs to no function: what is
  executed when a module is imported is executed by all of them.

  Args:
    reach: from `measure`.
    path: of the module.
    source: of the module.
    line: from 1.
  """
  bodies = _statements(source)
  inside = {n for first, last, within in bodies if within for n in range(first, last + 1)}
  users = {
    file: set(row["lines"].get(path, ()))
    for file, row in sorted(reach.items(), key=lambda item: item[1]["seconds"])
    if not row["problem"] and inside & set(row["lines"].get(path, ()))
  }
  first, last, within = min(
    (body for body in bodies if body[0] <= line <= body[1]),
    key=lambda body: body[1] - body[0],
    default=(line, line, False),
  )
  statement = set(range(first, last + 1))
  chosen = [file for file, lines in users.items() if statement & lines] if within else []
  return chosen or list(users)


def _statements(source: str) -> list[tuple[int, int, bool]]:
  """Returns the lines of every statement, or of its head, and whether it is in a function."""

  def walk(node: ast.AST, within: bool) -> Iterator[tuple[int, int, bool]]:
    for child in ast.iter_child_nodes(node):
      inner = within or isinstance(node, ast.FunctionDef)
      if isinstance(child, ast.stmt):
        body = getattr(child, "body", None)
        last = body[0].lineno - 1 if body else child.end_lineno
        yield child.lineno, max(child.lineno, last or 0), inner
      yield from walk(child, inner)

  return list(walk(ast.parse(source), False))
