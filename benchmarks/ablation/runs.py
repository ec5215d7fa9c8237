"""The runs of the tables, their names, and the lines of finished runs."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.ablation.tables import TABLES, Row
from input_pipeline.common.errors import InputError
from mail_jax.config import load_config

# A run is evaluated at its end, and earlier only if its row says so.
ALWAYS = ("minutes=0.0", "eval_every=1000000", "eval_expressions=64")


SPLITS = ("val", "testA", "testB", "testC")
# Fields of a line that the tables need.
_FIELDS = {
  "run": str, "seed": int, "samples": int, "parameters": int, "gflop": float,
  "results": dict, "curve": list, "machine": str, "core_seconds": float,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Budget:
  """The size of all tables.

  Attributes:
    recipe: that the rows change.
    samples: of a run; a row can have a multiple of them.
    seeds: number of seeds, from 0.
  """

  recipe: str = "demo"
  samples: int = 48_000
  seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Run:
  """A training run and its evaluations.

  Attributes:
    name: a hash of the recipe's name and the overrides, which later keys of the config leave as it
      is; remove a run's line to run it again with a changed recipe.
    overrides: of the recipe, with the seed and the number of steps.
    tests: splits of its data, or of data with the masks of another detector, such as `x2/val`.
    until, trained: see `tables.Row`.
  """

  name: str
  overrides: tuple[str, ...]
  tests: tuple[str, ...]
  until: float = 0.0
  trained: str = ""


def of_row(row: Row, seed: int, budget: Budget) -> Run:
  """Returns the run of a row with a seed."""
  steps = max(1, round(budget.samples * row.share / load_config(budget.recipe).batch_size))
  overrides = (*ALWAYS, f"steps={steps}", f"seed={seed}", *row.overrides)
  changed = sorted({*overrides} - {*ALWAYS})
  settings = [budget.recipe, changed, row.until, *filter(None, (row.trained,))]
  name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
  tests = () if row.until else (f"{row.noise}/val",) if row.noise else SPLITS
  return Run(name, overrides, tests, row.until, row.trained)


def seeds_of(row: Row, budget: Budget) -> range:
  """Returns the seeds of a row."""
  return range(budget.seeds if row.seeds is None else min(budget.seeds, row.seeds))


def planned(tables: Sequence[str], budget: Budget) -> list[Run]:
  """Returns the runs of tables, each once with all its tests; first seeds come first."""
  planned_runs: dict[str, Run] = {}
  for seed in range(budget.seeds):
    rows = [row for table in tables for row in TABLES[table].rows if seed in seeds_of(row, budget)]
    for run in (of_row(row, seed, budget) for row in rows):
      before = planned_runs.get(run.name)
      tests = (*before.tests, *run.tests) if before else run.tests
      planned_runs[run.name] = dataclasses.replace(before or run, tests=tuple(dict.fromkeys(tests)))
  return list(planned_runs.values())


def left(queue: Sequence[Run], lines: Mapping[str, Mapping[str, Any]]) -> list[Run]:
  """Returns the runs without a line, or whose line lacks tests."""
  return [
    run
    for run in queue
    if run.name not in lines or not set(run.tests) <= lines[run.name]["results"].keys()
  ]


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Returns the lines of finished runs by name; none if there is no file.

  A later line replaces an earlier one with the same name.

  Raises:
    InputError: a line is not the line of a run.
  """
  lines = {}
  for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
    try:
      row = json.loads(line)
      wrong = [name for name, kind in _FIELDS.items() if not isinstance(row[name], kind)]
      if wrong:
        raise ValueError(f"{wrong[0]} is {row[wrong[0]]!r}")
      lines[row["run"]] = row
    except (ValueError, KeyError, TypeError) as error:
      raise InputError(
        f"{path}, line {number}: not the line of a run ({error}); remove it"
      ) from error
  return lines


def add(path: pathlib.Path, row: dict[str, Any]) -> None:
  """Adds the line of a finished run."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a") as lines:
    lines.write(json.dumps(row) + "\n")


def of_table(
  table: str, budget: Budget, lines: Mapping[str, dict[str, Any]]
) -> Iterator[tuple[Row, list[dict[str, Any]]]]:
  """Yields each row of a table with the lines of its finished runs, by seed."""
  for row in TABLES[table].rows:
    every = [of_row(row, seed, budget) for seed in seeds_of(row, budget)]
    yield row, [lines[run.name] for run in every if run not in left([run], lines)]
