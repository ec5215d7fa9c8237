"""Runs tests on changed source, each in a fork of a process that has imported the libraries.

A new process would spend ten seconds on imports for every mutant.
"""

import contextlib
import importlib
import importlib.machinery
import os
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

# Neither starts threads when it is imported; what does is imported in the forks.
_LIBRARIES = (
  *("pytest", "hypothesis", "numpy", "scipy", "PIL.Image", "jax", "jax.numpy", "flax.linen"),
  *("optax", "orbax.checkpoint", "tensorflow", "tensorflow_datasets", "pycocotools.mask"),
  *("ml_collections", "beartype", "jaxtyping", "sentencepiece"),
)
_POLL = 0.05


class Outcome(NamedTuple):
  """What became of a mutant.

  Attributes:
    killed: a test failed, or could not end in time.
    seconds: that it took.
    reason: the test that failed, or `timeout`; empty if none did.
  """

  killed: bool
  seconds: float
  reason: str


def load_libraries() -> None:
  """Imports what the tests need, as their conftest.py would."""
  sys.dont_write_bytecode = True
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  for name in _LIBRARIES:
    importlib.import_module(name)


def run(tests: Sequence[str], limit: float, path: str = "", source: str = "") -> Outcome:
  """Runs tests until one fails, in a fork.

  Args:
    tests: files, the fastest first.
    limit: seconds.
    path: of the module that is changed; empty for none.
    source: that it has then.

  Raises:
    ChildProcessError: pytest itself failed.
  """
  began = time.monotonic()
  with tempfile.TemporaryDirectory(prefix="mail_jax_mutant_") as folder:
    log = pathlib.Path(folder, "log")
    child = os.fork()
    if child == 0:
      _run_in_fork(tests, log, path, source)
    code = _wait(child, limit)
    seconds, text = time.monotonic() - began, log.read_text(errors="replace")
  if code is None:
    return Outcome(True, seconds, "timeout")
  failed = [line for line in text.splitlines() if line.startswith(("FAILED ", "ERROR "))]
  if code == 0:
    return Outcome(False, seconds, "")
  if code > 2 and not failed:
    raise ChildProcessError(f"pytest {' '.join(tests)} ended with {code}: {text[-2000:]}")
  return Outcome(True, seconds, failed[0].split(" - ")[0] if failed else f"exit {code}")


def _run_in_fork(tests: Sequence[str], log: pathlib.Path, path: str, source: str) -> None:
  """Never returns."""
  code = 70
  try:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if path:
      _replace(str(pathlib.Path(path).resolve()), source.encode())
    import pytest

    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])
    sys.stdout.flush()
  finally:
    os._exit(int(code))


def _replace(path: str, source: bytes) -> None:
  """Makes imports of a file see other source, and no compiled file of it."""
  original = importlib.machinery.SourceFileLoader.get_data
  stem = f"{pathlib.Path(path).stem}."
  cache = os.path.join(os.path.dirname(path), "__pycache__")

  def get_data(self, name):
    name = os.fspath(name)
    if os.path.abspath(name) == path:
      return source
    if os.path.dirname(name) == cache and os.path.basename(name).startswith(stem):
      raise OSError
    return original(self, name)

  importlib.machinery.SourceFileLoader.get_data = get_data  # pyright: ignore


def _wait(child: int, limit: float) -> int | None:
  """Returns the exit code; None if the time was up."""
  end = time.monotonic() + limit
  while time.monotonic() < end:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
      # What the tests started, and killed by a signal.
      with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
      return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1
    time.sleep(_POLL)
  os.killpg(child, signal.SIGKILL)
  os.waitpid(child, 0)
  return None
