"""Every fault ends as it was promised.

`python -m tests.faults`, for a short and for a long time.
"""

import os
import subprocess
import sys

import pytest
import tiny_run


def _disturbed(seconds: int, *more: str) -> str:
  """Runs the script, which has to end with exit code 0; returns what it printed."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  done = subprocess.run(
    [sys.executable, "-m", "tests.faults", "--seconds", str(seconds), *more],
    cwd=tiny_run.CHECKOUT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=seconds + 600,
  )
  assert done.returncode == 0, done.stderr + done.stdout
  return done.stdout


def test_nothing_is_lost_in_half_a_minute_of_faults(shapes_data, finished_run):
  printed = _disturbed(30, "--data_dir", shapes_data, "--undisturbed", str(finished_run))
  assert "second run in the workdir" in printed and "BROKEN" not in printed


@pytest.mark.slow
def test_nothing_is_lost_in_ten_minutes_of_faults():
  printed = _disturbed(600)
  assert printed.count("| 1 |") + printed.count("| 2 |") + printed.count("| 3 |") > 10
  assert "BROKEN" not in printed
