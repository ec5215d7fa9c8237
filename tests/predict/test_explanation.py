"""Explanations against asking the model again, one change at a time."""

import dataclasses
import itertools

import numpy as np
import pytest

from benchmarks import deciding_word
from input_pipeline.common.errors import InputError
from input_pipeline.shapes import scenes
from mail_jax.predict import explanation
from mail_jax.predict.inputs import draw_scene
from mail_jax.predict.segmenter import Segmentation, Segmenter


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
  return Segmenter.load("demo")


def probabilities(result: Segmentation) -> np.ndarray:
  own = result.instance_probability
  return np.append(own, 1 - own.sum())


def check_by_asking_again(segmenter: Segmenter, result: Segmentation) -> explanation.Explanation:
  why, words = result.explain(), result.expression.split()
  masks = result.instances
  np.testing.assert_allclose(why.probability, probabilities(result), atol=1e-5)
  assert why.words == tuple(words)
  for i in range(len(words)):
    text = " ".join(words[:i] + words[i + 1 :])
    if text:
      again = probabilities(segmenter(result.image, text, masks))
      np.testing.assert_allclose(why.without_word[i], again, atol=1e-5)
    else:
      assert not why.without_word[i].any()
  assert len(why.without_instance) == len(masks)
  for k in range(len(masks)):
    again = probabilities(segmenter(result.image, result.expression, np.delete(masks, k, 0)))
    np.testing.assert_allclose(np.delete(why.without_instance[k], k), again, atol=1e-5)
    assert why.without_instance[k, k] == 0
  best = len(masks) if result.selected is None else result.selected
  assert why.chosen == best
  return why


@pytest.mark.parametrize("words", [None, "star", "  the   \tred  star "])
def test_numbers_are_those_of_asking_again_without_a_word_or_an_instance(segmenter, words):
  scene = draw_scene(3)
  # More than one batch of rows, and not a multiple of it.
  result = segmenter(scene.image, words or scene.expression, scene.instances)
  check_by_asking_again(segmenter, result)


def test_without_instances_only_words_are_left_out(segmenter):
  scene = draw_scene(3)
  why = check_by_asking_again(segmenter, segmenter(scene.image, scene.expression, None))
  assert why.rivals == []
  assert why.probability.tolist() == [1]


def test_the_effect_of_a_word_is_what_the_chosen_instance_loses(segmenter):
  scene = draw_scene(9)
  why = segmenter(*scene).explain()
  loss = [why.probability[why.chosen] - row[why.chosen] for row in why.without_word]
  np.testing.assert_allclose(why.word_effects, loss)
  assert why.words[why.deciding_word] == why.words[int(np.argmax(loss))]
  assert why.to_json()["without_word"] == why.without_word.tolist()


def test_a_result_that_was_made_by_hand_cannot_be_explained(segmenter):
  result = dataclasses.replace(segmenter(*draw_scene(1)), explainer=None)
  with pytest.raises(InputError, match="explain: only the results of a Segmenter"):
    result.explain()


def test_the_word_that_decides_is_the_only_one_without_which_others_are_meant():
  seen = 0
  for number in range(20):
    objects = scenes.make_scene("testA", 0, number).objects
    for index, words, decides in deciding_word.deciding_words(objects):
      for left_out in (None, *range(len(words))):
        kept = {word for i, word in enumerate(words) if i != left_out}
        meant = [i for i, o in enumerate(objects) if kept <= {o.size, o.texture, o.colour, o.shape}]
        assert (meant == [index]) == (left_out != decides)
      seen += 1
  assert seen > 20


def test_the_model_in_the_package_is_explained_by_the_word_that_decides(segmenter):
  actual = deciding_word.measure(segmenter, 25, 96)
  assert actual["expressions"] > 60
  assert actual["found"] >= 0.9


def test_rows_are_run_in_batches_of_one_size():
  rows = [{"x": np.array([i])} for i in range(19)]
  batches = list(explanation._batches(rows))
  assert {len(batch["x"]) for batch, _ in batches} == {8}
  kept = itertools.chain.from_iterable(batch["x"][:n].tolist() for batch, n in batches)
  assert list(kept) == list(range(19))
