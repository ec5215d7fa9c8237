"""The folder in which faults are tried.

It has data, an undisturbed run and an unfinished one; commands in it have a timeout.
"""

import contextlib
import ctypes
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from tests.support import hurry, tiny_run

LIMIT = 180  # Seconds. A run takes 10 to 15 on two cores.
_SCENES = ("--train_scenes", "24", "--eval_scenes", "12")
_BACKWARDS = """
import time
_started, _time, _time_ns = time.monotonic(), time.time, time.time_ns
_back = lambda: 10 * 86400 if time.monotonic() - _started > {after} else 0
time.time = lambda: _time() - _back()
time.time_ns = lambda: _time_ns() - _back() * 10**9
"""


class BrokenPromise(AssertionError):
  """The outcome differs from the documentation."""


def check(promise: bool, claim: str) -> None:
  """Raises a `BrokenPromise` if a condition does not hold."""
  if not promise:
    raise BrokenPromise(claim)


@dataclasses.dataclass(frozen=True)
class Ended:
  """The result of a command."""

  code: int
  out: str
  err: str

  def refused(self, *words: str) -> str:
    """Checks for exit code 2 and a one-line message that contains these words.

    Returns the line.
    """
    lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
    check(self.code == 2, f"exit code {self.code} instead of 2: {self.err[-2000:]}")
    check(len(lines) == 1, f"{len(lines)} lines of error: {self.err[-2000:]}")
    check("Traceback" not in self.err, f"a traceback: {self.err[-2000:]}")
    for word in words:
      check(word in lines[0], f"{word!r} is not in {lines[0]!r}")
    return lines[0]

  def went_well(self) -> None:
    """Checks for exit code 0."""
    check(self.code == 0, f"exit code {self.code}: {self.err[-2000:]}")
    check("Traceback" not in self.err, f"a traceback: {self.err[-2000:]}")


class Child:
  """A training run in the background, in its own process group."""

  def __init__(self, command: list[str], environment: dict[str, str], obedient: bool, log: str):
    self._out, self._err = open(f"{log}.out", "w+"), open(f"{log}.err", "w+")  # noqa: SIM115
    self._process = subprocess.Popen(
      command,
      cwd=tiny_run.CHECKOUT,
      env=environment,
      stdout=self._out,
      stderr=self._err,
      start_new_session=True,
      preexec_fn=_obey_permissions if obedient else None,
    )
    self._deadline = time.monotonic() + LIMIT

  def send(self, number: int) -> None:
    """Sends a signal if the run has not ended."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, number)

  def runs(self) -> bool:
    """Returns whether the run has not ended yet."""
    return self._process.poll() is None

  def wait(self) -> Ended:
    """Waits for the run to end.

    Raises:
      BrokenPromise: it hangs.
    """
    try:
      code = self._process.wait(max(1.0, self._deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      self.send(signal.SIGKILL)
      self._process.wait()
      raise BrokenPromise(f"hangs: not done after {LIMIT} s") from None
    texts = []
    for file in (self._out, self._err):
      file.seek(0)
      texts.append(file.read())
      file.close()
    return Ended(code, *texts)

  def wait_until(self, done: Callable[[], bool]) -> None:
    """Waits until a condition is true or the run has ended."""
    while self.runs() and time.monotonic() < self._deadline and not done():
      time.sleep(0.02)


def _obey_permissions() -> None:
  """Drops root's capabilities to bypass file permissions, before the command starts."""
  if os.geteuid() == 0:
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
      if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
        raise OSError(ctypes.get_errno(), "prctl")


class Place:
  """A working folder with everything that a fault starts from."""

  def __init__(self, folder: pathlib.Path, data_dir: str = "", undisturbed: str = ""):
    """Prepares data and the undisturbed run, unless given, and trains an unfinished run."""
    self.folder = folder
    self._cache, self._count = folder / "compiled", 0
    self.data = pathlib.Path(data_dir or folder / "data")
    if not data_dir:
      prepare = ["-m", "input_pipeline.prepare", "--dataset", "shapes", "--data_dir", self.data]
      subprocess.run(
        [sys.executable, *map(str, prepare), *_SCENES], cwd=tiny_run.CHECKOUT, check=True,
        capture_output=True,
      )  # fmt: skip
    whole = pathlib.Path(undisturbed or folder / "undisturbed")
    if not undisturbed:
      self.train(whole).wait().went_well()
    self.expected = tiny_run.log(whole)
    self.half = folder / "half"
    child = self.train(self.half)
    third = self.half / "checkpoints" / str(3 * tiny_run.SAVE_EVERY)
    child.wait_until(third.exists)
    child.send(signal.SIGKILL)
    child.wait()

  def new(self) -> pathlib.Path:
    """Returns a path that does not exist yet."""
    self._count += 1
    return self.folder / f"try-{self._count}"

  def train(
    self,
    workdir: pathlib.Path,
    *more: str,
    data: pathlib.Path | None = None,
    clock_back_after: float | None = None,
    obedient: bool = False,
  ) -> Child:
    """Starts or resumes the run in a workdir.

    Args:
      workdir: of the run.
      *more: arguments.
      data: folder of the data set, if not the default one.
      clock_back_after: seconds after which `time.time` goes back ten days.
      obedient: whether file permissions apply to root as well.
    """
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": hurry.flags(),
      "JAX_COMPILATION_CACHE_DIR": str(self._cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
      "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    if clock_back_after is not None:
      path = self.new()
      path.mkdir()
      (path / "sitecustomize.py").write_text(_BACKWARDS.format(after=clock_back_after))
      environment["PYTHONPATH"] = str(path)
    arguments = tiny_run.arguments(str(data or self.data), workdir, *more)
    command = [sys.executable, "-m", "mail_jax.train", *arguments]
    return Child(command, environment, obedient, str(self.new()))

  def half_done(self, workdir: pathlib.Path | None = None) -> pathlib.Path:
    """Copies the unfinished run, with at least two checkpoints."""
    return shutil.copytree(self.half, workdir or self.new())

  def copied_data(self) -> pathlib.Path:
    """Copies the data, to damage it."""
    return shutil.copytree(self.data, self.new())

  def same(self, workdir: pathlib.Path) -> None:
    """Checks that a run has all rows of the undisturbed one, bit for bit."""
    check(tiny_run.log(workdir) == self.expected, "other losses than the undisturbed run")


def logged(workdir: pathlib.Path) -> int:
  """Returns the rows in the log of a run."""
  path = workdir / "metrics.jsonl"
  return len(path.read_text().splitlines()) if path.exists() else 0


def shard(data: pathlib.Path, split: str) -> pathlib.Path:
  """Returns the file of a split's records."""
  (found,) = data.glob(f"**/*-{split}.tfrecord*")
  return found


def a_file(folder: pathlib.Path, chance: random.Random) -> pathlib.Path:
  """Returns a random non-empty file of a folder."""
  return chance.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size > 0))


@contextlib.contextmanager
def tidy(place: Place) -> Iterator[None]:
  """Removes the files of a try."""
  before = set(place.folder.iterdir())
  try:
    yield
  finally:
    for path in set(place.folder.iterdir()) - before:
      if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
      else:
        path.unlink(missing_ok=True)
