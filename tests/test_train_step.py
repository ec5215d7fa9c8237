"""Parts of the update, against loops."""

import jax
import jax.numpy as jnp
import numpy as np

from mail_jax import train_step


def test_what_is_meant_is_the_best_instance_over_one_half_or_none():
  iou = jnp.array([[0.2, 0.9, 0.7], [0.5, 0.1, 0.0], [0.0, 0.0, 0.51]])
  assert train_step.find_meant(iou).tolist() == [1, 3, 2]


def test_mean_is_over_the_examples_that_count_and_were_decoded():
  weight = np.array([1, 1, 0, 1, 1, 0], np.float32)
  terms = np.arange(1, 7, dtype=np.float32)

  def mean(terms, weight):
    weight = jnp.asarray(weight)
    return train_step.weighted_mean(jnp.asarray(terms), weight, train_step.count_weights(weight, 2))

  assert mean(terms, weight) == (1 + 2 + 4 + 5) / 4
  # Every second example: the first, third and fifth.
  assert mean(terms[::2], weight) == (1 + 5) / 2
  assert mean(np.ones(6, np.float32), np.zeros(6, np.float32)) == 0


def test_dropout_leaves_out_instances_and_whole_examples_as_often_as_told():
  valid = jnp.ones((20_000, 4), bool)
  kept = np.asarray(train_step.drop_instances(jax.random.key(0), valid, 0.2, 0.1))
  assert abs((~kept.any(1)).mean() - (0.1 + 0.9 * 0.2**4)) < 0.01
  assert abs(kept.mean() - 0.8 * 0.9) < 0.01
  assert not train_step.drop_instances(jax.random.key(0), ~valid, 0.2, 0.1).any()
