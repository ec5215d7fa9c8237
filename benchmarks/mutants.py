"""Counts the wrong lines that the tests see.

  make mutants
  python -m benchmarks.mutants --only models --per_module 20
  python -m benchmarks.mutants --changes

Changes the core one place at a time and runs the tests of the changed module until one fails.
First come mistakes that once went unnoticed, then a random sample of every module's places.
Mutants that no test can see are in benchmarks/mutation/equivalent.json, with the reason. Results
are kept in `--out`, and an interrupted run is resumed. It needs cosmic-ray: `make mutants`.
"""

import argparse
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from benchmarks.mutation import modules, mutations, server
from benchmarks.mutation.mutations import Mutation
from input_pipeline.common.errors import InputError, run_command

EQUIVALENT = pathlib.Path("benchmarks/mutation/equivalent.json")
# A mutant may take this many times as long as the unchanged module, and a bit more.
_SLOWER, _MORE = 4.0, 30.0


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
  parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
  parser.add_argument("--changes", action="store_true", help="only the mistakes known by name")
  parser.add_argument("--again", action="store_true", help="repeats the mutants that survived")
  parser.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("runs/mutants.jsonl"), help="results"
  )
  args = parser.parse_args(argv)
  if args.per_module < 1:
    raise InputError(f"--per_module {args.per_module}: it must be above 0")
  args.out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix="mail_jax_mutants_") as compiled:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    server.load_libraries()
    _run(args)
  print(summarise(read(args.out)))


def _run(args: argparse.Namespace) -> None:
  kept = read(args.out)
  done = {row["mutant"] for row in kept if row["killed"] or not args.again}
  limits: dict[tuple[str, ...], float] = {}
  for mutation, tests in _mutants(args):
    if mutation.key in done:
      continue
    if tests not in limits:
      limits[tests] = _SLOWER * _time(tests) + _MORE
    outcome = server.run(tests, limits[tests], mutation.path, mutation.source)
    row = {
      "mutant": mutation.key,
      "module": mutation.path,
      "line": mutation.line,
      "operator": mutation.operator,
      **outcome._asdict(),
    }
    with args.out.open("a") as file:
      file.write(json.dumps(row) + "\n")
    said = outcome.reason if outcome.killed else "SURVIVED"
    print(f"{mutation.path}:{mutation.line}  {mutation.before} -> {mutation.after}  {said}")


def _mutants(args: argparse.Namespace) -> Iterator[tuple[Mutation, tuple[str, ...]]]:
  for change in modules.CHANGES:
    if args.only in change.path:
      yield change_of(change), change.tests
  for path, tests in {} if args.changes else modules.MODULES.items():
    if args.only in path:
      found = mutations.find(path, pathlib.Path(path).read_text())
      for mutation in mutations.sample(found, args.per_module, args.seed):
        yield mutation, tests


def change_of(change: modules.Change) -> Mutation:
  """Returns a mistake known by name as a mutation.

  Raises:
    InputError: the module does not have the place once.
  """
  source = pathlib.Path(change.path).read_text()
  if source.count(change.before) != 1:
    raise InputError(f"{change.path} has {source.count(change.before)} times: {change.before}")
  line = source[: source.index(change.before)].count("\n") + 1
  mutated = source.replace(change.before, change.after)
  return Mutation(change.path, "by name", line, change.name, change.after.strip(), mutated)


def _time(tests: tuple[str, ...]) -> float:
  """Returns the seconds of the tests on unchanged source, compiled."""
  server.run(tests, 3600)
  outcome = server.run(tests, 3600)
  if outcome.killed:
    raise InputError(f"{outcome.reason} fails on unchanged source")
  return outcome.seconds


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the last result of every mutant."""
  if not path.exists():
    return []
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return list({row["mutant"]: row for row in rows}.values())


def summarise(rows: list[dict[str, Any]]) -> str:
  """Returns a table with a row per module, and the survivors."""
  reasons = json.loads(EQUIVALENT.read_text()) if EQUIVALENT.exists() else {}
  lines = [
    "| module | mutants | equivalent | killed | survive |",
    "| --- | ---: | ---: | ---: | ---: |",
  ]
  totals = [0, 0, 0, 0]
  groups = {name: [row for row in rows if row["module"] == name] for name in modules.MODULES}
  groups |= {"by name": [row for row in rows if row["operator"] == "by name"]}
  for name, group in groups.items():
    if name != "by name":
      group = [row for row in group if row["operator"] != "by name"]
    if not group:
      continue
    killed = sum(row["killed"] for row in group)
    same = sum(not row["killed"] and row["mutant"] in reasons for row in group)
    counts = [len(group), same, killed, len(group) - same - killed]
    totals = [a + b for a, b in zip(totals, counts, strict=True)]
    lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
  lines.append(f"| all | {' | '.join(map(str, totals))} |")
  share = totals[2] / max(1, totals[0] - totals[1])
  seconds = sum(row["seconds"] for row in rows)
  lines.append(f"\n{share:.1%} of the mutants that are not equivalent are killed; {seconds:.0f} s.")
  lines += [
    f"- {row['module']}:{row['line']}: {row['mutant'].partition(': ')[2]}"
    for row in rows
    if not row["killed"] and row["mutant"] not in reasons
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  run_command(main)
