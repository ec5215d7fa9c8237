"""On CPUs, models that were trained in bfloat16 run in the dtypes that are fastest there."""

import dataclasses
import shutil

import exported_models
import jax
import jax.numpy as jnp
import kept_models
import numpy as np
import pytest

from mail_jax.export import load
from mail_jax.hardware import processor
from mail_jax.models.encoder import Dense
from mail_jax.models.mail import IN_OPERANDS


@pytest.fixture
def exported_copy(tmp_path):
  return shutil.copytree(kept_models.EXPORTED, tmp_path / "model")


@pytest.fixture(params=["bfloat16", "float32"])
def operands(request, monkeypatch):
  fast = request.param == "bfloat16"
  monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: fast)
  return request.param


def _run(model: load.LoadedModel, variables, batch):
  return jax.device_get(jax.jit(model.apply)(variables, batch))


def test_masks_are_those_of_float32_but_for_pixels_at_the_threshold(exported_copy, operands):
  exact = load.load(str(exported_copy))
  exported_models.edit_config(exported_copy, model={"dtype": "bfloat16"})
  model = load.load(str(exported_copy))
  options = model.model.options
  assert (options.dtype, options.operands) == (jnp.float32, jnp.dtype(operands))
  batch = exported_models.random_batch(model.config, 8)
  prepared = model.prepare(model.on_one_device())
  found, expected = _run(model, prepared, batch), _run(exact, exact.on_one_device(), batch)
  probability = 1 / (1 + np.exp(-np.asarray(expected.logits, np.float64)))
  differs = (found.logits > 0) != (expected.logits > 0)
  assert np.abs(probability - 0.5)[differs].max(initial=0) < 1e-2
  assert differs.sum() <= (0.001 * differs.size if operands == "bfloat16" else 0)
  error = np.abs(found.logits - expected.logits).max()
  assert (1e-4 < error < 0.05) if operands == "bfloat16" else error < 1e-5


def test_prepared_kernels_change_nothing_and_the_model_stays_what_it_is(exported_copy, operands):
  exact = load.load(str(exported_copy))
  exported_models.edit_config(exported_copy, model={"dtype": "bfloat16"})
  model = load.load(str(exported_copy))
  variables = model.on_one_device()
  prepared = model.prepare(variables)
  batch = exported_models.random_batch(model.config, 2)
  plain, ready = _run(model, variables, batch), _run(model, prepared, batch)
  np.testing.assert_array_equal(plain.logits, ready.logits)
  jax.tree.map(np.testing.assert_array_equal, variables, exact.on_one_device())
  dtypes = {
    jax.tree_util.keystr(path, simple=True, separator="/"): x.dtype
    for path, x in jax.tree_util.tree_leaves_with_path(prepared["params"])
  }
  assert {d for name, d in dtypes.items() if IN_OPERANDS.match(name)} == {jnp.dtype(operands)}
  assert {d for name, d in dtypes.items() if not IN_OPERANDS.match(name)} == {jnp.dtype("float32")}


def test_a_model_of_float32_and_a_file_that_holds_its_weights_stay_as_they_are(
  exported_copy, operands
):
  model = load.load(str(exported_copy))
  variables = model.on_one_device()
  assert model.model.options.operands is None and model.prepare(variables) is variables
  exported_models.edit_config(exported_copy, model={"dtype": "bfloat16"})
  model = load.load(str(exported_copy))
  assert model.prepare(variables) is not variables
  assert dataclasses.replace(model, forward=model.apply).prepare({}) == {}


def test_a_product_is_that_of_rounded_operands_in_float32():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(3, 5, 24)), jnp.float32)
  layer = Dense((24,), (2, 8), jnp.dtype("float32"), jnp.dtype("bfloat16"))
  variables = layer.init(jax.random.key(0), x)
  [y] = layer.apply(variables, x)
  rounded = [
    np.asarray(jnp.asarray(z, jnp.bfloat16), np.float64)
    for z in (x, variables["params"]["kernel"].reshape(24, 16))
  ]
  assert y.dtype == jnp.float32
  np.testing.assert_allclose(y, rounded[0] @ rounded[1], atol=1e-5)
