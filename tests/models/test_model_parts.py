"""Attention, packing and mask selection, against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.common.errors import InputError
from mail_jax.models.attention import attend
from mail_jax.models.encoder import pack
from mail_jax.models.mask_selection import pool_instances, select

LENGTHS = (7, 4, 1)
VALID = np.arange(7) < np.array(LENGTHS)[:, None]

# Compiling one program takes less time than one for each operation.
attention = jax.jit(attend, static_argnames="backend")
selection = jax.jit(select, static_argnames="kind")


def draw(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def attend_by_loop(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
  """Computes one head of one example without padding."""
  result = np.zeros(query.shape)
  for i, q in enumerate(query.astype(float)):
    weight = np.array([np.exp(q @ k.astype(float) / np.sqrt(len(q))) for k in key])
    result[i] = sum(w * v.astype(float) for w, v in zip(weight / weight.sum(), value, strict=True))
  return result


def test_attention_is_softmax_of_scaled_products_over_the_tokens_that_count():
  query, key, value = (3 * draw(3, 7, 2, 4, seed=seed) for seed in range(3))
  actual = np.asarray(attention(query, key, value, VALID))
  for b, length in enumerate(LENGTHS):
    for head in range(2):
      expected = attend_by_loop(*(x[b, :length, head] for x in (query, key, value)))
      np.testing.assert_allclose(actual[b, :length, head], expected, atol=2e-5)


def test_attention_does_not_see_padding_and_stays_finite_there():
  tensors = [draw(3, 7, 2, 4, seed=seed) for seed in range(3)]
  before = np.asarray(attention(*tensors, VALID))
  for x in tensors:
    x[~VALID] = 1e4
  after = np.asarray(attention(*tensors, VALID))
  np.testing.assert_array_equal(after[VALID], before[VALID])
  assert np.isfinite(after).all()


def attend_plainly(query, key, value, valid) -> jax.Array:
  """Attention as its formula, which JAX differentiates."""
  scores = jnp.einsum("btne,bsne->bnts", query, key) / query.shape[-1] ** 0.5
  scores = jnp.where(valid[:, None, None], scores, -jnp.inf)
  return jnp.einsum("bnts,bsne->btne", jax.nn.softmax(scores, -1), value)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_gradients_of_attention_are_those_of_its_formula(scale):
  query, key, value, weight = (jnp.asarray(draw(3, 7, 2, 4, seed=seed)) for seed in range(4))
  # Padding may be anywhere.
  valid = jnp.asarray(np.roll(VALID, 2, axis=1))

  def gradients(attend):
    def loss(query, key, value):
      return (attend(scale * query, key, value, valid) * weight * valid[..., None, None]).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(query, key, value)

  jax.tree.map(
    lambda actual, expected: np.testing.assert_allclose(
      actual, expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max())
    ),
    gradients(attend),
    gradients(attend_plainly),
  )


def test_attention_in_bfloat16_returns_bfloat16_near_the_exact_result():
  tensors = [jnp.asarray(draw(3, 7, 2, 4, seed=seed)) for seed in range(3)]
  exact = np.asarray(attention(*tensors, VALID))
  actual = attention(*(x.astype(jnp.bfloat16) for x in tensors), VALID)
  assert actual.dtype == jnp.bfloat16
  for b, length in enumerate(LENGTHS):
    np.testing.assert_allclose(
      np.asarray(actual[b, :length], np.float32), exact[b, :length], atol=0.05
    )


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=2, max_size=2))
def test_packing_moves_padding_last_and_keeps_the_order_of_the_rest(valid):
  tokens = draw(2, 6, 3)
  packed, lengths, where = map(np.asarray, jax.jit(pack)(tokens, np.array(valid)))
  for b in range(2):
    kept = [i for i in range(6) if valid[b][i]]
    dropped = [i for i in range(6) if not valid[b][i]]
    assert lengths[b] == len(kept)
    np.testing.assert_array_equal(packed[b], tokens[b, kept + dropped])
    np.testing.assert_array_equal(packed[b, where[b]], tokens[b])


def test_pooling_averages_features_by_coverage_and_gives_zeros_without_any():
  features, coverage = draw(2, 5, 3), np.random.default_rng(1).random((2, 4, 5), np.float32)
  coverage[:, 2] = 0
  actual = np.asarray(pool_instances(jnp.asarray(features), jnp.asarray(coverage)))
  for b in range(2):
    for k in (0, 1, 3):
      expected = np.average(features[b].astype(float), axis=0, weights=coverage[b, k])
      np.testing.assert_allclose(actual[b, k], expected, atol=1e-5)
  np.testing.assert_array_equal(actual[:, 2], 0)


@pytest.fixture(scope="module")
def scored() -> tuple[jax.Array, jax.Array, jax.Array]:
  """Scores, "none of them" and slots: best is an instance, none, a void slot; no instance."""
  scores = jnp.array([[1.0, 3.0, 2.0], [1.0, 0.0, -1.0], [0.5, 9.0, 0.25], [5.0, 5.0, 5.0]])
  null = jnp.array([0.5, 4.0, 0.0, -20.0])
  valid = jnp.array([[True] * 3, [True] * 3, [True, False, True], [False] * 3])
  return scores, null, valid


def test_soft_selection_is_the_softmax_over_the_instances_and_none(scored):
  rho = np.asarray(selection(*scored, "soft"))
  for actual, score, none, slots in zip(rho, *map(np.asarray, scored), strict=True):
    weights = np.exp(score.astype(float)) * slots
    np.testing.assert_allclose(actual, weights / (weights.sum() + np.exp(float(none))), atol=1e-6)


def test_hard_selection_takes_one_instance_or_none(scored):
  rho = np.asarray(selection(*scored, "hard"))
  np.testing.assert_allclose(rho, [[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]], atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_hard_selection_is_one_hot_at_a_valid_slot_or_all_zero(seed):
  rng = np.random.default_rng(seed)
  valid = rng.random((4, 5)) < 0.5
  scores, null = 5 * draw(4, 5, seed=seed), 5 * draw(4, seed=seed + 1)
  rho = np.asarray(selection(scores, null, valid, "hard"))
  for b in range(4):
    candidates = [(scores[b, k], k) for k in range(5) if valid[b, k]]
    expected = np.zeros(5)
    if candidates and max(candidates)[0] > null[b]:
      expected[max(candidates)[1]] = 1
    np.testing.assert_allclose(rho[b], expected, atol=1e-6)


def test_hard_selection_learns_with_the_gradient_of_soft(scored):
  weights = jnp.asarray(draw(4, 3))

  def gradient(how):
    return jax.grad(lambda s, n: (weights * select(s, n, scored[2], how)).sum(), (0, 1))(
      *scored[:2]
    )

  for hard, soft in zip(gradient("hard"), gradient("soft"), strict=True):
    np.testing.assert_allclose(hard, soft, atol=1e-7)
    assert np.abs(soft).max() > 0.01


def test_hard_selection_decodes_the_target_and_learns_as_ever(scored):
  scores, null, valid = scored
  target = jnp.array([0, 2, 3, 3])
  rho = selection(scores, null, valid, "hard", target)
  np.testing.assert_allclose(rho, [[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]], atol=1e-6)
  weights = jnp.asarray(draw(4, 3))

  def gradient(target):
    return jax.grad(lambda s: (weights * select(s, null, valid, "hard", target)).sum())(scores)

  np.testing.assert_array_equal(gradient(target), gradient(None))


def test_selection_none_gives_every_instance_the_weight_one(scored):
  np.testing.assert_array_equal(selection(*scored, "none"), np.asarray(scored[2], float))


@pytest.mark.parametrize("how", ["soft", "hard", "none"])
def test_without_instances_nothing_is_selected(scored, how):
  assert not np.asarray(selection(*scored, how))[3].any()


def test_unknown_selection_is_named(scored):
  with pytest.raises(
    InputError, match=r"model\.selection 'first' is not one of soft, hard, multi, none"
  ):
    select(*scored, "first")
