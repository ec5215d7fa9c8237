r"""Checks that a run of hours does not grow: memory, open files, threads, compiled programs.

  python -m benchmarks.soak --data_dir data --workdir runs/soak --minutes 120 \
      --json soak.jsonl --picture soak.svg

Trains like `mail_jax.train` in this process and samples it every few seconds, and after each
checkpoint, when no step is running and the allocated memory is what the run holds (glibc's
`mallinfo2`). The rest of the resident memory varies with the steps. The minutes before `--warm_up`
are drawn but not counted. `--only_draw` draws an existing `--json` again.
"""

import argparse
import ctypes
import dataclasses
import functools
import gc
import json
import os
import pathlib
import re
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import paired, pictures
from input_pipeline.common.errors import InputError, run_command
from mail_jax.checkpoints import checkpoint
from mail_jax.report import charts
from mail_jax.train import command as train

_COMPILED = "/jax/core/compile/backend_compile_duration"
_DRAWN = {"rss_mb": "resident", "held_mb": "held between steps"}


@dataclasses.dataclass
class Watch:
  """Samples this process until it is closed, and writes a JSON line per sample.

  Attributes:
    path: of the lines.
    every: seconds between two samples.
    minutes: after these the process gets SIGTERM, so that training saves and ends.
  """

  path: pathlib.Path
  every: float
  minutes: float

  def __post_init__(self):
    self._began, self._compiled, self._ended = time.monotonic(), 0, threading.Event()
    self._lines, self._lock = self.path.open("w", buffering=1), threading.Lock()
    jax.monitoring.register_event_duration_secs_listener(self._count)
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self) -> "Watch":
    self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._ended.set()
    self._thread.join()
    jax.monitoring.unregister_event_duration_listener(self._count)
    self._lines.close()

  def look(self, **more: float) -> None:
    """Writes a sample."""
    row = {"minutes": (time.monotonic() - self._began) / 60} | process()
    with self._lock:
      self._lines.write(json.dumps(row | {"compiled": self._compiled} | more) + "\n")

  def _count(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
    del duration_secs, kwargs
    self._compiled += event == _COMPILED

  def _watch(self) -> None:
    asked = False
    while not self._ended.wait(self.every):
      self.look()
      if not asked and time.monotonic() - self._began > 60 * self.minutes:
        asked = True
        os.kill(os.getpid(), signal.SIGTERM)


def process() -> dict[str, float | int]:
  """Returns resident memory in MB (2^20 bytes), open files and threads of this process (Linux)."""
  status = pathlib.Path("/proc/self/status").read_text()
  resident = re.search(r"VmRSS:\s+(\d+) kB", status)
  assert resident
  return {
    "rss_mb": int(resident[1]) / 1024,
    "open_files": len(os.listdir("/proc/self/fd")),
    "threads": len(os.listdir("/proc/self/task")),
  }


_COUNTED = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _Mallinfo2(ctypes.Structure):
  _fields_ = [(name, ctypes.c_size_t) for name in _COUNTED.split()]


def allocated_mb() -> float:
  """Returns what is allocated and not freed, in MB, in all arenas (glibc 2.33 or newer)."""
  info = ctypes.CDLL(None).mallinfo2
  info.restype = _Mallinfo2
  usage = info()
  return (usage.uordblks + usage.hblkhd) / 2**20


def look_after_each_checkpoint(watch: Watch) -> None:
  """Samples every run of this process after each checkpoint.

  The state has been fetched then, so no step is running.
  """
  save = checkpoint.Checkpoints.save

  @functools.wraps(save)
  def save_and_look(*args: Any, **kwargs: Any) -> None:
    save(*args, **kwargs)
    gc.collect()
    watch.look(held_mb=allocated_mb())

  checkpoint.Checkpoints.save = save_and_look


def slope(minutes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
  """Fits a line through the means of ten equal parts; returns the growth per hour and its error.

  Consecutive samples are not independent; means over minutes nearly are.
  """
  parts = [part for part in np.array_split(np.array([minutes, values]), 10, axis=1) if part.size]
  hours, means = np.array([part.mean(axis=1) for part in parts]).T
  (growth, _), covariance = np.polyfit(hours / 60, means, 1, cov=True)
  return float(growth), float(np.sqrt(covariance[0, 0]))


def summary(rows: Sequence[dict[str, Any]], warm_up: float) -> list[dict[str, object]]:
  """Returns a row per figure, without the warm-up."""
  result = []
  for name in ("held_mb", "rss_mb", "open_files", "threads", "compiled"):
    samples = [row for row in rows if row["minutes"] >= warm_up and name in row]
    if len(samples) < 20:
      raise InputError(
        f"{len(samples)} samples of {name} after {warm_up:g} minutes are too few; "
        "use a longer --minutes"
      )
    values = [row[name] for row in samples]
    growth, error = slope([row["minutes"] for row in samples], values)
    result.append(
      {
        "": name, "samples": len(samples), "first": values[0], "last": values[-1],
        "least": min(values), "most": max(values),
        "growth per hour": f"{growth:+.2f} ± {error:.2f}",
      }
    )  # fmt: skip
  return result


def _thinned(
  points: Sequence[tuple[float, float]], most: int = 400
) -> Sequence[tuple[float, float]]:
  """Subsamples many points, to keep a picture small."""
  return points[:: -(-len(points) // most)]


def picture(rows: Sequence[dict[str, Any]], warm_up: float) -> str:
  """Draws the memory over time, as a standalone SVG."""
  series = [
    charts.Series(text, _thinned([(row["minutes"], row[name]) for row in rows if name in row]))
    for name, text in _DRAWN.items()
  ]
  x = charts.until(rows[-1]["minutes"], "minutes")
  y = charts.covering([value for line in series for _, value in line.points], "")
  last = ", ".join(f"{line.name} {line.points[-1][1]:.0f} MB" for line in series)
  drawn = charts.lines(
    series, x, y, f"Memory of a run in MB by the minute; at the end: {last}",
    lambda name, x, y: f"{name}: {y:.0f} MB after {x:.0f} min", mark=warm_up,
  )  # fmt: skip
  frame = charts.Frame(x, y)
  names = "".join(
    f'<text class="name end {charts.colour(i)}" x="{frame.at(x.high, 0)[0]:.1f}" '
    f'y="{frame.at(0, max(value for _, value in one.points))[1] - 5:.1f}">{one.name}, MB</text>'
    for i, one in enumerate(series)
  )
  return pictures.standalone(drawn, 800, 500, names)


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="configs/demo.py", metavar="FILE.py[:ARGUMENT]")
  parser.add_argument("--data_dir", default="data")
  parser.add_argument("--workdir", metavar="FOLDER", help="of the run; must not exist")
  parser.add_argument("--minutes", type=float, default=120.0)
  parser.add_argument("--warm_up", type=float, default=10.0, help="minutes before the measurement")
  parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples")
  parser.add_argument("--json", required=True, metavar="FILE", help="one line per sample")
  parser.add_argument("--picture", metavar="FILE.svg")
  parser.add_argument("--only_draw", action="store_true", help="only draw an existing --json")
  args, rest = parser.parse_known_args(argv)
  path = pathlib.Path(args.json)
  if not args.only_draw:
    if not args.workdir or pathlib.Path(args.workdir).exists():
      raise InputError(f"--workdir {args.workdir}: must be a folder that does not exist")
    often = ["--config.eval_every=500", "--config.save_every=100", "--config.steps=1000000000"]
    places = ["--data_dir", args.data_dir, "--workdir", args.workdir]
    with Watch(path, args.every, args.minutes) as watch:
      look_after_each_checkpoint(watch)
      train.main(["--config", args.config, *places, "--config.minutes=0", *often, *rest])
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  print(f"{paired.machine()}\n\n{paired.table(summary(rows, args.warm_up))}")
  if args.picture:
    pathlib.Path(args.picture).write_text(picture(rows, args.warm_up))


if __name__ == "__main__":
  run_command(main)
