"""Checkpoints: state, data position, config, tokenizer and metrics are one unit."""

import base64
import contextlib
import itertools
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from input_pipeline import remote
from input_pipeline.errors import InputError
from mail_jax import manifest

Tree = Any  # a nest of arrays, as JAX has them
Metrics = dict[str, int | float]
FOLDER = "checkpoints"
_SHARED_BYTES = 2**20  # of an array, for each machine that writes it


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
    self._folder = remote.folder(workdir, self._option) / FOLDER
    if read_only and not self._folder.is_dir():
      raise InputError(
        f"--checkpoint {workdir}: there is no {self._folder}; give the --workdir of a training run"
      )
    self._metrics: dict[int, Metrics] = {}
    self._sound: dict[int, bool] = {}  # of the steps that were looked at
    self._saving = -1
    _leave_errors_to_us()
    options = ocp.CheckpointManagerOptions(
      preservation_policy=_LastTwoAndBest(self._score),
      # Orbax's own read_only warns twice at every start; without `save` nothing is written anyway.
      create=not read_only,
      cleanup_tmp_directories=not read_only,
      single_host_load_and_broadcast=True,  # processes must not see different lists
      lightweight_initialize=True,
      # Called by the first process when all have written, before the checkpoint gets its name.
      async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
    )
    handlers = {"state": _array_handler(), "meta": ocp.JsonCheckpointHandler()}
    with self._clear_errors(f"{self._folder} cannot be used"):
      self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)
    if read_only and not self._steps():
      raise InputError(
        f"--checkpoint {workdir}: {self._folder} holds no checkpoint; has the training saved one yet?"
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
        "restore one from a copy, or begin anew in another --workdir"
      )
    if latest is not None and not self._read_only:
      self._set_aside(steps[: steps.index(latest)])
    return latest

  def best(self) -> int | None:
    """Step of the best whole checkpoint, the latest of equals; None where none that was evaluated is whole."""
    scored = [(self._score(step), step) for step in self._steps()]
    evaluated = [step for score, step in sorted(scored, reverse=True) if score > -math.inf]
    return self._first_whole(evaluated)

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
    self._metrics[step], self._sound[step], self._saving = metrics or {}, True, step
    items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta))
    with self._clear_errors(self._unwritten(step)):
      self._manager.save(step, args=items, force=True)

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
    with self._clear_errors(self._unwritten(self._saving)):
      self._manager.close()

  def _steps(self) -> Sequence[int]:
    """Steps of the checkpoints that are written."""
    with self._clear_errors(self._unwritten(self._saving)):
      self._manager.wait_until_finished()
    return [int(step) for step in self._manager.all_steps()]

  def _read_metrics(self) -> None:
    """Reads the metrics of all checkpoints; the first process tells the others, so that no two differ."""
    found = [(step, manifest.read_about(self._path(step))) for step in self._steps()]
    for step, about in everyone(found)[0]:
      self._metrics[step] = about.get("metrics", {})
      if self._read_only:
        self._best_metric = about.get("best_metric", self._best_metric)

  def _about(self, step: int) -> dict[str, Any]:
    return {"best_metric": self._best_metric, "metrics": self._metrics[step]}

  def _score(self, step: int) -> float:
    """The best metric of a checkpoint; minus infinity where it was not evaluated."""
    value = self._metrics.get(step, {}).get(self._best_metric, -math.inf)
    return -math.inf if math.isnan(value) else value

  def _path(self, step: int) -> epath.Path:
    return self._folder / str(step)

  def _write_manifest(self) -> None:
    unnamed = self._folder / f"{self._saving}{ocp.path.step.TMP_DIR_SUFFIX}"
    path = unnamed if unnamed.exists() else self._path(self._saving)  # in a bucket nothing is renamed
    manifest.write(path, self._about(self._saving))

  def _add_metrics(self, step: int, metrics: Metrics) -> None:
    """Completes a checkpoint that was saved before it was evaluated."""
    self._metrics[step] = metrics
    if jax.process_index() == 0:
      with self._clear_errors(self._unwritten(step)):
        manifest.replace_about(self._path(step), self._about(step))

  def _first_whole(self, steps: Sequence[int]) -> int | None:
    return next((step for step in steps if self._is_sound(step)), None)

  def _is_sound(self, step: int) -> bool:
    """Compares a checkpoint with what was written, once; the processes share the work and its outcome."""
    if step not in self._sound:
      wrong = ""
      try:
        manifest.check(self._path(step), jax.process_index(), jax.process_count())
      except manifest.DamagedError as error:
        wrong = str(error)
      wrong = next(filter(None, everyone(wrong)), "")
      if wrong:
        _warn(f"{self._path(step)} is damaged ({wrong}) and is passed over")
      self._sound[step] = not wrong
    return self._sound[step]

  def _set_aside(self, steps: Sequence[int]) -> None:
    """Moves damaged checkpoints to where they do not stand in the way of what is saved next."""
    if not steps:
      return
    if jax.process_index() == 0:
      for step in steps:
        target = _free_name(self._folder.parent / f"damaged-{step}")
        self._path(step).rename(target)
        _warn(f"{self._path(step)} was moved to {target}")
    self._manager.reload()
    for step in steps:
      del self._sound[step], self._metrics[step]

  def _unwritten(self, step: int) -> str:
    return f"the checkpoint of step {step} cannot be written to {self._folder}"

  @contextlib.contextmanager
  def _clear_errors(self, what: str) -> Iterator[None]:
    """What the storage refuses is told in one line."""
    try:
      yield
    except (OSError, ValueError) as error:
      reason = _storage_error(error)
      if reason is None:
        raise
      raise InputError(
        f"{self._option} {self._named}: {what} ({reason}); free space there or choose another folder, and start the "
        "same command again: it goes on from the last whole checkpoint"
      ) from error


class _LastTwoAndBest(policies.PreservationPolicy):
  """Which checkpoints are kept. The scores are ours: metrics may come later than their checkpoint."""

  def __init__(self, score: Callable[[int], float]):
    self._score = score

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    score, best = max((self._score(step), step) for step in steps)
    keep = {*sorted(steps)[-2:], *([best] if score > -math.inf else [])}
    return [step in keep for step in steps]


def _array_handler() -> ocp.PyTreeCheckpointHandler:
  """Writes and reads the state.

  What is on all devices is by default cut into as many pieces, and every cut is compiled: half a minute at the first
  save. That pays only for large arrays that several machines write together.
  """
  arrays = ocp.type_handlers.ArrayHandler(
    use_replica_parallel=jax.process_count() > 1,
    min_slice_bytes_for_replica_parallel=_SHARED_BYTES,
  )
  registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
  return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _storage_error(error: Exception) -> str | None:
  """What the storage says against it; None where it is not the storage that complains."""
  if isinstance(error, OSError):
    return error.strerror or str(error)
  # TensorStore raises a ValueError for whatever happens to it.
  found = re.search(r"([^:]*) \[(os_error_code|http_response_code)=", str(error))
  return found[1].strip() if found else None


def _leave_errors_to_us() -> None:
  """Orbax prints an exception several times over, with its traceback, before it raises it."""
  logging.getLogger("absl").addFilter(_is_no_traceback_of_orbax)


def _is_no_traceback_of_orbax(record: logging.LogRecord) -> bool:
  return not (record.exc_info and "orbax" in record.pathname)


def _warn(text: str) -> None:
  if jax.process_index() == 0:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def everyone(value: Any) -> list[Any]:
  """What each process says, on all of them: JSON, in the order of the processes."""
  if jax.process_count() == 1:
    return [value]
  data = json.dumps(value).encode()
  size = int(multihost_utils.process_allgather(np.int32(len(data))).max())
  rows = multihost_utils.process_allgather(np.frombuffer(data.ljust(size), np.uint8))
  return [json.loads(row.tobytes()) for row in rows]


def exists(workdir: str) -> bool:
  """Whether a run has saved a checkpoint there; neither makes nor deletes anything."""
  path = remote.folder(workdir, "--workdir") / FOLDER
  return path.is_dir() and any(
    ocp.path.step.is_path_finalized(child) for child in path.iterdir() if child.name.isdigit()
  )


def move_aside(workdir: str) -> str:
  """Renames the folder of a run to WORKDIR.1, .2, ...; nothing is deleted. Returns its new name."""
  path = remote.folder(workdir, "--workdir")
  target = _free_name(path.with_name(f"{path.name}.1"))
  if jax.process_index() == 0:
    path.rename(target)
  return everyone(str(target))[0]


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
