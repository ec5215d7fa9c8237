"""What a run wrote down as it trained: `metrics.jsonl`, as curves."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.common import buckets
from input_pipeline.common.errors import InputError

FILE = "metrics.jsonl"
POINTS = 160
"""A curve has no more: what is between two of them cannot be seen."""

Curve = list[tuple[float, float]]


def read(workdir: str) -> list[dict[str, Any]] | None:
  """Returns the rows of a run's log; None where there is none, as beside an exported model.

  A last line without its end is passed over: the run was stopped, or is writing it.

  Raises:
    InputError: the file cannot be read, or a line of it is no row.
  """
  path = buckets.folder(workdir, "W") / FILE
  try:
    if not path.exists():
      return None
    text = path.read_text()
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path} cannot be read: {error}") from error
  *whole, _ = text.split("\n")
  return [_row(f"{path}, line {number}", line) for number, line in enumerate(whole, 1)]


def _row(where: str, line: str) -> dict[str, Any]:
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise InputError(
      f"{where}: {error}; remove the line, or the file to do without curves"
    ) from error
  step = row.get("step") if isinstance(row, dict) else None
  if type(step) is not int:
    raise InputError(
      f"{where}: no row of a training log, which has a whole number as its step; remove the line"
    )
  return row


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
  """Returns (step, value) of every number in a log, by its name, in the order of steps, thinned to POINTS.

  What is not finite is left out.
  """
  found: dict[str, Curve] = {}
  for row in sorted(rows, key=lambda row: row["step"]):
    for name, value in row.items():
      if name != "step" and type(value) in (int, float) and math.isfinite(value):
        found.setdefault(name, []).append((float(row["step"]), float(value)))
  return {name: thin(curve) for name, curve in found.items()}


def thin(curve: Curve, points: int = POINTS) -> Curve:
  """Returns a curve of so many points at most: each the mean of as many that follow each other, but for the ends.

  The first and the last point stay as they are.
  """
  if len(curve) <= points:
    return curve
  inner, parts = curve[1:-1], points - 2
  thinned = [curve[0]]
  for part in range(parts):
    few = inner[part * len(inner) // parts : (part + 1) * len(inner) // parts]
    thinned.append(
      (math.fsum(x for x, _ in few) / len(few), math.fsum(y for _, y in few) / len(few))
    )
  return [*thinned, curve[-1]]


def time_spent(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Returns the seconds that the last start of a run spent on each phase, the longest first; empty if none is known."""
  logged = [row["seconds"] for row in rows if isinstance(row.get("seconds"), dict)]
  return dict(sorted(logged[-1].items(), key=lambda item: -item[1])) if logged else {}
