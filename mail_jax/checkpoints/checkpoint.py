"""Checkpoints: state, data position, config, tokenizer and metrics are one unit."""

import base64
import contextlib
import itertools
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from input_pipeline.common import atomic_files, buckets
from input_pipeline.common.errors import InputError
from mail_jax.checkpoints import manifest, orbax_settings, s3_mirror
from mail_jax.distributed import processes
from mail_jax.models.parameters import Tree

Metrics = dict[str, int | float]
FOLDER = "checkpoints"


class Checkpoints:
  """The checkpoints of a run: the two last ones and the best one are kept.

  A checkpoint appears under its step's name only when it is whole, so a half-written one is never picked. One that was
  damaged later is passed over with a warning. With several processes all of them make the same calls in the same
  order, and come to the same answers.
  """

  def __init__(self, workdir: str, best_metric: str = "mIoU", read_only: bool = False):
    """Opens `workdir/checkpoints`.

    Args:
      workdir: of the run; a folder or an address in a bucket.
      best_metric: name of the metric by which the best checkpoint is kept; more is better. With `read_only` the
        checkpoints say themselves which it is.
      read_only: neither makes, moves nor deletes anything.

    Raises:
      InputError: with `read_only`, no such folder, or no checkpoint in it; else, it cannot be made.
    """
    self._named, self._read_only, self._best_metric = workdir, read_only, best_metric
    self._place = buckets.folder(workdir, self._option) / FOLDER
    if read_only and not self._place.is_dir():
      raise InputError(
        f"--checkpoint {workdir}: there is no {self._place}; give the --workdir of a training run, or a folder that "
        "mail_jax.export wrote"
      )
    self._copy = s3_mirror.Mirror(str(self._place)) if s3_mirror.is_needed(workdir) else None
    self._folder = self._place if self._copy is None else self._copy.local
    self._metrics: dict[int, Metrics] = {}
    self._intact: dict[int, bool] = {}  # of the steps that were looked at
    self._saving = -1
    self._bytes = 0  # of the state that is saved
    orbax_settings.leave_errors_to_us()
    options = ocp.CheckpointManagerOptions(
      preservation_policy=orbax_settings.LastTwoAndBest(self._score),
      # Orbax's own read_only warns twice at every start; without `save` nothing is written anyway.
      create=not read_only,
      cleanup_tmp_directories=not read_only,
      single_host_load_and_broadcast=True,  # processes must not see different lists
      lightweight_initialize=True,
      # Called by the first process when all have written, before the checkpoint gets its name.
      async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
    )
    handlers = {"state": orbax_settings.array_handler(), "meta": ocp.JsonCheckpointHandler()}
    with self._clear_errors(f"{self._place} cannot be used"):
      if self._copy:
        self._copy.list()
      self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)
    if read_only and not self._steps():
      raise InputError(
        f"--checkpoint {workdir}: {self._place} holds no checkpoint; has the training saved one yet?"
      )
    self._read_metrics()

  @property
  def _option(self) -> str:
    return "--checkpoint" if self._read_only else "--workdir"

  def latest(self) -> int | None:
    """Step of the last whole checkpoint; None where there is none at all.

    Newer ones that are damaged are moved aside, to `workdir/damaged-STEP`, unless opened read-only.

    Raises:
      InputError: there are checkpoints, and every one is damaged.
    """
    steps = sorted(self._steps(), reverse=True)
    latest = self._first_whole(steps)
    if steps and latest is None:
      raise InputError(
        f"{self._option} {self._named}: none of its checkpoints is whole (steps {', '.join(map(str, steps))}); "
        "put one back from a copy, or train in another --workdir"
      )
    if latest is not None and not self._read_only:
      self._set_aside(steps[: steps.index(latest)])
    return latest

  def best(self) -> int | None:
    """Step of the best whole checkpoint, the latest of equals; None where none that was evaluated is whole."""
    scored = [(self._score(step), step) for step in self._steps()]
    evaluated = [step for score, step in sorted(scored, reverse=True) if score > -math.inf]
    return self._first_whole(evaluated)

  def select(self, step: str | int) -> int:
    """Returns the step of an intact checkpoint.

    Args:
      step: `best` (the last one if none was evaluated), `last`, or the number of a step.

    Raises:
      InputError: there is no checkpoint of that step, or it is damaged; or all of them are damaged.
    """
    if isinstance(step, int):
      steps = sorted(self._steps())
      if step not in steps or not self._is_intact(step):
        problem = "is damaged" if step in steps else "does not exist"
        raise InputError(
          f"--step {step}: the checkpoint of this step {problem}; {self._place} has the steps "
          f"{', '.join(map(str, steps)) or 'none'}"
        )
      return step
    best = self.best() if step == "best" else None
    latest = self.latest() if best is None else best
    if latest is None:
      raise InputError(f"{self._option} {self._named}: {self._place} has no checkpoint")
    return latest

  def save(self, step: int, state: Tree, meta: dict[str, Any], metrics: Metrics | None) -> None:
    """Saves in the background.

    Where there is a checkpoint of this step already, it stays; if it has no metrics yet, it gets these.

    Raises:
      InputError: this checkpoint, or the one before in the background, cannot be written.
    """
    if step in self._steps():
      if metrics and not self._metrics.get(step):
        self._add_metrics(step, metrics)
      return
    self._metrics[step], self._intact[step], self._saving = metrics or {}, True, step
    self._bytes = sum(x.nbytes for x in jax.tree.leaves(state) if hasattr(x, "nbytes"))
    items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta))
    with self._clear_errors(self._unwritten(step)):
      self._manager.save(step, args=items, force=True)

  def metrics(self, step: int) -> Metrics:
    """The metrics of a checkpoint; empty where it was not evaluated."""
    return self._metrics.get(step, {})

  def meta(self, step: int) -> dict[str, Any]:
    """What was saved beside the state: config, tokenizer, steps."""
    return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

  def restore(self, step: int, abstract: Tree) -> Tree:
    """Restores the part of the state that `abstract` names, onto its shardings.

    Args:
      step: which checkpoint.
      abstract: `jax.ShapeDtypeStruct`s with shardings, in the structure of (a part of) what was saved.
    """
    args = ocp.args.PyTreeRestore(
      item=abstract,
      restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
      partial_restore=True,
    )
    return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

  def close(self) -> None:
    """Waits until everything is written.

    Raises:
      InputError: what was still being written cannot be.
    """
    self._steps()
    self._manager.close()
    if self._copy:
      self._copy.close()

  def _steps(self) -> Sequence[int]:
    """Steps of the checkpoints that are written."""
    with self._clear_errors(self._unwritten(self._saving)):
      self._manager.wait_until_finished()
      steps = [int(step) for step in self._manager.all_steps()]
      if self._copy and self._saving >= 0:
        self._copy.keep(steps)
    return steps

  def _read_metrics(self) -> None:
    """Reads the metrics of all checkpoints; the first process tells the others, so that no two differ."""
    found = [(step, manifest.read_about(self._path(step))) for step in self._steps()]
    for step, about in processes.all_gather_object(found)[0]:
      self._metrics[step] = about.get("metrics", {})
      if self._read_only:
        self._best_metric = about.get("best_metric", self._best_metric)

  def _about(self, step: int) -> dict[str, Any]:
    return {"best_metric": self._best_metric, "metrics": self._metrics[step]}

  def _score(self, step: int) -> float:
    """The best metric of a checkpoint; minus infinity where it was not evaluated."""
    return self._metrics.get(step, {}).get(self._best_metric, -math.inf)

  def _path(self, step: int) -> epath.Path:
    return self._folder / str(step)

  def _write_manifest(self) -> None:
    unnamed = self._folder / f"{self._saving}{ocp.path.step.TMP_DIR_SUFFIX}"
    path = (
      unnamed if unnamed.exists() else self._path(self._saving)
    )  # in a bucket nothing is renamed
    manifest.write(path, self._about(self._saving))
    if self._copy:
      self._copy.push(path, self._saving)

  def _add_metrics(self, step: int, metrics: Metrics) -> None:
    """Completes a checkpoint that was saved before it was evaluated."""
    self._metrics[step] = metrics
    if processes.is_main():
      with self._clear_errors(self._unwritten(step)):
        manifest.replace_about(self._path(step), self._about(step))
        if self._copy:
          self._copy.push_manifest(step)

  def _first_whole(self, steps: Sequence[int]) -> int | None:
    return next((step for step in steps if self._is_intact(step)), None)

  def _is_intact(self, step: int) -> bool:
    """Compares a checkpoint with what was written, once; the processes share the work and its outcome."""
    if step not in self._intact:
      wrong = ""
      try:
        if self._copy:
          self._copy.fetch(step)
        manifest.check(self._path(step), jax.process_index(), jax.process_count())
      except manifest.DamagedError as error:
        wrong = str(error)
      wrong = next(filter(None, processes.all_gather_object(wrong)), "")
      if wrong:
        _warn(f"{self._place / str(step)} is damaged ({wrong}) and is passed over")
      self._intact[step] = not wrong
    return self._intact[step]

  def _set_aside(self, steps: Sequence[int]) -> None:
    """Moves damaged checkpoints to where they do not stand in the way of what is saved next."""
    if not steps:
      return
    if processes.is_main():
      for step in steps:
        target = _free_name(self._place.parent / f"damaged-{step}")
        buckets.rename(self._place / str(step), target)
        if self._copy:
          self._copy.forget(step)
        _warn(f"{self._place / str(step)} was moved to {target}")
    self._manager.reload()
    for step in steps:
      del self._intact[step], self._metrics[step]

  def _unwritten(self, step: int) -> str:
    return f"the checkpoint of step {step} cannot be written to {self._place}"

  @contextlib.contextmanager
  def _clear_errors(self, what: str) -> Iterator[None]:
    """What the storage refuses is told in one line."""
    try:
      yield
    except (OSError, ValueError) as error:
      reason = orbax_settings.storage_error(error)
      if reason is None:
        raise
      if orbax_settings.is_full(error) and self._copy is None:
        self._drop_half_written()
        reason += f": {atomic_files.describe_space(str(self._folder), self._bytes)}"
      raise InputError(
        f"{self._option} {self._named}: {what} ({reason}); when that is mended, the same command goes on from the "
        "last whole checkpoint"
      ) from error

  def _drop_half_written(self) -> None:
    """Gives back what a save that failed has taken."""
    if processes.is_main() and not self._read_only:
      for path in self._folder.glob(f"*{ocp.path.step.TMP_DIR_SUFFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _warn(text: str) -> None:
  if processes.is_main():
    print(f"warning: {text}", file=sys.stderr, flush=True)


def exists(workdir: str) -> bool:
  """Whether a run has saved a checkpoint there; neither makes nor deletes anything."""
  path = buckets.folder(workdir, "--workdir") / FOLDER
  found = path.is_dir() and any(
    (step / manifest.FILE).exists() and ocp.path.step.is_path_finalized(step)
    for step in path.iterdir()
    if step.name.isdigit()
  )
  return processes.all_gather_object(found)[0]


def move_aside(workdir: str) -> str:
  """Renames the folder of a run to WORKDIR.1, .2, ...; nothing is deleted. Returns its new name."""
  path = buckets.folder(workdir, "--workdir")
  target = _free_name(path.with_name(f"{path.name}.1"))
  if processes.is_main():
    buckets.rename(path, target)
  return processes.all_gather_object(str(target))[0]


def _free_name(path: epath.Path) -> epath.Path:
  """The path, or where it is taken the next one that is not: NAME.2 after NAME or NAME.1."""
  stem = path.name.removesuffix(".1")
  later = (path.with_name(f"{stem}.{i}") for i in itertools.count(2))
  return next(p for p in itertools.chain([path], later) if not p.exists())


def abstract_like(tree: Tree, sharding: Tree) -> Tree:
  """Shapes, dtypes and shardings of a tree of arrays or of `jax.eval_shape`'s result."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding
  )


def pack_bytes(data: bytes) -> str:
  """Bytes as text, for the JSON part."""
  return base64.b64encode(data).decode("ascii")


def unpack_bytes(text: str) -> bytes:
  """Undoes `pack_bytes`."""
  return base64.b64decode(text)
