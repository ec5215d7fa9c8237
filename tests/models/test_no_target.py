"""Expressions with several targets or none: the outputs of the model, and that it learns them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
import tiny_run
from PIL import Image

from input_pipeline.preprocess import bit_planes
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from mail_jax.export import load
from mail_jax.models import instances
from mail_jax.models.mail import Output, find_mask
from mail_jax.models.mask_selection import select
from mail_jax.predict import command as predict
from mail_jax.predict.segmenter import Segmenter
from mail_jax.train.data import Data
from mail_jax.train.loop import Trainer


def test_what_is_said_to_mean_nothing_has_an_empty_mask():
  logits = jnp.array([[[1.0, -1.0]], [[1.0, -1.0]], [[0.5, 2.0]]])
  assert find_mask(logits, None).tolist() == [[[True, False]], [[True, False]], [[True, True]]]
  masks = find_mask(logits, jnp.array([0.1, 0.0, -3.0]))
  assert masks.tolist() == [[[False, False]], [[True, False]], [[True, True]]]


@pytest.mark.parametrize("slots", [0, 4])
def test_the_output_is_one_logit_an_example_from_the_summary_and_changes_no_other(slots):
  plain = tiny_model.make_config(slots=slots)
  config = tiny_model.make_config(slots=slots, no_target=True)
  variables, inputs = tiny_model.random_variables(config), tiny_model.make_inputs(config, 4)
  output = tiny_model.run(config, variables, inputs)
  assert output.no_target is not None
  assert output.no_target.shape == (4,)
  assert np.ptp(output.no_target) > 0.01
  params = {k: v for k, v in variables["params"].items() if k != "no_target_logit"}
  assert len(params) == len(variables["params"]) - 1
  without = tiny_model.run(plain, variables | {"params": params}, inputs)
  assert without.no_target is None
  for name in ("logits", "rho", "selection_logits"):
    np.testing.assert_allclose(getattr(without, name), getattr(output, name), atol=1e-5)
  half = jax.jit(tiny_model.make(config).apply, static_argnames="decode_every")(
    variables, **inputs, decode_every=2
  )
  assert isinstance(half, Output)
  np.testing.assert_allclose(half.no_target, output.no_target, atol=1e-5)


def test_several_gates_may_be_open_and_none_where_no_instance_is():
  scores = jnp.array([[3.0, 1.0, -2.0, 5.0], [-1.0, -2.0, 0.0, 0.0]])
  null, valid = jnp.array([0.5, 0.0]), jnp.array([[True, True, True, False]] * 2)
  rho = select(scores, null, valid, "multi")
  assert rho.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
  target = jnp.array([[False, True, False, True], [True] * 4])
  assert select(scores, null, valid, "multi", target).tolist() == [[0, 1, 0, 0], [1, 1, 1, 0]]


def test_gates_have_the_gradient_of_the_sigmoid():
  scores, null, valid = jnp.array([[0.3, -2.0]]), jnp.array([0.1]), jnp.ones((1, 2), bool)
  weights = jnp.array([[2.0, 5.0]])
  actual = jax.grad(lambda s: (select(s, null, valid, "multi") * weights).sum())(scores)
  p = 1 / (1 + np.exp(-(np.array([0.3, -2.0]) - 0.1)))
  np.testing.assert_allclose(actual[0], weights[0] * p * (1 - p), rtol=1e-5)


def test_pixels_of_two_open_instances_count_once():
  rng = np.random.default_rng(0)
  masks = rng.random((2, 3, 5, 6)) < 0.5
  planes = jnp.stack([bit_planes.packbits(each) for each in masks])
  gates = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
  seen = np.asarray(masks & np.asarray(gates > 0)[:, :, None, None])
  expected = seen.any(1)

  def union(gates):
    return instances.union(instances.chosen_tiles(planes, gates, 1))[..., 0]

  np.testing.assert_array_equal(union(gates), expected)
  # A pixel that one instance alone covers passes its gradient on whole.
  gradient = jax.grad(lambda g: union(g).sum())(gates)
  alone = (seen & (seen.sum(1, keepdims=True) == 1)).sum((2, 3))
  assert alone[0, 0] > 0
  is_open = np.asarray(gates) > 0
  np.testing.assert_allclose(np.asarray(gradient)[is_open], alone[is_open])


def test_the_model_decodes_the_union_of_what_is_meant():
  config = tiny_model.make_config(selection="multi")
  variables, inputs = tiny_model.random_variables(config), tiny_model.make_inputs(config)
  output = tiny_model.run(config, variables, inputs)
  assert set(np.unique(output.rho.round(6))) <= {0, 1}
  opened = output.selection_logits[:, :-1] > output.selection_logits[:, -1:]
  np.testing.assert_array_equal(output.rho > 0.5, opened)
  assert not output.rho[~inputs["valid"]].any()
  # "None of them" has the largest logit exactly where every gate is closed.
  none = output.selection_logits.argmax(1) == config.max_instances
  np.testing.assert_array_equal(none, ~opened.any(1))
  apply = jax.jit(tiny_model.make(config).apply)
  again = apply(variables, **inputs, target_instance=opened)
  np.testing.assert_allclose(again.logits, output.logits, atol=1e-5)
  other = apply(variables, **inputs, target_instance=~opened)
  np.testing.assert_allclose(other.rho, ~opened & inputs["valid"], atol=1e-6)


# Squares in a row; the targets of an expression are those of a colour: several, one or none.

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230)}
SIZE, SQUARES = 32, 3


def make_world(rng: np.random.Generator, count: int) -> dict[str, np.ndarray | list[str]]:
  """Draws images of three squares, and an expression for each."""
  names = list(COLOURS)
  image = np.full((count, SIZE, SIZE, 3), 128, np.uint8)
  masks = np.zeros((count, SQUARES, SIZE, SIZE), bool)
  colours = rng.integers(0, 2, (count, SQUARES)) + rng.integers(0, 2, (count, 1))
  wanted = rng.integers(0, 3, count)
  for b, k in np.ndindex(count, SQUARES):
    top = rng.integers(2, SIZE - 10)
    masks[b, k, top : top + 8, 1 + 10 * k : 9 + 10 * k] = True
    image[b, masks[b, k]] = COLOURS[names[colours[b, k]]]
  target = (masks & (colours == wanted[:, None])[:, :, None, None]).any(1)
  texts = [f"every {names[w]} square" for w in wanted]
  return {"image": image, "masks": masks, "target": target, "texts": texts}


def make_batch(world: dict, tokenizer: SentencePieceTokenizer, config) -> dict[str, np.ndarray]:
  tokens, num_tokens, _ = tokenizer(world["texts"], config.max_tokens)
  count = len(tokens)
  return {
    "image": world["image"],
    "instances": np.stack([bit_planes.packbits(masks) for masks in world["masks"]]),
    "num_instances": np.full(count, SQUARES, np.int32),
    "tokens": tokens,
    "num_tokens": num_tokens,
    "target": world["target"],
    "weight": np.ones(count, np.float32),
  }


def make_run(tmp_path) -> tuple[Trainer, SentencePieceTokenizer, list[dict]]:
  config = tiny_run.get_config()
  config.update(dataset="grefcoco_unc", steps=STEPS, batch_size=32, eval_batch_size=64)
  config.update(eval_every=10_000, save_every=10_000, best_metric="gIoU", ema_decay=0.0)
  config.update(max_instances=SQUARES, max_tokens=8, decode_every=8)
  config.model.update(no_target=True, selection="multi", depth=2, neighbours=False)
  config.optimizer.update(lr=3e-3, warmup_steps=20)
  config.augment.update(instance_dropout=0.0, all_instances_dropout=0.0)
  sentences = [f"every {name} square" for name in COLOURS]
  tokenizer = SentencePieceTokenizer.train(sentences, 300)

  def train(start):
    for step in itertools.count(start):
      yield make_batch(make_world(np.random.default_rng((1, step)), 32), tokenizer, config)

  test = []
  for number in range(4):
    batch = make_batch(make_world(np.random.default_rng((2, number)), 64), tokenizer, config)
    test.append(
      batch
      | {
        "original_target": batch["target"],
        "original_size": np.full((64, 2), SIZE, np.int32),
        "index": np.arange(64 * number, 64 * number + 64, dtype=np.int32),
        "total": np.full(64, 256, np.int32),
      }
    )
  data = Data(tokenizer, train, {"val": lambda: iter(test)})
  return Trainer(config, str(tmp_path), data), tokenizer, test


STEPS = 150


@pytest.mark.slow
def test_it_learns_when_nothing_is_meant_and_when_several_are(tmp_path):
  trainer, _, test = make_run(tmp_path)
  empty = np.concatenate([~batch["target"].any((1, 2)) for batch in test])
  assert 0.25 < empty.mean() < 0.6
  metrics = trainer.run()
  losses = [row["no_target"] for row in tiny_run.log(tmp_path) if "no_target" in row]
  assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
  # A constant prediction would score 1 in one of the two and 0 in the other.
  assert metrics["N-acc"] > 0.8
  assert metrics["T-acc"] > 0.8
  assert metrics["gIoU"] > 0.6
  assert metrics["no_targets"] == empty.sum()


# From Python.


def make_segmenter(bias: float) -> Segmenter:
  """Returns a random model with this probability of no target."""
  config = tiny_model.make_config(slots=4, no_target=True, selection="multi")
  tokenizer = SentencePieceTokenizer.train(["every red square", "that one"], 300)
  variables = tiny_model.random_variables(config, tokenizer.vocab_size)
  head = variables["params"]["no_target_logit"]
  head = jax.tree.map(jnp.zeros_like, head) | {"bias": jnp.full((1,), bias)}
  variables["params"] = variables["params"] | {"no_target_logit": head}
  model = tiny_model.make(config, tokenizer.vocab_size)
  return Segmenter(load.LoadedModel(config, model, variables, tokenizer, 1))


def test_a_photo_of_which_nothing_is_meant_has_no_mask_and_no_instance():
  rng = np.random.default_rng(0)
  photo, masks = rng.integers(0, 256, (40, 50, 3), np.uint8), rng.random((3, 40, 50)) < 0.5
  sure, unsure = make_segmenter(2.0)(photo, "red", masks), make_segmenter(-2.0)(photo, "red", masks)
  assert sure.no_target_probability == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
  assert not sure.mask.any()
  assert sure.selected is None
  assert unsure.no_target_probability == pytest.approx(1 / (1 + np.exp(2)), abs=1e-6)
  np.testing.assert_array_equal(unsure.mask, unsure.probability > 0.5)
  assert unsure.mask.any()
  np.testing.assert_allclose(sure.probability, unsure.probability, atol=1e-6)
  # Independent per instance: they need not sum to 1.
  assert ((unsure.instance_probability >= 0) & (unsure.instance_probability <= 1)).all()
  best = int(unsure.instance_probability.argmax())
  assert unsure.selected == (best if unsure.instance_probability[best] > 0.5 else None)


def test_predict_says_that_nothing_is_meant(tmp_path, monkeypatch, capsys):
  photo = tmp_path / "photo.png"
  Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(photo)
  segmenter = make_segmenter(2.0)
  monkeypatch.setattr(predict.Segmenter, "load", lambda *_: segmenter)
  out, mask = tmp_path / "out.png", tmp_path / "mask.png"
  options = {"checkpoint": "x", "image": photo, "text": "red", "out": out, "mask": mask}
  predict.main([part for name, value in options.items() for part in (f"--{name}", str(value))])
  assert "no target in the image (probability 88%)" in capsys.readouterr().out
  assert not np.asarray(Image.open(mask)).any()


def test_a_model_without_the_output_says_nothing_of_it():
  segmenter = make_segmenter(0.0)
  config = tiny_model.make_config(slots=4)
  old = segmenter._model
  variables = tiny_model.random_variables(config, old.tokenizer.vocab_size)
  model = tiny_model.make(config, old.tokenizer.vocab_size)
  plain = dataclasses.replace(old, config=config, model=model, variables=variables)
  result = Segmenter(plain)(np.zeros((32, 32, 3), np.uint8), "red")
  assert result.no_target_probability is None
