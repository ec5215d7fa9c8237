"""A workdir has one run at a time."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import tiny_run

from input_pipeline.common.errors import InputError
from mail_jax.train import command as train
from mail_jax.train import resume

# Locks a folder until it is killed.
_HOLDER = """
import sys, time
from mail_jax.train import resume
with resume.lock(sys.argv[1]):
  print("held", flush=True)
  time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
  """A process that locks `tmp_path`."""
  process = subprocess.Popen(
    [sys.executable, "-c", _HOLDER, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
    cwd=tiny_run.CHECKOUT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )
  assert process.stdout is not None
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.wait()


def test_a_second_run_is_told_who_holds_the_folder_and_changes_nothing(
  holder, shapes_data, tmp_path
):
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  message = rf"in use by another run \(host {socket.gethostname()}, pid {holder.pid}, since 20\d\d-"
  for more in ((), ("--archive_existing",)):
    with pytest.raises(InputError, match=message):
      train.main(tiny_run.arguments(shapes_data, tmp_path, *more))
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_folder_of_a_killed_run_is_free(holder, tmp_path):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert str(holder.pid) in (tmp_path / resume.LOCK_FILE).read_text()
  with resume.lock(str(tmp_path)):
    assert str(os.getpid()) in (tmp_path / resume.LOCK_FILE).read_text()


def test_a_holder_that_is_half_written_still_holds(tmp_path):
  with resume.lock(str(tmp_path)):
    (tmp_path / resume.LOCK_FILE).write_text('{"host": "a')
    with (
      pytest.raises(InputError, match="unknown host"),
      resume.lock(str(tmp_path)),
    ):
      pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with (
    pytest.raises(InputError, match=r"--workdir .*/file/run: .* \(Not a directory\)"),
    resume.lock(str(tmp_path / "file" / "run")),
  ):
    pass
