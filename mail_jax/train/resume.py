"""Resuming: one run per workdir at a time, and with the config and tokenizer that it began with."""

import contextlib
import datetime
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

import filelock
from ml_collections import ConfigDict

from input_pipeline.common import buckets
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import Tokenizer
from mail_jax.checkpoints import checkpoint
from mail_jax.config import MAY_CHANGE, flatten, to_json
from mail_jax.distributed import processes

LOCK_FILE = "in_use"
_ELSE = "choose another --workdir, or add --archive_existing to move it aside"


def check_resumable(
  meta: dict[str, Any], config: ConfigDict, tokenizer: Tokenizer, workdir: str
) -> None:
  """Checks that a run in a workdir has this config and this tokenizer.

  Args:
    meta: of a checkpoint of the run.
    config: a whole config; the keys of `config.MAY_CHANGE` may differ.
    tokenizer: of the data.
    workdir: for errors.

  Raises:
    InputError: names the first key that differs.
  """
  before, after = flatten(meta["config"]), flatten(to_json(config))
  for key in sorted(before.keys() | after.keys()):
    if before.get(key) != after.get(key) and not key.startswith(MAY_CHANGE):
      raise InputError(
        f"--workdir {workdir} holds a run with config.{key} = {before.get(key)!r}, not "
        f"{after.get(key)!r}; {_ELSE}"
      )
  if checkpoint.unpack_bytes(meta["tokenizer"]) != tokenizer.to_bytes():
    raise InputError(
      f"--workdir {workdir} holds a run whose tokenizer was trained on other expressions; {_ELSE}"
    )


def archive_existing(workdir: str, config: ConfigDict, tokenizer: Tokenizer) -> None:
  """Moves a run with another config or tokenizer to WORKDIR.1, .2, ...; deletes nothing."""
  if not checkpoint.exists(workdir):
    return
  checkpoints = checkpoint.Checkpoints(workdir, config.best_metric)
  latest = checkpoints.latest()
  assert latest is not None
  meta = checkpoints.meta(latest)
  checkpoints.close()
  try:
    check_resumable(meta, config, tokenizer, workdir)
  except InputError:
    new = checkpoint.move_aside(workdir)
    if processes.is_main():
      print(f"{workdir} held a run with other settings: moved to {new}", flush=True)


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
def _lock_folder(folder: pathlib.Path) -> Iterator[None]:
  path = folder / LOCK_FILE
  try:
    folder.mkdir(parents=True, exist_ok=True)
    path.touch()
  except OSError as error:
    raise InputError(
      f"--workdir {folder}: cannot write there ({error.strerror}); choose a folder that you can "
      "write to"
    ) from error
  # The library's fallback is a file, which would outlive a process that is killed.
  file_lock = filelock.FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
  try:
    file_lock.acquire()
  except filelock.Timeout:
    raise InputError(
      f"--workdir {folder} is in use by another run ({_holder(path)}); end that run, or choose "
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
