"""Converts a JAX function to ONNX: walks its jaxpr, primitive by primitive, with `onnx_table`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
from jax.extend import core
from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports]

from input_pipeline.common.errors import InputError
from mail_jax.export.onnx_table import TABLE, Graph, Value
from mail_jax.models.build import path_name

# From JAX 0.12 on, another name of `core.Jaxpr`.
ClosedJaxpr = core.ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]

# The oldest operator set that has everything the table uses, and the IR version that came with it:
# an older version runs on more runtimes.
_OPSET, _IR_VERSION = 18, 8
# Bytes of a protocol buffer.
_MAX_BYTES = 2**31
# Candidate batch sizes while a function is traced: primes, one of which divides no other size.
# With JAX's symbolic sizes a slice would become a gather with computed indices.
_BATCH_SIZES = (8191, 7919, 7907, 7901)
# Primitives that call another jaxpr, and the parameter that holds it; they are inlined.
_CALLS = {
  "jit": "jaxpr",
  "pjit": "jaxpr",
  "closed_call": "call_jaxpr",
  "core_call": "call_jaxpr",
  "checkpoint": "jaxpr",
  "remat2": "jaxpr",
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
}


def build(
  function: Callable[..., dict[str, jax.Array]],
  variables: Any,
  inputs: Mapping[str, jax.ShapeDtypeStruct],
) -> bytes:
  """Builds the ONNX model of a function (variables, *inputs) -> outputs by name.

  Args:
    function: to convert.
    variables: a tree of arrays, stored in the model.
    inputs: shapes and dtypes by name; the first axis is the batch, and may be symbolic.

  Returns:
    The bytes of a `.onnx` file that passes `onnx.checker`.

  Raises:
    InputError: the file would be larger than the format allows.
    NotImplementedError: the table lacks a primitive, or a way of using it.
  """
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  arrays = [np.asarray(leaf) for _, leaf in leaves]
  if sum(array.nbytes for array in arrays) >= _MAX_BYTES:
    raise InputError(
      "--format onnx: the weights are larger than 2 GB, the limit of a single .onnx file"
    )
  specs, batch_size = _specs_for_tracing([array.shape for array in arrays], inputs)
  closed, shapes = jax.make_jaxpr(function, return_shape=True)(variables, *specs.values())
  graph = Graph(next(iter(inputs)), batch_size)
  for (path, _), array in zip(leaves, arrays, strict=True):
    graph.keep(path_name(path), array)
  results = convert(graph, closed, [*arrays, *inputs])
  names = sorted(shapes)  # the order in which JAX flattens a dictionary
  output_nodes = [
    helper.make_node("Identity", [graph.name(value)], [name])
    for name, value in zip(names, results, strict=True)
  ]
  nodes = _reachable([*graph.nodes, *output_nodes], names)
  used = {name for node in nodes for name in node.input}
  onnx_graph = helper.make_graph(
    nodes,
    "mail_jax",
    [_declare(name, spec, batch_size) for name, spec in specs.items()],
    [_declare(name, shapes[name], batch_size) for name in names],
    [numpy_helper.from_array(a, name) for name, a in graph.weights.items() if name in used],
  )
  model = helper.make_model(
    onnx_graph,
    opset_imports=[helper.make_opsetid("", _OPSET)],
    ir_version=_IR_VERSION,
    producer_name="mail_jax",
  )
  onnx.checker.check_model(model, full_check=True)
  return model.SerializeToString()


def _specs_for_tracing(
  weights: Sequence[tuple[int, ...]], inputs: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[dict[str, jax.ShapeDtypeStruct], int]:
  """Returns the inputs with a number as their batch size, and that number."""
  sizes = {
    size for shape in (*weights, *(spec.shape for spec in inputs.values())) for size in shape
  }
  known = [size for size in sizes if isinstance(size, int) and size]
  batch_size = next(prime for prime in _BATCH_SIZES if all(size % prime for size in known))
  specs = {
    name: jax.ShapeDtypeStruct(
      [s if isinstance(s, int) else batch_size for s in spec.shape], spec.dtype
    )
    for name, spec in inputs.items()
  }
  return specs, batch_size


def _declare(name: str, spec: Any, batch_size: int) -> Any:
  dims = ["b" if size == batch_size else size for size in spec.shape]
  return helper.make_tensor_value_info(
    name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), dims
  )


def _reachable(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
  """Returns the nodes that the outputs depend on."""
  needed, kept = set(outputs), []
  for node in reversed(nodes):
    if needed & set(node.output):
      needed |= set(node.input)
      kept.append(node)
  return kept[::-1]


def convert(graph: Graph, closed: ClosedJaxpr, arguments: Sequence[Value]) -> list[Value]:
  """Adds the operations of a jaxpr to a graph and returns its results."""
  values: dict[Any, Value] = dict(
    zip(closed.jaxpr.constvars, map(np.asarray, closed.consts), strict=True)
  )
  values |= dict(zip(closed.jaxpr.invars, arguments, strict=True))

  def read(atom: Any) -> Value:
    return np.asarray(atom.val, _dtype(atom)) if isinstance(atom, core.Literal) else values[atom]

  for equation in closed.jaxpr.eqns:
    operands, name = [read(atom) for atom in equation.invars], equation.primitive.name
    if name in _CALLS:
      results = convert(graph, _closed(equation.params[_CALLS[name]]), operands)
    elif name in TABLE:
      results = TABLE[name](graph, equation, *operands)
    else:
      raise NotImplementedError(f"onnx: no conversion for the primitive {name}: {equation}")
    results = [results] if isinstance(results, str | np.ndarray) else results
    values |= dict(zip(equation.outvars, results, strict=True))
  return [read(atom) for atom in closed.jaxpr.outvars]


def _dtype(atom: Any) -> Any:
  return atom.aval.dtype


def _closed(jaxpr: Any) -> ClosedJaxpr:
  return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())
