"""Runs in buckets, on local servers with the protocols of Google Cloud Storage and S3."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import read_batches
import tiny_run
from etils import epath
from test_checkpoint import _make, _restore, _save, run_two_processes

from input_pipeline.common.errors import InputError
from mail_jax.checkpoints import checkpoint, manifest
from mail_jax.checkpoints.checkpoint import Checkpoints
from mail_jax.export import load
from mail_jax.train import command as train
from mail_jax.train.logging import tensorboard

pytestmark = pytest.mark.extras


@pytest.fixture(params=["gcs", "s3"])
def place(request, tmp_path) -> str:
  """Returns an address that no other test uses."""
  return f"{request.getfixturevalue(request.param)}{tmp_path}/run"


def _names(address: str) -> list[str]:
  return sorted(path.name for path in epath.Path(address).iterdir())


def test_the_best_and_the_last_two_are_kept_and_read_again(place):
  assert not checkpoint.exists(place)
  _make(place, 0.2, 0.9, 0.3, None, 0.5, None)
  assert checkpoint.exists(place)
  assert _names(f"{place}/checkpoints") == ["2", "5", "6"]
  again = Checkpoints(place, read_only=True)
  assert [_restore(again, step or 0) for step in (again.best(), again.latest())] == [2, 6]
  again.close()


def test_a_damaged_checkpoint_is_moved_aside_and_its_step_saved_again(place, capfd):
  _make(place, 0.5, None, None)
  values = max(
    epath.Path(f"{place}/checkpoints/3/state/ocdbt.process_0/d").iterdir(),
    key=lambda path: path.stat().length,
  )
  data = bytearray(values.read_bytes())
  data[len(data) // 2] ^= 1
  values.write_bytes(bytes(data))
  checkpoints = Checkpoints(place)
  assert checkpoints.latest() == 2
  assert f"{place}/checkpoints/3 is damaged (state/ocdbt.process_0/d/" in capfd.readouterr().err
  _save(checkpoints, 3)
  assert _restore(checkpoints, checkpoints.latest() or 0) == 3
  checkpoints.close()
  assert _names(place) == ["checkpoints", "damaged-3"]
  assert epath.Path(f"{place}/damaged-3/state/ocdbt.process_0/d/{values.name}").exists()


def test_metrics_can_follow_their_checkpoint(place):
  _make(place, 0.5, None)
  checkpoints = Checkpoints(place)
  _save(checkpoints, 2, 0.75)
  checkpoints.close()
  again = Checkpoints(place, read_only=True)
  assert _restore(again, again.best() or 0) == 2
  again.close()


def test_a_checkpoint_that_was_not_finished_is_not_picked(place):
  _make(place, None, None)
  last = "commit_success.txt" if place.startswith("gs:") else manifest.FILE
  (epath.Path(place) / "checkpoints" / "2" / last).unlink()
  checkpoints = Checkpoints(place)
  assert checkpoints.latest() == 1
  _save(checkpoints, 2)
  checkpoints.close()
  again = Checkpoints(place, read_only=True)
  assert _restore(again, again.latest() or 0) == 2
  again.close()


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_on_the_disk(place, finished_run, shapes_data, capsys):
  command = tiny_run.arguments(shapes_data, place)
  train.main(command)
  rows = [
    json.loads(line) for line in epath.Path(f"{place}/metrics.jsonl").read_text().split("\n")[:-1]
  ]
  on_disk = tiny_run.log(finished_run)
  assert [
    {key: row[key] for key in there} for row, there in zip(rows, on_disk, strict=True)
  ] == on_disk
  states = [load.load(str(run), "last").variables for run in (place, finished_run)]
  assert jax.tree.all(jax.tree.map(np.array_equal, *states))
  train.main(command)
  assert f"already finished: {tiny_run.STEPS} steps" in capsys.readouterr().out
  train.main([*command, "--archive_existing", "--config.steps=2"])
  assert f"moved to {place}.1" in capsys.readouterr().out
  assert _names(f"{place}/checkpoints") == ["2"]
  assert load.load(f"{place}.1", "last").step == tiny_run.STEPS


def test_event_files_hold_what_was_told_before_a_checkpoint_and_drop_what_is_beyond(
  place, tmp_path
):
  pytest.importorskip("tensorboard")
  from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

  def steps() -> list[int]:
    actual = []
    for number, file in enumerate(sorted(epath.Path(f"{place}/tensorboard").iterdir())):
      copy = tmp_path / str(number)
      copy.write_bytes(file.read_bytes())
      events = LegacyEventFileLoader(str(copy)).Load()
      actual += [e.step for e in events for v in e.summary.value if v.tag == "train/loss"]
    return actual

  board = tensorboard.TensorBoard(place, 0, {"a": 1}, [])
  for step in (1, 2, 3):
    board.row(step, {"loss": 0.5, "lr": 0.1})
  board.flush()
  board.row(4, {"loss": 0.5, "lr": 0.1})  # Here the process is killed.
  assert steps() == [1, 2, 3]
  board = tensorboard.TensorBoard(place, 2, {"a": 1}, [])
  board.row(3, {"loss": 0.25, "lr": 0.1})
  board.close()
  assert steps() == [1, 2, 3]


def test_loading_from_a_bucket_does_not_import_tensorflow(place):
  _make(place, None)
  program = (
    "import sys; from mail_jax.checkpoints.checkpoint import Checkpoints;"
    "c = Checkpoints(sys.argv[1], read_only=True);"
    "print(c.latest(), c.meta(1), 'tensorflow' in sys.modules)"
  )
  environment = os.environ | {"PYTHONPATH": str(tiny_run.CHECKOUT)}
  command = [sys.executable, "-c", program, place]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
  assert done.stdout == "1 {'note': 1} False\n"


@pytest.mark.slow
def test_two_processes_save_together_to_google(gcs, tmp_path):
  run_two_processes(f"{gcs}{tmp_path}/run")


def test_several_processes_are_refused_on_s3(s3, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(InputError, match="several processes cannot save to s3://"):
    Checkpoints(f"{s3}/run")


@pytest.mark.parametrize("scheme", ["gcs", "s3"])
def test_a_bucket_that_does_not_exist_is_told(scheme, request):
  place = request.getfixturevalue(scheme).replace("bucket", "no-such-bucket")
  with pytest.raises(InputError, match=f"--workdir {place}/run: .* cannot be "):
    _make(f"{place}/run", None)


def test_records_in_a_bucket_make_the_batches_of_those_on_the_disk(place, shapes_data):
  from input_pipeline import storage
  from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
  from input_pipeline.tf import loader

  _upload(pathlib.Path(shapes_data), f"{place}/data")
  places = shapes_data, f"{place}/data"
  sentences = [loader.train_expressions(data_dir, "shapes") for data_dir in places]
  assert sentences[0] == sentences[1]
  metadata = [storage.read_metadata(data_dir, "shapes") for data_dir in places]
  assert metadata[0] == metadata[1]
  tokenizer = SentencePieceTokenizer.train(sentences[0], 320)
  shape = {"batch_size": 8, "image_size": 32, "max_instances": 8, "max_tokens": 16}
  on_disk, in_bucket = (
    read_batches.train(data_dir, "shapes", tokenizer, seed=0, **shape) for data_dir in places
  )
  for _ in range(4):
    jax.tree.map(np.testing.assert_array_equal, next(on_disk), next(in_bucket))


def _upload(folder: pathlib.Path, address: str) -> None:
  for path in folder.rglob("*"):
    if path.is_file():
      (epath.Path(address) / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
