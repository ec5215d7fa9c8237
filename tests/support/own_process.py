"""Code that runs in its own process, so that its memory can be measured."""

import os
import pathlib
import subprocess
import sys

# Only what never ends takes longer, even on a machine with other work.
_SECONDS = 300
_SUPPORT = pathlib.Path(__file__).resolve().parent


def run(code: str, *arguments: str) -> str:
  """Runs Python code that can import the project and the tests; returns what it printed."""
  paths = os.pathsep.join(
    [str(_SUPPORT.parents[1]), str(_SUPPORT), os.environ.get("PYTHONPATH", "")]
  )
  done = subprocess.run(
    [sys.executable, "-c", code, *arguments],
    capture_output=True,
    text=True,
    timeout=_SECONDS,
    env=os.environ | {"PYTHONPATH": paths},
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def peak_kilobytes() -> int:
  """Returns the peak memory of this process.

  `ru_maxrss` would include that of the parent process.
  """
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM:"):
      return int(line.split()[1])
  raise RuntimeError("/proc/self/status has no VmHWM")
