"""Checkpoints: which are kept, which are selected, and what happens to damaged ones."""

import hashlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable

import checkpoint_programs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from etils import epath

from input_pipeline.common.errors import InputError
from mail_jax.checkpoints import checkpoint, manifest
from mail_jax.checkpoints.checkpoint import Checkpoints
from mail_jax.distributed import sharding
from mail_jax.export import load
from mail_jax.train import command as train

# Orbax writes these last; nothing is restored from them.
_UNUSED = {"_CHECKPOINT_METADATA", "commit_success.txt"}
# Seconds, many times what a process here needs.
_DEADLINE = 120


def _state(step: int) -> dict[str, jax.Array]:
  return {"weight": jnp.asarray(np.random.default_rng(step).random(2000, np.float32))}


def _save(checkpoints: Checkpoints, step: int, score: float | None = None) -> None:
  checkpoints.save(step, _state(step), {"note": step}, None if score is None else {"mIoU": score})


def _make(folder: pathlib.Path, *scores: float | None) -> None:
  """Saves the steps 1, 2, ... with these scores."""
  checkpoints = Checkpoints(str(folder))
  for step, score in enumerate(scores, 1):
    _save(checkpoints, step, score)
  checkpoints.close()


def _restore(checkpoints: Checkpoints, step: int) -> int:
  """Restores a step and compares it with what was saved."""
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = {"weight": jax.ShapeDtypeStruct((2000,), jnp.float32, sharding=place)}
  restored = checkpoints.restore(step, abstract)
  np.testing.assert_array_equal(restored["weight"], _state(step)["weight"])
  assert checkpoints.meta(step) == {"note": step}
  return step


def _hashes(folder: pathlib.Path) -> dict[str, str]:
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def _program(
  name: str, folder: pathlib.Path | str, *more: str, devices: int = 1
) -> subprocess.Popen:
  environment = os.environ | {
    "PYTHONPATH": str(tiny_run.CHECKOUT),
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }
  command = [sys.executable, checkpoint_programs.__file__, name, str(folder), *more]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  return subprocess.Popen(command, env=environment, cwd=tiny_run.CHECKOUT, text=True, **pipes)


# Which are kept


def test_the_best_checkpoint_and_the_last_two_are_kept(tmp_path):
  _make(tmp_path, 0.2, 0.9, 0.3, None, 0.5, None)
  assert tiny_run.steps_kept(tmp_path) == [2, 5, 6]
  again = Checkpoints(str(tmp_path), read_only=True)
  assert (again.best(), again.latest()) == (2, 6)
  _restore(again, 2)
  again.close()


def test_the_best_checkpoint_is_still_known_when_a_run_is_resumed(tmp_path):
  _make(tmp_path, 0.2, 0.9, 0.3)
  checkpoints = Checkpoints(str(tmp_path))
  for step, score in ((4, 0.4), (5, None), (6, 0.5)):
    _save(checkpoints, step, score)
  checkpoints.close()
  assert tiny_run.steps_kept(tmp_path) == [2, 5, 6]


def test_a_run_that_is_never_evaluated_keeps_the_last_two_and_has_no_best(tmp_path):
  checkpoints = Checkpoints(str(tmp_path))
  for step in range(1, 5):
    _save(checkpoints, step)
  assert checkpoints.best() is None
  checkpoints.close()
  assert tiny_run.steps_kept(tmp_path) == [3, 4]


def test_a_score_that_is_not_a_number_is_no_score(tmp_path):
  _make(tmp_path, float("nan"), 0.2, None, None)
  assert tiny_run.steps_kept(tmp_path) == [2, 3, 4]
  checkpoints = Checkpoints(str(tmp_path), read_only=True)
  assert checkpoints.best() == 2
  checkpoints.close()


# Damage


def _flip(path: pathlib.Path) -> None:
  data = bytearray(path.read_bytes())
  data[len(data) // 3] ^= 4
  path.write_bytes(data)


def _truncate(path: pathlib.Path) -> None:
  os.truncate(path, path.stat().st_size // 2)


# How a file is damaged, and the message about it.
_DAMAGE: dict[str, tuple[Callable[[pathlib.Path], None], str]] = {
  "a bit is flipped": (_flip, "has changed"),
  "truncated": (_truncate, "bytes instead of"),
  "empty": (lambda path: os.truncate(path, 0), "has 0 bytes instead of"),
  "missing": (pathlib.Path.unlink, "is missing"),
}


@pytest.mark.parametrize("damage", _DAMAGE)
def test_whatever_happens_to_any_file_of_the_newest_checkpoint_the_one_before_is_picked(
  tmp_path, capsys, damage
):
  _make(tmp_path, None, None)
  newest = tmp_path / "checkpoints" / "2"
  files = [path for path in newest.rglob("*") if path.is_file()]
  assert len(files) > 10
  damage_file, message = _DAMAGE[damage]
  for path in files:
    name, content = str(path.relative_to(newest)), path.read_bytes()
    damage_file(path)
    checkpoints = Checkpoints(str(tmp_path), read_only=True)
    picked = _restore(checkpoints, checkpoints.latest() or 0)
    checkpoints.close()
    warning = capsys.readouterr().err
    path.write_bytes(content)
    if name in _UNUSED:
      assert (name, picked, warning) == (name, 2, "")
    else:
      assert (name, picked) == (name, 1)
      assert f"warning: {newest} is damaged ({name} " in warning
      assert message in warning or name == manifest.FILE


def test_every_bit_that_is_flipped_in_the_values_of_an_array_is_noticed(tmp_path):
  _make(tmp_path, None)
  folder = tmp_path / "checkpoints" / "1"
  path = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
  content = path.read_bytes()
  assert len(content) > 4 * 1500  # Random numbers do not compress.
  rng = np.random.default_rng(0)
  for position, bit in zip(rng.integers(0, len(content), 50), rng.integers(0, 8, 50), strict=True):
    data = bytearray(content)
    data[position] ^= 1 << int(bit)
    path.write_bytes(data)
    with pytest.raises(manifest.DamagedError, match="has changed"):
      manifest.check(epath.Path(folder))


def test_metrics_that_are_not_those_that_were_written_are_noticed(tmp_path):
  _make(tmp_path, 0.25, 0.5)
  path = tmp_path / "checkpoints" / "2" / manifest.FILE
  path.write_text(path.read_text().replace('"mIoU": 0.5', '"mIoU": 0.7'))
  checkpoints = Checkpoints(str(tmp_path), read_only=True)
  assert checkpoints.best() == 1
  checkpoints.close()


def test_a_damaged_checkpoint_is_moved_aside_and_its_step_saved_again(tmp_path, capsys):
  _make(tmp_path, 0.5, 0.1, 0.3)
  newest = tmp_path / "checkpoints" / "3"
  _flip(newest / "state" / "_METADATA")
  damaged = _hashes(newest)
  (tmp_path / "damaged-3").mkdir()  # The name is taken.
  checkpoints = Checkpoints(str(tmp_path))
  assert (checkpoints.latest(), checkpoints.best()) == (2, 1)
  assert f"moved {newest} to {tmp_path}/damaged-3.2" in capsys.readouterr().err
  assert _hashes(tmp_path / "damaged-3.2") == damaged
  _save(checkpoints, 3, 0.7)
  assert _restore(checkpoints, checkpoints.latest() or 0) == 3
  assert checkpoints.best() == 3
  checkpoints.close()
  assert tiny_run.steps_kept(tmp_path) == [2, 3]


def test_reading_a_damaged_run_changes_nothing_in_it(tmp_path):
  _make(tmp_path, 0.9, None)
  _truncate(tmp_path / "checkpoints" / "2" / "meta" / "metadata")
  before = _hashes(tmp_path)
  checkpoints = Checkpoints(str(tmp_path), read_only=True)
  assert checkpoints.latest() == 1
  checkpoints.close()
  assert _hashes(tmp_path) == before


@pytest.mark.parametrize("read_only", [True, False])
def test_a_run_without_a_whole_checkpoint_is_refused_and_left_as_it_is(tmp_path, read_only):
  _make(tmp_path, None, None)
  for step in "12":
    (tmp_path / "checkpoints" / step / manifest.FILE).unlink()
  before = _hashes(tmp_path)
  checkpoints = Checkpoints(str(tmp_path), read_only=read_only)
  option = "--checkpoint" if read_only else "--workdir"
  with pytest.raises(InputError, match=rf"{option} .* all checkpoints are damaged \(steps 2, 1\)"):
    checkpoints.latest()
  checkpoints.close()
  assert _hashes(tmp_path) == before


def test_a_model_is_loaded_from_the_next_best_checkpoint_where_the_best_is_damaged(
  finished_run, tmp_path, capsys
):
  workdir = tmp_path / "run"
  shutil.copytree(finished_run, workdir)
  before = tiny_run.STEPS - tiny_run.SAVE_EVERY
  best = workdir / "checkpoints" / str(before)
  about = manifest.read_about(epath.Path(best)) | {"metrics": {"mIoU": 2.0}}
  manifest.replace_about(epath.Path(best), about)
  assert load.load(str(workdir)).step == before
  _flip(best / "state" / "manifest.ocdbt")
  assert load.load(str(workdir)).step == load.load(str(finished_run)).step != before
  assert (
    f"{best} is damaged (state/manifest.ocdbt has changed); skipping it" in capsys.readouterr().err
  )


def test_the_checkpoint_of_a_step_is_selected_by_its_number(tmp_path):
  _make(tmp_path, 0.2, 0.9, 0.3, None)
  checkpoints = Checkpoints(str(tmp_path), read_only=True)
  selected = [checkpoints.select(step) for step in ("best", "last", 2, 3)]
  assert selected == [2, 4, 2, 3]
  with pytest.raises(InputError, match=r"--step 1: .* does not exist; \S+ has the steps 2, 3, 4"):
    checkpoints.select(1)
  _flip(next((tmp_path / "checkpoints" / "3" / "state").rglob("manifest.ocdbt")))
  with pytest.raises(InputError, match=r"--step 3: the checkpoint of this step is damaged"):
    Checkpoints(str(tmp_path), read_only=True).select(3)


@pytest.mark.parametrize("step", ["lst", "3", ""])
def test_a_step_that_is_not_one_does_not_load_the_last(tmp_path, step):
  with pytest.raises(InputError, match=r"^step .* is not 'best', 'last' or the number of a step$"):
    load.load(str(tmp_path), step)


def test_a_model_of_another_machine_is_loaded_with_attention_that_runs_here(
  finished_run, monkeypatch
):
  meta = Checkpoints.meta

  def trained_on_a_tpu(self, step):
    actual = meta(self, step)
    model = actual["config"]["model"] | {"backend": "tpu"}
    return actual | {"config": actual["config"] | {"model": model}}

  expected = load.load(str(finished_run)).model
  monkeypatch.setattr(Checkpoints, "meta", trained_on_a_tpu)
  assert load.load(str(finished_run)).model == expected


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_ends_as_if_nothing_had_been(
  finished_run, shapes_data, tmp_path, capsys
):
  workdir = tmp_path / "run"
  shutil.copytree(finished_run, workdir)
  _truncate(workdir / "checkpoints" / str(tiny_run.STEPS) / "state" / "manifest.ocdbt")
  train.main(tiny_run.arguments(shapes_data, workdir))
  printed = capsys.readouterr()
  assert f"resumed at step {tiny_run.STEPS - tiny_run.SAVE_EVERY}" in printed.out
  assert f"checkpoints/{tiny_run.STEPS} is damaged (state/manifest.ocdbt has " in printed.err
  assert tiny_run.log(workdir) == tiny_run.log(finished_run)
  assert tiny_run.steps_kept(workdir) == tiny_run.steps_kept(finished_run)


# Metrics that are added later


def test_metrics_can_follow_their_checkpoint_and_nothing_else_of_it_changes(tmp_path):
  _make(tmp_path, 0.5, None)
  folder = tmp_path / "checkpoints" / "2"
  before = _hashes(folder)
  checkpoints = Checkpoints(str(tmp_path))
  _save(checkpoints, 2, 0.75)
  assert checkpoints.best() == 2
  _save(checkpoints, 2, 0.25)  # It was evaluated already.
  assert checkpoints.best() == 2
  checkpoints.close()
  after = _hashes(folder)
  assert [name for name in before | after if before.get(name) != after.get(name)] == [manifest.FILE]
  again = Checkpoints(str(tmp_path), read_only=True)
  assert _restore(again, again.best() or 0) == 2
  again.close()


def test_a_checkpoint_is_whole_even_when_its_metrics_are_cut_off_while_they_are_written(
  tmp_path, monkeypatch
):
  _make(tmp_path, None, None)
  checkpoints = Checkpoints(str(tmp_path))

  def die(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "replace", die)
  with pytest.raises(KeyboardInterrupt):
    _save(checkpoints, 2, 0.75)
  monkeypatch.undo()
  checkpoints.close()
  again = Checkpoints(str(tmp_path), read_only=True)
  assert (again.latest(), again.best()) == (2, None)
  again.close()


# Failing writes


def test_a_checkpoint_that_was_being_written_when_the_process_died_is_not_picked(tmp_path):
  with _program("die_while_saving", tmp_path) as process:
    assert process.wait(_DEADLINE) == 9, process.communicate()[1]
  begun = _hashes(tmp_path)
  assert any(name.startswith("checkpoints/2.") for name in begun)
  reading = Checkpoints(str(tmp_path), read_only=True)
  assert reading.latest() == 1
  reading.close()
  assert _hashes(tmp_path) == begun
  checkpoints = Checkpoints(str(tmp_path))
  assert checkpoints.latest() == 1
  _save(checkpoints, 3)
  checkpoints.close()
  assert tiny_run.steps_kept(tmp_path) == [1, 3]  # Nothing is left of the partial checkpoint.


def test_a_full_disk_is_told_in_one_line_and_the_last_checkpoint_stays(tmp_path):
  with _program("fill_the_disk", tmp_path) as process:
    out, err = process.communicate(timeout=_DEADLINE)
  assert (process.returncode, err) == (0, "")
  assert len(out.splitlines()) == 1
  assert f"--workdir {tmp_path}: the checkpoint of step 2 cannot be written" in out
  assert "(File too large)" in out
  checkpoints = Checkpoints(str(tmp_path), read_only=True)
  assert checkpoints.latest() == 1
  checkpoints.close()


def test_a_workdir_that_cannot_be_made_is_told(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match=r"--workdir .*file/run: .* \(Not a directory\)"):
    Checkpoints(str(tmp_path / "file" / "run"))


# Messages of TensorStore 0.1.86.
@pytest.mark.parametrize(
  ("message", "reason"),
  [
    (
      'RESOURCE_EXHAUSTED: Failed writing: "/d/x": Failed to write 9 bytes to file 4: No space '
      "left on device [os_error_code='28']",
      "No space left on device",
    ),
    (
      "PERMISSION_DENIED: no storage.objects.create for you [http_response_code='403'] "
      "[http_response_body='{\"code\":403}']",
      "no storage.objects.create for you",
    ),
    (
      "PERMISSION_DENIED: no storage.objects.get for you [http_response_body='{\"code\":403}'] "
      "[http_response_code='403']",
      "no storage.objects.get for you",
    ),
    ("User-provided restore item and on-disk value metadata tree structures do not match", None),
  ],
)
def test_what_the_storage_refuses_is_told_from_other_errors(message, reason):
  assert checkpoint.storage_error(ValueError(message)) == reason


# Other topologies, and several processes


def test_what_eight_devices_saved_is_bit_identical_on_one_and_on_two_times_four(tmp_path):
  with _program("save_on_eight", tmp_path, devices=8) as process:  # It compares 2 x 4 itself.
    error = process.communicate(timeout=_DEADLINE)[1]
  assert process.returncode == 0, error
  single = checkpoint_programs.shapes(sharding.make_mesh(1, 1, jax.devices()[:1]))
  for saved in ("1x8-fsdp", "8x1-fsdp", "8x1-zero1"):
    checkpoints = Checkpoints(str(tmp_path / saved), read_only=True)
    assert checkpoints.latest() == 1
    state = checkpoints.restore(1, single)
    assert checkpoint_programs.differences(jax.device_get(state)) == []
    checkpoints.close()


def run_two_processes(place: str) -> None:
  """Runs `checkpoint_programs.share` on a folder or an address and checks its output."""
  port = str(_free_port())
  programs = [_program("share", place, index, f"localhost:{port}", devices=4) for index in "01"]
  outputs = [process.communicate(timeout=_DEADLINE) for process in programs]
  assert [process.returncode for process in programs] == [0, 0], outputs
  for out, _ in outputs:
    answers = [line for line in out.splitlines() if line.startswith("latest")]
    # Only the second process cannot read step 3; then it is saved again.
    assert answers == ["latest 2 best 1", "latest 3 best 3"]
  assert "3 is damaged (unreadable here)" in outputs[0][1]
  assert "damaged" not in outputs[1][1]  # Only one process prints.
  checkpoints = epath.Path(place) / "checkpoints"
  assert sorted(path.name for path in checkpoints.iterdir()) == ["2", "3"]
  assert {"ocdbt.process_0", "ocdbt.process_1"} <= {
    path.name for path in (checkpoints / "3" / "state").iterdir()
  }


def test_two_processes_save_together_and_come_to_the_same_answers(tmp_path):
  run_two_processes(str(tmp_path))


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]
