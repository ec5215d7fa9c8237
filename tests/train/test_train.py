"""A run is repeatable, resumable, and never mixed with another one."""

import hashlib
import itertools
import json
import pathlib
import shutil
import time

import jax
import numpy as np
import pytest
import tiny_run

from input_pipeline import storage
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import exchange_left_right
from input_pipeline.tf import record_reader
from mail_jax.checkpoints import checkpoint
from mail_jax.evaluate import command as evaluate
from mail_jax.evaluate import runner
from mail_jax.export import load
from mail_jax.train import command as train
from mail_jax.train.length import TrainingLength


def _hashes(folder: pathlib.Path) -> dict[str, str]:
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob("*")
    if path.is_file()
  }


def _same_parameters(run: pathlib.Path, other: pathlib.Path) -> bool:
  states = [load.load(str(folder), "last").variables for folder in (run, other)]
  return jax.tree.all(jax.tree.map(np.array_equal, *states))


def test_a_run_logs_every_step_and_every_evaluation(finished_run):
  rows = tiny_run.log(finished_run)
  every = tiny_run.EVAL_EVERY
  losses = [row for row in rows if "loss" in row]
  assert [row["step"] for row in losses] == list(range(1, tiny_run.STEPS + 1))
  evaluated = [row["step"] for row in rows if "val/mIoU" in row]
  assert evaluated == list(range(every, tiny_run.STEPS + 1, every))


def test_a_run_learns_what_little_there_is(finished_run):
  losses = [row["loss"] for row in tiny_run.log(finished_run) if "loss" in row]
  assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.1


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_bit_for_bit(
  finished_run, shapes_data, tmp_path, compilations
):
  train.main(tiny_run.arguments(shapes_data, tmp_path))
  # In all of its epochs, evaluations and checkpoints.
  names = ("create_state", "train_step", "to_evaluate", "measure")
  assert compilations == [f"jit({name})" for name in names]
  assert tiny_run.log(tmp_path) == tiny_run.log(finished_run)
  assert _same_parameters(tmp_path, finished_run)


def test_a_finished_run_says_so_and_is_left_alone(finished_run, shapes_data, capsys):
  before = _hashes(finished_run)
  train.main(tiny_run.arguments(shapes_data, finished_run))
  assert f"already finished: {tiny_run.STEPS} steps" in capsys.readouterr().out
  assert _hashes(finished_run) == before


def test_a_run_with_other_settings_is_refused_by_the_key_that_differs(finished_run, shapes_data):
  before = _hashes(finished_run)
  command = tiny_run.arguments(shapes_data, finished_run, "--config.optimizer.b2=0.5")
  with pytest.raises(
    InputError, match=r"config\.optimizer\.b2 = 0\.98, not 0\.5.*--archive_existing"
  ):
    train.main(command)
  assert _hashes(finished_run) == before


def test_archive_existing_moves_such_a_run_aside_and_deletes_nothing(
  finished_run, shapes_data, tmp_path, capsys
):
  workdir = tmp_path / "run"
  shutil.copytree(finished_run, workdir)
  (tmp_path / "run.1").mkdir()  # the name is taken
  short = tiny_run.arguments(shapes_data, workdir, "--archive_existing", "--config.steps=2")
  train.main(short)
  assert f"moved to {tmp_path}/run.2" in capsys.readouterr().out
  assert _hashes(tmp_path / "run.2") == _hashes(finished_run)
  assert tiny_run.steps_kept(workdir) == [2]
  train.main(short)  # now it is the same run
  assert "already finished: 2 steps" in capsys.readouterr().out
  assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1", "run.2"]


def test_reading_a_run_changes_nothing_in_it(finished_run):
  before = _hashes(finished_run)
  load.load(str(finished_run))
  assert _hashes(finished_run) == before


def test_best_and_last_of_a_run_are_what_its_log_says(finished_run):
  scores = {row["step"]: row["val/mIoU"] for row in tiny_run.log(finished_run) if "val/mIoU" in row}
  best = max(scores, key=lambda step: (scores[step], step))
  assert load.load(str(finished_run), "best").step == best
  assert load.load(str(finished_run), "last").step == tiny_run.STEPS
  last_two = {tiny_run.STEPS, tiny_run.STEPS - tiny_run.SAVE_EVERY}
  assert tiny_run.steps_kept(finished_run) == sorted(last_two | {best})


@pytest.mark.slow
def test_best_is_the_checkpoint_that_evaluate_finds_the_best_on_the_whole_split(
  shapes_data, tmp_path, monkeypatch
):
  """Every checkpoint is kept, and evaluated again by the command."""
  everything = lambda self, checkpoints, *, context: [True] * len(checkpoints)  # noqa: E731
  monkeypatch.setattr(checkpoint.LastTwoAndBest, "should_preserve", everything)
  run, every = tmp_path / "run", 8
  keys = {"eval_expressions": 0, "eval_every": every, "save_every": every, "ema_decay": 0.0}
  words = [f"--config.{key}={value}" for key, value in keys.items()]
  train.main(tiny_run.arguments(shapes_data, run, *words, "--config.optimizer.lr=0.02"))
  steps, scores, measure = tiny_run.steps_kept(run), {}, None
  assert steps == list(range(every, tiny_run.STEPS + 1, every))
  for step in steps:
    alone = tmp_path / str(step)
    shutil.copytree(run / "checkpoints" / str(step), alone / "checkpoints" / str(step))
    model = load.load(str(alone), "last")
    measure = measure or runner.compile_measure(model)
    actual, _ = runner.evaluate_split(model, shapes_data, "shapes/val", measure=measure)
    scores[step] = actual["mIoU"]
  assert len(set(scores.values())) == len(scores)
  out = tmp_path / "m.json"
  command = ["--checkpoint", str(run), "--step", "best", "--data_dir", shapes_data]
  evaluate.main([*command, "--data", "shapes/val", "--json", str(out)])
  best = json.loads(out.read_text())["shapes/val"]
  assert best["step"] == max(scores, key=lambda step: scores[step])
  assert best["mIoU"] == max(scores.values())
  counts = (storage.read_metadata(shapes_data, "shapes") or {})["counts"]["val"]
  assert best["expressions"] == counts["expressions"]
  logged = {row["step"]: row["val/mIoU"] for row in tiny_run.log(run) if "val/mIoU" in row}
  assert logged == pytest.approx(scores, abs=1e-4)  # pixels near the threshold


def test_minutes_become_a_number_of_steps_that_a_resumed_run_keeps(shapes_data, tmp_path, capsys):
  length = ["--config.steps=0", "--config.minutes=0.02", "--config.eval_every=1000"]
  command = tiny_run.arguments(shapes_data, tmp_path, *length, "--config.save_every=1000")
  train.main(command)
  steps = tiny_run.log(tmp_path)[-1]["step"]
  assert f"{steps} steps fit into 0.02 minutes" in capsys.readouterr().out
  checkpoints = checkpoint.Checkpoints(str(tmp_path), read_only=True)
  assert checkpoints.latest() == steps
  assert checkpoints.meta(steps)["steps"] == steps
  checkpoints.close()
  train.main(command)
  assert f"already finished: {steps} steps" in capsys.readouterr().out


def test_the_steps_that_fit_into_the_minutes_do_not_count_the_compilation_twice(monkeypatch):
  now = 100.0
  monkeypatch.setattr(time, "monotonic", lambda: now)
  length = TrainingLength(steps=0, minutes=1.0, warmup_steps=6)
  length.start()
  step = 0
  while not length.steps or step < length.steps:
    now += 10 if step == 0 else 0.5  # the first step compiles
    length.update(step)
    step += 1
  assert 0.9 * 60 < now - 100 <= 60


def test_the_speed_is_measured_for_about_a_tenth_of_the_time_and_not_by_a_slow_start(monkeypatch):
  now = 0.0
  monkeypatch.setattr(time, "monotonic", lambda: now)
  length = TrainingLength(steps=0, minutes=10.0, warmup_steps=6)
  length.start()
  for step in itertools.count():
    now += 1.0 if step < 20 else 0.5
    if length.update(step):
      break
  # At one second a step a tenth is 60 steps. The first five alone would say 560 steps in all.
  assert step + 1 == 61
  assert length.steps > 800


@pytest.mark.parametrize("later", [0.25, 0.45, 1.0])
def test_the_number_of_steps_follows_from_the_speed_while_it_changes(monkeypatch, later):
  now, known = 0.0, []
  monkeypatch.setattr(time, "monotonic", lambda: now)
  length = TrainingLength(steps=0, minutes=10.0, warmup_steps=6)
  length.start()
  step = 0
  while not length.steps or step < length.steps:
    now += 0.5 if now < 200 else later
    if length.update(step):
      known.append(length.steps)
    step += 1
  assert 0.9 * 600 < now <= 600
  assert len(known) >= 2
  assert all((after > before) == (later < 0.5) for before, after in itertools.pairwise(known))


@pytest.mark.parametrize(("steps", "minutes"), [(0, 0.0), (5, 1.0)])
def test_one_of_steps_epochs_and_minutes_is_set(steps, minutes):
  with pytest.raises(InputError, match=r"config\.epochs and config\.minutes: set one"):
    TrainingLength(steps, minutes, warmup_steps=3)


def test_updates_that_stay_not_finite_end_the_run_and_name_what_was_in_their_batches(
  shapes_data, tmp_path
):
  more = ("--config.optimizer.lr=1e30", "--config.max_nonfinite_steps=3", "--config.eval_every=100")
  with pytest.raises(InputError, match=r"not finite in 3 steps in a row, 2 to 4; .*lists their"):
    train.main(tiny_run.arguments(shapes_data, tmp_path, *more))
  batches = json.loads((tmp_path / "skipped_batches.json").read_text())
  assert [batch["step"] for batch in batches] == [2, 3, 4]
  # Samples of 8 follow each other; every one is a ref of the train split.
  positions = [sample["position"] for batch in batches for sample in batch["samples"]]
  assert positions == list(range(8, 32))
  known = {
    (int(record["image_id"]), ref["ref_id"]): ref["normalised"]
    for record in record_reader.read_records(record_reader.Split(shapes_data, "shapes", "train"))
    for ref in record["refs"]
  }
  for sample in (sample for batch in batches for sample in batch["samples"]):
    texts = known[sample["image_id"], sample["ref_id"]]
    assert sample["expression"] in [
      exchange_left_right(text) if sample["flipped"] else text for text in texts
    ]
  # What is not finite is nowhere in the log: JSON has no such numbers.
  assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
