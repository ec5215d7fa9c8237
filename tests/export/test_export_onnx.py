"""ONNX: the model, its variants and each primitive, in onnxruntime and in JAX."""

import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import exported_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from jax import lax

from mail_jax.evaluate import runner, table
from mail_jax.export import command as export
from mail_jax.export import formats, load
from mail_jax.models import build

pytestmark = pytest.mark.extras
B = "b"  # Stands for any batch size.


def _build(
  function: Callable[..., dict[str, Any]], variables: Any, inputs: dict[str, Any], **options: Any
) -> bytes:
  pytest.importorskip("onnx")
  from mail_jax.export import onnx_model

  with tempfile.TemporaryDirectory() as folder:
    place = pathlib.Path(folder) / "model.onnx"
    onnx_model.write(place, function, variables, inputs, onnx_model.Options(**options))
    return place.read_bytes()


def _run(model: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  session = pytest.importorskip("onnxruntime").InferenceSession(model)
  names = [output.name for output in session.get_outputs()]
  return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize("count", [1, 7])
def test_onnx_gives_the_logits_of_the_checkpoint(exported_onnx, count):
  model = load.load(str(exported_onnx))
  batch = exported_models.random_batch(model.config, count)
  exported_models.assert_alike(load.load(str(exported_onnx / "model.onnx")), model, batch)


def test_evaluate_ends_on_a_single_core(exported_onnx, shapes_data):
  printed = exported_models.evaluate_on_one_core(exported_onnx / "model.onnx", shapes_data)
  assert "mIoU" in printed


def test_evaluate_gives_the_same_numbers_on_onnx(exported_onnx, shapes_data):
  actual, expected = (
    runner.evaluate(load.load(str(place)), shapes_data, ["shapes/val"])[0]
    for place in (exported_onnx / "model.onnx", exported_onnx)
  )
  assert table.metrics(actual) == table.metrics(expected)


def test_of_a_bfloat16_model_onnx_is_in_float32(exported, tmp_path):
  pytest.importorskip("onnx")
  import shutil

  shutil.copytree(exported, tmp_path / "narrow")
  exported_models.edit_config(tmp_path / "narrow", model={"dtype": "bfloat16"})
  export.export(str(tmp_path / "narrow"), str(tmp_path / "out"), ("onnx",))
  model = load.load(str(exported))
  batch = exported_models.random_batch(model.config, 2)
  actual = load.load(str(tmp_path / "out" / "model.onnx"))
  assert actual.config.model.dtype == "bfloat16"
  np.testing.assert_allclose(
    exported_models.run(actual, batch).logits, exported_models.run(model, batch).logits, atol=1e-4
  )


VARIANTS = {
  "paper": ("paper", 18, {}),
  "no instances": ("instance", 0, {}),
  "group norm, soft": ("instance", 5, {"norm": "group", "selection": "soft"}),
  "no selection": ("instance", 5, {"selection": "none", "image_path": False}),
  "several or no targets": ("instance", 5, {"selection": "multi", "no_target": True}),
  "in a loop": ("instance", 5, {"scan": True, "depth": 3}),
  "in a loop, computed again": ("instance", 5, {"scan": True, "depth": 2, "remat": "block"}),
  "padded sequence, bare masks": (
    "instance",
    5,
    {"pad_to_multiple_of": 8, "appearance": False, "neighbours": False, "mask_path": False},
  ),
}


# These cover the other variants but for details.
_FIRST = ("no instances", "group norm, soft", "in a loop")


@pytest.mark.parametrize(
  "name", [n if n in _FIRST else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS]
)
def test_every_variant_of_the_model_is_the_same_in_onnx(name):
  preset, slots, model = VARIANTS[name]
  config = tiny_model.make_config(preset, slots, **model)
  network, variables = tiny_model.make(config), tiny_model.random_variables(config)
  run = formats.make_forward(network)
  specs = build.input_specs(config, jax.export.symbolic_shape("b")[0])
  plain, plain_variables = formats.without_loop(config, variables)
  written = formats.make_forward(tiny_model.make(plain))
  model = _build(written, plain_variables, specs)
  _check_names(model, config)
  for count in (1, 3):
    batch = exported_models.random_batch(config, count, seed=count)
    expected = jax.jit(run)(variables, *(batch[key] for key in formats.INPUTS))
    actual = _run(model, batch)
    assert set(actual) == set(expected)
    for key, value in expected.items():
      np.testing.assert_allclose(actual[key], value, atol=1e-4, rtol=1e-5)
  # onnxruntime's Einsum ended the process here.
  nothing = _run(model, {key: value[:0] for key, value in batch.items()})
  assert {key: value.shape for key, value in nothing.items()} == {
    key: (0, *value.shape[1:]) for key, value in expected.items()
  }


def _check_names(model: bytes, config: Any) -> None:
  """Checks that nodes have names of their own, with the part of the network that they belong to."""
  onnx = pytest.importorskip("onnx")
  nodes = onnx.load_from_string(model).graph.node
  assert len({node.name for node in nodes}) == len(nodes)
  for layer in ("qkv", "out", "mlp_in", "mlp_out"):
    names = [node.name for node in nodes if node.op_type == "MatMul" and f"/{layer}/" in node.name]
    assert len(names) == config.model.depth
  assert not [node.name for node in nodes if not re.fullmatch(r"[\w/]+_\d+|output/\w+", node.name)]


def _floats(*shape: Any) -> tuple[tuple[Any, ...], Any]:
  return shape, np.float32


def _ints(*shape: Any) -> tuple[tuple[Any, ...], Any]:
  return shape, np.int32


def _bools(*shape: Any) -> tuple[tuple[Any, ...], Any]:
  return shape, np.bool_


def _words(*shape: Any) -> tuple[tuple[Any, ...], Any]:
  return shape, np.uint16


def _take(x, index):
  return jnp.take_along_axis(x, index % x.shape[1], axis=1)


_NHWC = ("NHWC", "HWIO", "NHWC")
# For each primitive, calls that use it: the function and the shapes of its arguments.
CASES: dict[str, list[tuple[Callable[..., Any], list[Any]]]] = {
  **{
    name: [(getattr(lax, name), [_floats(B, 3)])]
    for name in (
      "abs",
      "ceil",
      "cos",
      "erf",
      "erfc",
      "exp",
      "exp2",
      "floor",
      "logistic",
      "neg",
      "sign",
      "sin",
      "square",
      "tanh",
    )
  },
  **{
    name: [(lambda x, name=name: getattr(lax, name)(jnp.abs(x) + 0.1), [_floats(B, 3)])]
    for name in ("log", "rsqrt", "sqrt")
  },
  **{
    name: [(getattr(lax, name), [_floats(B, 3), _floats(B, 3)])]
    for name in ("add", "div", "mul", "sub")
  },
  **{
    name: [
      (getattr(lax, name), [_floats(B, 3), _floats(B, 3)]),
      (getattr(lax, name), [_ints(B, 3), _ints(B, 3)]),
    ]
    for name in ("max", "min", "lt", "le", "gt", "ge", "eq", "ne")
  },
  "integer_pow": [(lambda x, y=y: lax.integer_pow(x, y), [_floats(B, 3)]) for y in (2, 3, -1)],
  "pow": [
    (lambda x, y: lax.pow(jnp.abs(x) + 0.1, y), [_floats(B, 3), _floats(B, 3)]),
    (lambda x, y: lax.pow(jnp.abs(x) + 0.1, y % 3), [_floats(B, 3), _ints(B, 3)]),
  ],
  "reduce_precision": [(lambda x: lax.reduce_precision(x, 8, 7), [_floats(B, 9)])],
  "rem": [(lambda x: lax.rem(x, jnp.int32(5)), [_ints(B, 3)])],
  "not": [(lax.bitwise_not, [_bools(B, 3)]), (lax.bitwise_not, [_ints(B, 3)])],
  "and": [(lax.bitwise_and, [_bools(B, 3)] * 2), (lax.bitwise_and, [_words(B, 3)] * 2)],
  "or": [(lax.bitwise_or, [_bools(B, 3)] * 2), (lax.bitwise_or, [_words(B, 3)] * 2)],
  "xor": [(lax.bitwise_xor, [_bools(B, 3)] * 2), (lax.bitwise_xor, [_words(B, 3)] * 2)],
  "shift_right_logical": [
    (lambda x: x[..., None] >> jnp.arange(16, dtype=jnp.uint16), [_words(B, 3)])
  ],
  "convert_element_type": [
    (lambda x: x.astype(jnp.int32), [_floats(B, 3)]),
    (lambda x: x.astype(bool), [_words(B, 3)]),
    (lambda x: x.astype(jnp.float32), [_bools(B, 3)]),
  ],
  "clamp": [(lambda x: lax.clamp(-0.5, x, jnp.float32(0.7)), [_floats(B, 3)])],
  "select_n": [
    (jnp.where, [_bools(B, 3), _floats(B, 3), _floats(B, 3)]),
    (jnp.where, [_bools(B, 3), _bools(B, 3), _bools(B, 3)]),
    (jnp.where, [_bools(B, 3), _ints(B, 3), _ints(B, 3)]),
  ],
  "argmax": [
    (lambda x: jnp.argmax(x, 1), [_floats(B, 5)]),
    (lambda x: lax.argmax(x, 1, jnp.int32), [_bools(B, 5)]),  # The first of equal values.
  ],
  **{
    name: [(lambda x, f=f: f(x, axis=(1, 2)), [kind(B, 3, 4)]) for kind in kinds]
    for name, f, kinds in (
      ("reduce_and", jnp.all, [_bools]),
      ("reduce_max", jnp.max, [_floats, _ints]),
      ("reduce_min", jnp.min, [_floats, _ints]),
      ("reduce_sum", jnp.sum, [_floats, _ints]),
    )
  },
  "reduce_or": [
    (lambda x: jnp.any(x, axis=(1, 2)), [_bools(B, 3, 4)]),
    (lambda x: jnp.bitwise_or.reduce(x, axis=(1, 2)), [_words(B, 3, 4)]),
    (lambda x: jnp.bitwise_or.reduce(x, axis=1), [_words(B, 1)]),
  ],
  "sort": [
    (lambda x: jnp.argsort(x, axis=1, stable=True), [_bools(B, 9)]),
    (lambda x: jnp.sort(x, axis=1), [_floats(B, 9)]),
    (lambda x: jnp.argsort(x % 3, axis=1, stable=True), [_ints(B, 9)]),
  ],
  "gather": [
    (lambda x, i: _take(x, i[..., None]), [_floats(B, 5, 4), _ints(B, 3)]),
    (_take, [_floats(B, 5), _ints(B, 3)]),
    (lambda x, i: jnp.take(x, i % 6, axis=0), [_floats(6, 4), _ints(B, 3)]),
  ],
  "dot_general": [
    (jnp.matmul, [_floats(B, 3, 4), _floats(4, 5)]),
    (jnp.matmul, [_floats(B, 3, 4), _floats(B, 4, 5)]),
    (lambda x, y: jnp.einsum("btne,bsne->bnts", x, y), [_floats(B, 3, 2, 4), _floats(B, 5, 2, 4)]),
    (lambda x, y: jnp.einsum("iy,bkyx->bkix", x, y), [_floats(2, 3), _floats(B, 4, 3, 5)]),
    (lambda x, y: jnp.einsum("bkiy,byxc->bkixc", x, y), [_floats(B, 2, 3, 4), _floats(B, 4, 5, 6)]),
    (lambda x, y: jnp.einsum("bij,cjid->bcd", x, y), [_floats(B, 3, 2), _floats(4, 2, 3, 5)]),
    (lambda x, y: jnp.einsum("bi,i->b", x, y), [_floats(B, 3), _floats(3)]),
  ],
  "conv_general_dilated": [
    (
      lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=_NHWC),
      [_floats(B, 6, 7, 3), _floats(3, 3, 3, 4)],
    ),
    (
      lambda x, k: lax.conv_general_dilated(
        x, k, (2, 1), ((0, 1), (2, 0)), dimension_numbers=_NHWC
      ),
      [_floats(B, 6, 7, 3), _floats(3, 2, 3, 4)],
    ),
  ],
  "broadcast_in_dim": [
    (lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], 4, 3)), [_floats(B, 3)]),
    (lambda x, y: jnp.broadcast_to(y, (x.shape[0], 2, 3)), [_floats(B), _floats(1, 3)]),
    (lambda x: jnp.zeros((x.shape[0], 2), bool), [_floats(B)]),
  ],
  "iota": [(lambda x: x + lax.broadcasted_iota(jnp.int32, (x.shape[0], 3), 1), [_ints(B, 3)])],
  "concatenate": [(lambda x, y: jnp.concatenate([x, y], 1), [_floats(B, 2), _floats(B, 3)])],
  "slice": [(lambda x: x[:, 1:6:2, :-1], [_floats(B, 7, 3)])],
  "split": [(lambda x: jnp.concatenate(jnp.split(x, [1, 3], -1)[::-1], -1), [_floats(B, 6)])],
  "pad": [
    (lambda x: jnp.pad(x, ((0, 0), (1, 2))), [_floats(B, 3)]),
    (lambda x: jnp.pad(x, ((0, 0), (0, 3))), [_bools(B, 3)]),
  ],
  "rev": [(lambda x: x[..., ::-1], [_bools(B, 3)])],
  "reshape": [
    (lambda x: x.reshape(-1, 6), [_floats(B, 2, 3)]),
    (lambda x: x.reshape(x.shape[0], 3, 2), [_floats(B, 6)]),
  ],
  "stack": [
    (lambda x, y, axis=axis: jnp.stack([x, y], axis), [_floats(B, 3)] * 2) for axis in (1, -1)
  ],
  "unstack": [(lambda x: lax.unstack(x, 1)[2] - lax.unstack(x, 1)[0], [_floats(B, 3, 2)])],
  "squeeze": [(lambda x: lax.squeeze(x, (1,)), [_floats(B, 1, 3)])],
  "tile": [(lambda x: jnp.tile(x, (1, 2, 3)), [_floats(B, 2, 3)])],
  "transpose": [(lambda x: x.transpose(0, 2, 1), [_floats(B, 2, 3)])],
  "optimization_barrier": [(lax.optimization_barrier, [_floats(B, 3)])],
  "stop_gradient": [(lax.stop_gradient, [_floats(B, 3)])],
  "copy": [(lambda x: lax.copy_p.bind(x), [_floats(B, 3)])],
}


# Another version of JAX uses other primitives for these.
MAY_BE_ABSENT = {"stack", "square", "stop_gradient", "tile"}


def _primitives(jaxpr: Any) -> set[str]:
  """Yields the names of all primitives of a jaxpr and of inner ones."""
  names = set()
  for equation in jaxpr.eqns:
    names.add(equation.primitive.name)
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      names |= _primitives(inner) if hasattr(inner, "eqns") else set()
  return names


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  if dtype == np.float32:
    return rng.normal(size=shape).astype(dtype)
  low, high = {np.bool_: (0, 2), np.int32: (-20, 20), np.uint16: (0, 2**16)}[dtype]
  return rng.integers(low, high, shape).astype(dtype)


@pytest.mark.parametrize("name", CASES)
def test_each_primitive_does_in_onnx_what_it_does_in_jax(name):
  batch = jax.export.symbolic_shape("b")[0]
  met = set()
  for function, arguments in CASES[name]:
    named = {f"x{i}": argument for i, argument in enumerate(arguments)}
    # The first input has the batch size.
    named = dict(sorted(named.items(), key=lambda item: item[1][0][0] != B))
    order = [int(key[1:]) for key in named]

    def run(_, *inputs, function=function, order=order):
      return {"out": function(*(inputs[order.index(i)] for i in range(len(order))))}

    specs = {
      key: jax.ShapeDtypeStruct(tuple(batch if s == B else s for s in shape), dtype)
      for key, (shape, dtype) in named.items()
    }
    concrete = [
      jax.ShapeDtypeStruct([2 if s == batch else s for s in v.shape], v.dtype)
      for v in specs.values()
    ]
    met |= _primitives(jax.make_jaxpr(run)({}, *concrete).jaxpr)
    model = _build(run, {}, specs)
    for count in (1, 4):
      rng = np.random.default_rng(count)
      inputs = {
        key: _draw(rng, tuple(count if s == B else s for s in shape), dtype)
        for key, (shape, dtype) in named.items()
      }
      expected = np.asarray(run({}, *map(jnp.asarray, inputs.values()))["out"])
      actual = _run(model, inputs)["out"]
      assert actual.dtype == expected.dtype
      np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-5)
  assert name in met or name in MAY_BE_ABSENT


def test_every_row_of_the_table_is_compared_with_jax():
  pytest.importorskip("onnx")
  from mail_jax.export.onnx_table import TABLE

  assert set(TABLE) == set(CASES)


def test_what_the_table_lacks_is_named():
  pytest.importorskip("onnx")
  spec = {"x": jax.ShapeDtypeStruct((3,), np.float32)}
  with pytest.raises(NotImplementedError, match="primitive cumsum"):
    _build(lambda _, x: {"out": jnp.cumsum(x)}, {}, spec)
  with pytest.raises(NotImplementedError, match="anything but whole rows"):
    _build(
      lambda _, x: {
        "out": x[jnp.array([1, 2])[:, None] + jnp.arange(1)]
        + lax.gather(
          x, jnp.zeros((1, 1), jnp.int32), lax.GatherDimensionNumbers((1,), (), (0,)), (2,)
        )[0]
      },
      {},
      spec,
    )


def test_the_file_is_one_and_passes_the_checker(exported_onnx):
  onnx = pytest.importorskip("onnx")
  model = onnx.load(str(exported_onnx / "model.onnx"))
  onnx.checker.check_model(model, full_check=True)
  assert [(i.name, i.type.tensor_type.shape.dim[0].dim_param) for i in model.graph.input] == [
    (name, "b") for name in formats.INPUTS
  ]
  assert {o.name for o in model.graph.output} == {"logits", "selection_logits"}
  assert any(w.name == "params/encoder/block00/qkv/kernel" for w in model.graph.initializer)


def _as_masks(batch: dict[str, np.ndarray], slots: int) -> dict[str, np.ndarray]:
  """Returns a batch with masks one by one, as bytes: bit k % 16 of plane k // 16."""
  planes = batch["instances"]
  masks = [planes[:, k // 16] >> np.uint16(k % 16) & 1 for k in range(max(slots, 1))]
  return batch | {"instances": np.stack(masks, 1).astype(np.uint8)}


# The operators and types of TensorRT 10 (github.com/onnx/onnx-tensorrt, docs/operators.md of
# release 10.1), of those that we use. "N" is what it has as a number, "B" flags.
_OPERATORS = {
  "N": "Add Div Mul Sub Max Min Abs Neg Sign ArgMax TopK Pad Mod Equal Greater GreaterOrEqual Less "
  "LessOrEqual ReduceMax ReduceMin ReduceSum",
  "F": "Ceil Conv Cos Erf Exp Floor Log MatMul Pow Reciprocal Sigmoid Sin Sqrt Tanh",
  "NB": "Concat Expand Gather GatherElements GatherND Identity Reshape Shape Slice Split Squeeze "
  "Tile Transpose Where",
  "B": "And Not Or",
  "NBU": "Cast",
}
_TENSORRT = {name: kinds for kinds, names in _OPERATORS.items() for name in names.split()}
_NUMBERS = "FLOAT FLOAT16 BFLOAT16 INT32 INT64"
_KINDS = {"N": _NUMBERS, "F": "FLOAT FLOAT16 BFLOAT16", "B": "BOOL", "U": "UINT8"}
_COMPARE = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}


def _check_tensorrt(model: bytes) -> None:
  """Checks each node of a model against what TensorRT has: operator, types, and their limits."""
  onnx = pytest.importorskip("onnx")
  graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model), strict_mode=True).graph
  values = [*graph.value_info, *graph.input, *graph.output]
  kinds = {value.name: value.type.tensor_type.elem_type for value in values}
  kinds |= {weight.name: weight.data_type for weight in graph.initializer}
  name_of = onnx.TensorProto.DataType.Name
  assert {name_of(kinds[value.name]) for value in graph.input} == {"UINT8", "INT32"}
  for node in graph.node:
    assert node.op_type in _TENSORRT, f"{node.name}: TensorRT has no {node.op_type}"
    allowed = {t for kind in _TENSORRT[node.op_type] for t in _KINDS[kind].split()}
    read = {name_of(kinds[name]) for name in node.input}
    # Comparisons give flags, and conditions are flags.
    written = {"BOOL"} if node.op_type in _COMPARE else {name_of(kinds[n]) for n in node.output}
    used = read | (set() if node.op_type in _COMPARE else written)
    assert used <= allowed, f"{node.name}: {node.op_type} of {used - allowed}"
    if "UINT8" in used:
      assert node.input[0] in {value.name for value in graph.input}  # bytes are inputs only
  # Tensors have at most 8 dimensions, and axes, kernels and counts are constants.
  assert max(len(value.type.tensor_type.shape.dim) for value in values) <= 8
  constants = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
  computed = {node.output[0]: node.op_type for node in graph.node}
  for node in graph.node:
    if node.op_type in ("Squeeze", "ReduceSum", "ReduceMax", "ReduceMin", "TopK", "Conv"):
      stored = node.input[1] in constants or computed[node.input[1]] == "Cast"
      assert stored, f"{node.name}: computes its {node.input[1]}"
    if node.op_type == "TopK":
      assert constants[node.input[1]] < 3840


@pytest.mark.parametrize(
  "name",
  [
    n if n in ("several or no targets", "no instances") else pytest.param(n, marks=pytest.mark.slow)
    for n in VARIANTS
  ],
)
def test_the_variant_for_tensorrt_has_its_operators_and_types_only_and_the_same_outputs(name):
  preset, slots, model = VARIANTS[name]
  config = tiny_model.make_config(preset, slots, **model)
  network, variables = tiny_model.make(config), tiny_model.random_variables(config)
  specs = build.input_specs(config, jax.export.symbolic_shape("b")[0])
  specs["instances"] = formats.as_masks(specs["instances"], slots)
  plain, plain_variables = formats.without_loop(config, variables)
  written = formats.make_forward(tiny_model.make(plain))
  model = _build(written, plain_variables, specs, tensorrt=True)
  _check_tensorrt(model)
  batch = exported_models.random_batch(config, 3)
  run = jax.jit(formats.make_forward(network))
  expected = run(variables, *(batch[key] for key in formats.INPUTS))
  for key, value in _run(model, _as_masks(batch, slots)).items():
    np.testing.assert_allclose(value, expected[key], atol=1e-4, rtol=1e-5)


def test_equal_flags_keep_their_order_without_help_of_the_runtime():
  """TensorRT does not say which of equal values comes first, so none are equal."""
  onnx = pytest.importorskip("onnx")
  spec = {"x": jax.ShapeDtypeStruct((jax.export.symbolic_shape("b")[0], 6), np.bool_)}
  model = _build(
    lambda _, x: {
      "first": lax.argmax(x, 1, jnp.int32),
      "order": jnp.argsort(x, axis=1, stable=True),
    },
    {},
    spec,
    tensorrt=True,
  )
  keys = onnx.load_from_string(model)
  for node in list(keys.graph.node):
    if node.op_type in ("TopK", "ArgMax"):
      keys.graph.output.append(onnx.ValueInfoProto(name=node.input[0]))
  flags = np.random.default_rng(0).random((50, 6)) < 0.5
  flags[0], flags[1] = False, True
  actual = _run(keys.SerializeToString(), {"x": flags})
  np.testing.assert_array_equal(actual.pop("first"), flags.argmax(1))
  np.testing.assert_array_equal(actual.pop("order"), np.argsort(flags, axis=1, kind="stable"))
  assert len(actual) == 2
  for found in actual.values():
    assert all(len(set(row)) == 6 for row in found.tolist())


def test_the_exported_variant_for_tensorrt_runs_with_mail_jax(exported, tmp_path):
  pytest.importorskip("onnx")
  pytest.importorskip("onnxruntime")
  export.export(str(exported), str(tmp_path / "out"), ("tensorrt",))
  model = load.load(str(exported))
  batch = exported_models.random_batch(model.config, 3)
  exported_models.assert_alike(
    load.load(str(tmp_path / "out" / "model_tensorrt.onnx")), model, batch
  )
