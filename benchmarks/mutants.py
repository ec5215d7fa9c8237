"""Counts the wrong lines that the quick tests see.

  make mutants
  python -m benchmarks.mutants --only train/losses --all
  python -m benchmarks.mutants --changes

Changes the core one place at a time, and runs the tests that execute this place until one fails.
First come mistakes that once went unnoticed, then a random sample of the places of every module.
Mutants that no test can see are in benchmarks/mutation/equivalent.json, with the reason. An
interrupted run is resumed. It needs cosmic-ray: requirements-mutants.txt.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.mutation import modules, mutations, reach, server
from benchmarks.mutation.mutations import Mutation
from input_pipeline.common.errors import InputError, run_command

EQUIVALENT = pathlib.Path("benchmarks/mutation/equivalent.json")
# A mutant may take this many times as long as the unchanged source, and some seconds more.
_SLOWER, _MORE = 4.0, 20.0


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.mutants",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--only", default="", metavar="TEXT", help="modules with this in their path")
  parser.add_argument(
    "--per_module", type=int, default=8, help="mutants per module (default: %(default)s)"
  )
  parser.add_argument("--all", action="store_true", help="every mutant, which takes days")
  parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
  parser.add_argument("--changes", action="store_true", help="only the mistakes known by name")
  parser.add_argument(
    "--seconds",
    type=float,
    default=60,
    help="of tests, the fastest first, that every mutant is given; what survives is given the "
    "others at the end (default: %(default)s)",
  )
  parser.add_argument("--near", action="store_true", help="leaves out these others")
  parser.add_argument(
    "--tests", nargs="*", metavar="FILE", help="of tests (default: those in modules.py)"
  )
  parser.add_argument(
    "--again", action="store_true", help="repeats what survived, after tests were added"
  )
  parser.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("runs/mutants"), help="folder of the results"
  )
  args = parser.parse_args(argv)
  if args.per_module < 1 or args.seconds <= 0:
    raise InputError("--per_module and --seconds must be above 0")
  (args.out / "compiled").mkdir(parents=True, exist_ok=True)
  server.load_libraries(args.out / "compiled")
  results = Results(args.out / "results.jsonl", args.again)
  _run_changes(args, results)
  if not args.changes:
    _run_sample(args, results)
  print(summarise(list(results.rows.values()), read_equivalent()))
  if missed := [row for row in results.rows.values() if _is_change(row) and not row["killed"]]:
    raise InputError(f"{len(missed)} of the mistakes known by name survived")


class Results:
  """What became of the mutants, by key; kept in a file.

  Attributes:
    rows: the last one of every mutant.
  """

  def __init__(self, path: pathlib.Path, again: bool = False):
    """Reads the file, if it exists; with `again`, mutants that survived count as not run."""
    self._path, self.rows = path, {}
    if path.exists():
      rows = [json.loads(line) for line in path.read_text().splitlines()]
      self.rows = {row["mutant"]: row for row in rows}
    self._forgotten = {key for key, row in self.rows.items() if again and not row["killed"]}

  def run(self, mutation: Mutation, tests: Sequence[str], seconds: float) -> None:
    """Runs the tests that a mutant has not survived yet, and keeps the outcome.

    Args:
      mutation: the mutant.
      tests: files.
      seconds: that they take on unchanged source.
    """
    source = reach.digest(mutation.source.encode())
    old = self.rows.get(mutation.key, {"source": None})
    if old["source"] != source or mutation.key in self._forgotten:
      old = {"killed": False, "tests": [], "seconds": 0.0}
      self._forgotten.discard(mutation.key)
    left = [test for test in tests if test not in old["tests"]]
    if old["killed"] or (not left and "mutant" in old):
      return
    changed = {mutation.path: mutation.source}
    outcome = server.run(left, _SLOWER * seconds + _MORE, changed) if left else None
    row = {
      "mutant": mutation.key,
      "module": mutation.path,
      "line": mutation.line,
      "operator": mutation.operator,
      "before": mutation.before,
      "after": mutation.after,
      "source": source,
      "killed": outcome is not None and outcome.killed,
      "reason": outcome.reason if outcome else "no test executes it",
      "seconds": round(old["seconds"] + (outcome.seconds if outcome else 0), 1),
      "tests": [*old["tests"], *left],
    }
    self.rows[mutation.key] = row
    with self._path.open("a") as file:
      file.write(json.dumps(row) + "\n")
    print(f"{describe(row)}  {row['reason'] or 'SURVIVED'}  {row['seconds']} s", flush=True)


def _is_change(row: dict[str, Any]) -> bool:
  return row["operator"] == mutations.BY_NAME


def _run_changes(args: argparse.Namespace, results: Results) -> None:
  for change in modules.CHANGES:
    if args.only in change.path:
      # Unchanged, none of these files takes longer.
      results.run(mutations.change_of(change), change.tests, 120 * len(change.tests))


def _run_sample(args: argparse.Namespace, results: Results) -> None:
  chosen = [path for path in modules.MODULES if args.only in path]
  files = args.tests or sorted(
    str(path) for folder in modules.TESTS for path in pathlib.Path(folder).glob("test_*.py")
  )
  found = reach.measure(files, modules.MODULES, args.out / "reach.json")
  for file, row in found.items():
    if row["problem"]:
      print(f"left out: {file}: {row['problem']}, on unchanged source", file=sys.stderr)
  equivalent = read_equivalent()
  passes = [args.seconds] if args.near else [args.seconds, float("inf")]
  for most in passes:
    for mutation, tests in _sampled(args, chosen, found):
      if mutation.key not in equivalent:
        near, seconds = _fastest(tests, found, most)
        results.run(mutation, near, seconds)
  # Counted, not run.
  for mutation, _ in _sampled(args, chosen, found):
    if mutation.key in equivalent:
      results.rows[mutation.key] = {
        "mutant": mutation.key,
        "module": mutation.path,
        "operator": mutation.operator,
        "killed": False,
        "reason": "equivalent",
        "seconds": 0.0,
      }


def _sampled(
  args: argparse.Namespace, chosen: Sequence[str], found: dict[str, Any]
) -> Iterator[tuple[Mutation, list[str]]]:
  """Yields mutants with the tests that execute them, the fastest first."""
  for path in chosen:
    source = pathlib.Path(path).read_text()
    places = mutations.find(path, source)
    for place in places if args.all else mutations.sample(places, args.per_module, args.seed):
      if mutation := place.mutate(source):
        yield mutation, reach.choose(found, path, source, place.line)


def _fastest(tests: Sequence[str], found: dict[str, Any], most: float) -> tuple[list[str], float]:
  """Returns the first files that take so many seconds together, at least one; and their seconds."""
  near, seconds = [], 0.0
  for test in tests:
    if not near or seconds + found[test]["seconds"] <= most:
      near.append(test)
      seconds += found[test]["seconds"]
  return near, seconds


def read_equivalent() -> dict[str, str]:
  """Returns the reasons why mutants that no test can see are right, by their keys."""
  return {row["mutant"]: row["reason"] for row in json.loads(EQUIVALENT.read_text())}


def describe(row: dict[str, Any]) -> str:
  """Returns where a mutant is, and its line before and after, in one line."""
  line = f"{row['module']}:{row['line']}  {row['before']}  ->  {row['after']}"
  return " ".join(line.split()) if "\n" in line else line


def summarise(rows: Sequence[dict[str, Any]], equivalent: dict[str, str]) -> str:
  """Returns a table with a row per module, and the mutants that survived."""
  lines = [
    "| module | mutants | killed | of these by time | survived | equivalent |",
    "| --- | ---: | ---: | ---: | ---: | ---: |",
  ]
  groups = {"mistakes known by name": [row for row in rows if _is_change(row)]}
  sampled = [row for row in rows if not _is_change(row)]
  for path in modules.MODULES:
    groups[path] = [row for row in sampled if row["module"] == path]
  groups["all modules"] = sampled
  for name, group in groups.items():
    if group:
      lines.append(f"| {name} | {' | '.join(map(str, _count(group, equivalent)))} |")
  count, killed, _, _, same = _count(sampled, equivalent)
  seconds = sum(row["seconds"] for row in rows)
  lines.append("")
  if count > same:
    share = killed / (count - same)
    lines.append(f"Of the modules' mutants that are not equivalent, {share:.1%} are killed.")
  lines.append(f"{seconds / 60:.0f} minutes of processor time.")
  survived = [row for row in rows if not row["killed"] and row["mutant"] not in equivalent]
  return "\n".join([*lines, *(f"- {describe(row)}" for row in survived)])


def _count(rows: Sequence[dict[str, Any]], equivalent: dict[str, str]) -> list[int]:
  killed = sum(row["killed"] for row in rows)
  late = sum(row["reason"] == "timeout" for row in rows)
  same = sum(not row["killed"] and row["mutant"] in equivalent for row in rows)
  return [len(rows), killed, late, len(rows) - killed - same, same]


if __name__ == "__main__":
  run_command(main)
