"""Code that is run as a process of its own, so that its memory can be counted."""

import os
import pathlib
import subprocess
import sys

_SUPPORT = pathlib.Path(__file__).resolve().parent


def run(code: str, *arguments: str) -> str:
  """Runs Python code with the project and the tests to import from; returns what it printed."""
  paths = os.pathsep.join(
    [str(_SUPPORT.parents[1]), str(_SUPPORT), os.environ.get("PYTHONPATH", "")]
  )
  done = subprocess.run(
    [sys.executable, "-c", code, *arguments],
    capture_output=True,
    text=True,
    timeout=60,
    env=os.environ | {"PYTHONPATH": paths},
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def peak_kilobytes() -> int:
  """The most memory that this process has had.

  Not `ru_maxrss`: what the process had that started it counts there.
  """
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM:"):
      return int(line.split()[1])
  raise RuntimeError("/proc/self/status has no VmHWM")
