"""Measures which parts of MaIL matter.

Trains the rows of tables, and writes the tables into docs/reports/results.md.

  python -m input_pipeline.prepare --dataset shapes --data_dir data
  python -m benchmarks.ablate --table modality --data_dir data
  python -m benchmarks.ablate --table all --seeds 3 --budget 48000 --data_dir data
  python -m benchmarks.ablate --table all --only_write

Each run uses one core, and there is one run per core at a time. A finished run has a line in
benchmarks/results/ablation.jsonl and is not repeated; an interrupted run is resumed. Rows with the
same overrides share a run. `--again RUN` repeats a run in another folder and compares its line with
the earlier one.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.ablation import documents, figure, runs
from benchmarks.ablation.tables import TABLES
from input_pipeline.common import atomic_files, parallel
from input_pipeline.common.errors import InputError, run_command
from input_pipeline.prepare import command as prepare

# On a CPU; see `make demo`.
_FAST = {
  "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
  "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}
# Other seeds of a row run the same programs.
_COMPILED = "JAX_COMPILATION_CACHE_DIR"
_POLL_SECONDS = 0.5
# After this many failed runs the problem is not one row.
_MAX_FAILED = 3
# In the folder of a run.
LOG, RESULT = "log.txt", "result.json"
RESULTS = pathlib.Path("benchmarks/results/ablation.jsonl")
DOCUMENT = pathlib.Path("docs/reports/results.md")


class Bench:
  """Runs on the cores of this machine."""

  def __init__(self, args: argparse.Namespace):
    """Sets up the runs; the arguments are those of the command."""
    self.args, self.results = args, pathlib.Path(args.results)
    self.compiled = os.path.join(args.workdir, "compiled")
    self.free = sorted(_cores())[: args.jobs or None]
    self.going: dict[int, tuple[runs.Run, subprocess.Popen]] = {}
    self.failed: list[str] = []

  def run(self, queue: Sequence[runs.Run]) -> None:
    """Runs the queue; each run adds its line when it ends.

    Raises:
      InputError: some runs failed. After three failures no more are started.
    """
    waiting, cores = list(reversed(queue)), list(self.free)
    try:
      while True:
        while waiting and cores and len(self.failed) < _MAX_FAILED:
          self._start(waiting.pop(), cores.pop(0))
        if not self.going:
          break
        time.sleep(_POLL_SECONDS)
        cores += list(self._ended())
    finally:
      self._end_all()
    if self.failed:
      raise InputError(f"{len(self.failed)} runs failed; the log of the first is {self.failed[0]}")

  def _start(self, run: runs.Run, core: int) -> None:
    place = self._place(run)
    place.mkdir(parents=True, exist_ok=True)
    words = self._words(run, self.args.data_dir, str(place), str(tests_dir(self.args)))
    # The overrides come last, behind "--".
    split = len(words) - len(run.overrides) - 1
    with (place / LOG).open("ab") as log:
      process = subprocess.Popen(
        [sys.executable, *words[1:split], "--core", str(core), *words[split:]],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        env=os.environ | _FAST | {_COMPILED: self.compiled},
        # Ctrl-C is handled by this process.
        start_new_session=True,
      )  # fmt: skip
    self.going[core] = run, process
    print(f"{run.name}  {_change(run)}", flush=True)

  def _ended(self) -> Iterator[int]:
    """Adds the lines of the runs that ended, and yields the free cores."""
    for core, (run, process) in list(self.going.items()):
      if process.poll() is None:
        continue
      del self.going[core]
      yield core
      place = self._place(run)
      if process.returncode:
        print(f"{run.name}  failed: {place / LOG}", flush=True)
        self.failed.append(str(place / LOG))
        continue
      row = json.loads((place / RESULT).read_text())
      # The command without the paths of this machine.
      command = shlex.join(self._words(run, "data", f"runs/ablate/{run.name}", "runs/ablate/data"))
      runs.add(self.results, {"run": run.name, "command": command, **row})
      judged = {test: found["mIoU"] for test, found in row["results"].items()}
      judged = judged or {f"after {row['samples']:,} samples": row["curve"][-1][1]}
      shown = ", ".join(f"{test} {100 * value:.1f}" for test, value in judged.items())
      print(f"{run.name}  mIoU {shown}; {row['core_seconds'] / 60:.1f} min", flush=True)

  def _place(self, run: runs.Run) -> pathlib.Path:
    return pathlib.Path(self.args.workdir) / run.name

  def _words(self, run: runs.Run, data_dir: str, place: str, tests: str) -> list[str]:
    return [
      "python", "-m", "benchmarks.ablation.one_run", "--config", self.args.config,
      "--data_dir", data_dir, "--workdir", place, "--tests_dir", tests,
      *(["--train_dir", f"{tests}/train-{run.trained}"] if run.trained else []),
      "--tests", *run.tests, *(["--until", str(run.until)] if run.until else []),
      "--out", f"{place}/{RESULT}", "--", *run.overrides,
    ]  # fmt: skip

  def _end_all(self) -> None:
    """Stops the running ones and waits until they have saved; the same command resumes them."""
    for _, process in self.going.values():
      with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    for _, process in self.going.values():
      process.wait()


def _cores() -> set[int]:
  if hasattr(os, "sched_getaffinity"):
    return os.sched_getaffinity(0)
  return set(range(parallel.available_cores()))


def _change(run: runs.Run) -> str:
  return " ".join(word for word in run.overrides if word not in runs.ALWAYS)


def tests_dir(args: argparse.Namespace) -> pathlib.Path:
  """Returns the folder of the data with other detectors' masks, one folder per detector."""
  return pathlib.Path(args.workdir) / "data"


def prepare_tests(args: argparse.Namespace, queue: Sequence[runs.Run]) -> None:
  """Prepares the scenes with the masks of other detectors, unless that is done already."""
  for noise in sorted({test.rpartition("/")[0] for run in queue for test in run.tests} - {""}):
    where = str(tests_dir(args) / noise)
    prepare.main(
      ["--dataset", "shapes", "--data_dir", where, "--train_scenes", "1", "--noise", noise]
    )
  for noise in sorted({run.trained for run in queue} - {""}):
    where = str(tests_dir(args) / f"train-{noise}")
    prepare.main(["--dataset", "shapes", "--data_dir", where, "--noise", noise])


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--table", nargs="+", choices=[*TABLES, "all"], default=["all"])
  parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
  parser.add_argument(
    "--budget",
    type=int,
    default=48_000,
    metavar="SAMPLES",
    help="samples of a run (default: 48000)",
  )
  parser.add_argument(
    "--config", default="demo", metavar="RECIPE", help="recipe that the rows change (default: demo)"
  )
  parser.add_argument("--data_dir", default="data")
  parser.add_argument(
    "--workdir", default="runs/ablate", help="folder of the runs, one folder each"
  )
  parser.add_argument("--jobs", type=int, default=0, help="runs at a time (default: one per core)")
  parser.add_argument("--results", default=str(RESULTS), metavar="FILE.jsonl")
  parser.add_argument("--document", default=str(DOCUMENT), metavar="FILE.md")
  parser.add_argument("--picture", metavar="FILE.svg", help="draw the first table")
  parser.add_argument("--only_write", action="store_true", help="only write the tables")
  parser.add_argument("--again", metavar="RUN", help="repeat a run in another folder and compare")
  return parser


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  args = _parser().parse_args(argv)
  if args.seeds < 1 or args.budget < 1:
    raise InputError("--seeds and --budget: at least 1")
  budget = runs.Budget(args.config, args.budget, args.seeds)
  tables = list(TABLES) if "all" in args.table else list(dict.fromkeys(args.table))
  document = pathlib.Path(args.document)
  # Before hours of training.
  documents.check(document, tables)
  results = pathlib.Path(args.results)
  if args.again:
    _make_again(args, runs.planned(tables, budget), results)
    return
  if not args.only_write:
    done = runs.read(results)
    queue = runs.left(runs.planned(tables, budget), done)
    print(f"{len(queue)} runs to do, {len(done)} are done", flush=True)
    prepare_tests(args, queue)
    Bench(args).run(queue)
  lines = runs.read(results)
  documents.write(document, tables, budget, lines)
  print(f"wrote {document}")
  if args.picture:
    rows = list(runs.of_table(tables[0], budget, lines))
    if not any(found for _, found in rows):
      raise InputError(f"--picture {args.picture}: {results} has no line of {tables[0]}")
    atomic_files.write_whole(
      args.picture, figure.draw(rows, f"{TABLES[tables[0]].title}: mIoU on val, percent")
    )
    print(f"wrote {args.picture}")


def _make_again(
  args: argparse.Namespace, planned: Sequence[runs.Run], results: pathlib.Path
) -> None:
  """Repeats a run and compares its line with the earlier one."""
  known = {run.name: run for run in planned}
  before = runs.read(results)
  if args.again not in known or args.again not in before:
    raise InputError(f"--again {args.again}: no line in {results}, or not a row of --table")
  new = (f"{args.workdir}/again-{number}" for number in itertools.count(1))
  args.workdir = next(place for place in new if not os.path.exists(place))
  args.results = f"{args.workdir}/lines.jsonl"
  prepare_tests(args, [known[args.again]])
  Bench(args).run([known[args.again]])
  after: dict[str, Any] = runs.read(pathlib.Path(args.results))[args.again]
  print(documents.beside(before[args.again], after))


if __name__ == "__main__":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  run_command(main, "ended; the same command goes on from there")
