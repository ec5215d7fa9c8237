"""The tool that counts wrong lines, on a module of which each mutant is known."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks.mutation import modules, reach

CHECKOUT = pathlib.Path(__file__).parents[2]
TINY = '''"""A module."""


def count(most: int) -> int:
  """Returns twice a number, found slowly."""
  found = 0
  while most > 0:
    most -= 1
    found += 2
  return found


def unused(x: int | None = None) -> int:
  """Returns anything."""
  if x is None:
    raise ValueError(f"{1 + 1} is not a number")
  return 7
'''
TESTS = """import tiny


def test_it_counts():
  assert tiny.count(3) == 6
  assert tiny.unused(0)
"""
# In a process of its own: this one has threads by now, which a fork would lack.
PROGRAM = """
import pathlib, sys
sys.path[:0] = {path!r}
from benchmarks.mutation import modules, server
server.load_libraries(pathlib.Path("compiled"), ["pytest", "coverage"])
server.load_libraries = lambda compiled: None
modules.MODULES, modules.TESTS, modules.CHANGES = ("tiny.py",), ("tests",), ()
{code}
"""


@pytest.fixture
def tiny(tmp_path):
  (tmp_path / "tests").mkdir()
  (tmp_path / "tiny.py").write_text(TINY)
  (tmp_path / "tests" / "test_tiny.py").write_text(TESTS)
  (tmp_path / "benchmarks" / "mutation").mkdir(parents=True)
  (tmp_path / "benchmarks" / "mutation" / "equivalent.json").write_text("[]")
  return tmp_path


def run(folder: pathlib.Path, code: str) -> str:
  program = PROGRAM.format(path=[str(CHECKOUT), str(folder)], code=code)
  ended = subprocess.run(
    [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True
  )
  assert ended.returncode == 0, ended.stderr
  return ended.stdout


def test_a_mutant_is_killed_survives_or_takes_too_long(tiny):
  outcomes = json.loads(
    run(
      tiny,
      """
import json
source = pathlib.Path("tiny.py").read_text()
mutants = [("", ""), ("found = 0", "found = 5"), ("return 7", "return 8"), ("-= 1", "-= 0")]
tests = ["tests/test_tiny.py"]
print(json.dumps([server.run(tests, 2, {"tiny.py": source.replace(*m)}) for m in mutants]))
""",
    ).splitlines()[-1]
  )
  assert [(killed, reason) for killed, _, reason, _ in outcomes] == [
    (False, ""),
    (True, "FAILED tests/test_tiny.py::test_it_counts"),
    (False, ""),
    (True, "timeout"),
  ]
  assert (tiny / "tiny.py").read_text() == TINY


def test_the_command_changes_every_place_that_computes_and_resumes(tiny):
  pytest.importorskip("cosmic_ray", reason="needs cosmic-ray (make mutants)")
  code = """
from benchmarks import mutants
mutants._MORE = 1.0
mutants.main(["--all", "--out", "out"])
"""
  said = run(tiny, code)
  rows = [json.loads(line) for line in (tiny / "out" / "results.jsonl").read_text().splitlines()]
  survived = [row for row in rows if not row["killed"]]
  assert [row["after"] for row in survived] == ["return 8", "return 6"]
  assert {row["line"] for row in rows} == {6, 7, 8, 9, 15, 17}
  assert [row["before"] for row in rows if row["reason"] == "timeout"]
  assert f"| tiny.py | {len(rows)} | {len(rows) - 2} |" in said
  # Nothing runs again.
  equivalent = [{"mutant": survived[0]["mutant"], "reason": "any number will do"}]
  (tiny / "benchmarks/mutation/equivalent.json").write_text(json.dumps(equivalent))
  assert "| 1 | 1 |\n" in run(tiny, code)
  assert len((tiny / "out" / "results.jsonl").read_text().splitlines()) == len(rows)


def test_a_line_has_the_tests_that_execute_its_statement_the_fastest_first():
  lines = {"slow": [7, 8], "fast": [5, 6, 7, 8, 9], "other": [17], "broken": [7], "none": [1, 4]}
  seconds = {"slow": 9.0, "fast": 1.0, "other": 3.0, "broken": 0.1, "none": 0.1}
  found = {
    name: {"seconds": seconds[name], "lines": {"tiny.py": of}, "problem": name == "broken"}
    for name, of in lines.items()
  }
  assert reach.choose(found, "tiny.py", TINY, 8) == ["fast", "slow"]
  assert reach.choose(found, "tiny.py", TINY, 16) == ["fast", "other", "slow"]  # No test does.
  assert reach.choose(found, "tiny.py", TINY, 1) == ["fast", "other", "slow"]


@pytest.mark.parametrize("change", modules.CHANGES, ids=lambda change: change.name)
def test_mistakes_known_by_name_can_still_be_made(change):
  line, source = change.apply()
  compile(source, change.path, "exec")
  assert line > 1
  assert all(pathlib.Path(test).is_file() for test in change.tests)
