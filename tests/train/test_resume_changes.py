"""What may change when a run goes on: it changes no loss, or the log says what it changes."""

import json
import pathlib
import shutil

import pytest
import tiny_run

from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from mail_jax.checkpoints import checkpoint
from mail_jax.config import load_config, to_json
from mail_jax.export import load
from mail_jax.train import command as train
from mail_jax.train import resume

HALF = tiny_run.STEPS // 2


@pytest.fixture(scope="module")
def half_run(shapes_data, tmp_path_factory) -> pathlib.Path:
  """A run of the whole length that was stopped halfway, and must not be changed."""
  workdir = tmp_path_factory.mktemp("runs") / "half"
  calls = iter(range(1000))
  with pytest.MonkeyPatch.context() as patch:

    def reached(preemption) -> bool:
      preemption.asked |= next(calls) == HALF - 1
      return preemption.asked

    patch.setattr("mail_jax.train.guards.Preemption.reached", reached)
    train.main(tiny_run.arguments(shapes_data, workdir, "--config.eval_split="))
  assert tiny_run.steps_kept(workdir)[-1] == HALF
  return workdir


@pytest.fixture
def copy(half_run, tmp_path) -> pathlib.Path:
  shutil.copytree(half_run, tmp_path / "run")
  return tmp_path / "run"


def _losses(workdir: pathlib.Path) -> dict[int, float]:
  return {row["step"]: row["loss"] for row in tiny_run.log(workdir) if "loss" in row}


CHANGES = {
  "eval_split": ["--config.eval_split=val"],
  "evaluation": ["--config.eval_split=val", "--config.eval_every=3", "--config.eval_batch_size=8",
                 "--config.eval_expressions=10", "--config.best_metric=oIoU"],
  "early_stop": ["--config.eval_split=val", "--config.early_stop=100"],
  "save_every": ["--config.eval_split=", "--config.save_every=5"],
  "loader": ["--config.eval_split=", "--config.loader.threads=1", "--config.loader.cache=True"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_settings_that_change_no_update_may_change_and_change_no_loss(
  change, copy, finished_run, shapes_data
):
  train.main(tiny_run.arguments(shapes_data, copy, *CHANGES[change]))
  losses = _losses(copy)
  assert list(losses) == list(range(1, tiny_run.STEPS + 1))
  # The undisturbed run evaluates; losses do not depend on that.
  assert losses == _losses(finished_run)


@pytest.mark.slow
def test_a_run_with_a_constant_rate_that_is_made_longer_is_the_longer_one(shapes_data, tmp_path):
  options = ["--config.optimizer.schedule=constant", "--config.eval_split="]
  runs = {name: tmp_path / name for name in ("short", "long")}
  for name, steps in (("short", 6), ("short", 10), ("long", 10)):
    command = tiny_run.arguments(shapes_data, runs[name], *options, f"--config.steps={steps}")
    train.main(command)
  assert _losses(runs["short"]) == _losses(runs["long"])
  assert len(_losses(runs["long"])) == 10


@pytest.mark.slow
def test_more_steps_go_on_and_the_log_says_what_the_schedule_becomes(copy, shapes_data, capsys):
  more = ["--config.eval_split=", "--config.steps=30"]
  train.main(tiny_run.arguments(shapes_data, copy, *more))
  printed = capsys.readouterr().out
  assert f"30 steps instead of {tiny_run.STEPS}: after step {HALF} the learning rate" in printed
  assert "done: 30 steps" in printed
  rates = {row["step"]: row["lr"] for row in tiny_run.log(copy) if "lr" in row}
  config = load_config(tiny_run.__file__)
  assert rates[HALF + 1] > rates[HALF]
  assert rates[30] < 0.03 * config.optimizer.lr


def _meta(**changes) -> dict:
  """What a checkpoint of a run of 24 steps says."""
  config = load_config(tiny_run.__file__, [f"{key}={value}" for key, value in changes.items()])
  return {"config": to_json(config), "steps": tiny_run.STEPS}


def test_a_length_that_cannot_be_is_refused_with_a_way_that_keeps_the_weights():
  config = load_config(tiny_run.__file__)
  assert resume.resumed_steps(_meta(), config, 24, 10, "w") == (24, "")
  steps, line = resume.resumed_steps(_meta(), config, 12, 10, "w")
  assert steps == 12 and line.startswith("12 steps instead of 24: after step 10")
  with pytest.raises(InputError, match=r"has done 10 steps, more than 9; .*--config\.init=run:w"):
    resume.resumed_steps(_meta(), config, 9, 10, "w")
  timed = load_config(tiny_run.__file__, ["steps=0", "minutes=2"])
  assert resume.resumed_steps(_meta(steps=0, minutes=2.0), timed, 0, 10, "w") == (24, "")
  with pytest.raises(InputError, match=r"minutes = 3\.0, not 2\.0, which has become 24 steps; set"):
    resume.resumed_steps(_meta(steps=0, minutes=3.0), timed, 0, 10, "w")
  assert resume.resumed_steps(_meta(steps=0, minutes=3.0), config, 30, 10, "w")[0] == 30


def test_settings_that_change_updates_are_refused_with_a_way_that_keeps_the_weights():
  tokenizer = SentencePieceTokenizer.train(["the left cup", "a red one", "that dog there"], 300)
  meta = _meta() | {"tokenizer": checkpoint.pack_bytes(tokenizer.to_bytes())}
  for key in ("eval_split=test", "eval_every=1", "save_every=1", "best_metric=oIoU", "steps=50",
              "eval_batch_size=2", "log.images=1", "early_stop=4", "loader.threads=3",
              "loader.cache=True"):  # fmt: skip
    resume.check_resumable(meta, load_config(tiny_run.__file__, [key]), tokenizer, "w")
  for key in ("seed=1", "batch_size=16", "optimizer.lr=1.0", "model.depth=2", "dataset=x"):
    config = load_config(tiny_run.__file__, [key])
    with pytest.raises(InputError, match=rf"config\.{key[:4]}.*with --config\.init=run:w to keep"):
      resume.check_resumable(meta, config, tokenizer, "w")
  other = SentencePieceTokenizer.train(["the left cup"], 300)
  with pytest.raises(InputError, match=r"another tokenizer; .*with --config\.init=run:w to keep"):
    resume.check_resumable(meta, load_config(tiny_run.__file__), other, "w")


def test_what_is_judged_by_and_on_is_told():
  meta = _meta()
  assert resume.changes(meta, load_config(tiny_run.__file__), exact_order=False) == []
  told = resume.changes(
    meta, load_config(tiny_run.__file__, ["best_metric=oIoU", "eval_expressions=0"]), False
  )
  assert told == [
    "evaluations are on val, all expressions from here on; those before, on val, 40 expressions, "
    "no longer count for the best checkpoint",
    "the best checkpoint is that of the highest oIoU from here on, not mIoU; among earlier ones, "
    "of those that are still kept",
  ]


def test_another_number_of_processes_is_told_where_the_order_depends_on_it():
  config, meta = load_config(tiny_run.__file__), _meta() | {"processes": 4}
  assert resume.changes(meta, config, exact_order=True) == []
  (told,) = resume.changes(meta, config, exact_order=False)
  assert told.startswith("1 processes instead of 4: they share the data in another way")


@pytest.mark.slow
def test_best_is_by_the_new_metric_among_what_is_judged_alike(copy, shapes_data, capsys):
  every = ["--config.eval_split=val", "--config.eval_every=4", "--config.save_every=4"]
  train.main(tiny_run.arguments(shapes_data, copy, *every, "--config.steps=16"))
  change = ["--config.best_metric=oIoU", "--config.eval_expressions=10"]
  train.main(tiny_run.arguments(shapes_data, copy, *every, *change))
  printed = capsys.readouterr().out
  assert "the best checkpoint is that of the highest oIoU from here on, not mIoU" in printed
  assert "no longer count for the best checkpoint" in printed
  rows = {row["step"]: row for row in tiny_run.log(copy) if "val/oIoU" in row}
  judged = {step: row["val/oIoU"] for step, row in rows.items() if row["val/expressions"] == 10}
  assert sorted(judged) == [20, 24]
  assert load.load(str(copy), "best").step == max(judged, key=lambda step: (judged[step], step))


@pytest.fixture(scope="module")
def grown_data(tmp_path_factory) -> str:
  """The data of `shapes_data` with four more scenes."""
  folder = str(tmp_path_factory.mktemp("grown"))
  counts = ["--train_scenes", "28", "--eval_scenes", "12"]
  prepare.main(["--dataset", "shapes", "--data_dir", folder, *counts])
  return folder


@pytest.mark.slow
def test_data_that_has_grown_is_told_and_goes_on_if_asked_to(copy, grown_data, capsys):
  command = tiny_run.arguments(grown_data, copy, "--config.eval_split=", "--config.steps=14")
  before = checkpoint.read_tokenizer(str(copy))
  with pytest.raises(
    InputError,
    match=r"the training data has changed: \d+ refs of fingerprint \w{16} before, \d+ of \w{16} "
    r"now; .* add --changed_data .*--config\.init=run:",
  ):
    train.main(command)
  train.main([*command, "--changed_data"])
  assert "from here on the run trains on it, in an order of its own" in capsys.readouterr().out
  assert checkpoint.read_tokenizer(str(copy)) == before
  train.main([*command, "--config.steps=15"])
  assert "done: 15 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_archive_existing_moves_a_run_on_other_data_and_trains_a_new_tokenizer(copy, grown_data):
  before = checkpoint.read_tokenizer(str(copy))
  more = ["--config.eval_split=", "--config.steps=1", "--archive_existing"]
  train.main(tiny_run.arguments(grown_data, copy, *more))
  assert checkpoint.read_tokenizer(f"{copy}.1") == before
  assert checkpoint.read_tokenizer(str(copy)) is not None
  assert json.loads((copy / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1


def test_the_tokenizer_of_a_run_is_found_without_its_data(half_run, tmp_path):
  stored = checkpoint.read_tokenizer(str(half_run))
  assert stored == load.load(str(half_run), "last").tokenizer.to_bytes()
  assert checkpoint.read_tokenizer(str(tmp_path)) is None
  assert resume.kept_tokenizer(str(tmp_path), load_config(tiny_run.__file__)) is None
