"""The commands that make a table, in their order, and which of them are done."""

import dataclasses
import functools
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from input_pipeline import storage
from input_pipeline.common.errors import InputError
from input_pipeline.proposers import mask_recipe
from input_pipeline.sources import refer
from mail_jax.checkpoints import checkpoint
from mail_jax.config import load_config
from mail_jax.reproduce.budget import Length
from mail_jax.reproduce.runs import Run
from mail_jax.sweep import results

PROPOSED, GROUND_TRUTH = "proposed", "ground-truth"
MASKS = (PROPOSED, GROUND_TRUTH)
"""Whose instance masks a model is evaluated on: the proposer's, or COCO's annotations."""
DIRECT = ("coco", "custom", "none", "results")
"""Proposers that read files or nothing: `prepare` runs them itself."""
_COMMAND = "{command}"


@dataclasses.dataclass(frozen=True)
class Stage:
  """A command that is run.

  Attributes:
    name: of the stage and of its log.
    words: of its command line.
    is_done: returns whether its output is complete.
  """

  name: str
  words: tuple[str, ...]
  is_done: Callable[[], bool]

  @property
  def text(self) -> str:
    """The command line, to copy."""
    python = ("python", *self.words[1:])
    return shlex.join(python if self.words[0] == sys.executable else self.words)


@dataclasses.dataclass(frozen=True)
class Table:
  """What a table is made from, and where its parts are.

  Attributes:
    refer_root, images: the raw files.
    annotations: COCO file of the refs' objects; empty for those beside the refs.
    out: folder of the table.
    data_dir: of the records, a folder for each of `masks` in it.
    workdir: of the runs, a folder each.
    instances: the proposer.
    trained_on: what it was trained on; empty for its own word.
    rank: order of its masks.
    max_instances: masks per image.
    masks: of MASKS.
    protocols: of `protocols.PROTOCOLS`.
    launch: what starts a command on all hosts; empty for this one alone.
  """

  refer_root: str
  images: str
  out: pathlib.Path
  data_dir: str
  workdir: str
  instances: str
  trained_on: str
  rank: str
  max_instances: int
  masks: tuple[str, ...]
  protocols: tuple[str, ...]
  annotations: str = ""
  launch: str = ""

  @property
  def proposals(self) -> pathlib.Path:
    """The file with the proposer's masks."""
    return self.out / "proposals.json"

  @property
  def proposes(self) -> bool:
    """Whether the proposer runs once for all data sets, before they are prepared."""
    return self.instances.partition(":")[0] not in DIRECT

  def records(self, masks: str) -> str:
    """Returns the folder of the records with these masks."""
    return os.path.join(self.data_dir, masks)

  def run_dir(self, run: Run) -> str:
    """Returns the folder of a run."""
    return os.path.join(self.workdir, run.name)

  def metrics(self, length: Length, masks: str, protocol: str) -> pathlib.Path:
    """Returns the file of metrics; the rows per expression are beside it, as `.jsonl`."""
    return self.out / "metrics" / length.run.name / masks / f"{protocol}.json"

  def everywhere(self, module: str, *words: str) -> tuple[str, ...]:
    """Returns the command line that runs a module on all hosts."""
    command = [sys.executable, "-m", module, *words]
    if not self.launch:
      return tuple(command)
    parts = shlex.split(self.launch)
    if any(_COMMAND in part for part in parts):
      return tuple(part.replace(_COMMAND, shlex.join(command)) for part in parts)
    return (*parts, *command)


def data_sets(runs: Sequence[Run]) -> list[str]:
  """Returns the data sets that runs are trained or evaluated on."""
  return list(dict.fromkeys(name for run in runs for name in (*run.datasets, *run.evaluated)))


def propose(table: Table, names: Sequence[str], limit: int = 0) -> Stage:
  """Returns the stage that runs the proposer on the images of data sets."""
  words = [word for name in names for word in ("--dataset", name)]
  words += ["--refer_root", table.refer_root, "--images", table.images]
  words += _annotations(table)
  words += ["--instances", table.instances, "--out", str(table.proposals)]
  words += ["--max_instances", str(table.max_instances), "--rank", table.rank]
  words += ["--limit", str(limit)] if limit else []
  command = (sys.executable, "-m", "input_pipeline.proposals", "propose", *words)
  return Stage("propose", command, lambda: _is_proposed(table, names))


def _annotations(table: Table) -> list[str]:
  return ["--annotations", table.annotations] if table.annotations else []


def _is_proposed(table: Table, names: Sequence[str]) -> bool:
  if all(_is_prepared(table, PROPOSED, name) for name in names):
    return True
  about = mask_recipe.read_about(str(table.proposals))
  return about is not None and {*names} <= {*about["datasets"]}


def prepare(table: Table, masks: str, name: str) -> Stage:
  """Returns the stage that makes the records of a data set with these masks."""
  words = ["--dataset", name, "--refer_root", table.refer_root, "--images", table.images]
  words += ["--data_dir", table.records(masks), "--max_instances", str(table.max_instances)]
  words += _annotations(table)
  if masks == GROUND_TRUTH:
    beside = os.path.join(table.refer_root, refer.LAYOUTS[name].folder, "instances.json")
    words += ["--instances", f"coco:{table.annotations or beside}"]
  elif table.proposes:
    words += ["--instances", f"results:{table.proposals}", "--rank", "given", "--allow_empty"]
  else:
    words += ["--instances", table.instances, "--rank", table.rank]
  if masks == PROPOSED and table.trained_on:
    words += ["--trained_on", table.trained_on]
  command = (sys.executable, "-m", "input_pipeline.prepare", *words)
  return Stage(
    f"prepare {masks}/{name}", command, functools.partial(_is_prepared, table, masks, name)
  )


def _is_prepared(table: Table, masks: str, name: str) -> bool:
  return storage.read_metadata(table.records(masks), name) is not None


def train(table: Table, length: Length) -> Stage:
  """Returns the stage that trains a run."""
  run = length.run
  words = ["--config", run.spec, *run.overrides, *length.overrides]
  words += ["--data_dir", table.records(PROPOSED), "--workdir", table.run_dir(length.run)]
  return Stage(
    f"train {run.name}",
    table.everywhere("mail_jax.train", *words),
    functools.partial(results.is_finished, table.run_dir(length.run), config_of(length)),
  )


def evaluate(table: Table, length: Length, masks: str, protocol: str) -> Stage:
  """Returns the stage that evaluates a run by a protocol."""
  path = table.metrics(length, masks, protocol)
  words = ["--checkpoint", table.run_dir(length.run), "--data_dir", table.records(masks)]
  words += [word for name in length.run.evaluated for word in ("--data", name)]
  words += ["--protocol", protocol, "--json", str(path)]
  words += ["--per_expression", str(path.with_suffix(".jsonl"))]
  return Stage(
    f"evaluate {length.run.name} {masks} {protocol}",
    table.everywhere("mail_jax.evaluate", *words),
    lambda: _is_evaluated(path, table.run_dir(length.run), length),
  )


def _is_evaluated(path: pathlib.Path, workdir: str, length: Length) -> bool:
  """Returns whether a file has metrics of the run's best checkpoint, on all of its data sets."""
  # `evaluate` writes the rows first.
  if not path.is_file() or not path.with_suffix(".jsonl").is_file():
    return False
  metrics, step = json.loads(path.read_text()), best_step(workdir)
  names = {name.partition("/")[0] for name in metrics}
  return names >= {*length.run.evaluated} and all(of["step"] == step for of in metrics.values())


@functools.cache
def best_step(workdir: str) -> int | None:
  """Returns the step that `evaluate` takes; None if the run has none.

  The answer is kept, since all files of a checkpoint are verified; clear it after a training.
  """
  if not checkpoint.exists(workdir):
    return None
  checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
  try:
    return checkpoints.select("best")
  finally:
    checkpoints.close()


def make(table: Table, lengths: Sequence[Length]) -> list[Stage]:
  """Returns all stages in their order: what can fail for want of files comes first."""
  names = data_sets([length.run for length in lengths])
  stages = [propose(table, names)] if table.proposes else []
  stages += [prepare(table, masks, name) for masks in _needed(table) for name in names]
  for length in lengths:
    stages.append(train(table, length))
    stages += [evaluate(table, length, *key) for key in evaluations(table)]
  return stages


def evaluations(table: Table) -> list[tuple[str, str]]:
  """Returns the kinds of masks and protocols that every run is evaluated with."""
  return [(masks, protocol) for masks in table.masks for protocol in table.protocols]


def _needed(table: Table) -> list[str]:
  # Models are trained on the proposer's masks.
  return [PROPOSED, *(masks for masks in table.masks if masks != PROPOSED)]


def config_of(length: Length) -> ConfigDict:
  """Returns the config that a run is trained with."""
  return load_config(length.run.spec, [*length.run.overrides, *length.overrides])


def parse_list(text: str, known: Sequence[str], option: str) -> tuple[str, ...]:
  """Returns the words of a comma-separated option.

  Raises:
    InputError: an unknown word.
  """
  words = tuple(word.strip() for word in text.split(","))
  for word in words:
    if word not in known:
      raise InputError(f"{option} {word}: write some of {', '.join(known)}, with commas")
  return tuple(dict.fromkeys(words))
