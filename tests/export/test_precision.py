"""Exports in fewer bits: what is rounded, by how much, and what that does to the outputs."""

import json
import re

import exported_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tiny_model
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.common.errors import InputError
from mail_jax.export import command as export
from mail_jax.export import formats, load, precision
from mail_jax.models import build
from mail_jax.models.build import path_name

# The largest error of a number: half a unit in the last place, relative to the number itself or,
# for int8, to the largest one that shares its scale.
ERRORS = {"float16": 2**-11, "bfloat16": 2**-8, "int8": 0.5 / 127}


def _leaves(model: load.LoadedModel) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(model.on_one_device())
  return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.parametrize("name", ERRORS)
def test_safetensors_are_rounded_to_the_precision_and_loaded_as_float32(exported, tmp_path, name):
  out = tmp_path / "out"
  export.main(["--checkpoint", str(exported), "--out", str(out), "--precision", name])
  assert json.loads((out / "config.json").read_text())["precision"] == name
  before, after = _leaves(load.load(str(exported))), _leaves(load.load(str(out)))
  stored = dict(safetensors.deserialize((out / "model.safetensors").read_bytes()))
  kinds = {"float16": "F16", "bfloat16": "BF16", "int8": "I8"}
  for path, exact in before.items():
    assert after[path].dtype == np.float32
    if exact.ndim < 2 or exact.size < 1024:
      np.testing.assert_array_equal(after[path], exact)
      continue
    assert stored[path]["dtype"] == kinds[name], path
    scale = np.abs(exact).max(0) if name == "int8" else np.abs(exact)
    if name == "int8" and exact.shape[0] < 64:
      scale = np.abs(exact).max()
    # Below 2^-14 the steps of float16 are as there.
    assert (np.abs(after[path] - exact) <= ERRORS[name] * scale * 1.001 + 2**-25).all(), path
  sizes = [(place / "model.safetensors").stat().st_size for place in (exported, out)]
  assert sizes[1] < sizes[0] * (0.45 if name == "int8" else 0.65)


@given(
  shape=st.sampled_from([(64, 3), (3, 3, 16, 8), (2, 3, 40, 5), (100, 1)]),
  size=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
  seed=st.integers(0, 99),
)
def test_int8_is_off_by_half_a_step_at_most(shape, size, seed):
  array = (np.random.default_rng(seed).normal(size=shape) * size).astype(np.float32)
  array[..., 0] = 0  # Nothing to scale.
  axes = precision.leading_axes(shape)
  rounded, scale = precision.to_int8(array, axes)
  assert rounded.dtype == np.int8 and abs(rounded.astype(int)).max() <= 127
  step = np.abs(array).max(axes, keepdims=True) / 127
  assert (np.abs(rounded * scale - array) <= step * 0.501).all()
  assert np.prod([shape[i] for i in axes]) >= 64 or axes == tuple(range(len(shape) - 1))


def test_a_number_beyond_float16_is_told_and_fits_into_bfloat16(exported, tmp_path, monkeypatch):
  loaded = load.load(str(exported))
  kernel = loaded.variables["params"]["encoder"]["block00"]["mlp_in"]["kernel"]
  loaded.variables["params"]["encoder"]["block00"]["mlp_in"]["kernel"] = kernel + 70_000
  monkeypatch.setattr(load, "load", lambda *_: loaded)
  with pytest.raises(InputError, match=r"mlp_in/kernel has 7e\+04.*--precision bfloat16"):
    export.export("run", str(tmp_path / "out"), precision="float16")
  assert not (tmp_path / "out").exists()
  export.export("run", str(tmp_path / "out"), precision="bfloat16")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"names": ("stablehlo",), "precision": "float16"}, r"float16: not for stablehlo, only for"),
    ({"names": ("tensorrt",), "precision": "int8"}, r"int8: not for tensorrt, only for"),
    ({"precision": "float8"}, r"--precision 'float8': expected one of float32, float16"),
  ],
)
def test_a_precision_that_a_format_has_not_is_refused(exported, tmp_path, options, message):
  with pytest.raises(InputError, match=message):
    export.export(str(exported), str(tmp_path / "out"), **options)


@pytest.mark.extras
@pytest.mark.parametrize("name", ERRORS)
def test_onnx_computes_with_the_rounded_weights(name, tmp_path):
  onnx, onnxruntime = (pytest.importorskip(m) for m in ("onnx", "onnxruntime"))
  config = tiny_model.make_config("instance", 5)
  network, variables = tiny_model.make(config), tiny_model.random_variables(config)
  sizes, outputs = {}, {}
  batch = exported_models.random_batch(config, 3)
  for wanted in ("float32", name):
    place = tmp_path / f"{wanted}.onnx"
    formats.write("onnx", place, config, network, variables, wanted)
    sizes[wanted] = place.stat().st_size
    session = onnxruntime.InferenceSession(str(place))
    names = [output.name for output in session.get_outputs()]
    outputs[wanted] = dict(zip(names, session.run(names, batch), strict=True))
  assert sizes[name] < sizes["float32"]
  difference = np.abs(outputs[name]["logits"] - outputs["float32"]["logits"]).max()
  spread = outputs["float32"]["logits"].std()
  # Rounding errors of a few layers, and not none.
  assert 0 < difference < 40 * ERRORS[name] * spread
  graph = onnx.load(str(tmp_path / f"{name}.onnx")).graph
  kinds = {w.name: onnx.TensorProto.DataType.Name(w.data_type) for w in graph.initializer}
  kernels = {k: kinds[k] for k in kinds if "encoder" in k and re.search("mlp.*kernel$", k)}
  assert len(kernels) == 2 * config.model.depth and set(kernels.values()) == {name.upper()}
  if name == "float16":  # Products with weights are computed in it, not just stored.
    types = onnx.shape_inference.infer_shapes(onnx.load(str(tmp_path / "float16.onnx"))).graph
    half = {v.name for v in types.value_info if v.type.tensor_type.elem_type == 10}
    products = [node for node in graph.node if "/mlp_in/MatMul" in node.name]
    assert len(products) == config.model.depth
    assert all(node.output[0] in half for node in products)
  assert tuple(value.name for value in graph.input) == build.INPUTS
  assert jnp.isfinite(outputs[name]["logits"]).all()
