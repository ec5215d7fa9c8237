"""Commands as processes of their own, which a command starts one after the other or together."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

# Runs of other seeds have the same programs.
_COMPILED = "JAX_COMPILATION_CACHE_DIR"


def start(
  module: str, words: Sequence[str], log: pathlib.Path, place: pathlib.Path
) -> subprocess.Popen:
  """Starts a command as a process that Ctrl-C does not reach; what it prints goes to the log.

  Args:
    module: what comes after `python -m`.
    words: its arguments.
    log: the file, to which is appended.
    place: the folder that keeps compiled programs.
  """
  return start_words([sys.executable, "-m", module, *words], log, place)


def start_words(words: Sequence[str], log: pathlib.Path, place: pathlib.Path) -> subprocess.Popen:
  """Starts a program as `start` does, given all words of its command line."""
  environment = {_COMPILED: str(place.resolve() / "compiled")} | os.environ
  with log.open("ab") as file:
    return subprocess.Popen(
      words,
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=file,
      env=environment,
      start_new_session=True,
    )


def end(processes: Sequence[subprocess.Popen]) -> None:
  """Asks processes to save, and waits for them."""
  for process in processes:
    with contextlib.suppress(ProcessLookupError):
      process.send_signal(signal.SIGTERM)
  for process in processes:
    process.wait()


@contextlib.contextmanager
def end_on_sigterm() -> Iterator[None]:
  """Ends as after Ctrl-C on SIGTERM."""

  def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt

  before = signal.signal(signal.SIGTERM, interrupt)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def last_line(log: pathlib.Path) -> str:
  """Returns the last line of a log, which has the error of a command that failed."""
  lines = log.read_text(errors="replace").split("\n")
  return next((line for line in reversed(lines) if line.strip()), "it printed nothing")
