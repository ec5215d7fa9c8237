"""Options of the encoder that must not change its output, and attention on a TPU."""

import functools
import math
import os
import pathlib
import subprocess
import sys
import types
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
import tpu_attention
from flax import linen as nn

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import bit_planes
from mail_jax.models.attention import attend, choose_backend, read_valid_first, runs_on
from mail_jax.models.build import make_model, path_name
from mail_jax.models.encoder import EXPERTS, REMAT, STACK, Encoder, block_name, gelu, stack_blocks

DEPTH, WIDTH, TOKENS = 3, 16, 10
VALID = jnp.arange(TOKENS) < jnp.array([10, 6])[:, None]
NEAR: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def make_encoder(**options: Any) -> Encoder:
  return Encoder(DEPTH, 2, dtype=jnp.dtype("float32"), **options)


def draw(*shape: int, seed: int = 0) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def parameters() -> dict[str, Any]:
  return make_encoder().init(jax.random.key(1), [draw(2, TOKENS, WIDTH)], VALID)["params"]


def stacked(params: dict[str, Any]) -> dict[str, Any]:
  """Stacks the parameters for `scan`, independently of the code under test."""
  blocks = [params[block_name(i)] for i in range(DEPTH)]
  return {"norm": params["norm"], STACK: jax.tree.map(lambda *rows: jnp.stack(rows), *blocks)}


def loss_and_gradients(encoder: Encoder, params: dict[str, Any]) -> tuple[Any, Any]:
  x, weight = draw(2, TOKENS, WIDTH), draw(2, TOKENS, WIDTH, seed=1)

  def loss(params):
    rngs = {"dropout": jax.random.key(0)}
    [out] = encoder.apply({"params": params}, [x], VALID, True, rngs=rngs)
    return (out * weight * VALID[..., None]).sum()

  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("remat", REMAT)
@pytest.mark.parametrize("scan", [False, True])
def test_remat_and_scan_change_neither_loss_nor_gradients(remat, scan):
  expected, gradients = loss_and_gradients(make_encoder(), parameters())
  if scan:
    gradients = stacked(gradients)
  params = stacked(parameters()) if scan else parameters()
  actual, found_gradients = loss_and_gradients(make_encoder(remat=remat, scan=scan), params)
  np.testing.assert_allclose(actual, expected, **NEAR)
  jax.tree.map(functools.partial(np.testing.assert_allclose, **NEAR), found_gradients, gradients)


MULTIWAY = ("image", "mask", "text")
SIZES = (5, 3, 2)
# Padding is in the middle and at the end.
HOLES = jnp.array([[True] * 5 + [True, False, True] + [True, False], [True] * 5 + [False] * 5])


def multiway_loss_and_gradients(encoder: Encoder, params: dict[str, Any]) -> tuple[Any, Any]:
  x, weight = draw(2, TOKENS, WIDTH), draw(2, TOKENS, WIDTH, seed=1)

  def loss(params):
    out = encoder.apply({"params": params}, jnp.split(x, (5, 8), 1), HOLES, True)
    return (jnp.concatenate(out, 1) * weight * HOLES[..., None]).sum()

  return jax.jit(jax.value_and_grad(loss))(params)


def multiway_parameters() -> dict[str, Any]:
  x = jnp.split(draw(2, TOKENS, WIDTH), (5, 8), 1)
  return make_encoder(experts=MULTIWAY).init(jax.random.key(1), x, HOLES)["params"]


@pytest.mark.parametrize(("remat", "scan"), [("products", True), ("block", False), ("none", True)])
def test_remat_and_scan_do_not_change_a_multiway_encoder(remat, scan):
  params = multiway_parameters()
  expected, gradients = multiway_loss_and_gradients(make_encoder(experts=MULTIWAY), params)
  if scan:
    blocks = [params[block_name(i)] for i in range(DEPTH)]
    norms = {name: value for name, value in params.items() if "block" not in name}
    gradients_of_blocks = [gradients.pop(block_name(i)) for i in range(DEPTH)]
    params = norms | {STACK: jax.tree.map(lambda *rows: jnp.stack(rows), *blocks)}
    gradients |= {STACK: jax.tree.map(lambda *rows: jnp.stack(rows), *gradients_of_blocks)}
  encoder = make_encoder(experts=MULTIWAY, remat=remat, scan=scan)
  actual, found = multiway_loss_and_gradients(encoder, params)
  np.testing.assert_allclose(actual, expected, **NEAR)
  jax.tree.map(functools.partial(np.testing.assert_allclose, **NEAR), found, gradients)


def test_padding_between_the_parts_has_no_effect_and_no_gradient():
  params, x = multiway_parameters(), draw(2, TOKENS, WIDTH)
  encoder = make_encoder(experts=MULTIWAY)

  def run(x):
    return jnp.concatenate(encoder.apply({"params": params}, jnp.split(x, (5, 8), 1), HOLES), 1)

  expected = jnp.where(HOLES[..., None], run(x), 0)
  noise = jnp.where(HOLES[..., None], x, draw(2, TOKENS, WIDTH, seed=3))
  actual = jnp.where(HOLES[..., None], run(noise), 0)
  np.testing.assert_allclose(actual, expected, atol=1e-6)
  gradient = jax.grad(lambda x: (run(x) * HOLES[..., None]).sum())(x)
  assert not jnp.abs(jnp.where(HOLES[..., None], 0, gradient)).max()


def test_a_kernel_that_takes_lengths_reads_keys_whose_padding_is_moved_to_the_end(monkeypatch):
  """Has JAX's own attention in the place of cuDNN's, whose interface it shares."""
  plain = jax.nn.dot_product_attention

  def on_cpu(*args, implementation: str, **kwargs):
    assert implementation == "cudnn"
    return plain(*args, implementation="xla", **kwargs)

  monkeypatch.setattr(jax.nn, "dot_product_attention", on_cpu)
  query, key, value = (draw(2, TOKENS, 2, 8, seed=i) for i in range(3))
  order = read_valid_first(HOLES, 5, "cudnn")
  assert read_valid_first(HOLES, 5, "xla") is None
  counts = HOLES[..., None, None]

  def run(backend, query, key, value):
    own = order if backend == "cudnn" else None
    return (jnp.sin(attend(query, key, value, HOLES, backend, own)) * counts).sum()

  differentiate = jax.value_and_grad(run, argnums=(1, 2, 3))
  actual, expected = (differentiate(name, query, key, value) for name in ("cudnn", "xla"))
  jax.tree.map(functools.partial(np.testing.assert_allclose, **NEAR), actual, expected)


@pytest.mark.parametrize("scan", [False, True])
def test_drop_path_skips_branches_of_whole_examples_more_often_in_later_blocks(scan):
  """Blocks add 1 to each unit, 100 in the second and 10,000 in the third; MLPs add nothing."""
  encoder = make_encoder(scan=scan, drop_path=0.6)
  params = jax.tree.map(jnp.zeros_like, parameters())
  for i in range(DEPTH):
    params[block_name(i)]["out"]["bias"] += 100.0**i
  examples, ones = 400, jnp.ones((400, TOKENS), bool)
  params = stacked(params) if scan else params

  def run(train):
    with_norm = params | {"norm": jax.tree.map(jnp.ones_like, params["norm"])}
    with mock.patch.object(nn.LayerNorm, "__call__", lambda self, x: x):
      [out] = encoder.apply(
        {"params": with_norm},
        [jnp.zeros((examples, TOKENS, WIDTH))],
        ones,
        train,
        rngs={"dropout": jax.random.key(0)},
      )
    return np.asarray(out)

  out = run(True)
  assert (out == out[:, :1, :1]).all()
  out = out[:, 0, 0].astype(np.float64)
  kept = [out % 50 > 0, out % 5000 > 50, out > 5000]
  rates = [1 - np.mean(row) for row in kept]
  assert rates[0] == 0
  assert abs(rates[1] - 0.3) < 0.07 and abs(rates[2] - 0.6) < 0.07
  # What is kept is scaled up, so that the mean stays.
  np.testing.assert_allclose(np.mean(out), 10101, rtol=0.15)
  np.testing.assert_allclose(run(False), 10101, rtol=1e-6)


def test_remat_keeps_less_between_the_passes():
  """Compares the residuals that JAX lists for the backward pass."""

  def kept(remat: str) -> int:
    encoder = make_encoder(remat=remat)
    _, backward = jax.eval_shape(
      lambda params, x: jax.vjp(
        lambda params: encoder.apply({"params": params}, [x], VALID, True), params
      ),
      parameters(),
      draw(2, TOKENS, WIDTH),
    )
    return sum(x.size for x in jax.tree.leaves(backward))

  none, products, block = (kept(remat) for remat in ("none", "products", "block"))
  assert block < products < none
  weights = sum(x.size for x in jax.tree.leaves(parameters()))  # all three keep them
  assert block - weights < (none - weights) / 4


def test_dropout_differs_from_block_to_block_in_a_loop():
  """With the same draw, blocks of equal parameters would drop the same units."""
  encoder = make_encoder(scan=True, dropout=0.5)
  zero = jax.tree.map(jnp.zeros_like, stacked(parameters()))
  zero[STACK]["mlp_out"]["bias"] += jnp.array([1.0, 10.0, 100.0])[:, None]
  zero["norm"]["scale"] += 1
  _, seen = encoder.apply(
    {"params": zero},
    [jnp.zeros((2, TOKENS, WIDTH))],
    VALID,
    True,
    rngs={"dropout": jax.random.key(0)},
    capture_intermediates=lambda module, _: module.name == "norm",
    mutable=["intermediates"],
  )
  out = np.asarray(seen["intermediates"]["norm"]["__call__"][0])
  # Each unit is a sum of those of 2, 20, 200 that were kept: one draw for all would give two sums.
  assert len(np.unique(out[0, 0].round(3))) > 2


def test_a_stack_has_the_blocks_in_their_order():
  flat = {
    f"encoder/{path_name(path)}": np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters())
  }
  rest = {"type": np.zeros((3, WIDTH))}
  expected = {
    f"encoder/{path_name(path)}": leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(stacked(parameters()))
  }
  actual = stack_blocks(flat | rest)
  assert actual.keys() == expected.keys() | rest.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(actual[name], value)


def test_gelu_is_x_times_the_normal_distribution_and_its_slope_is_exact():
  x = jnp.linspace(-6, 6, 97)
  below = [0.5 * math.erfc(-v / 2**0.5) for v in x.tolist()]
  density = [math.exp(-0.5 * v * v) / (2 * math.pi) ** 0.5 for v in x.tolist()]
  values, gradient = jax.vmap(jax.value_and_grad(gelu))(x)
  np.testing.assert_allclose(values, np.multiply(x, below), atol=1e-6)
  np.testing.assert_allclose(gradient, below + np.multiply(x, density), atol=1e-6)
  half = x.astype(jnp.bfloat16)
  assert gelu(half).dtype == jax.grad(lambda x: gelu(x).sum())(half).dtype == jnp.bfloat16


def test_in_bfloat16_all_activations_are_and_results_stay_near():
  exact, gradients = loss_and_gradients(make_encoder(), parameters())
  half = Encoder(DEPTH, 2, dtype=jnp.dtype("bfloat16"))
  actual, found_gradients = loss_and_gradients(half, parameters())
  np.testing.assert_allclose(actual, exact, rtol=0.05)
  for found, expected in zip(*map(jax.tree.leaves, (found_gradients, gradients)), strict=True):
    assert found.dtype == jnp.float32
    assert jnp.linalg.norm(found - expected) < 0.05 * jnp.linalg.norm(expected) + 1e-3
  _, seen = half.apply(
    {"params": parameters()},
    [draw(2, TOKENS, WIDTH)],
    VALID,
    capture_intermediates=True,
    mutable=["intermediates"],
  )
  assert {x.dtype for x in jax.tree.leaves(seen)} == {jnp.dtype("bfloat16")}


def test_normalisation_in_bfloat16_has_statistics_in_float32():
  """A mean of 100 leaves bfloat16 one digit of values that differ by 1."""
  x = 100 + draw(2, TOKENS, WIDTH).round(0)
  encoder = Encoder(0, 2, dtype=jnp.dtype("bfloat16"))
  [actual] = encoder.apply(encoder.init(jax.random.key(0), [x], VALID), [x], VALID)
  x = np.asarray(x.astype(jnp.bfloat16), np.float64)
  expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("experts", EXPERTS)
def test_the_whole_model_says_the_same_however_it_is_compiled(experts):
  options = {"depth": 2, "no_target": True, "experts": experts}
  config = tiny_model.make_config(**options)
  variables, inputs = tiny_model.random_variables(config), tiny_model.make_inputs(config)
  expected = tiny_model.run(config, variables, inputs)
  rounded = tiny_model.make_config(**options, pad_to_multiple_of=64)
  actual = tiny_model.run(rounded, variables, inputs)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), actual, expected)


@pytest.mark.parametrize("mask_tokens", ["instance", "stacked"])
@pytest.mark.parametrize("slots", [0, 7, 18])
def test_a_multiway_model_has_an_expert_for_each_kind_of_token(slots, mask_tokens):
  if not slots and mask_tokens == "stacked":
    pytest.skip("no masks, no tokens of them")
  config = tiny_model.make_config(slots=slots, experts="multiway", mask_tokens=mask_tokens)
  variables, inputs = tiny_model.random_variables(config), tiny_model.make_inputs(config)
  names = {path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(variables["params"])}
  found = {name.split("/")[-2].split("_")[0] for name in names if name.startswith("encoder/block")}
  assert found == ({"image", "mask", "text"} if slots else {"image", "text"})
  assert "type" not in names and "text/norm/scale" not in names
  assert np.isfinite(tiny_model.run(config, variables, inputs).logits).all()


def test_the_order_of_slots_changes_no_pixel_of_a_multiway_model():
  config = tiny_model.make_config(experts="multiway", selection="soft")
  variables, inputs = tiny_model.random_variables(config), tiny_model.make_inputs(config)
  moved = dict(inputs)
  order = np.random.default_rng(1).permutation(config.max_instances)
  masks = [bit_planes.unpackbits(planes, config.max_instances) for planes in inputs["planes"]]
  moved["planes"] = np.stack([bit_planes.packbits(of_image[order]) for of_image in masks])
  moved["valid"] = inputs["valid"][:, order]
  expected, actual = (tiny_model.run(config, variables, x) for x in (inputs, moved))
  np.testing.assert_allclose(actual.logits, expected.logits, atol=2e-5)
  np.testing.assert_allclose(actual.rho, expected.rho[:, order], atol=1e-5)


def test_texts_may_have_fewer_places_than_there_are_positions():
  config = tiny_model.make_config()
  variables, inputs = tiny_model.random_variables(config), tiny_model.make_inputs(config)
  inputs["num_tokens"] = np.minimum(inputs["num_tokens"], 3)
  expected = tiny_model.run(config, variables, inputs)
  actual = tiny_model.run(config, variables, inputs | {"tokens": inputs["tokens"][:, :3]})
  np.testing.assert_allclose(actual.logits, expected.logits, atol=1e-5)


def test_attention_of_a_tpu_is_that_of_xla():
  assert tpu_attention.difference() < 2e-5


def test_attention_of_a_tpu_is_that_of_xla_on_each_of_eight_devices():
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
  actual = subprocess.run(
    [sys.executable, tpu_attention.__file__],
    env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2]), "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    check=True,
  )
  devices, difference = actual.stdout.split()
  assert int(devices) == 8
  assert float(difference) < 2e-5


def test_a_backend_runs_where_it_has_a_kernel():
  assert [runs_on(backend, "cpu") for backend in ("xla", "cudnn", "tpu")] == [True, False, False]
  assert runs_on("cudnn", "gpu")
  assert runs_on("tpu", "tpu")


def device(platform: str, **more: str) -> Any:
  return types.SimpleNamespace(platform=platform, **more)


H100, V100 = device("gpu", compute_capability="9.0"), device("gpu", compute_capability="7.0")
BLACKWELL, AMD = (
  device("gpu", compute_capability="12.0"),
  device("gpu", compute_capability="gfx942"),
)


@pytest.mark.parametrize(
  ("where", "dtype", "head_size", "expected"),
  [
    (H100, "bfloat16", 64, "cudnn"),
    (BLACKWELL, "bfloat16", 80, "cudnn"),
    (H100, "float32", 64, "xla"),
    (H100, "bfloat16", 24, "cudnn"),
    (H100, "bfloat16", 12, "xla"),
    (H100, "bfloat16", 136, "xla"),
    (V100, "bfloat16", 64, "xla"),
    (AMD, "bfloat16", 64, "xla"),
    (device("cpu"), "bfloat16", 64, "xla"),
    (device("tpu"), "bfloat16", 64, "xla"),
  ],
)
def test_auto_is_the_kernel_of_cudnn_where_it_runs_and_xla_elsewhere(
  where, dtype, head_size, expected
):
  assert choose_backend("auto", where, jnp.dtype(dtype), head_size) == expected
  assert choose_backend("xla", where, jnp.dtype(dtype), head_size) == "xla"


@pytest.mark.parametrize(
  ("word", "where", "dtype", "head_size", "message"),
  [
    ("cudnn", H100, "float32", 64, r"backend 'cudnn' needs config\.model\.dtype bfloat16; set it"),
    ("cudnn", H100, "bfloat16", 12, r"at most 128 components.* config\.model\.heads is 12; set"),
    ("cudnn", AMD, "bfloat16", 64, r"needs an NVIDIA GPU of compute capability 8\.0 or later"),
    ("cudnn", device("tpu"), "bfloat16", 64, r"'cudnn' does not run on tpu; set it to 'auto'"),
    ("tpu", H100, "bfloat16", 64, r"'tpu' does not run on gpu; set it to 'auto'"),
    (
      "cuda",
      H100,
      "bfloat16",
      64,
      r"model\.backend 'cuda' is not one of auto, xla, cudnn, tpu",
    ),
  ],
)
def test_a_kernel_that_does_not_run_is_refused_by_name(word, where, dtype, head_size, message):
  with pytest.raises(InputError, match=message):
    choose_backend(word, where, jnp.dtype(dtype), head_size)


@pytest.mark.parametrize("experts", EXPERTS)
def test_sequences_for_cudnn_have_an_even_length(monkeypatch, experts):
  lengths = []

  def attention(query, key, value, **_):
    lengths.append(query.shape[1])
    return value

  monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
  config = tiny_model.make_config(experts=experts, dtype="bfloat16", backend="cudnn")
  model, inputs = make_model(config, tiny_model.VOCAB, H100), tiny_model.make_inputs(config, 1)
  jax.eval_shape(model.init, jax.random.key(0), **inputs)
  assert lengths == [1 + 16 + config.max_instances + config.max_tokens + 1]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"remat": "all"}, r"model\.remat 'all' is not one of none, block, products"),
    ({"pad_to_multiple_of": 0}, r"model\.pad_to_multiple_of is 0; it must be at least 1"),
  ],
)
def test_what_cannot_be_compiled_is_refused_by_name(change, message):
  config = tiny_model.make_config(**change)
  with pytest.raises(InputError, match=message):
    tiny_model.shapes(config)
