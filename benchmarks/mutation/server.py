"""Runs tests on changed source, each time in a fork of a process that has imported the libraries.

A new process would spend ten seconds on imports for every mutant.
"""

import contextlib
import importlib
import importlib.machinery
import json
import math
import os
import pathlib
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# None of them starts a thread that a fork would lack: the backends of JAX and TensorFlow start in
# the forks, with the flags of conftest.py.
LIBRARIES = (
  *("pytest", "coverage", "hypothesis", "numpy", "scipy", "PIL.Image", "jax", "jax.numpy"),
  *("flax.linen", "optax", "orbax.checkpoint", "tensorflow", "tensorflow_datasets"),
  *("pycocotools.mask", "ml_collections", "beartype", "jaxtyping", "sentencepiece", "tokenizers"),
)
# A changed size can ask for any amount of memory.
_MOST_BYTES = 8 << 30
_POLL = 0.05
# Of elapsed time per allowed second of processor time: for tests that wait and do nothing.
_PATIENCE = 3.0


class Outcome(NamedTuple):
  """What became of a mutant.

  Attributes:
    killed: a test failed, or did not end in time.
    seconds: of processor time, which does not depend on what else a machine does.
    reason: the test that failed, or `timeout`; empty if none did.
    lines: of the modules that were watched, those that were executed.
  """

  killed: bool
  seconds: float
  reason: str
  lines: Mapping[str, list[int]] = {}


def load_libraries(compiled: pathlib.Path, libraries: Iterable[str] = LIBRARIES) -> None:
  """Imports what tests need.

  Args:
    compiled: a folder, in which the tests share what XLA compiles.
    libraries: their names.
  """
  os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(compiled.resolve()),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
  }
  for name in libraries:
    importlib.import_module(name)


def run(
  tests: Sequence[str],
  limit: float,
  changed: Mapping[str, str] | None = None,
  watched: Sequence[str] = (),
) -> Outcome:
  """Runs tests until one fails, in a fork.

  Args:
    tests: files, in this order.
    limit: seconds of processor time.
    changed: source of modules in place of that in their files, by path.
    watched: paths of the modules whose executed lines are returned.
  """
  began = _processor_time()
  with tempfile.TemporaryDirectory(prefix="mail_jax_mutant_") as name:
    folder = pathlib.Path(name)
    child = os.fork()
    if child == 0:
      _run_in_fork(tests, limit, folder, changed or {}, watched)
    code = _wait(child, limit)
    seconds = round(_processor_time() - began, 1)
    text = (folder / "log").read_text(errors="replace")
    lines = folder / "lines.json"
    executed = json.loads(lines.read_text()) if lines.exists() else {}
  if code is None:
    return Outcome(True, seconds, "timeout", executed)
  failed = [line for line in text.splitlines() if line.startswith(("FAILED ", "ERROR "))]
  if code == 0 or (code == 5 and not failed):  # 5: no test was collected.
    return Outcome(False, seconds, "", executed)
  last = text.strip().splitlines()[-1:] or [f"exit {code}"]
  return Outcome(True, seconds, (failed or last)[0].split(" - ")[0], executed)


def _processor_time() -> float:
  """Returns the seconds of all children that ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def _run_in_fork(
  tests: Sequence[str],
  limit: float,
  folder: pathlib.Path,
  changed: Mapping[str, str],
  watched: Sequence[str],
) -> None:
  """Never returns."""
  code = 70
  try:
    os.setsid()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit)))
    # What tests leave behind goes with the folder.
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    if changed:
      _replace({str(pathlib.Path(path).resolve()): text for path, text in changed.items()})
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    with _watch(watched, folder / "lines.json") if watched else contextlib.nullcontext():
      code = pytest.main([*options, f"--basetemp={folder / 'tests'}", *tests])
    sys.stdout.flush()
  finally:
    os._exit(int(code))


@contextlib.contextmanager
def _watch(paths: Sequence[str], out: pathlib.Path):
  """Writes which lines of these modules are executed."""
  import coverage

  measured = coverage.Coverage(
    data_file=None, config_file=False, include=list(paths), messages=False
  )
  measured.start()
  try:
    yield
  finally:
    measured.stop()
    data = measured.get_data()
    lines = {path: data.lines(str(pathlib.Path(path).resolve())) or [] for path in paths}
    out.write_text(json.dumps({path: sorted(found) for path, found in lines.items() if found}))


def _replace(sources: Mapping[str, str]) -> None:
  """Makes imports of these files see other source, and nothing that was compiled from them."""
  for module in list(sys.modules.values()):
    if getattr(module, "__file__", None) in sources:
      raise ImportError(f"{module.__name__} is imported before its source is changed")
  sys.dont_write_bytecode = True
  original = importlib.machinery.SourceFileLoader.get_data
  caches = {
    (os.path.join(os.path.dirname(path), "__pycache__"), f"{pathlib.Path(path).stem}.")
    for path in sources
  }

  def get_data(self, path):
    path = os.path.abspath(os.fspath(path))
    if path in sources:
      return sources[path].encode()
    folder, name = os.path.split(path)
    if any(folder == cache and name.startswith(stem) for cache, stem in caches):
      raise OSError
    return original(self, path)

  importlib.machinery.SourceFileLoader.get_data = get_data  # pyright: ignore[reportAttributeAccessIssue]


def _wait(child: int, limit: float) -> int | None:
  """Returns the exit code, of a signal 1; None if the time was up. Ends what the child started."""
  status = None
  # Time in which this process is stopped does not count.
  for _ in range(math.ceil(_PATIENCE * limit / _POLL)):
    done, found = os.waitpid(child, os.WNOHANG)
    if done:
      status = found
      break
    time.sleep(_POLL)
  with contextlib.suppress(ProcessLookupError):
    os.killpg(child, signal.SIGKILL)
  if status is None:
    os.waitpid(child, 0)
    return None
  if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
    return None
  return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1
