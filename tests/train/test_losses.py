"""Losses against numpy in float64, and instance IoU against pycocotools."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline.preprocess import bit_planes
from mail_jax.models import instances
from mail_jax.train import losses

binary_cross_entropy = jax.jit(losses.binary_cross_entropy)
dice = jax.jit(losses.dice)
instance_iou = jax.jit(instances.instance_iou, static_argnums=1)
selection_cross_entropy = jax.jit(losses.selection_cross_entropy)


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
  return (4 * np.random.default_rng(0).normal(size=(3, 9, 7))).astype(np.float32)


@pytest.fixture(scope="module")
def target() -> np.ndarray:
  drawn = np.random.default_rng(1).random((3, 9, 7)) < 0.3
  drawn[2] = False
  return drawn


def sigmoid(x: np.ndarray) -> np.ndarray:
  return 1 / (1 + np.exp(-x.astype(float)))


def test_binary_cross_entropy_is_the_mean_of_minus_log_likelihoods(logits, target):
  likelihood = np.where(target, sigmoid(logits), 1 - sigmoid(logits))
  expected = [-np.log(example).mean() for example in likelihood]
  np.testing.assert_allclose(binary_cross_entropy(logits, target), expected, rtol=1e-5)


def test_binary_cross_entropy_of_extreme_logits_is_finite(target):
  logits = np.full(target.shape, 200, np.float32)
  actual = binary_cross_entropy(logits, target)
  np.testing.assert_allclose(actual, [200 * (~t).mean() for t in target], rtol=1e-5)


def test_dice_is_one_minus_twice_the_overlap_over_the_sum(logits, target):
  p = sigmoid(logits)
  for actual, probability, truth in zip(dice(logits, target), p, target, strict=True):
    overlap = sum(probability[y, x] for y, x in np.ndindex(*truth.shape) if truth[y, x])
    expected = 1 - (2 * overlap + 1) / (probability.sum() + truth.sum() + 1)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_losses_of_pixels_do_not_depend_on_how_they_are_arranged(logits, target):
  """The step computes them of tiles."""
  for loss in (binary_cross_entropy, dice):
    tiles = (np.moveaxis(x.reshape(3, 3, 3, 7, 1), 2, 3) for x in (logits, target))
    np.testing.assert_allclose(loss(*tiles), loss(logits, target), rtol=1e-6)


def test_dice_is_zero_for_the_perfect_answer_and_near_one_for_the_opposite(target):
  perfect = np.where(target, 100, -100).astype(np.float32)
  np.testing.assert_allclose(dice(perfect, target), 0, atol=1e-6)
  assert (np.asarray(dice(-perfect, target)) > 0.97).all()


def test_instance_iou_is_that_of_pycocotools():
  rng = np.random.default_rng(2)
  masks, target = rng.random((4, 6, 11, 13)) < 0.5, rng.random((4, 11, 13)) < 0.4
  masks[0, 0], masks[0, 1], masks[1, 2], target[3] = False, target[0], True, False
  masks[3, 0] = False
  planes = np.stack([bit_planes.packbits(each) for each in masks])
  actual = np.asarray(instance_iou(planes, 6, target))
  for b in range(4):
    truth = coco_mask.encode(np.asfortranarray(target[b, :, :, None].astype(np.uint8)))
    guesses = coco_mask.encode(np.asfortranarray(np.moveaxis(masks[b], 0, -1).astype(np.uint8)))
    expected = coco_mask.iou(guesses, truth, [0])[:, 0]
    np.testing.assert_allclose(actual[b], expected, atol=1e-7)
  assert actual[0, 1] == 1
  assert actual[3, 0] == 0


def test_instance_iou_has_no_column_without_slots():
  planes = np.zeros((2, 1, 4, 4), np.uint16)
  assert instance_iou(planes, 0, np.ones((2, 4, 4), bool)).shape == (2, 0)


def test_selection_is_right_at_instances_over_half_the_target_and_else_at_none():
  iou = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.6], [0.5, 0.4, 0.3], [0.0, 0.0, 0.0]], np.float32)
  truth = np.array([[1, 0, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1], [0, 0, 0, 1]])
  logits = np.random.default_rng(3).normal(size=(4, 4)).astype(np.float32)
  logits[3, 1] = -1e9  # a slot without an instance
  likelihood = np.exp(logits.astype(float))
  likelihood /= likelihood.sum(1, keepdims=True)
  expected = [-np.log(p[t > 0]) @ t[t > 0] for p, t in zip(likelihood, truth, strict=True)]
  actual = selection_cross_entropy(logits, iou)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  assert actual.shape == (4,)


def test_selection_without_slots_costs_nothing():
  actual = selection_cross_entropy(np.ones((2, 1), np.float32), np.zeros((2, 0), np.float32))
  np.testing.assert_array_equal(actual, [0, 0])


def test_dice_of_an_empty_target_grows_with_what_is_predicted():
  nothing = np.zeros((3, 5, 4), bool)
  logits = np.stack([np.full((5, 4), value, np.float32) for value in (-100, 0, 100)])
  np.testing.assert_allclose(dice(logits, nothing), [0, 10 / 11, 20 / 21], atol=1e-6)


def test_share_of_an_instance_is_what_lies_inside_the_target():
  rng = np.random.default_rng(4)
  masks, target = rng.random((3, 5, 9, 8)) < 0.5, rng.random((3, 9, 8)) < 0.5
  masks[0, 0], target[2] = False, False
  planes = np.stack([bit_planes.packbits(each) for each in masks])
  actual = np.asarray(jax.jit(instances.instance_share, static_argnums=1)(planes, 5, target))
  for b, k in np.ndindex(3, 5):
    expected = (masks[b, k] & target[b]).sum() / max(masks[b, k].sum(), 1)
    np.testing.assert_allclose(actual[b, k], expected, atol=1e-6)
  assert actual[0, 0] == 0
  assert not actual[2].any()


def test_gates_are_right_where_more_than_half_of_an_instance_is_inside():
  share = np.array([[0.9, 0.5, 0.6, 1.0], [0.0, 0.2, 1.0, 0.0]], np.float32)
  valid = np.array([[True, True, True, False], [False] * 4])
  logits = np.random.default_rng(5).normal(size=(2, 5)).astype(np.float32)
  logits[0, 3] = -1e9  # a slot without an instance
  open_ = 1 / (1 + np.exp(logits[0, 4] - logits[0, :3].astype(float)))
  expected = -np.log([open_[0], 1 - open_[1], open_[2]]).mean()
  actual = jax.jit(losses.gate_cross_entropy)(logits, share, valid)
  np.testing.assert_allclose(actual, [expected, 0], rtol=1e-5)
  inputs = [jnp.array(x) for x in (logits, share, valid)]
  gradient = jax.grad(lambda *x: losses.gate_cross_entropy(*x).sum())(*inputs)
  assert np.isfinite(gradient).all()


def test_saying_that_nothing_is_meant_is_right_where_the_target_is_empty():
  target = np.zeros((3, 4, 4), bool)
  target[1, 2, 3] = True
  logits = np.array([2.0, 2.0, -1.0], np.float32)
  likelihood = sigmoid(logits)
  expected = -np.log([likelihood[0], 1 - likelihood[1], likelihood[2]])
  actual = jax.jit(losses.no_target_cross_entropy)(logits, target)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
