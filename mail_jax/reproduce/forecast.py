"""How long a table will take: from the speed of the runs, and the images that need masks."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence

from input_pipeline.common.errors import InputError
from input_pipeline.proposals import propose
from mail_jax.reproduce import timing
from mail_jax.reproduce.budget import Length, describe
from mail_jax.reproduce.raw_files import Contents
from mail_jax.reproduce.runs import Run
from mail_jax.reproduce.stages import Stage, Table, best_step
from mail_jax.reproduce.timing import Speed
from mail_jax.train.length import count_steps

# Seconds that a command takes to import, read a checkpoint and compile.
_START = 30


def make_length(run: Run, contents: Mapping[str, Contents], speed: Speed) -> Length:
  """Returns the length of a run as its recipe has it.

  Raises:
    InputError: the recipe has no length, or several.
  """
  config = run.config
  refs = sum(contents[name].splits["train"].refs for name in run.datasets)
  steps = count_steps(config.steps, config.epochs, refs, config.batch_size)
  if bool(steps) == bool(config.minutes):
    raise InputError(f"--recipe {run.spec}: set one of steps, epochs and minutes, and leave the "
                     "others 0")  # fmt: skip
  if config.minutes:
    return Length(run, 0, 0, config.minutes, config.minutes, 60 * config.minutes)
  judged = _judged(run, contents)
  seconds = steps * speed.step
  seconds += (steps // max(1, config.eval_every) + 1) * judged * speed.expression
  return Length(run, steps, steps, 0.0, 0.0, seconds)


def _judged(run: Run, contents: Mapping[str, Contents]) -> int:
  """Returns the expressions of an evaluation during training."""
  counts = [
    contents[name].splits[split].expressions
    for name in run.datasets
    for split in [run.config.eval_split]
    if split in contents[name].splits
  ]
  limit = run.config.eval_expressions
  return sum(min(limit, count) if limit else count for count in counts)


def time_command(table: Table, run: Run, out: pathlib.Path) -> Stage:
  """Returns the stage that times steps of a run on the devices of the commands."""
  words = [timing.OPTION, str(out), "--config", run.spec, *run.overrides]
  return Stage("timing", table.everywhere("mail_jax.reproduce", *words), out.is_file)


def plan_command(run: Run, topology: str, out: pathlib.Path) -> Stage:
  """Returns the stage that asks the compiler about steps of a run on other devices."""
  words = ["--config", run.spec, *run.overrides, "--topology", topology, "--search", "0"]
  command = (sys.executable, "-m", "mail_jax.plan", *words, "--json", str(out))
  return Stage("plan", command, out.is_file)


@dataclasses.dataclass(frozen=True)
class Line:
  """A row of the forecast: what is left of a kind of work."""

  what: str
  amount: str
  seconds: float | None
  source: str = ""


def left(
  table: Table,
  lengths: Sequence[Length],
  speeds: Mapping[str, Speed],
  contents: Mapping[str, Contents],
  stages: Sequence[Stage],
) -> list[Line]:
  """Returns what is left to do.

  Args:
    table: its parts.
    lengths: of the runs.
    speeds: of the runs, by `timing.key_of` their config.
    contents: of the data sets.
    stages: that are not done.
  """
  names = {stage.name for stage in stages}
  lines = [_proposals(table, contents)] if "propose" in names else []
  prepared = sum(name.startswith("prepare") for name in names)
  if prepared:
    lines.append(Line("records", f"{prepared} data sets", None, "minutes each"))
  trained = [length for length in lengths if f"train {length.run.name}" in names]
  if trained:
    seconds = sum(length.seconds * (1 - _done(table, length)) for length in trained)
    steps = sum(length.steps for length in trained)
    amount = f"{len(trained)} runs" + (f" of {steps:,} steps in all" if steps else "")
    sources = {speeds[timing.key_of(length.run.config)].source for length in trained}
    lines.append(Line("training", amount, seconds, "; ".join(sorted(sources))))
  evaluations, count, seconds = 0, 0, 0.0
  for length in lengths:
    todo = sum(name.startswith(f"evaluate {length.run.name} ") for name in names)
    expressions = todo * sum(contents[name].expressions() for name in length.run.evaluated)
    evaluations, count = evaluations + todo, count + expressions
    seconds += expressions * speeds[timing.key_of(length.run.config)].expression
    seconds += todo * _START
  if evaluations:
    amount = f"{evaluations} evaluations of {count:,} expressions in all"
    lines.append(Line("evaluation", amount, seconds, f"{_START} s to start each"))
  return lines


def _done(table: Table, length: Length) -> float:
  """Returns the share of a run's steps that an earlier start has made."""
  step = best_step(table.run_dir(length.run)) or 0
  return min(1.0, step / length.steps) if length.steps else 0.0


def _proposals(table: Table, contents: Mapping[str, Contents]) -> Line:
  known = [content.image_ids for content in contents.values() if content.image_ids is not None]
  made = propose.images_done(str(table.proposals))
  images = max(0, len(frozenset[int]().union(*known)) - made)
  each = propose.seconds_per_image(str(table.proposals))
  return Line(
    "instance masks",
    f"{images:,} images",
    images * each if each else None,
    f"{each:.3g} s per image, measured" if each else "timed on the first images",
  )


def text(lines: Sequence[Line]) -> str:
  """Formats the forecast."""
  if not lines:
    return "nothing is left to do but the table itself"
  rows = [
    f"  {line.what}: {line.amount}"
    + (f", about {describe(line.seconds)}" if line.seconds is not None else "")
    + (f" ({line.source})" if line.source else "")
    for line in lines
  ]
  known = [line.seconds for line in lines if line.seconds is not None]
  total = f"left to do, about {describe(sum(known))}"
  if len(known) < len(lines):
    total += " without what is not known yet"
  return "\n".join([f"{total}:", *rows])


def read_speed(run: Run, path: pathlib.Path, planned: bool) -> Speed:
  """Returns what `plan_command` or `time_command` found.

  Raises:
    InputError: the step does not fit on the devices.
  """
  try:
    return timing.from_plan(run.config, path) if planned else timing.from_file(run.config, path)
  except (OSError, json.JSONDecodeError) as error:
    raise InputError(f"{path}: the time of a step cannot be read ({error})") from error
