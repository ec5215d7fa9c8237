"""Runs on mixtures: killed and resumed, evaluated on several splits, and clean unless told."""

import contextlib
import io
import itertools
import json
import pathlib
import random
import signal
import time
from typing import Any

import jax
import mixed_photos
import numpy as np
import pytest
import several_processes
import tiny_run
from mixed_photos import COPIES, MIXTURE, SPLITS

from input_pipeline.common.errors import InputError
from mail_jax.checkpoints import checkpoint
from mail_jax.config import load_config
from mail_jax.evaluate import command as evaluate
from mail_jax.export import command as export
from mail_jax.export import load
from mail_jax.report import command as report
from mail_jax.train import command as train
from mail_jax.train.data import open_data
from mail_jax.train.loop import Trainer

NAMES = tuple(SPLITS)
SECOND = "three:3,one:1"
STEPS = 12
SHORT = [f"--config.steps={STEPS}", "--config.eval_every=6", "--config.eval_expressions=0"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
  return mixed_photos.write(tmp_path_factory.mktemp("mixed"))


def _command(data_dir: str, workdir: pathlib.Path, *more: str, dataset: str = MIXTURE) -> list[str]:
  return tiny_run.arguments(data_dir, workdir, *SHORT, f"--config.dataset={dataset}", *more)


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory) -> tuple[pathlib.Path, str]:
  """Folder of a finished run, which must not be changed, and what it printed."""
  workdir = tmp_path_factory.mktemp("run") / "mixed"
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    train.main(_command(data_dir, workdir))
  return workdir, printed.getvalue()


def _assert_the_same(run: pathlib.Path, other: pathlib.Path) -> None:
  assert tiny_run.log(run) == tiny_run.log(other)
  states = [load.load(str(folder), "last").variables for folder in (run, other)]
  assert jax.tree.all(jax.tree.map(np.array_equal, *states))


class _Killed(BaseException):
  """The end of a process, for which nothing is saved."""


def test_a_run_that_dies_twice_ends_as_the_undisturbed_one(run, data_dir, tmp_path, monkeypatch):
  step = Trainer._step
  for dies_at in (6, 10):

    def dying(trainer, number, *args, dies_at=dies_at):
      if number == dies_at:
        trainer.checkpoints.latest()  # what is being written would outlive it in this process
        raise _Killed
      step(trainer, number, *args)

    with monkeypatch.context() as patch:
      patch.setattr(Trainer, "_step", dying)
      with pytest.raises(_Killed):
        train.main(_command(data_dir, tmp_path / "run"))
  train.main(_command(data_dir, tmp_path / "run"))
  _assert_the_same(tmp_path / "run", run[0])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("dataset", "reading"),
  [(MIXTURE, []), (SECOND, ["--config.loader.refs_per_image=2", "--config.exclude=()"])],
  ids=["streamed", "grouped"],
)
def test_a_mixture_killed_at_ten_random_points_is_the_undisturbed_one(
  dataset, reading, data_dir, tmp_path
):
  long = ["--config.steps=120", "--config.eval_every=50", "--config.save_every=9", *reading]
  undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "run"

  def start(folder: pathlib.Path):
    words = _command(data_dir, folder, *long, dataset=dataset)
    return several_processes.start(1, "-m", "mail_jax.train", *words)

  (ended,) = start(undisturbed).wait(300)
  assert ended.code == 0, ended.printed
  expected = tiny_run.log(undisturbed)
  chance, stopped_at = random.Random(dataset), []
  for point in sorted(chance.sample(range(1, 115), 10)):
    began = time.time_ns()
    process = start(workdir)
    deadline = time.monotonic() + 300
    while _logged(workdir, began) < point:
      assert process.all_run() and time.monotonic() < deadline
      time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.1))
    process.send(signal.SIGKILL)
    (ended,) = process.wait(300)
    assert ended.code == -signal.SIGKILL
    whole = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    whole = [line for line in whole if line.endswith("\n")]
    assert tiny_run.without_clock(whole) == expected[: len(whole)]
    stopped_at.append(_logged(workdir, 0))
  (ended,) = start(workdir).wait(300)
  assert ended.code == 0, ended.printed
  _assert_the_same(workdir, undisturbed)
  print(f"{dataset}: killed after steps {stopped_at}")


def _logged(workdir: pathlib.Path, since: int) -> int:
  """Returns the last step in a log that was written after a time in nanoseconds."""
  path = workdir / "metrics.jsonl"
  try:
    if path.stat().st_mtime_ns <= since:
      return 0
    return max((row["step"] for row in tiny_run.log(workdir)), default=0)
  except (FileNotFoundError, ValueError):  # not there yet, or half a line
    return 0


def test_the_log_tells_loss_and_samples_of_each_data_set(run):
  workdir, printed = run
  rows = [row for row in tiny_run.log(workdir) if "lr" in row]
  assert len(rows) == STEPS
  for row in rows:
    samples = [row[f"samples/{name}"] for name in NAMES]
    assert sum(samples) == 8
    parts = [row.get(f"loss/{name}", 0.0) * n for name, n in zip(NAMES, samples, strict=True)]
    assert sum(parts) / 8 == pytest.approx(row["loss"], rel=1e-5)
  for name in NAMES:
    assert sum(row[f"samples/{name}"] for row in rows) > STEPS
  assert "  of one " in printed
  assert "one: 12 refs, 50.0% of the samples" in printed
  assert "left out of three/train: 3 of 13 images (4 of 19 refs), which are in one/" in printed


def test_every_split_is_evaluated_and_their_mean_decides(run):
  workdir, printed = run
  rows = [row for row in tiny_run.log(workdir) if "mean/mIoU" in row]
  assert [row["step"] for row in rows] == [6, 12]
  for row in rows:
    values = [row[f"{name}/val/mIoU"] for name in NAMES]
    assert row["mean/mIoU"] == pytest.approx(np.mean(values))
    counted = [row[f"{name}/val/expressions"] for name in NAMES]
    assert row["mean/expressions"] == sum(counted) and min(counted) > 0
  checkpoints = checkpoint.Checkpoints(str(workdir), read_only=True)
  best = max(rows, key=lambda row: (row["mean/mIoU"], row["step"]))
  assert checkpoints.best() == best["step"]
  assert checkpoints.metrics(12)["mIoU"] == rows[-1]["mean/mIoU"]
  checkpoints.close()
  assert "step 12  mean: mIoU" in printed and "two/val, step 12 (" in printed


def test_a_run_knows_what_it_left_out_and_says_so_beside_its_numbers(run, data_dir, tmp_path):
  model = load.load(str(run[0]), "last")
  assert model.left_out is not None
  rows = model.left_out["datasets"]
  assert {n: rows[n]["left_out"] for n in NAMES} == {n: len(COPIES[n]) for n in NAMES}
  printed, content = _evaluate(run[0], data_dir, tmp_path)
  assert "left out of one/train: 2 of 10 images" in printed
  assert "with images of evaluation splits" not in printed
  for name in NAMES:
    row = content[f"{name}/val"]
    assert row["left_out"] == model.left_out
    assert (row["training_images"]["seen"], row["training_images"]["similar"]) == (0, 0)
  export.export(str(run[0]), str(tmp_path / "exported"), ("safetensors",))
  assert load.load(str(tmp_path / "exported")).left_out == model.left_out
  card = (tmp_path / "exported/README.md").read_text()
  assert "left out of one/train: 2 of 10 images" in card
  assert "of `one/val` and `two/val` and `three/val`, the mean over them" in card


def _evaluate(workdir: pathlib.Path, data_dir: str, folder: pathlib.Path) -> tuple[str, Any]:
  """Runs `evaluate` on all val splits; returns what it printed and its JSON."""
  printed, out = io.StringIO(), folder / "metrics.json"
  words = ["--checkpoint", str(workdir), "--data_dir", data_dir, "--json", str(out)]
  with contextlib.redirect_stdout(printed):
    evaluate.main([*words, *(f"--data={name}/val" for name in NAMES)])
  return printed.getvalue(), json.loads(out.read_text())


def test_a_run_on_evaluation_photos_says_so_beside_every_number(data_dir, tmp_path, capsys):
  workdir = tmp_path / "run"
  few = ["--config.steps=2", "--config.eval_every=2", "--config.eval_split=one/val"]
  train.main(_command(data_dir, workdir, *few, "--config.exclude=()"))
  note = "trained with images of evaluation splits (config.exclude=())"
  (line,) = [x for x in capsys.readouterr().out.splitlines() if "  one/val: mIoU" in x]
  assert line.endswith(f", {note}")
  printed, content = _evaluate(workdir, data_dir, tmp_path)
  assert f"{note}; percent" in printed.splitlines()[0]
  assert "warning: config.exclude=(): images of evaluation splits were not left out" in printed
  assert content["one/val"]["training_images"]["similar"] == 2
  export.export(str(workdir), str(tmp_path / "exported"), ("safetensors",))
  assert note in (tmp_path / "exported/README.md").read_text()
  report.main(
    [str(workdir), "--data_dir", data_dir, "--out", str(tmp_path / "r.html"), "--count=0"]
  )
  assert "images of evaluation splits were not left out" in (tmp_path / "r.html").read_text()


def test_the_report_of_a_mixture_shows_every_split_and_the_loss_of_every_data_set(
  run, data_dir, tmp_path
):
  report.main([str(run[0]), "--data_dir", data_dir, "--out", str(tmp_path / "r.html"), "--count=0"])
  page = (tmp_path / "r.html").read_text()
  assert "Loss by data set" in page and "Metrics on mean" in page
  assert all(f"Metrics on {name}/val" in page for name in NAMES)


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (["dataset=one:1:multi,two:1"], r"one has the option multi, which needs model\.selection"),
    (["dataset=one:1:no_target,two:1"], r"option no_target, which needs model\.no_target=True"),
    (["dataset=one:1,four:1"], r"data set 'four': unknown"),
    (["eval_split=test"], r"two in .* has no split 'test'; it has"),
    (["exclude=('nothing',)"], r"config\.exclude: data set 'nothing': unknown"),
    (["mixture_temperature=2.0"], r"mixture_temperature is 2\.0, but config\.dataset has weights"),
  ],
)
def test_what_cannot_be_is_told_in_one_line(overrides, message, data_dir):
  config = load_config(tiny_run.__file__, [f"dataset={MIXTURE}", *overrides])
  with pytest.raises(InputError, match=message) as caught:
    data = open_data(config, data_dir)
    next(data.train(0))
  assert "\n" not in str(caught.value)


def test_skipped_batches_name_the_data_sets_of_their_samples(data_dir):
  config = load_config(tiny_run.__file__, [f"dataset={MIXTURE}"])
  data = open_data(config, data_dir)
  assert data.describe is not None and data.exact_order
  described = data.describe([3, 4])
  rows = list(itertools.chain.from_iterable(row["samples"] for row in described))
  assert [row["position"] for row in rows] == list(range(16, 32))
  batches = list(itertools.islice(data.train(2), 2))
  numbers = np.concatenate([batch["dataset"] for batch in batches])
  assert [row["dataset"] for row in rows] == [NAMES[n] for n in numbers]
