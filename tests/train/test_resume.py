"""A run that is stopped anywhere and resumed ends like an uninterrupted one."""

import itertools
import os
import pathlib
import random
import signal
import time
from collections.abc import Callable

import jax
import numpy as np
import pytest
import several_processes
import tiny_run
from several_processes import Processes

from mail_jax.checkpoints import checkpoint
from mail_jax.export import load
from mail_jax.train import command as train

DEADLINE = 300  # seconds, far more than needed
# Devices per process, and processes.
TOPOLOGIES = {"one device": (1, 1), "eight devices": (8, 1), "two processes": (1, 2)}


def _start(data_dir: str, workdir: pathlib.Path, topology: str, *more: str) -> Processes:
  """Starts the command on the processes of a topology."""
  devices, processes = TOPOLOGIES[topology]
  return several_processes.start(
    processes,
    "-m",
    "mail_jax.train",
    *tiny_run.arguments(data_dir, workdir, *more),
    environment=several_processes.devices(devices),
  )


def _finish(processes: Processes) -> str:
  """Waits for the run; returns the output of its first process."""
  ended = processes.wait(DEADLINE)
  assert [process.code for process in ended] == [0] * len(ended), ended[0].printed
  return ended[0].printed


def _wait(processes: Processes, condition: Callable[[], bool]) -> None:
  began = time.monotonic()
  while not condition():
    assert processes.all_run(), "the run ended before it could be stopped"
    assert time.monotonic() - began < DEADLINE
    time.sleep(0.002)


def _steps_logged(workdir: pathlib.Path) -> int:
  try:
    return max((row["step"] for row in tiny_run.log(workdir)), default=0)
  except (FileNotFoundError, ValueError):  # not there yet, or half a line
    return 0


def _steps_saved(workdir: pathlib.Path) -> list[int]:
  """Returns the steps of the complete checkpoints; others may be in progress."""
  folder = workdir / "checkpoints"
  names = os.listdir(folder) if folder.is_dir() else []
  return sorted(int(name) for name in names if name.isdecimal())


def _is_beyond_a_checkpoint(workdir: pathlib.Path) -> bool:
  """Returns whether a run has done steps after its last checkpoint."""
  saved = _steps_saved(workdir)
  return bool(saved) and _steps_logged(workdir) > max(saved)


def _assert_the_same(run: pathlib.Path, other: pathlib.Path) -> None:
  assert tiny_run.log(run) == tiny_run.log(other)
  states = [load.load(str(folder), "last").variables for folder in (run, other)]
  assert jax.tree.all(jax.tree.map(np.array_equal, *states))


@pytest.mark.slow
def test_a_killed_run_that_is_started_again_ends_as_an_undisturbed_one(
  finished_run, shapes_data, tmp_path
):
  run = _start(shapes_data, tmp_path, "one device")
  _wait(run, lambda: _is_beyond_a_checkpoint(tmp_path))
  run.send(signal.SIGKILL)
  assert run.wait(DEADLINE)[0].code == -signal.SIGKILL
  assert _steps_logged(tmp_path) < tiny_run.STEPS
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 3, "lo')  # an incomplete line
  assert "resumed at step" in _finish(_start(shapes_data, tmp_path, "one device"))
  _assert_the_same(tmp_path, finished_run)


@pytest.mark.slow
def test_sigterm_saves_and_ends_well_and_the_same_command_goes_on(shapes_data, tmp_path):
  # A row of the log is a mean over several steps, and the run is stopped between two rows.
  undisturbed = tmp_path / "undisturbed"
  rare = ["--config.log_every=12", "--config.save_every=1000", "--config.eval_every=1000"]
  train.main(tiny_run.arguments(shapes_data, undisturbed, *rare))
  workdir = tmp_path / "run"
  run = _start(shapes_data, workdir, "one device", *rare)
  _wait(run, lambda: _steps_logged(workdir) >= 12)
  run.send(signal.SIGTERM)
  printed = _finish(run)
  (saved,) = tiny_run.steps_kept(workdir)
  assert 12 <= saved < tiny_run.STEPS, "stopped too late to show anything"
  assert f"stopped by SIGTERM at step {saved}; run the same command again" in printed
  assert f"resumed at step {saved}" in _finish(_start(shapes_data, workdir, "one device", *rare))
  _assert_the_same(workdir, undisturbed)


@pytest.mark.slow
def test_an_evaluation_that_sigterm_ended_is_made_up_for(
  finished_run, shapes_data, tmp_path, monkeypatch
):
  # In the second evaluation, before its second batch: 40 expressions are three batches of 16.
  stop = 2 * tiny_run.EVAL_EVERY
  command = tiny_run.arguments(shapes_data, tmp_path)
  with monkeypatch.context() as patch:
    _stop_at_call(patch, stop + 3 + 2)
    train.main(command)
  assert max(tiny_run.steps_kept(tmp_path)) == stop
  assert not _metrics(tmp_path, stop)
  evaluated = [row["step"] for row in tiny_run.log(tmp_path) if "val/mIoU" in row]
  assert evaluated == [tiny_run.EVAL_EVERY]
  train.main(command)
  _assert_the_same(tmp_path, finished_run)
  for step in tiny_run.steps_kept(finished_run):
    assert _metrics(tmp_path, step) == _metrics(finished_run, step)


def _metrics(workdir: pathlib.Path, step: int) -> dict[str, int | float]:
  checkpoints = checkpoint.Checkpoints(str(workdir), read_only=True)
  metrics = checkpoints.metrics(step)
  checkpoints.close()
  return metrics


@pytest.mark.slow
@pytest.mark.parametrize(
  ("topology", "mesh"),
  [
    ("eight devices", ["--config.mesh.data=4", "--config.mesh.fsdp=2"]),
    ("two processes", ["--config.loader.cache=True"]),
  ],
)
def test_a_run_goes_on_with_another_mesh_or_number_of_processes(
  topology, mesh, finished_run, shapes_data, tmp_path, monkeypatch
):
  stop = 8
  with monkeypatch.context() as patch:
    _stop_at_call(patch, stop)
    train.main(tiny_run.arguments(shapes_data, tmp_path, "--config.eval_every=1000"))
  assert tiny_run.steps_kept(tmp_path)[-1] == stop
  spread = ["--config.eval_every=1000", *mesh]
  printed = _finish(_start(shapes_data, tmp_path, topology, *spread))
  devices = 8 if topology == "eight devices" else 2
  assert f"{devices} cpu device(s), resumed at step {stop}" in printed
  losses = [
    {row["step"]: row["loss"] for row in tiny_run.log(folder) if "loss" in row}
    for folder in (tmp_path, finished_run)
  ]
  for step in range(1, stop + 3):
    assert losses[0][step] == pytest.approx(losses[1][step], rel=1e-5)
  assert losses[0].keys() == losses[1].keys()


def _stop_at_call(monkeypatch, number: int) -> None:
  """Raises SIGTERM before a call of `reached`: after a step, or before a batch of an evaluation."""
  calls = itertools.count(1)

  def reached(preemption) -> bool:
    preemption.asked |= next(calls) == number
    return preemption.asked

  monkeypatch.setattr("mail_jax.train.guards.Preemption.reached", reached)


@pytest.mark.slow
def test_when_one_of_two_processes_is_killed_the_other_ends_and_both_go_on(shapes_data, tmp_path):
  undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "run"
  first = _start(shapes_data, undisturbed, "two processes")
  _finish(first)
  run = _start(shapes_data, workdir, "two processes")
  _wait(run, lambda: _is_beyond_a_checkpoint(workdir))
  run.send(signal.SIGKILL, 1)
  killed = time.monotonic()
  survivor, gone = run.wait(DEADLINE)
  assert time.monotonic() - killed < 120
  assert gone.code == -signal.SIGKILL
  assert survivor.code not in (0, None)
  assert "resumed at step" in _finish(_start(shapes_data, workdir, "two processes"))
  _assert_the_same(workdir, undisturbed)


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_ends_both_well(shapes_data, tmp_path):
  run = _start(shapes_data, tmp_path, "two processes", "--config.steps=2000")
  _wait(run, lambda: _is_beyond_a_checkpoint(tmp_path))
  run.send(signal.SIGTERM, 1)
  printed = _finish(run)
  saved = max(tiny_run.steps_kept(tmp_path))
  assert f"stopped by SIGTERM at step {saved}; run the same command again" in printed


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_run_stopped_at_twenty_random_points_is_always_the_undisturbed_one(
  topology, number, shapes_data, tmp_path
):
  long = ["--config.steps=200", "--config.eval_every=70", "--config.save_every=13"]
  undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "run"
  _finish(_start(shapes_data, undisturbed, topology, *long))
  expected = tiny_run.log(undisturbed)
  chance, stopped_at = random.Random(f"{topology} {number.name}"), []
  for point in sorted(chance.sample(range(1, 190), 20)):
    # Rows of an earlier start after its last checkpoint are dropped or logged again.
    began = time.time_ns()
    run = _start(shapes_data, workdir, topology, *long)
    _wait(
      run,
      lambda: _logged_since(workdir, began) and _steps_logged(workdir) >= point,  # noqa: B023
    )
    time.sleep(chance.uniform(0, 0.1))
    run.send(number)
    codes = [process.code for process in run.wait(DEADLINE)]
    assert set(codes) == {0 if number == signal.SIGTERM else -number}
    whole = [line for line in _lines(workdir) if line.endswith("\n")]
    assert tiny_run.without_clock(whole) == expected[: len(whole)]
    stopped_at.append((_steps_logged(workdir), max(_steps_saved(workdir), default=0)))
  _finish(_start(shapes_data, workdir, topology, *long))
  _assert_the_same(workdir, undisturbed)
  print(f"{topology}, {number.name}: logged and saved when stopped: {stopped_at}")


def _lines(workdir: pathlib.Path) -> list[str]:
  return (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)


def _logged_since(workdir: pathlib.Path, began: int) -> bool:
  """Returns whether the log was written after a time in nanoseconds."""
  log = workdir / "metrics.jsonl"
  return log.exists() and log.stat().st_mtime_ns > began
