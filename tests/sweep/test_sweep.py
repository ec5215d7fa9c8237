"""Sweeps: their grid, runs that are resumed and kept, the table, and the comparison of the best."""

import contextlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import tiny_run
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.common.errors import InputError
from mail_jax.config import load_config
from mail_jax.sweep import command, grid, results


def test_every_combination_is_a_run_with_a_name_that_says_it():
  widths = "model.decoder_widths=(16,8,8),(8,8,8)"
  trials = grid.make(["optimizer.lr=1e-4,5e-5", widths, "seed=0,1"])
  assert len(trials) == 8 and len({trial.name for trial in trials}) == 8
  assert trials[0].name == "optimizer.lr=1e-4,model.decoder_widths=(16,8,8),seed=0"
  assert trials[1].name == "optimizer.lr=1e-4,model.decoder_widths=(16,8,8),seed=1"
  assert trials[-1].overrides == [
    "--config.optimizer.lr=5e-5", "--config.model.decoder_widths=(8,8,8)", "--config.seed=1"
  ]  # fmt: skip
  assert len({trial.setting for trial in trials}) == 4
  config = load_config(tiny_run.__file__, trials[-1].overrides)
  assert (config.optimizer.lr, config.model.decoder_widths, config.seed) == (5e-5, (8, 8, 8), 1)


@given(st.lists(st.text("abc/1.:", min_size=1), min_size=1, max_size=4, unique=True))
def test_a_value_of_any_letters_is_a_folder_of_its_own(values):
  trials = grid.make([f"init={','.join(values)}"])
  assert [trial.values[0][1] for trial in trials] == values
  assert len({trial.name for trial in trials}) == len(values)
  assert not any("/" in trial.name for trial in trials)


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--set", "seed"], r"--set seed: write KEY=VALUE,VALUE"),
    (["--set", "seed=0,,1"], r"write KEY=VALUE,VALUE"),
    (["--set", "seed=0,0"], r"a second time"),
    (["--set", "seed=0", "--set", "seed=1"], r"a second time"),
    (["--set", "optimizer.rate=1"], r"unknown key 'rate'"),
    (["--set", "seed=0,one"], r"'one' is not of type int"),
    (["--set", "seed=0,1", "--compare"], r"--compare: needs two settings"),
    (["--set", "seed=0,1", "--jobs", "0"], r"--jobs 0: at least 1"),
  ],
)
def test_what_is_wrong_with_a_sweep_is_told_before_it_trains(tmp_path, words, message):
  given = ["--config", tiny_run.__file__, "--data_dir", "data", "--workdir", str(tmp_path / "out")]
  with pytest.raises(InputError, match=message):
    command.main([*given, *words])
  assert not (tmp_path / "out").exists()


def _result(lr: str, seed: str, score: float) -> results.Result:
  trial = grid.Trial((("optimizer.lr", lr), ("seed", seed)))
  return results.Result(trial, score, 8, {"mIoU": score, "oIoU": score / 2})


def test_the_table_has_a_row_per_setting_the_best_mean_first():
  found = [_result("1", "0", 0.5), _result("1", "1", 0.7), _result("2", "0", 0.65)]
  lines = results.text([*found, _result("2", "1", 0.61)], "mIoU", ["shapes/val"]).splitlines()
  assert [line.split()[:6] for line in lines[-2:]] == [
    ["optimizer.lr=2", "2", "63.00", "61.00", "65.00", "31.50"],
    ["optimizer.lr=1", "2", "60.00", "50.00", "70.00", "30.00"],
  ]
  assert results.by_setting(found)[0][0].score == 0.65


def _sweep(shapes_data: str, workdir: pathlib.Path, *words: str) -> str:
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    command.main([*_words(shapes_data, workdir), *words])
  return printed.getvalue()


def _words(shapes_data: str, workdir: pathlib.Path) -> list[str]:
  return [
    "--config", tiny_run.__file__, "--data_dir", shapes_data, "--workdir", str(workdir),
    "--config.steps=8", "--set", "seed=0,1",
  ]  # fmt: skip


@pytest.mark.slow
def test_runs_are_kept_more_values_are_added_and_the_best_are_compared(shapes_data, tmp_path):
  place = tmp_path / "sweep"
  rates = ["--set", "optimizer.lr=1e-3,1e-9"]
  assert "4 runs to do, 0 are finished" in _sweep(shapes_data, place, *rates)
  first = {path: path.stat().st_mtime_ns for path in place.glob("*/metrics.jsonl")}
  assert len(first) == 4
  printed = _sweep(shapes_data, place, *rates, "--compare")
  assert "0 runs to do, 4 are finished" in printed
  assert {path: path.stat().st_mtime_ns for path in first} == first
  # Each run is what `train` makes alone: its log has the score that the table shows.
  rows = [json.loads(line) for line in (place / "sweep.jsonl").read_text().splitlines()]
  for row in rows:
    log = tiny_run.rows(place / row["run"])
    assert row["mIoU"] == max(line["val/mIoU"] for line in log if "val/mIoU" in line)
  assert "A: seed=" in printed and "B - A" in printed
  more = ["--set", "optimizer.lr=1e-3,1e-9,1e-4"]
  assert "2 runs to do, 4 are finished" in _sweep(shapes_data, place, *more)


@pytest.mark.slow
def test_an_interrupted_sweep_saves_and_goes_on_where_it_was(shapes_data, tmp_path):
  place = tmp_path / "sweep"
  words = [*_words(shapes_data, place), "--config.steps=400", "--config.eval_every=400"]
  environment = os.environ | {"PYTHONPATH": str(tiny_run.CHECKOUT)}
  process = subprocess.Popen([sys.executable, "-m", "mail_jax.sweep", *words], env=environment)
  log = place / "seed=0" / "metrics.jsonl"
  deadline = time.monotonic() + 200
  while not (log.is_file() and len(log.read_text().splitlines()) > 3):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.2)
  process.send_signal(signal.SIGTERM)
  assert process.wait(100) == 130
  steps = tiny_run.steps_kept(place / "seed=0")
  assert steps and steps[-1] < 400 and not (place / "seed=1").exists()
  assert "stopped by SIGTERM" in (place / "seed=0.log").read_text()
  assert "2 runs to do" in _sweep(shapes_data, place, *words[-2:])
  assert f"resumed at step {steps[-1]}" in (place / "seed=0.log").read_text()
  assert results.is_finished(place / "seed=1", load_config(tiny_run.__file__, [
    "seed=1", "steps=400", "eval_every=400"
  ]))  # fmt: skip


@pytest.mark.slow
def test_a_run_that_fails_is_told_by_its_last_line(tmp_path):
  with pytest.raises(InputError, match=r"1 of 2 runs failed, the first: .*seed=0\.log: error: "):
    _sweep(str(tmp_path / "nowhere"), tmp_path / "sweep")
