r"""Trains a recipe once for each combination of some settings, and compares the runs in a table:

python -m mail_jax.sweep --config demo --data_dir data --workdir runs/sweep \
    --set optimizer.lr=5e-4,1e-3 --set seed=0,1,2 --compare

Each run is a `train` of its own, in a folder of --workdir. Run the same command again after an
interruption or with more values: finished runs are kept, the others are resumed.
"""

import argparse
import json
import pathlib
import subprocess
import time
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from input_pipeline import mixture
from input_pipeline.common import atomic_files, buckets
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import announce
from mail_jax.config import add_config_argument, load_config
from mail_jax.evaluate import compare, per_expression
from mail_jax.sweep import grid, jobs, results
from mail_jax.sweep.grid import Trial

_POLL_SECONDS = 0.2
# Seconds between lines on how far the runs are: they take hours.
_LINE_INTERVAL = 300.0


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  args, overrides = _parse(argv)
  trials = grid.make(args.set)
  # Before hours of training.
  configs = {trial: load_config(args.config, [*overrides, *trial.overrides]) for trial in trials}
  if args.compare and len({trial.setting for trial in trials}) < 2:
    raise InputError("--compare: needs two settings that differ in more than the seed")
  place = _make_folder(args.workdir)
  queue = [t for t in trials if not results.is_finished(place / t.name, configs[t])]
  print(f"{len(queue)} runs to do, {len(trials) - len(queue)} are finished", flush=True)
  failed = _Runs(args, overrides, place).run(queue, configs)
  found = [results.read(trial, place / trial.name, configs[trial]) for trial in trials]
  found = [result for result in found if result]
  if found:
    config = configs[trials[0]]
    print(results.text(found, config.best_metric, _evaluated(config)))
    lines = [json.dumps(row) + "\n" for row in results.to_rows(found)]
    atomic_files.write_whole(str(place / "sweep.jsonl"), "".join(lines))
    print(f"wrote {place / 'sweep.jsonl'}")
  if failed:
    raise InputError(f"{len(failed)} of {len(trials)} runs failed, the first: {failed[0]}")
  if args.compare:
    _compare(args, place, [group[0] for group in results.by_setting(found)], configs)


def _parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
  parser = command_parser("mail_jax.sweep", __doc__)
  add_config_argument(parser)
  parser.add_argument("--data_dir", required=True, help="folder that input_pipeline.prepare wrote")
  parser.add_argument("--workdir", required=True, help="folder of the runs, one folder each")
  parser.add_argument(
    "--set",
    action="append",
    required=True,
    metavar="KEY=A,B",
    help="a key of the config and its values; repeatable: every combination is a run",
  )
  parser.add_argument(
    "--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)"
  )
  parser.add_argument(
    "--compare",
    action="store_true",
    help="evaluate the best runs of the two best settings, and show where they differ",
  )
  parser.add_argument(
    "--data",
    metavar="DATASET/SPLIT",
    help="for --compare (default: the split that runs are evaluated on during training)",
  )
  args, rest = parser.parse_known_args(argv)
  for extra in rest:
    if not extra.startswith("--config."):
      parser.error(f"unrecognized argument: {extra}")
  if args.jobs < 1:
    raise InputError(f"--jobs {args.jobs}: at least 1")
  return args, rest


def _make_folder(workdir: str) -> pathlib.Path:
  if buckets.is_remote(workdir):
    raise InputError(f"--workdir {workdir}: must be a folder on this machine")
  place = pathlib.Path(workdir)
  if (place / "checkpoints").exists():
    raise InputError(f"--workdir {workdir}: holds a run; a sweep needs a folder of its own")
  try:
    place.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f"--workdir {workdir}: cannot write there ({error.strerror})") from error
  return place


class _Runs:
  """Runs that are processes of their own."""

  def __init__(self, args: argparse.Namespace, overrides: Sequence[str], place: pathlib.Path):
    self.args, self.overrides, self.place = args, overrides, place
    self.going: dict[Trial, subprocess.Popen] = {}

  def run(self, queue: Sequence[Trial], configs: dict[Trial, ConfigDict]) -> list[str]:
    """Runs the queue; returns what went wrong. If the first run fails, no other is started."""
    waiting, failed, done = list(reversed(queue)), [], 0
    with jobs.end_on_sigterm(), announce(self._how_far, every=_LINE_INTERVAL):
      try:
        while self.going or (waiting and (done or not failed)):
          while waiting and len(self.going) < self.args.jobs and (done or not failed):
            self._start(waiting.pop())
          for trial, code in self._ended():
            if code:
              failed.append(f"{self._log(trial)}: {jobs.last_line(self._log(trial))}")
            done += not code
            found = results.read(trial, self.place / trial.name, configs[trial])
            score = f"{configs[trial].best_metric} {100 * found.score:.2f}" if found else "no score"
            print(f"{trial.name}  {'failed' if code else score}", flush=True)
          time.sleep(_POLL_SECONDS)
      finally:
        self._end_all()
    return failed

  def _how_far(self) -> str:
    return "; ".join(f"{trial.name}: {jobs.last_line(self._log(trial))}" for trial in [*self.going])

  def _start(self, trial: Trial) -> None:
    words = ["--config", self.args.config, *self.overrides, *trial.overrides]
    words += ["--data_dir", self.args.data_dir, "--workdir", str(self.place / trial.name)]
    # What was evaluated is an earlier checkpoint's.
    self._rows(trial).unlink(missing_ok=True)
    print(f"{trial.name}  started", flush=True)
    self.going[trial] = jobs.start("mail_jax.train", words, self._log(trial), self.place)

  def _ended(self) -> Iterator[tuple[Trial, int]]:
    for trial, process in list(self.going.items()):
      if process.poll() is not None:
        del self.going[trial]
        yield trial, process.returncode

  def _log(self, trial: Trial) -> pathlib.Path:
    return self.place / f"{trial.name}.log"

  def _rows(self, trial: Trial) -> pathlib.Path:
    return rows_of(self.place, trial)

  def _end_all(self) -> None:
    """Asks the running ones to save, and waits for them."""
    jobs.end(list(self.going.values()))


def rows_of(place: pathlib.Path, trial: Trial) -> pathlib.Path:
  """Returns the file of a run's rows per expression."""
  return place / f"{trial.name}.jsonl"


def _evaluated(config: ConfigDict) -> list[str]:
  return list(mixture.evaluated(config.dataset, config.eval_split).values())


def _compare(
  args: argparse.Namespace,
  place: pathlib.Path,
  best: Sequence[results.Result],
  configs: dict[Trial, ConfigDict],
) -> None:
  """Compares the best run of the best setting with that of the next one, on every expression."""
  if len(best) < 2:
    raise InputError("--compare: fewer than two settings were evaluated; is eval_every too large?")
  trials = [result.trial for result in best[1::-1]]
  files = [rows_of(place, trial) for trial in trials]
  for trial, rows in zip(trials, files, strict=True):
    if rows.is_file():
      continue
    config, log = configs[trial], place / f"{trial.name}.log"
    words = ["--checkpoint", str(place / trial.name), "--data_dir", args.data_dir]
    words += [f"--data={name}" for name in ([args.data] if args.data else _evaluated(config))]
    process = jobs.start("mail_jax.evaluate", [*words, "--per_expression", str(rows)], log, place)
    try:
      if process.wait():
        raise InputError(f"--compare: {log}: {jobs.last_line(log)}")
    except KeyboardInterrupt:
      process.terminate()
      raise
  names = (trials[0].name, trials[1].name)
  first, second = (per_expression.read(str(rows)) for rows in files)
  print(compare.text(compare.report(first, second, names)))
