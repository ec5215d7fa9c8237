"""Comparisons within one run: turns, the machine, and tables.

The contestants take turns (A B A B ...), so that other load on the machine affects all of them
equally.
"""

import importlib.metadata
import json
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from input_pipeline.common import parallel

# Packages whose versions describe the machine, if they are imported.
_PACKAGES = {
  "jax": "jax",
  "tensorflow": "tensorflow",
  "torch": "torch",
  "transformers": "transformers",
  "cv2": "opencv-python-headless",
  "numpy": "numpy",
  "PIL": "pillow",
  "pycocotools": "pycocotools",
}


def machine() -> str:
  """Describes the machine: processor, cores, accelerator (if JAX is imported), versions, date."""
  cores = parallel.available_cores()
  parts = [f"{_processor()}, {cores} core{'s' if cores > 1 else ''}"]
  if "jax" in sys.modules and (jax := sys.modules["jax"]).default_backend() != "cpu":
    parts.append(f"{jax.device_count()} x {jax.devices()[0].device_kind}")
  parts.append(f"Python {platform.python_version()}")
  parts += [
    f"{package} {version}"
    for module, package in _PACKAGES.items()
    if module in sys.modules and (version := _version(module, package))
  ]
  return ", ".join([*parts, datetime.now(UTC).date().isoformat()])


def _processor() -> str:
  try:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()


def _version(module: str, package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return str(getattr(sys.modules[module], "__version__", ""))


def interleave(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
  """Calls each in turn, `rounds` times, and returns the results of each."""
  results: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      results[name].append(run())
  return results


def seconds(run: Callable[[], object]) -> float:
  """Returns the wall time of one call."""
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
  """Returns the median of ours divided by theirs, round by round."""
  return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def table(rows: Iterable[Mapping[str, object]]) -> str:
  """Formats rows as a markdown table; numbers are right-aligned, None is a dash."""
  rows = list(rows)
  columns = list(rows[0])
  numbers = [any(isinstance(row[column], int | float) for row in rows) for column in columns]
  lines = [columns, ["---:" if number else "---" for number in numbers]]
  lines += [[_cell(row[column]) for column in columns] for row in rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
  if value is None:
    return "-"
  if isinstance(value, float):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
  return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def write_json(path: str | None, record: Mapping[str, Any]) -> None:
  """Writes a record with the machine's line added; does nothing without a path."""
  if path:
    text = json.dumps({"machine": machine(), **record}, indent=2)
    pathlib.Path(path).write_text(text + "\n", encoding="utf-8")
