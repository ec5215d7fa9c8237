"""One run, one folder: who trains into a workdir holds it until they end."""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator

from input_pipeline.common import buckets
from input_pipeline.common.errors import InputError
from mail_jax.distributed import processes

FILE = "in_use"


@contextlib.contextmanager
def held(workdir: str) -> Iterator[None]:
  """Holds a workdir inside the context; process 0 does it for all processes of a run.

  The lock is the system's, on `workdir/in_use`, and goes with the process that holds it, however it ends: the file
  stays, empty, or with the name of who was killed. A bucket knows no such locks, and two runs are not kept apart there.

  Raises:
    InputError: another run holds it, or the folder cannot be made.
  """
  with contextlib.ExitStack() as stack:
    wrong = ""
    if processes.is_main() and not buckets.is_remote(workdir):
      try:
        stack.enter_context(_locked(pathlib.Path(workdir)))
      except InputError as error:
        wrong = str(error)
    wrong = processes.all_gather_object(wrong)[0]
    if wrong:
      raise InputError(wrong)
    yield


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  try:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
  except OSError as error:
    raise InputError(
      f"--workdir {folder}: the folder cannot be used ({error.strerror}); name a folder that can be written"
    ) from error
  with os.fdopen(handle, "r+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise InputError(
        f"--workdir {folder} is in use by another run ({_holder(file.read())}); end that one first, or choose another "
        "--workdir"
      ) from None
    except OSError:  # a file system without locks
      yield
      return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    about = {"host": socket.gethostname(), "pid": os.getpid(), "since": now}
    file.truncate(0)
    file.write(json.dumps(about) + "\n")
    file.flush()
    try:
      yield
    finally:
      file.truncate(0)  # who was killed is still named


def _holder(text: str) -> str:
  """Who holds it, in words; the file may be half written."""
  try:
    about = json.loads(text)
    return f"host {about['host']}, pid {about['pid']}, since {about['since']}"
  except (ValueError, KeyError, TypeError):
    return "who is not known"
