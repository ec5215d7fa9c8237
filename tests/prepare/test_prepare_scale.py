"""`prepare` with several processes, on Beam, and killed: the same bytes every time."""

import hashlib
import os
import pathlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import ClassVar, cast

import pytest
from refer_layout import make_layout

from input_pipeline import storage
from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare
from input_pipeline.sources.source import Source, TaskResult

CHECKOUT = pathlib.Path(__file__).parents[2]
KILLS = 10


def _hashes(folder: pathlib.Path) -> dict[str, str]:
  """Returns the digest of every file, except the one with the time that it took."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name != "timing.json"
  }


def _real_arguments(realdata, data_dir) -> list[str]:
  annotations = realdata / "coco/annotations/instances_train2014.json"
  return [
    *("--dataset", "refcoco_unc", "--refer_root", str(realdata / "refer")),
    *("--images", str(realdata / "coco/train2014"), "--instances", f"coco:{annotations}"),
    *("--data_dir", str(data_dir), "--workers", "2"),
  ]


def _start(arguments: list[str]) -> subprocess.Popen:
  command = [sys.executable, "-m", "input_pipeline.prepare", *arguments]
  return subprocess.Popen(
    command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )


def test_two_processes_write_what_one_writes(tmp_path):
  layout = make_layout(tmp_path)
  for workers in ("1", "2"):
    prepare.main(layout.arguments(tmp_path / workers, "--workers", workers, "--batch_size", "1"))
  assert _hashes(tmp_path / "1") == _hashes(tmp_path / "2")
  assert storage.read_timing(str(tmp_path / "2"), "refcoco_unc").keys() == {
    "train",
    "val",
    "testA",
    "testB",
  }


def test_the_same_command_in_another_process_writes_the_same_bytes(tmp_path):
  layout = make_layout(tmp_path)
  for folder in ("a", "b"):
    assert _start(layout.arguments(tmp_path / folder)).wait() == 0
  assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")


def test_an_error_in_a_worker_is_one_line(tmp_path):
  layout = make_layout(tmp_path)
  layout.image_path(2).write_bytes(b"no photo")
  with pytest.raises(InputError, match=r"000000000102\.jpg is not an image in a known format"):
    prepare.main(layout.arguments(tmp_path / "data", "--workers", "2"))
  assert not (tmp_path / "data").exists()


@pytest.fixture(scope="module")
def dask() -> Iterator[str]:
  """The options for a Dask cluster of two worker processes."""
  # Without Dask, that name is a folder of these tests.
  pytest.importorskip("dask")
  distributed = pytest.importorskip("distributed")
  with distributed.LocalCluster(
    n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
  ) as cluster:
    address = f"--dask_client_address={cluster.scheduler_address} --dask_partition_size=1"
    yield f"--runner=apache_beam.runners.dask.dask_runner.DaskRunner {address}"


@pytest.fixture(params=["direct", "dask"])
def runner(request) -> str:
  """The option for a runner of Beam."""
  pytest.importorskip("apache_beam")
  direct = request.param == "direct"
  return f"--beam={'--runner=DirectRunner' if direct else request.getfixturevalue('dask')}"


@pytest.mark.beam
def test_beam_writes_the_same_bytes(tmp_path, runner):
  layout = make_layout(tmp_path)
  layout.image_path(0).write_bytes(b"no photo")
  for ref in layout.refs:
    ref["split"] = "train" if ref["image_id"] < 103 else "val"
  layout.write()
  for name, more in (("local", []), ("beam", [runner])):
    prepare.main(layout.arguments(tmp_path / name, "--on_error", "skip", *more))
  assert _hashes(tmp_path / "local") == _hashes(tmp_path / "beam")
  metadata = storage.read_metadata(str(tmp_path / "beam"), "refcoco_unc")
  assert metadata is not None
  assert metadata["counts"]["train"] == {"records": 2, "refs": 4, "expressions": 6}
  assert [row[0] for row in metadata["skipped"]["train"]] == [100]


@pytest.mark.beam
def test_both_workers_of_a_cluster_do_tasks(tmp_path, dask):
  class Who:
    splits: ClassVar = {"train": 40}
    workers, provenance, coco_ids = 1, {}, {}

    def tasks(self, split: str) -> Iterator[dict]:
      return ({"number": number} for number in range(40))

    make = staticmethod(_who)

  from input_pipeline.sources import beam

  done = list(beam.do_tasks(cast(Source, Who()), str(tmp_path), dask)("train"))
  assert [result.seconds for result in done] == list(range(40))
  processes = {note for result in done for note in result.notes}
  assert len(processes) == 2 and str(os.getpid()) not in processes


def _who(task: dict) -> TaskResult:
  """Does a task by saying which process does it."""
  return TaskResult([], seconds=task["number"], notes={str(os.getpid()): 1})


@pytest.mark.beam
def test_invalid_input_on_beam_is_one_line_and_leaves_nothing(tmp_path, runner):
  layout = make_layout(tmp_path)
  layout.image_path(2).write_bytes(b"no photo")
  with pytest.raises(InputError, match=r"^image .*000000000102\.jpg is not an image[^\n]*$"):
    prepare.main(layout.arguments(tmp_path / "data", runner))
  assert not (tmp_path / "data").exists()


@pytest.mark.beam
def test_a_worker_that_outlives_the_error_of_another_leaves_nothing(tmp_path, dask):
  class Two:
    splits: ClassVar = {"train": 2}
    workers, provenance, coco_ids = 1, {}, {}

    def tasks(self, split: str) -> Iterator[dict]:
      return ({"late": late, "done": str(tmp_path / "done")} for late in (True, False))

    make = staticmethod(_fail_or_be_late)

  from input_pipeline.sources import beam

  with (
    pytest.raises(InputError, match="invalid task"),
    storage.staging(str(tmp_path / "data"), "refcoco_unc") as folder,
  ):
    beam.do_tasks(cast(Source, Two()), folder, dask)
  deadline = time.monotonic() + 60
  while not (tmp_path / "done").exists():
    assert time.monotonic() < deadline
    time.sleep(0.1)
  time.sleep(1)  # for it to write its result
  assert not (tmp_path / "data").exists()


def _fail_or_be_late(task: dict) -> TaskResult:
  """Fails, or does its task after the other has failed."""
  time.sleep(1)
  if not task["late"]:
    raise InputError("invalid task")
  time.sleep(4)
  pathlib.Path(task["done"]).touch()
  return TaskResult([])


@pytest.mark.slow
def test_killed_at_any_moment_the_second_run_writes_the_bytes_of_an_undisturbed_one(
  realdata, tmp_path
):
  def finish(data_dir) -> float:
    began = time.monotonic()
    assert _start(_real_arguments(realdata, data_dir)).wait() == 0
    return time.monotonic() - began

  undisturbed = finish(tmp_path / "whole")
  expected = _hashes(tmp_path / "whole")
  moments = random.Random(0)
  killed = attempts = 0
  while killed < KILLS:
    attempts += 1
    assert attempts <= 3 * KILLS
    data_dir = tmp_path / str(attempts)
    process = _start(_real_arguments(realdata, data_dir))
    time.sleep(moments.uniform(0, undisturbed))
    process.kill()
    killed += process.wait() != 0
    metadata = storage.read_metadata(str(data_dir), "refcoco_unc")
    assert metadata is None or _hashes(data_dir) == expected
    # The first run was the slowest: later ones find the index of the annotations.
    undisturbed = min(undisturbed, finish(data_dir))
    assert _hashes(data_dir) == expected
    assert not list(data_dir.glob(".incomplete-*"))
