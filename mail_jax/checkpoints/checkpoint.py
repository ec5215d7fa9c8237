"""Checkpoints: state, data position, config, tokenizer and metrics, saved as one unit."""

import base64
import contextlib
import itertools
import json
import logging
import math
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from input_pipeline import image_hashes
from input_pipeline.common import atomic_files, buckets
from input_pipeline.common.errors import InputError
from input_pipeline.image_hashes import ImageSet
from mail_jax.checkpoints import manifest, s3_mirror
from mail_jax.distributed import processes
from mail_jax.models.build import Tree

# Smallest part of an array, in bytes, that one of several machines writes.
_MIN_SLICE_BYTES = 2**20
Metrics = dict[str, int | float]
FOLDER = "checkpoints"


class Checkpoints:
  """The checkpoints of a run, of which the last two and the best one are kept.

  A checkpoint gets the name of its step only when it is complete, so a partial one is never
  selected. One that was damaged later is skipped with a warning. With several processes all of
  them must make the same calls in the same order; all get the same results.
  """

  def __init__(
    self, workdir: str, best_metric: str = "mIoU", read_only: bool = False, judged_on: str = ""
  ):
    """Opens `workdir/checkpoints`.

    Args:
      workdir: of the run; a folder or an address in a bucket.
      best_metric: name of the metric that decides which checkpoint is the best; higher is better.
        With `read_only` the name stored with the checkpoints is used.
      read_only: creates, moves and deletes nothing.
      judged_on: what evaluations are made on; metrics on something else do not count for the best.
        With `read_only` that of the last checkpoint is used.

    Raises:
      InputError: with `read_only`, no such folder or no checkpoint in it; otherwise, the folder
        cannot be created.
    """
    self._workdir, self._read_only, self._best_metric = workdir, read_only, best_metric
    self._place = buckets.folder(workdir, self._option) / FOLDER
    if read_only and not self._place.is_dir():
      raise InputError(
        f"--checkpoint {workdir}: there is no {self._place}; give the --workdir of a run, or an "
        "exported folder"
      )
    self._mirror = s3_mirror.S3Mirror(str(self._place)) if s3_mirror.is_needed(workdir) else None
    self._folder = self._place if self._mirror is None else self._mirror.local
    self._metrics: dict[int, Metrics] = {}
    self._judged_on, self._judged = judged_on, {}
    # Of the steps that were checked.
    self._intact: dict[int, bool] = {}
    # The step that is being saved, and the size of its state.
    self._saving, self._bytes = -1, 0
    silence_tracebacks()
    options = ocp.CheckpointManagerOptions(
      preservation_policy=LastTwoAndBest(self._score),
      # Not Orbax's read_only, which warns twice at every start; without `save` nothing is written.
      create=not read_only,
      cleanup_tmp_directories=not read_only,
      # Processes must not see different lists.
      single_host_load_and_broadcast=True,
      lightweight_initialize=True,
      # Process 0 calls it when all have written, before the checkpoint gets its name.
      async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
    )
    handlers = {"state": array_handler(), "meta": ocp.JsonCheckpointHandler()}
    with self._storage_errors(f"{self._place} cannot be used"):
      if self._mirror:
        self._mirror.list()
      self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)
    if read_only and not self._steps():
      raise InputError(
        f"--checkpoint {workdir}: {self._place} has no checkpoint; has the run saved one yet?"
      )
    self._read_metrics()

  @property
  def _option(self) -> str:
    return "--checkpoint" if self._read_only else "--workdir"

  def latest(self) -> int | None:
    """Returns the step of the last intact checkpoint, or None if there are no checkpoints.

    Newer ones, which are damaged, are moved to `workdir/damaged-STEP`, unless opened read-only.

    Raises:
      InputError: all checkpoints are damaged.
    """
    steps = sorted(self._steps(), reverse=True)
    latest = self._first_intact(steps)
    if steps and latest is None:
      raise InputError(
        f"{self._option} {self._workdir}: all checkpoints are damaged (steps "
        f"{', '.join(map(str, steps))}); restore one from a backup, or train in another --workdir"
      )
    if latest is not None and not self._read_only:
      self._move_aside(steps[: steps.index(latest)])
    return latest

  def best(self) -> int | None:
    """Returns the step of the best intact checkpoint, the latest if several are equally good.

    None if no intact checkpoint was evaluated.
    """
    scored = [(self._score(step), step) for step in self._steps()]
    evaluated = [step for score, step in sorted(scored, reverse=True) if score > -math.inf]
    return self._first_intact(evaluated)

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
      raise InputError(f"{self._option} {self._workdir}: {self._place} has no checkpoint")
    return latest

  def save(self, step: int, state: Tree, meta: dict[str, Any], metrics: Metrics | None) -> None:
    """Saves a checkpoint in the background.

    A checkpoint of this step that exists already is kept; if it has no metrics, these are added.

    Raises:
      InputError: this checkpoint, or the previous one in the background, cannot be written.
    """
    if step in self._steps():
      if metrics and not self._metrics.get(step):
        self._add_metrics(step, metrics)
      return
    self._metrics[step], self._intact[step], self._saving = metrics or {}, True, step
    self._judged[step] = self._judged_on
    self._bytes = sum(x.nbytes for x in jax.tree.leaves(state) if hasattr(x, "nbytes"))
    items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta))
    with self._storage_errors(self._unwritten(step)):
      self._manager.save(step, args=items, force=True)

  def metrics(self, step: int) -> Metrics:
    """Returns the metrics of a checkpoint; empty if it was not evaluated."""
    return self._metrics.get(step, {})

  def meta(self, step: int) -> dict[str, Any]:
    """Returns what was saved with the state: config, tokenizer, steps."""
    return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

  def restore(self, step: int, abstract: Tree) -> Tree:
    """Restores the state, or a part of it.

    Args:
      step: which checkpoint.
      abstract: a tree of `jax.ShapeDtypeStruct` with shardings, in the structure of the state or of
        a part of it.
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
      InputError: the checkpoint that was being saved cannot be written.
    """
    self._steps()
    self._manager.close()
    if self._mirror:
      self._mirror.close()

  def _steps(self) -> Sequence[int]:
    """Returns the steps of all checkpoints after waiting for the one being saved."""
    with self._storage_errors(self._unwritten(self._saving)):
      self._manager.wait_until_finished()
      steps = [int(step) for step in self._manager.all_steps()]
      if self._mirror and self._saving >= 0:
        self._mirror.keep(steps)
    return steps

  def _read_metrics(self) -> None:
    """Reads the metrics of all checkpoints on process 0 and shares them, so that all agree."""
    read = [(step, manifest.read_about(self._path(step))) for step in sorted(self._steps())]
    for step, about in processes.all_gather_object(read)[0]:
      self._metrics[step] = about.get("metrics", {})
      self._judged[step] = about.get("judged_on", self._judged_on)
      if self._read_only:
        self._best_metric = about.get("best_metric", self._best_metric)
        self._judged_on = about.get("judged_on", self._judged_on)

  def _about(self, step: int) -> dict[str, Any]:
    metrics, judged_on = self._metrics[step], self._judged[step]
    return {"best_metric": self._best_metric, "judged_on": judged_on, "metrics": metrics}

  def _score(self, step: int) -> float:
    """Returns a checkpoint's value of the best metric; minus infinity if it was not evaluated."""
    if self._judged.get(step) != self._judged_on:
      return -math.inf
    return self._metrics.get(step, {}).get(self._best_metric, -math.inf)

  def _path(self, step: int) -> epath.Path:
    return self._folder / str(step)

  def _write_manifest(self) -> None:
    temporary = self._folder / f"{self._saving}{ocp.path.step.TMP_DIR_SUFFIX}"
    # In a bucket nothing is renamed.
    path = temporary if temporary.exists() else self._path(self._saving)
    manifest.write(path, self._about(self._saving))
    if self._mirror:
      self._mirror.push(path, self._saving)

  def _add_metrics(self, step: int, metrics: Metrics) -> None:
    """Adds metrics to a checkpoint that was saved before it was evaluated."""
    self._metrics[step], self._judged[step] = metrics, self._judged_on
    if processes.is_main():
      with self._storage_errors(self._unwritten(step)):
        manifest.replace_about(self._path(step), self._about(step))
        if self._mirror:
          self._mirror.push_manifest(step)

  def _first_intact(self, steps: Sequence[int]) -> int | None:
    return next((step for step in steps if self._is_intact(step)), None)

  def _is_intact(self, step: int) -> bool:
    """Checks the files of a checkpoint, once; the processes share the work and the result."""
    if step not in self._intact:
      problem = ""
      try:
        if self._mirror:
          self._mirror.fetch(step)
        manifest.check(self._path(step), jax.process_index(), jax.process_count())
      except manifest.DamagedError as error:
        problem = str(error)
      problem = next(filter(None, processes.all_gather_object(problem)), "")
      if problem:
        _warn(f"{self._place / str(step)} is damaged ({problem}); skipping it")
      self._intact[step] = not problem
    return self._intact[step]

  def _move_aside(self, steps: Sequence[int]) -> None:
    """Moves damaged checkpoints away, so that their steps can be saved again."""
    if not steps:
      return
    if processes.is_main():
      for step in steps:
        target = _free_name(self._place.parent / f"damaged-{step}")
        buckets.rename(self._place / str(step), target)
        if self._mirror:
          self._mirror.forget(step)
        _warn(f"moved {self._place / str(step)} to {target}")
    self._manager.reload()
    for step in steps:
      del self._intact[step], self._metrics[step]

  def _unwritten(self, step: int) -> str:
    return f"the checkpoint of step {step} cannot be written to {self._place}"

  @contextlib.contextmanager
  def _storage_errors(self, problem: str) -> Iterator[None]:
    """Turns errors of the storage into an `InputError` of one line."""
    try:
      yield
    except (OSError, ValueError) as error:
      reason = storage_error(error)
      if reason is None:
        raise
      if is_full(error) and self._mirror is None:
        self._delete_partial()
        reason += f": {atomic_files.describe_space(str(self._folder), self._bytes)}"
      raise InputError(
        f"{self._option} {self._workdir}: {problem} ({reason}); fix this and run the same command "
        "again to resume from the last intact checkpoint"
      ) from error

  def _delete_partial(self) -> None:
    """Frees the space of a save that failed."""
    if processes.is_main() and not self._read_only:
      for path in self._folder.glob(f"*{ocp.path.step.TMP_DIR_SUFFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _warn(text: str) -> None:
  if processes.is_main():
    print(f"warning: {text}", file=sys.stderr, flush=True)


def exists(workdir: str) -> bool:
  """Returns whether a run has saved a checkpoint there; creates and deletes nothing."""
  path = buckets.folder(workdir, "--workdir") / FOLDER
  saved = path.is_dir() and any(
    (step / manifest.FILE).exists() and ocp.path.step.is_path_finalized(step)
    for step in path.iterdir()
    if step.name.isdigit()
  )
  return processes.all_gather_object(saved)[0]


def read_tokenizer(workdir: str) -> bytes | None:
  """Returns the serialised tokenizer of the run in a workdir, without checking the checkpoint.

  None without a run there, or without a readable checkpoint.
  """
  found = None
  if processes.is_main():
    path = buckets.folder(workdir, "--workdir") / FOLDER
    steps = [step for step in path.iterdir() if step.name.isdigit()] if path.is_dir() else []
    for step in sorted(steps, key=lambda step: -int(step.name)):
      with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = found or json.loads((step / "meta" / "metadata").read_text())["tokenizer"]
  found = processes.all_gather_object(found)[0]
  return unpack_bytes(found) if isinstance(found, str) else None


def move_aside(workdir: str) -> str:
  """Renames the folder of a run to WORKDIR.1, .2, ..., and returns the new name."""
  path = buckets.folder(workdir, "--workdir")
  target = _free_name(path.with_name(f"{path.name}.1"))
  if processes.is_main():
    buckets.rename(path, target)
  return processes.all_gather_object(str(target))[0]


def _free_name(path: epath.Path) -> epath.Path:
  """Returns the path, or the next free one if it is taken: NAME.2 after NAME or NAME.1."""
  stem = path.name.removesuffix(".1")
  later = (path.with_name(f"{stem}.{i}") for i in itertools.count(2))
  return next(p for p in itertools.chain([path], later) if not p.exists())


def pack_bytes(data: bytes) -> str:
  """Encodes bytes as text, for JSON."""
  return base64.b64encode(data).decode("ascii")


def unpack_bytes(text: str) -> bytes:
  """Undoes `pack_bytes`."""
  return base64.b64decode(text)


def pack_images(images: Mapping[str, ImageSet] | None) -> str | None:
  """Encodes hashes of the images that a model was trained on, for `meta`."""
  return None if images is None else pack_bytes(image_hashes.to_bytes(images))


def read_images(meta: Mapping[str, Any]) -> dict[str, ImageSet] | None:
  """Returns hashes of the images that a model was trained on; None if they are unknown."""
  packed = meta.get("images")
  return None if packed is None else image_hashes.from_bytes(unpack_bytes(packed), "the checkpoint")


class LastTwoAndBest(policies.PreservationPolicy):
  """Keeps the last two checkpoints and the best one.

  The scores are ours, not Orbax's: metrics may be added after their checkpoint was saved.
  """

  def __init__(self, score: Callable[[int], float]):
    self._score = score

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    """Returns for each checkpoint whether to keep it."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    score, best = max((self._score(step), step) for step in steps)
    keep = {*sorted(steps)[-2:], *([best] if score > -math.inf else [])}
    return [step in keep for step in steps]


def array_handler() -> ocp.PyTreeCheckpointHandler:
  """Returns the handler that writes and reads the state.

  By default Orbax slices replicated arrays into one piece per device, and compiles every slice:
  half a minute at the first save. This pays only for large arrays that several machines write.
  """
  arrays = ocp.type_handlers.ArrayHandler(
    use_replica_parallel=jax.process_count() > 1,
    min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES,
  )
  registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
  return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def storage_error(error: Exception) -> str | None:
  """Returns the reason for an error of the storage; None for any other error."""
  if isinstance(error, OSError):
    return error.strerror or str(error)
  # TensorStore raises a ValueError for every error: `...: reason [os_error_code='28']`.
  text, *details = re.split(r" \[(?=\w+=')", str(error))
  if any(detail.startswith(("os_error_code=", "http_response_code=")) for detail in details):
    return text.rpartition(": ")[2]
  return None


def is_full(error: Exception) -> bool:
  """Returns whether the storage is full."""
  if isinstance(error, OSError):
    return error.errno in atomic_files.FULL
  return any(f"os_error_code='{code}'" in str(error) for code in atomic_files.FULL)


def silence_tracebacks() -> None:
  """Stops Orbax and TensorStore from printing the exceptions that Orbax raises anyway.

  Orbax logs each of them several times with a traceback. If several writes fail at once it raises
  the first; asyncio logs the others when they are garbage-collected, and TensorStore prints that
  the event loop, to which they belong, is closed.
  """
  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(_is_not_orbax_traceback)
  if not isinstance(sys.unraisablehook, _ClosedLoops):
    sys.unraisablehook = _ClosedLoops(sys.unraisablehook)


class _ClosedLoops:
  """A hook for exceptions that nobody can catch, which leaves out those of closed event loops."""

  def __init__(self, others: Callable[[Any], Any]):
    self._others = others

  def __call__(self, unraisable: Any) -> None:
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
      self._others(unraisable)


def _is_not_orbax_traceback(record: logging.LogRecord) -> bool:
  if not record.exc_info:
    return True
  frames = traceback.extract_tb(record.exc_info[2])
  return not any("orbax" in path for path in (record.pathname, *(f.filename for f in frames)))
