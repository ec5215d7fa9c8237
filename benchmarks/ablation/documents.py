"""The tables of a document from the lines of runs, each between two comments with its name."""

import pathlib
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import paired
from benchmarks.ablation import runs
from benchmarks.ablation.runs import SPLITS, Budget
from benchmarks.ablation.tables import REACH, TABLES, Row
from input_pipeline.common import atomic_files
from input_pipeline.common.errors import InputError

Line = dict[str, Any]
# Metrics on val by the heading of their column; the other splits have their mIoU.
_OF_VAL = {
  "mIoU": "mIoU", "oIoU": "oIoU", "P@0.5": "P@0.5", "P@0.9": "P@0.9",
  "boundary IoU": "boundary_mIoU", "picks right": "selection_accuracy",
}  # fmt: skip


def check(document: pathlib.Path, tables: Sequence[str]) -> None:
  """Raises InputError if a document has no place for one of the tables."""
  if not document.is_file():
    raise InputError(f"--document {document}: no such file")
  text = document.read_text()
  for table in tables:
    _place(text, table, document)


def write(
  document: pathlib.Path, tables: Sequence[str], budget: Budget, lines: Mapping[str, Line]
) -> None:
  """Writes tables with lines into their places in a document, and the total cost."""
  text = document.read_text()
  if lines:
    text = _TOTAL.sub(lambda place: f"{place[1]}\n{total(budget, lines)}\n{place[2]}", text)
  for table in tables:
    rows = list(runs.of_table(table, budget, lines))
    if any(lines for _, lines in rows):
      begin, end = _place(text, table, document)
      text = f"{text[:begin]}\n{section(table, rows)}\n{text[end:]}"
  atomic_files.write_whole(document, text)


_TOTAL = re.compile(r"(<!-- ablate total -->).*?(<!-- end -->)", re.DOTALL)


def total(budget: Budget, lines: Mapping[str, Line]) -> str:
  """Formats the cost of the runs of all tables, each counted once."""
  made = [lines[run.name] for run in runs.planned(list(TABLES), budget) if run.name in lines]
  hours = sum(line["core_seconds"] for line in made) / 3600
  took = f"{hours:.1f} hours of one core, {hours / 2:.1f} of two with a run on each"
  return f"All tables together: {len(made)} runs, {took}."


def _place(text: str, table: str, document: pathlib.Path) -> tuple[int, int]:
  place = re.search(rf"<!-- ablate {table} -->()(.*?)()<!-- end -->", text, re.DOTALL)
  if not place:
    raise InputError(
      f"{document} has no place for the table {table}; "
      f"write <!-- ablate {table} --> and <!-- end --> into it"
    )
  return place.start(1), place.start(3)


def section(table: str, rows: Sequence[tuple[Row, list[Line]]]) -> str:
  """Formats a table of `TABLES` with its heading, its question and its command.

  Args:
    table: its name.
    rows: each row with the lines of its runs, one per seed.
  """
  about = TABLES[table]
  made = [line for _, lines in rows for line in lines]
  every = list({line["run"]: line for line in made}.values())
  make = {"metrics": metrics, "reached": reached, "samples": by_samples}[about.kind]
  missing = [row.name or f"{row.share:g} of the samples" for row, lines in rows if not lines]
  later = [f"\nNot run yet: {'; '.join(missing)}."] if missing else []
  return "\n".join(
    [f"### {about.title}\n", f"{about.asks}\n", *make(rows), *later, "", _made(table, every)]
  )


def metrics(rows: Sequence[tuple[Row, list[Line]]]) -> Iterator[str]:
  """Formats the metrics of each row in percent: mean and standard deviation over the seeds."""
  cells = []
  for row, lines in rows:
    if not lines:
      continue
    test = f"{row.noise}/val" if row.noise else "val"
    named = [_of_model(line["results"][test]) for line in lines]
    cell: dict[str, object] = {"": row.name, "seeds": len(lines)}
    cell |= {
      title: spread([values.get(name) for values in named]) for title, name in _OF_VAL.items()
    }
    for split in () if row.noise else SPLITS[1:]:
      cell[split] = spread([line["results"][split]["mIoU"] for line in lines])
    cells.append(cell | _cost(lines))
  columns = dict.fromkeys(name for cell in cells for name in cell)
  yield paired.table({name: cell.get(name) for name in columns} for cell in cells)
  yield f"\n{judgement(rows)}"


def _of_model(result: dict[str, Any]) -> dict[str, Any]:
  """Returns the metrics, without the selection accuracy if there was nothing to select."""
  return result if result["oracle_mIoU"] else result | {"selection_accuracy": None}


def _cost(lines: Sequence[Line]) -> dict[str, object]:
  """Formats the parameters, and the operations of one example at test time."""
  return {
    "M parameters": f"{lines[0]['parameters'] / 1e6:.2f}",
    "GFLOP": f"{lines[0]['gflop']:.3f}",
  }


def spread(values: Sequence[float | None]) -> str | None:
  """Formats the mean and standard deviation of fractions in percent; a single one without."""
  known = [100 * value for value in values if value is not None]
  if not known:
    return None
  if len(known) == 1:
    return f"{known[0]:.1f}"
  return f"{statistics.mean(known):.1f} ± {statistics.stdev(known):.1f}"


def judgement(rows: Sequence[tuple[Row, list[Line]]]) -> str:
  """Formats the best row on val, and the rows that are as good within the spread of the seeds.

  Two rows are equally good if their means differ by at most twice the standard error of the
  difference, from the deviation of the seeds of all rows; empty while a row has a single seed.
  """
  known = {
    row.name: [
      line["results"][f"{row.noise}/val" if row.noise else "val"]["mIoU"] for line in lines
    ]
    for row, lines in rows
    if len(lines) > 1
  }
  if not known:
    return "One seed: no spread is known."
  if len(known) < 2 or any(len(lines) == 1 and row.seeds is None for row, lines in rows):
    return "Some rows have one seed so far: none is judged."
  free = sum(len(values) - 1 for values in known.values())
  pooled = sum((len(v) - 1) * statistics.variance(v) for v in known.values()) / free
  means = {name: statistics.mean(values) for name, values in known.items()}
  best = max(means, key=lambda name: means[name])

  def error(name: str) -> float:
    return (pooled * (1 / len(known[best]) + 1 / len(known[name]))) ** 0.5

  near = [n for n in means if n != best and means[best] - means[n] <= 2 * error(n)]
  tail = (
    f"; no worse within twice the standard error: {', '.join(near)}"
    if near
    else "; all others are worse"
  )
  some = ", of the rows with several seeds" if any(len(lines) == 1 for _, lines in rows) else ""
  deviation = f"Deviation of a seed: {100 * pooled**0.5:.1f}."
  return f"Best on val{some}: {best} ({100 * means[best]:.1f}){tail}. {deviation}"


def reached(rows: Sequence[tuple[Row, list[Line]]]) -> Iterator[str]:
  """Formats the samples to reach an mIoU, one row per size."""
  cells = []
  for row, lines in rows:
    if not lines:
      continue
    needed = [crossing(line["curve"]) for line in lines]
    known = [value / 1000 for value in needed if value is not None]
    text = f"{statistics.mean(known):.0f}" if known else None
    if len(known) > 1:
      text = f"{text} ± {statistics.stdev(known):.0f}"
    if len(known) < len(lines):
      most = max(line["samples"] for line in lines) / 1000
      text = f"{text or 'none'} ({len(lines) - len(known)} of {len(lines)} not within {most:.0f})"
    minutes = statistics.mean(line["core_seconds"] for line in lines) / 60
    cells.append(
      {"width x depth": row.name, "seeds": len(lines)} | _cost(lines)
      | {f"thousand samples to mIoU {REACH}": text, "minutes of one core": f"{minutes:.0f}"}
    )  # fmt: skip
  yield paired.table(cells)


def crossing(curve: Sequence[Sequence[float]], reach: float = REACH) -> float | None:
  """Interpolates the samples at which a curve of (samples, mIoU) first reaches a value, or None."""
  before: Sequence[float] = (0.0, 0.0)
  for point in curve:
    if point[1] >= reach:
      share = (reach - before[1]) / (point[1] - before[1])
      return before[0] + share * (point[0] - before[0])
    before = point
  return None


def by_samples(rows: Sequence[tuple[Row, list[Line]]]) -> Iterator[str]:
  """Formats the mIoU by samples, and a power law through them."""
  cells, points = [], []
  for _, lines in rows:
    if lines:
      values = [line["results"]["val"]["mIoU"] for line in lines]
      points += [(lines[0]["samples"], value) for value in values]
      others = {
        split: spread([line["results"][split]["mIoU"] for line in lines]) for split in SPLITS[1:]
      }
      picked = spread([line["results"]["val"]["selection_accuracy"] for line in lines])
      cells.append(
        {
          "samples": lines[0]["samples"],
          "seeds": len(lines),
          "mIoU, val": spread(values),
          "picks right": picked,
        }
        | others
      )
  yield paired.table(cells)
  if len({samples for samples, _ in points}) > 2:
    exponent, error, at = power_law(points)
    miss = 100 * largest_miss(points, exponent, at)
    yield (
      "\nA power law through all of them: "
      f"1 - mIoU = {at:.3f} (samples / {_UNIT:,})^-{exponent:.2f}, "
      f"with a standard error of the exponent of {error:.2f}; "
      f"a run is off by at most {miss:.1f} points of mIoU."
    )


_UNIT = 48_000


def power_law(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
  """Fits 1 - mIoU = c (samples / 48,000)^-e to the logarithms: e, its standard error, and c."""
  x, y = np.log([[n / _UNIT, 1 - value] for n, value in points]).T
  (slope, offset), covariance = np.polyfit(x, y, 1, cov=True)
  return -float(slope), float(covariance[0, 0] ** 0.5), float(np.exp(offset))


def largest_miss(points: Sequence[tuple[float, float]], exponent: float, at: float) -> float:
  """Returns the largest difference between a point and the law."""
  return max(abs(1 - value - at * (n / _UNIT) ** -exponent) for n, value in points)


def _made(table: str, lines: Sequence[Line]) -> str:
  minutes = sum(line["core_seconds"] for line in lines) / 60
  seeds = 1 + max(line["seed"] for line in lines)
  return (
    f"`python -m benchmarks.ablate --table {table} --seeds {seeds}`; {len(lines)} runs, "
    f"{minutes:.0f} minutes of one core in all, including runs shared with other tables. "
    f"{machines(lines)}."
  )


def machines(lines: Sequence[Line]) -> str:
  """Formats the machines of some runs, each with its first and last day."""
  days: dict[str, set[str]] = {}
  for line in lines:
    machine, _, day = line["machine"].rpartition(", ")
    days.setdefault(machine, set()).add(day)
  return "; ".join(
    f"{machine}, {' to '.join(sorted({min(dates), max(dates)}))}"
    for machine, dates in sorted(days.items())
  )


def beside(before: Line, after: Line) -> str:
  """Formats two lines of the same run side by side, for the tests of both."""
  return paired.table(
    {"": test}
    | {
      f"{name}, {which}": f"{100 * line['results'][test][name]:.2f}"
      for name in ("mIoU", "oIoU", "selection_accuracy")
      for which, line in (("before", before), ("again", after))
    }
    for test in before["results"]
    if test in after["results"]
  )
