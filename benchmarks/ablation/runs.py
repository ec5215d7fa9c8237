"""Runs of the tables: what makes two of them the same, and the lines that they leave."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.ablation.tables import TABLES, Row
from input_pipeline.common.errors import InputError
from mail_jax.config import MAY_CHANGE, flatten, load_config, to_json

# Keys added to the config after the results, with the value that reproduces them; such a key does not
# change the name of a run.
ADDED: dict[str, Any] = {}
# A run is judged once, at its end; during it only as far as its row asks for it.
ALWAYS = ("minutes=0.0", "eval_every=1000000", "eval_expressions=64")


SPLITS = ("val", "testA", "testB", "testC")
# Of a line, what tables are made of.
_FIELDS = {
  "run": str, "seed": int, "samples": int, "parameters": int, "gflop": float, "results": dict, "curve": list,
  "machine": str, "core_seconds": float,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Budget:
  """What tables are made of.

  Attributes:
    recipe: that the rows change.
    samples: that a run is trained on; a row may have a share of them, or more.
    seeds: 0 to before so many.
  """

  recipe: str = "demo"
  samples: int = 48_000
  seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Run:
  """A training, and what it is judged on.

  Attributes:
    name: equal names, equal configs, regardless of keys that were added since.
    overrides: of the recipe, with the seed and the number of steps.
    tests: splits, of the data that it is trained on or, as in `x2/val`, of those with the masks of another detector.
    until: where it ends, as in `tables.Row`.
  """

  name: str
  overrides: tuple[str, ...]
  tests: tuple[str, ...]
  until: float = 0.0


def of_row(row: Row, seed: int, budget: Budget) -> Run:
  """The run of a row with a seed."""
  steps = max(1, round(budget.samples * row.share / load_config(budget.recipe).batch_size))
  overrides = (*ALWAYS, f"steps={steps}", f"seed={seed}", *row.overrides)
  settings = flatten(to_json(load_config(budget.recipe, overrides)))
  told = {
    key: value
    for key, value in settings.items()
    if not key.startswith(MAY_CHANGE) and not (key in ADDED and ADDED[key] == value)
  }
  told |= {"until": row.until} if row.until else {}
  name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
  tests = () if row.until else (f"{row.noise}/val",) if row.noise else SPLITS
  return Run(name, overrides, tests, row.until)


def seeds_of(row: Row, budget: Budget) -> range:
  """The seeds that a row is run with."""
  return range(budget.seeds if row.seeds is None else min(budget.seeds, row.seeds))


def planned(tables: Sequence[str], budget: Budget) -> list[Run]:
  """All runs of tables, each once with all its tests; the first seed of all comes before the second of any."""
  found: dict[str, Run] = {}
  for seed in range(budget.seeds):
    rows = [row for table in tables for row in TABLES[table].rows if seed in seeds_of(row, budget)]
    for run in (of_row(row, seed, budget) for row in rows):
      before = found.get(run.name)
      tests = (*before.tests, *run.tests) if before else run.tests
      found[run.name] = dataclasses.replace(before or run, tests=tuple(dict.fromkeys(tests)))
  return list(found.values())


def left(queue: Sequence[Run], lines: Mapping[str, Mapping[str, Any]]) -> list[Run]:
  """The runs that have no line, or one without some of their tests; they keep all tests."""
  return [
    run
    for run in queue
    if run.name not in lines or not set(run.tests) <= lines[run.name]["results"].keys()
  ]


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """The lines of finished runs by their names; none where there is no file. Of two with a name the later one counts.

  Raises:
    InputError: a line is not one of a run.
  """
  found = {}
  for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
    try:
      row = json.loads(line)
      wrong = [name for name, kind in _FIELDS.items() if not isinstance(row[name], kind)]
      if wrong:
        raise ValueError(f"{wrong[0]} is {row[wrong[0]]!r}")
      found[row["run"]] = row
    except (ValueError, KeyError, TypeError) as error:
      raise InputError(f"{path}, line {number}: no line of a run ({error}); remove it") from error
  return found


def add(path: pathlib.Path, row: dict[str, Any]) -> None:
  """Adds the line of a finished run."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a") as lines:
    lines.write(json.dumps(row) + "\n")


def of_table(
  table: str, budget: Budget, lines: Mapping[str, dict[str, Any]]
) -> Iterator[tuple[Row, list[dict[str, Any]]]]:
  """Yields each row of a table with the lines of its runs that are finished, by their seeds."""
  for row in TABLES[table].rows:
    every = [of_row(row, seed, budget) for seed in seeds_of(row, budget)]
    yield row, [lines[run.name] for run in every if run not in left([run], lines)]
