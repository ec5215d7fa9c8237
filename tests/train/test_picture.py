"""`progress.png`: which samples it shows, what it shows of them, and when it is drawn."""

import itertools
from typing import Any

import numpy as np
import pytest
import several_processes
import tiny_run
from PIL import Image

from input_pipeline.common.errors import InputError
from mail_jax.distributed import sharding
from mail_jax.train import command as train
from mail_jax.train.logging import picture, progress
from mail_jax.train.logging.samples import FixedSamples, Predicted

COUNT, PER_IMAGE, ROWS = 3, 13, 16
EVERY = "--config.log.picture_every=6"


def _batches(read: list[int]):
  """Yields batches of five images with 13 expressions each, padded, and notes what was read."""
  for first in range(0, 5 * PER_IMAGE, ROWS):
    numbers = [n if n < 5 * PER_IMAGE else -1 for n in range(first, first + ROWS)]
    read.append(first)
    zeros = np.zeros((ROWS, 4, 4), np.uint8)
    yield {
      "index": np.array(numbers),
      "meta": [
        {"image_id": 7 * (n // PER_IMAGE), "expression": f"no. {n}"} if n >= 0 else None
        for n in numbers
      ],
      "target": zeros > 0,
      "original_size": np.full((ROWS, 2), 4),
      **dict.fromkeys(("image", "instances", "num_instances", "tokens", "num_tokens"), zeros),
    }


def _predict(variables: None, batch: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
  nothing = np.zeros(batch["image"].shape, bool)
  return nothing, nothing


def _taken(count: int, seed: int) -> tuple[list[int], list[int]]:
  read: list[int] = []
  samples = FixedSamples(_predict, sharding.make_mesh(), "val", count, seed)
  assert not samples.is_complete
  samples.take(_batches(read))
  assert samples.is_complete
  expressions = samples.predict(None).expressions
  return [int(text.removeprefix("no. ")) for text in expressions], read


def test_the_picture_shows_one_expression_of_each_of_the_first_images():
  numbers, read = _taken(COUNT, seed=0)
  assert [n // PER_IMAGE for n in numbers] == [0, 1, 2]
  assert read == [0, 16, 32], "no further than the first expression of the fourth image"
  assert _taken(COUNT, seed=0)[0] == numbers
  drawn = {n for seed in range(40) for n in _taken(1, seed)[0]}
  assert len(drawn) > PER_IMAGE / 2, "any of them, and not always the first"
  assert [n // PER_IMAGE for n in _taken(8, seed=0)[0]] == [0, 1, 2, 3, 4], (
    "fewer images than asked"
  )


def test_photo_prediction_and_target_are_side_by_side():
  rng = np.random.default_rng(0)
  images = rng.integers(60, 200, (2, 30, 30, 3)).astype(np.uint8)
  masks, target, none = (np.zeros((2, 30, 30), bool) for _ in range(3))
  masks[0, 5:15, 5:15] = target[0, 5:15, 10:20] = True
  rows = {"image": images, "target": target, "original_size": np.array([[30, 30], [30, 30]])}
  now = Predicted(["the left one", "the other"], rows, masks, none)
  assert now.ious == [50 / 150, 1.0], "nothing predicted where nothing is meant is right"
  sheet = np.asarray(picture.draw(now, 5, 10)).astype(float)
  photo = np.asarray(Image.fromarray(images[0]).resize((150, 150), Image.Resampling.BICUBIC))
  # Nowhere else.
  (top, left), = np.argwhere(
    [[np.array_equal(sheet[y : y + 150, x : x + 150], photo) for x in range(30)]
     for y in range(80)]
  )  # fmt: skip
  predicted, true = (sheet[top : top + 150, left + n * 154 :][:, :150] for n in (1, 2))
  blue = 0.5 * photo[30:70, 30:70] + 0.5 * np.array([30, 110, 255])
  np.testing.assert_allclose(predicted[30:70, 30:70], blue, atol=1)
  np.testing.assert_array_equal(predicted[80:, 80:], photo[80:, 80:])
  np.testing.assert_array_equal(true[:, :48], photo[:, :48])
  assert (true[30:70, 55:95] > photo[30:70, 55:95]).all()


@pytest.mark.parametrize("several", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_is_drawn_as_the_run_learns_and_changes_nothing_else(
  several, finished_run, shapes_data, tmp_path, monkeypatch
):
  if several:
    words = ["-m", "mail_jax.train", *tiny_run.arguments(shapes_data, tmp_path, EVERY)]
    ended = several_processes.start(2, *words, environment=several_processes.devices(1)).wait(300)
    assert [process.code for process in ended] == [0, 0], ended[0].printed
    assert Image.open(tmp_path / picture.FILE).size == (956, 740)
    return
  drawn, draw = [], picture.draw
  monkeypatch.setattr(picture, "draw", lambda *args: drawn.append(args) or draw(*args))
  train.main(tiny_run.arguments(shapes_data, tmp_path, EVERY))
  assert tiny_run.log(tmp_path) == tiny_run.log(finished_run)
  steps = [step for _, step, _, _ in drawn]
  assert steps == [6, 8, 12, 16, 18, 24], "every 6 steps, and after the evaluations at 8, 16, 24"
  last = tiny_run.rows(tmp_path)[-1]["val/mIoU"]
  assert drawn[-1][3] == f"val at step 24: mIoU {last:.3f}"
  assert all(now.expressions == drawn[0][0].expressions for now, *_ in drawn)
  masks = [now.masks for now, *_ in drawn]
  assert not all(np.array_equal(masks[0], other) for other in masks[1:])
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "checkpoints", "in_use", "metrics.jsonl", "progress.png"
  ]  # fmt: skip


@pytest.mark.slow
def test_a_resumed_run_draws_the_same_samples(shapes_data, tmp_path, monkeypatch):
  train.main(tiny_run.arguments(shapes_data, tmp_path / "whole", EVERY))
  calls = itertools.count(1)

  def reached(preemption) -> bool:
    preemption.asked |= next(calls) == 7
    return preemption.asked

  with monkeypatch.context() as patch:
    patch.setattr("mail_jax.train.guards.Preemption.reached", reached)
    train.main(tiny_run.arguments(shapes_data, tmp_path / "stopped", EVERY))
  train.main(tiny_run.arguments(shapes_data, tmp_path / "stopped", EVERY))
  whole, resumed = ((tmp_path / name / picture.FILE).read_bytes() for name in ("whole", "stopped"))
  assert whole == resumed


def test_a_negative_number_of_steps_is_refused():
  config = tiny_run.get_config()
  config.log.picture_every = -1
  with pytest.raises(InputError, match=r"config\.log\.picture_every is -1"):
    progress.check(config)
