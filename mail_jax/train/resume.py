"""Resuming: one run per workdir at a time, and what may be different when it goes on."""

import contextlib
import datetime
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

import filelock
import jax
from ml_collections import ConfigDict

from input_pipeline.common import buckets
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import Tokenizer, from_bytes
from mail_jax.checkpoints import checkpoint
from mail_jax.config import MAY_CHANGE, flatten, from_json, to_json
from mail_jax.distributed import processes
from mail_jax.export import folder
from mail_jax.train.data import Data
from mail_jax.train.length import count_steps
from mail_jax.train.optim import learning_rate_from

LOCK_FILE = "in_use"
# The length of a run, which may change in some ways.
_LENGTH = ("steps", "epochs", "minutes")


def _way_out(workdir: str) -> str:
  return (
    f"choose another --workdir, there with --config.init=run:{workdir} to keep the weights, or add "
    "--archive_existing to move it aside"
  )


def check_workdir(workdir: str) -> None:
  """Checks that a workdir is not the folder of an exported model.

  Raises:
    InputError: it is.
  """
  if (buckets.folder(workdir, "--workdir") / folder.ABOUT).is_file():
    raise InputError(
      f"--workdir {workdir} is an exported model; to train it further, start from it with "
      f"--config.init=export:{workdir} in another --workdir"
    )


def check_resumable(
  meta: dict[str, Any], config: ConfigDict, tokenizer: Tokenizer, workdir: str
) -> None:
  """Checks that a run in a workdir has this config and this tokenizer.

  Args:
    meta: of a checkpoint of the run.
    config: a whole config; the keys of `config.MAY_CHANGE` may differ, and those of the length: see
      `resumed_steps`.
    tokenizer: of the data.
    workdir: for errors.

  Raises:
    InputError: names the first key that differs.
  """
  before, after = _flat(meta), flatten(to_json(config))
  for key in sorted(before.keys() | after.keys()):
    if key in _LENGTH or key.startswith(MAY_CHANGE):
      continue
    if before.get(key) != after.get(key):
      raise InputError(
        f"--workdir {workdir} holds a run with config.{key} = {before.get(key)!r}, not "
        f"{after.get(key)!r}; {_way_out(workdir)}"
      )
  if checkpoint.unpack_bytes(meta["tokenizer"]) != tokenizer.to_bytes():
    raise InputError(f"--workdir {workdir} holds a run with another tokenizer; {_way_out(workdir)}")


def _flat(meta: dict[str, Any]) -> dict[str, Any]:
  return flatten(to_json(from_json(meta["config"], "the checkpoint")))


def check_data(
  meta: dict[str, Any], now: dict[str, Any], workdir: str, accept: bool = False
) -> str:
  """Checks that the training data is that of the run; returns a line about a change.

  Args:
    meta: of a checkpoint of the run.
    now: `fingerprint` and `samples` of the data.
    workdir: for errors.
    accept: continues on other data.

  Raises:
    InputError: the data has changed and is not accepted.
  """
  before = meta.get("data") or now
  prints = before["fingerprint"], now["fingerprint"]
  if prints[0] == prints[1] or not all(prints):
    return ""
  change = (
    f"the training data has changed: {before['samples']:,} refs of fingerprint {prints[0]} before, "
    f"{now['samples']:,} of {prints[1]} now"
  )
  if accept:
    return f"{change}; from here on the run trains on it, in an order of its own"
  raise InputError(
    f"--workdir {workdir}: {change}; prepare the former data again, add --changed_data to continue "
    f"on this, or {_way_out(workdir)}"
  )


def resumed_steps(
  meta: dict[str, Any], config: ConfigDict, steps: int, done: int, workdir: str
) -> tuple[int, str]:
  """Returns the number of steps of a resumed run, and a line about a change of it.

  Args:
    meta: of the last checkpoint of the run.
    config: a whole config.
    steps: of this config; 0 with `minutes`.
    done: steps that the run has done.
    workdir: for errors.

  Raises:
    InputError: the length cannot be changed to this one.
  """
  before = meta["steps"]
  if not steps:
    stored = meta["config"]["minutes"]
    if stored != config.minutes:
      raise InputError(
        f"--workdir {workdir} holds a run with config.minutes = {stored}, not {config.minutes}, "
        f"which has become {before} steps; set config.steps to another number, and minutes to 0"
      )
    return before, ""
  if steps < done:
    raise InputError(
      f"--workdir {workdir} holds a run that has done {done} steps, more than {steps}; "
      f"{_way_out(workdir)}"
    )
  if steps == before:
    return steps, ""
  here, there = (learning_rate_from(config, done, total) for total in (before, steps))
  last = learning_rate_from(config, steps, steps)
  return steps, (
    f"{steps} steps instead of {before}: after step {done} the learning rate continues at "
    f"{there:.3g} (with {before} steps it would be {here:.3g}) and ends at {last:.3g}"
  )


def judged_on(config: ConfigDict) -> str:
  """Returns what evaluations are made on: metrics on something else do not compare."""
  return f"{config.eval_split}, {config.eval_expressions or 'all'} expressions"


def changes(meta: dict[str, Any], config: ConfigDict, exact_order: bool) -> list[str]:
  """Returns lines about what is different in a resumed run, and what that means.

  Args:
    meta: of a checkpoint of the run.
    config: a whole config.
    exact_order: whether the order of the data is the same on any number of processes.
  """
  before, lines = from_json(meta["config"], "the checkpoint"), []
  if judged_on(before) != judged_on(config):
    lines.append(
      f"evaluations are on {judged_on(config)} from here on; those before, on {judged_on(before)}, "
      "no longer count for the best checkpoint"
    )
  if before.best_metric != config.best_metric:
    lines.append(
      f"the best checkpoint is that of the highest {config.best_metric} from here on, not "
      f"{before.best_metric}; among earlier ones, of those that are still kept"
    )
  count = meta.get("processes", jax.process_count())
  if count != jax.process_count() and not exact_order:
    lines.append(
      f"{jax.process_count()} processes instead of {count}: they share the data in another way, so "
      "until the end of this epoch some refs come twice and as many not at all"
    )
  return lines


def kept_tokenizer(workdir: str, config: ConfigDict) -> Tokenizer | None:
  """Returns the tokenizer of the run in a workdir; None for a new run, or if the config names one.

  A run keeps its tokenizer, even if the data or the weights that it came from have changed.
  """
  if config.tokenizer:
    return None
  stored = checkpoint.read_tokenizer(workdir)
  return None if stored is None else from_bytes(stored)


def archive_existing(workdir: str, config: ConfigDict, data: Data) -> bool:
  """Moves a run with another config, tokenizer or data to WORKDIR.1, .2, ...; deletes nothing.

  Returns:
    Whether there was one.
  """
  if not checkpoint.exists(workdir):
    return False
  checkpoints = checkpoint.Checkpoints(workdir, config.best_metric)
  latest = checkpoints.latest()
  assert latest is not None
  meta = checkpoints.meta(latest)
  checkpoints.close()
  steps = count_steps(config.steps, config.epochs, data.samples, config.batch_size)
  try:
    check_resumable(meta, config, data.tokenizer, workdir)
    check_data(meta, data.about(), workdir)
    resumed_steps(meta, config, steps, latest, workdir)
  except InputError:
    new = checkpoint.move_aside(workdir)
    if processes.is_main():
      print(f"{workdir} held a run with other settings: moved to {new}", flush=True)
    return True
  return False


@contextlib.contextmanager
def lock(workdir: str) -> Iterator[None]:
  """Locks a workdir inside the context; process 0 does it for all processes of a run.

  The lock is the operating system's, on `workdir/in_use`, and is released with the process, however
  that ends. The file stays, empty, or with the holder if the process was killed. Buckets have no
  locks: two runs in one are not noticed.

  Raises:
    InputError: another run holds the lock, or the folder cannot be created.
  """
  with contextlib.ExitStack() as stack:
    problem = ""
    if processes.is_main() and not buckets.is_remote(workdir):
      try:
        stack.enter_context(_lock_folder(pathlib.Path(workdir)))
      except InputError as error:
        problem = str(error)
    problem = processes.all_gather_object(problem)[0]
    if problem:
      raise InputError(problem)
    yield


@contextlib.contextmanager
def _lock_folder(place: pathlib.Path) -> Iterator[None]:
  path = place / LOCK_FILE
  try:
    place.mkdir(parents=True, exist_ok=True)
    path.touch()
  except OSError as error:
    raise InputError(
      f"--workdir {place}: cannot write there ({error.strerror}); choose a folder that you can "
      "write to"
    ) from error
  # The library's fallback is a file, which would outlive a process that is killed.
  file_lock = filelock.FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
  try:
    file_lock.acquire()
  except filelock.Timeout:
    raise InputError(
      f"--workdir {place} is in use by another run ({_holder(path)}); end that run, or choose "
      "another --workdir"
    ) from None
  except (OSError, NotImplementedError):
    # A file system without locks.
    yield
    return
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": now}
  # An open file, because `archive_existing` moves the folder.
  with path.open("w") as file:
    file.write(json.dumps(holder) + "\n")
    file.flush()
    try:
      yield
    finally:
      file.truncate(0)
      file_lock.release()


def _holder(path: pathlib.Path) -> str:
  """Describes the holder of a lock, whose file may be incomplete."""
  try:
    holder = json.loads(path.read_text())
    return f"host {holder['host']}, pid {holder['pid']}, since {holder['since']}"
  except (ValueError, KeyError, TypeError):
    return "unknown host"
