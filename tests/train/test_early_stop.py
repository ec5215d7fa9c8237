"""`early_stop`: a run ends after evaluations that are not better, and stays ended."""

import pytest
import tiny_run
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.common.errors import InputError
from mail_jax.train import command as train
from mail_jax.train.early_stop import EarlyStop


def _row(step: int, value: float, expressions: int = 9) -> dict[str, float]:
  return {"step": step, "val/mIoU": value, "val/expressions": expressions}


@given(st.integers(1, 4), st.lists(st.sampled_from([0.1, 0.2, 0.3]), max_size=9))
def test_it_ends_after_that_many_evaluations_that_are_not_better(limit, values):
  # The plain rule: count up at each evaluation, and from 0 again at each better one.
  best, since = 0.0, 0
  for value in values:
    best, since = (value, 0) if value > best else (best, since + 1)
  stop = EarlyStop(limit, "val", "mIoU")
  stop.update([_row(i, value) for i, value in enumerate(values)])
  assert bool(stop.reason) == (since >= limit)


def test_rows_of_training_and_of_other_metrics_and_splits_do_not_count():
  stop = EarlyStop(1, "val", "mIoU")
  stop.update([_row(1, 0.5), {"step": 2, "loss": 1.0}, {"step": 3, "test/mIoU": 0.1}])
  assert not stop.reason
  stop.update([_row(1, 0.5), _row(2, 0.4)])
  assert stop.reason == "1 evaluations in a row without a better val/mIoU than 0.5000 at step 1"


def test_evaluations_on_another_number_of_expressions_do_not_compare():
  stop = EarlyStop(1, "val", "mIoU")
  stop.update([_row(1, 0.5, 40), _row(2, 0.4, 200)])
  assert not stop.reason


@pytest.mark.parametrize(
  ("limit", "split", "message"), [(-1, "val", "must be 0 or more"), (2, "", "nothing is evaluated")]
)
def test_limits_that_cannot_be_are_refused(limit, split, message):
  with pytest.raises(InputError, match=rf"config\.early_stop is {limit}.*{message}"):
    EarlyStop(limit, split, "mIoU")


@pytest.mark.slow
def test_a_run_that_ended_early_is_finished_until_the_limit_grows(shapes_data, tmp_path, capsys):
  # Without a learning rate and batch statistics nothing gets better.
  still = ["--config.optimizer.lr=0.0", "--config.eval_every=4", "--config.model.norm=group"]
  command = tiny_run.arguments(shapes_data, tmp_path, *still, "--config.early_stop=2")
  train.main(command)
  assert "done: 12 steps, ended early: 2 evaluations in a row" in capsys.readouterr().out
  assert tiny_run.steps_kept(tmp_path)[-1] == 12
  before = (tmp_path / "metrics.jsonl").read_bytes()
  train.main(command)
  assert "already finished, at step 12: 2 evaluations" in capsys.readouterr().out
  assert (tmp_path / "metrics.jsonl").read_bytes() == before
  train.main([*command, "--config.early_stop=3"])
  assert "done: 16 steps, ended early: 3 evaluations" in capsys.readouterr().out
