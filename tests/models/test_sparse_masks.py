"""One token a pair of an instance and a patch: which pairs, what is in a token, and what may not matter."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from input_pipeline.preprocess import bit_planes
from mail_jax.models import instances
from mail_jax.models.mask_selection import pool_instances
from mail_jax.models.sparse_masks import SparseMaskEmbedding, find_pairs, share_of_tokens
from mail_jax.train import step

SLOTS, PATCHES = 5, 6
PLACES = SLOTS * PATCHES
find = jax.jit(find_pairs, static_argnames="budget")


def draw_coverage(seed: int, share: float) -> np.ndarray:
  """Coverage of patches of 4 x 4 pixels, so that equals occur, of two examples."""
  rng = np.random.default_rng(seed)
  coverage = rng.integers(1, 17, (2, SLOTS, PATCHES)) / 16
  return (coverage * (rng.random(coverage.shape) < share)).astype(np.float32)


def pairs_by_loop(coverage: np.ndarray, budget: int) -> list[tuple[int, int]]:
  """The pairs of one example that are kept, in order."""
  pairs = [(k, n) for k in range(SLOTS) for n in range(PATCHES) if coverage[k, n] > 0]
  by_size = sorted(pairs, key=lambda pair: (-coverage[pair], pair))
  return sorted(by_size[:budget])


@given(
  st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.2, 0.6, 1.0]), st.sampled_from([1, 7, 99])
)
def test_pairs_are_those_that_are_covered_most_in_ascending_order(seed, share, budget):
  coverage = draw_coverage(seed, share)
  pairs = jax.device_get(find(coverage, budget))
  assert pairs.instance.shape == (2, min(budget, PLACES))
  for b in range(2):
    expected = pairs_by_loop(coverage[b], budget)
    count = len(expected)
    assert list(zip(pairs.instance[b, :count], pairs.patch[b, :count], strict=True)) == expected
    np.testing.assert_array_equal(
      pairs.coverage[b, :count], np.array([coverage[b][pair] for pair in expected], np.float32)
    )
    assert not pairs.coverage[b, count:].any()
    assert pairs.dropped[b] == (coverage[b] > 0).sum() - count


@pytest.mark.parametrize("budget", [9, PLACES])
def test_an_instance_is_the_average_of_its_tokens_by_their_coverage(budget):
  coverage = draw_coverage(3, 0.5)
  pairs = find(coverage, budget)
  features = np.random.default_rng(4).normal(size=(2, budget, 3)).astype(np.float32)
  found = pool_instances(jnp.asarray(features), share_of_tokens(pairs, SLOTS))
  for b in range(2):
    rows = pairs_by_loop(coverage[b], budget)
    for k in range(SLOTS):
      own = [(coverage[b][pair], features[b, i]) for i, pair in enumerate(rows) if pair[0] == k]
      total = sum((w * f for w, f in own), np.zeros(3)) / max(sum(w for w, _ in own), 1e-6)
      np.testing.assert_allclose(found[b, k], total, atol=1e-5)


def test_a_token_is_the_mask_in_its_patch_where_the_patch_is_and_whose_it_is():
  side, patch, width = 16, 4, 6
  rng = np.random.default_rng(5)
  masks = tiny_model.random_boxes(rng, SLOTS, side)[None]
  coverage = instances.patch_coverage(jnp.asarray(masks), patch)
  pairs = find(coverage, 12)
  assert pairs.dropped[0] > 0
  module = SparseMaskEmbedding(width, patch, jnp.dtype("float32"))
  shapes = jax.eval_shape(module.init, jax.random.key(0), masks, coverage, pairs)["params"]
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  tokens = jax.jit(module.apply)({"params": params}, masks, coverage, pairs)
  for i, (k, n) in enumerate(zip(pairs.instance[0], pairs.patch[0], strict=True)):
    row, col = divmod(int(n), side // patch)
    inside = masks[0, k, row * patch : (row + 1) * patch, col * patch : (col + 1) * patch]
    assert inside.any()
    ys, xs = np.nonzero(masks[0, k])
    box = np.array([ys.min(), xs.min(), ys.max() + 1, xs.max() + 1], np.float32)
    filled = masks[0, k].sum() / ((box[2] - box[0]) * (box[3] - box[1]))
    of_box = np.asarray(instances.box_features(jnp.asarray(box)[None, None], side, side))[0, 0]
    x = inside.reshape(-1) @ params["patches"]["kernel"] + params["patches"]["bias"]
    x = x + params["position"][n] + params["instance"]["bias"]
    x = x + np.append(of_box, 2 * filled - 1) @ params["instance"]["kernel"]
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    expected = x * params["norm"]["scale"] + params["norm"]["bias"]
    np.testing.assert_allclose(tokens[0, i], expected, atol=1e-4)


def make_config(budget: int = 300) -> ConfigDict:
  return tiny_model.make_config(mask_tokens="sparse", sparse_tokens=budget)


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
  return tiny_model.random_variables(make_config())


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
  return tiny_model.make_inputs(make_config())


@pytest.fixture(scope="module")
def output(variables, inputs) -> Any:
  return tiny_model.run(make_config(), variables, inputs)


def test_order_of_the_instances_changes_the_order_of_their_weights_and_no_pixel(
  variables, inputs, output
):
  order = np.random.default_rng(3).permutation(tiny_model.SLOTS)
  planes = [
    bit_planes.packbits(bit_planes.unpackbits(p, len(order))[order]) for p in inputs["planes"]
  ]
  shuffled = inputs | {"planes": np.stack(planes), "valid": inputs["valid"][:, order]}
  found = tiny_model.run(make_config(), variables, shuffled)
  np.testing.assert_allclose(found.logits, output.logits, atol=1e-4)
  np.testing.assert_allclose(found.rho, output.rho[:, order], atol=1e-5)
  np.testing.assert_allclose(
    found.selection_logits, output.selection_logits[:, [*order, -1]], atol=1e-4
  )


def test_places_without_a_pair_change_nothing(variables, inputs, output):
  """All places that there can be, and as many as the example with the most pairs needs."""
  assert not output.dropped_pairs.any()
  pairs = count_pairs(inputs)
  found = tiny_model.run(make_config(max(pairs)), variables, inputs)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, output)
  other = inputs | {"planes": inputs["planes"].copy()}
  other["planes"] ^= pack_void(~inputs["valid"])
  found = tiny_model.run(make_config(), variables, other)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, output)


def count_pairs(inputs: dict[str, np.ndarray]) -> list[int]:
  """How many patches of 8 x 8 pixels the instances of each example touch, by a loop."""
  counts = []
  for planes, valid in zip(inputs["planes"], inputs["valid"], strict=True):
    masks = bit_planes.unpackbits(planes, len(valid))[valid]
    patches = [
      m[y : y + 8, x : x + 8] for m in masks for y in range(0, 32, 8) for x in range(0, 32, 8)
    ]
    counts.append(sum(bool(patch.any()) for patch in patches))
  return counts


def pack_void(void: np.ndarray) -> np.ndarray:
  """Planes whose bits are set where there is no instance."""
  flat = np.broadcast_to(void[:, :, None, None], (*void.shape, 32, 32))
  return np.stack([bit_planes.packbits(mask) for mask in flat])


def test_what_there_is_no_place_for_is_counted_and_missing(variables, inputs, output):
  config = make_config(20)
  found = tiny_model.run(config, variables, inputs)
  expected = [max(0, count - 20) for count in count_pairs(inputs)]
  assert min(expected) > 0
  np.testing.assert_array_equal(found.dropped_pairs, expected)
  assert np.isfinite(found.logits).all()
  assert not np.allclose(found.selection_logits, output.selection_logits, atol=1e-2)


def test_training_says_how_many_tokens_had_no_place(variables, inputs):
  batch = {
    "image": inputs["image"], "instances": inputs["planes"], "valid": inputs["valid"],
    "tokens": inputs["tokens"], "num_tokens": inputs["num_tokens"],
    "target": np.zeros((3, 32, 32), bool), "weight": np.array([1, 1, 0], np.float32),
  }  # fmt: skip
  weights = {"bce": 1.0, "dice": 1.0, "selection": 1.0}
  loss = step.make_loss(tiny_model.make(make_config(20)), weights, 1, teacher_forcing=True)
  counted = step.count_weights(jnp.asarray(batch["weight"]), 1)
  _, (metrics, _) = jax.jit(loss)(
    variables["params"], variables["batch_stats"], batch, counted, jax.random.key(0)
  )
  first, second, _ = (count - 20 for count in count_pairs(inputs))
  assert metrics["dropped_pairs"] == (first + second) / 2
