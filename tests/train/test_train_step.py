"""Parts of the update, against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from input_pipeline.preprocess import bit_planes
from mail_jax.distributed import sharding
from mail_jax.train import step
from mail_jax.train.program import build_program


def test_the_target_instance_is_the_best_instance_over_one_half_or_none():
  iou = jnp.array([[0.2, 0.9, 0.7], [0.5, 0.1, 0.0], [0.0, 0.0, 0.51]])
  assert step.match_target(iou).tolist() == [1, 3, 2]


def test_mean_is_over_the_examples_that_count_and_were_decoded():
  weight = np.array([1, 1, 0, 1, 1, 0], np.float32)
  terms = np.arange(1, 7, dtype=np.float32)

  def mean(terms, weight):
    weight = jnp.asarray(weight)
    return step.weighted_mean(jnp.asarray(terms), weight, step.count_weights(weight, 2))

  assert mean(terms, weight) == (1 + 2 + 4 + 5) / 4
  # Every second example: the first, third and fifth.
  assert mean(terms[::2], weight) == (1 + 5) / 2
  assert mean(np.ones(6, np.float32), np.zeros(6, np.float32)) == 0


def test_slots_are_moved_with_their_masks():
  rng = np.random.default_rng(0)
  masks, valid = rng.random((2, 19, 4, 6)) < 0.5, rng.random((2, 19)) < 0.5
  order = np.stack([rng.permutation(19) for _ in range(2)])
  planes, moved = jax.jit(step.permute_slots)(
    order, np.stack([bit_planes.packbits(each) for each in masks]), valid
  )
  for b in range(2):
    np.testing.assert_array_equal(planes[b], bit_planes.packbits(masks[b][order[b]]))
    np.testing.assert_array_equal(moved[b], valid[b][order[b]])


def test_dropout_leaves_out_instances_and_whole_examples_as_often_as_told():
  valid = jnp.ones((20_000, 4), bool)
  kept = np.asarray(step.drop_instances(jax.random.key(0), valid, 0.2, 0.1))
  assert abs((~kept.any(1)).mean() - (0.1 + 0.9 * 0.2**4)) < 0.01
  assert abs(kept.mean() - 0.8 * 0.9) < 0.01
  assert not step.drop_instances(jax.random.key(0), ~valid, 0.2, 0.1).any()


@pytest.mark.parametrize("grad_accum_steps", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_update_that_is_not_finite_changes_nothing_but_the_step(grad_accum_steps):
  config = tiny_model.make_config(slots=4)
  config.grad_accum_steps, config.batch_size, config.vocab_size = (
    grad_accum_steps,
    8,
    tiny_model.VOCAB,
  )
  program = build_program(config, tiny_model.VOCAB, sharding.make_mesh(**config.mesh))
  inputs = tiny_model.make_inputs(config, 8)
  batch = {key: inputs[key] for key in ("image", "tokens", "num_tokens")} | {
    "instances": inputs["planes"],
    "num_instances": np.full(8, 4, np.int32),
    "target": np.zeros((8, 32, 32), bool),
    "weight": np.ones(8, np.float32),
    "jitter_factors": np.ones((8, 3), np.float32),
  }
  state, metrics = program.step(program.create(), batch, np.float32(1e-3))
  assert metrics["skipped_steps"] == 0
  before = jax.device_get(state)
  # One sample of the second half alone is not finite.
  broken = batch | {"weight": np.array([1, 1, 1, 1, 1, 1, np.nan, 1], np.float32)}
  state, metrics = program.step(state, broken, np.float32(1e-3))
  after = jax.device_get(state)
  assert metrics["skipped_steps"] == 1
  assert (before.step, after.step) == (1, 2)
  for name in ("variables", "averaged", "opt_state"):
    jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
  # The next update is not skipped.
  state, metrics = program.step(state, batch, np.float32(1e-3))
  assert metrics["skipped_steps"] == 0
  changed = jax.tree.map(
    lambda a, b: (a != b).any(), jax.device_get(state.variables), after.variables
  )
  assert any(jax.tree.leaves(changed))
