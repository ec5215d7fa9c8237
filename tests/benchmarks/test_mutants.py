"""`benchmarks.mutants` on a module of four lines, and what it changes by name."""

import pathlib
import subprocess
import sys

import pytest

from benchmarks import mutants
from benchmarks.mutation import modules, mutations

CHECKOUT = pathlib.Path(__file__).parents[2]
MODULE = """def double(x):
  while x > 9:
    x = x - 1
  return x * 2
"""
TEST = """from mutated import double
def test_double():
  assert [double(x) for x in (1, 2, 12)] == [2, 4, 18]
"""
PROGRAM = """
import sys
from benchmarks.mutation import server
folder, limit, before, after = sys.argv[1:]
path = folder + "/mutated.py"
source = open(path).read().replace(before, after)
print(server.run([folder + "/test_mutated.py"], float(limit), path, source)._asdict())
"""


@pytest.mark.parametrize(
  ("before", "after", "expected"),
  [
    ("x * 2", "x * 3", "test_double"),
    ("x > 9", "x >= 10", ""),
    ("x - 1", "x + 1", "timeout"),
    ("def", "deff", "test_mutated"),
  ],
)
def test_a_wrong_line_is_killed_survives_or_never_ends(tmp_path, before, after, expected):
  (tmp_path / "mutated.py").write_text(MODULE)
  (tmp_path / "test_mutated.py").write_text(TEST)
  # A compiled file of the unchanged module must not be used.
  subprocess.run([sys.executable, "-m", "compileall", "-q", tmp_path], check=True)
  limit = "3" if expected == "timeout" else "60"
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, tmp_path, limit, before, after],
    cwd=CHECKOUT,
    capture_output=True,
    text=True,
    check=True,
  )
  outcome = eval(done.stdout.splitlines()[-1])
  assert outcome["killed"] == bool(expected) and expected in outcome["reason"], outcome
  assert (tmp_path / "mutated.py").read_text() == MODULE


@pytest.mark.parametrize("change", modules.CHANGES, ids=lambda change: change.name)
def test_mistakes_known_by_name_can_still_be_made(change):
  mutation = mutants.change_of(change)
  assert mutation.source != pathlib.Path(change.path).read_text()
  compile(mutation.source, change.path, "exec")


def test_what_is_changed_and_tested_exists():
  paths = {*modules.MODULES, *(change.path for change in modules.CHANGES)}
  paths |= {test for tests in modules.MODULES.values() for test in tests}
  assert all((CHECKOUT / path).is_file() for path in paths)


def test_only_code_that_computes_is_changed():
  pytest.importorskip("cosmic_ray", reason="needs cosmic-ray (make mutants)")
  source = 'def f(x: int | None = 3) -> int | str:\n  assert x > 1, "a" + "b"\n  return x + 1\n'
  found = mutations.find("f.py", source)
  assert {mutation.line for mutation in found} == {1, 3}
  assert {mutation.after for mutation in found if mutation.line == 3} == {
    "return x - 1",
    "return x + 2",
    "return x + 0",
  }
  assert all("int | None" in mutation.source for mutation in found)
  assert len(mutations.sample(found, 1, 0)) == 1
