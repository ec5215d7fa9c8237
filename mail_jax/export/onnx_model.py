"""Converts a JAX function to ONNX: walks its jaxpr, primitive by primitive, with `onnx_table`."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
from jax.extend import core
from onnx import TensorProto, helper, numpy_helper  # pyright: ignore[reportMissingImports]

from mail_jax.export.folder import beside
from mail_jax.export.onnx_graph import Graph, Options, Value
from mail_jax.export.onnx_table import TABLE
from mail_jax.models.build import path_name

# From JAX 0.12 on, another name of `core.Jaxpr`.
ClosedJaxpr = core.ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]

# The oldest operator set that has everything the table uses, and the IR version that came with it:
# an older version runs on more runtimes.
_OPSET, _IR_VERSION = 18, 8
# Bytes of an array that is always in the file, and elements of one that is stored repeated.
_SMALL = 1024
# Of arrays beside the file, so that they can be mapped into memory.
_ALIGNMENT = 4096
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


def write(
  place: pathlib.Path,
  function: Callable[..., dict[str, jax.Array]],
  variables: Any,
  inputs: Mapping[str, jax.ShapeDtypeStruct],
  options: Options,
  max_bytes: int = 2**30,
) -> None:
  """Writes the ONNX model of a function (variables, *inputs) -> outputs by name.

  Args:
    place: the `.onnx` file. Weights that do not fit into it go into a file beside it, `.onnx.data`.
    function: to convert.
    variables: a tree of arrays, stored in the model.
    inputs: shapes and dtypes by name; the first axis is the batch, and may be symbolic.
    options: what the model is made for.
    max_bytes: of weights in the file itself.

  Raises:
    InputError: a weight is too large for the precision.
    NotImplementedError: the table lacks a primitive, or a way of using it.
  """
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  arrays = [np.asarray(leaf) for _, leaf in leaves]
  specs, batch_size = _specs_for_tracing([array.shape for array in arrays], inputs)
  closed, shapes = jax.make_jaxpr(function, return_shape=True)(variables, *specs.values())
  graph = Graph(batch_size, options)
  for (path, _), array in zip(leaves, arrays, strict=True):
    graph.label(array, path_name(path))
  values = [graph.add_input(name, spec.dtype) for name, spec in specs.items()]
  # Arrays that are known now are computed here, and on any machine in the same way.
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    results = convert(graph, closed, [*arrays, *values])
  names = sorted(shapes)  # the order in which JAX flattens a dictionary
  output_nodes = [
    helper.make_node("Identity", [graph.name(value)], [name], f"output/{name}")
    for name, value in zip(names, results, strict=True)
  ]
  nodes = _reachable([*graph.nodes, *output_nodes], names)
  used = {name for node in nodes for name in node.input}
  weights = {name: array for name, array in graph.weights.items() if name in used}
  onnx_graph = helper.make_graph(
    nodes,
    "mail_jax",
    [_declare(name, spec, batch_size) for name, spec in specs.items()],
    [_declare(name, shapes[name], batch_size) for name in names],
    _store(weights, place, max_bytes),
  )
  model = helper.make_model(
    onnx_graph,
    opset_imports=[helper.make_opsetid("", _OPSET)],
    ir_version=_IR_VERSION,
    producer_name="mail_jax",
  )
  place.write_bytes(model.SerializeToString())
  onnx.checker.check_model(str(place), full_check=True)


def _store(weights: Mapping[str, np.ndarray], place: pathlib.Path, max_bytes: int) -> list[Any]:
  """Returns the weights as tensors of a model, which are in a file beside it if they are large."""
  if sum(array.nbytes for array in weights.values()) < max_bytes:
    return [numpy_helper.from_array(array, name) for name, array in weights.items()]
  tensors, data = [], place.with_name(beside(place.name))
  with data.open("wb") as file:
    for name, array in weights.items():
      if array.nbytes < _SMALL:
        tensors.append(numpy_helper.from_array(array, name))
        continue
      file.write(bytes(-file.tell() % _ALIGNMENT))
      kind = helper.np_dtype_to_tensor_dtype(array.dtype)
      tensor = TensorProto(name=name, data_type=kind, dims=array.shape)
      tensor.data_location = TensorProto.EXTERNAL
      where = {"location": data.name, "offset": file.tell(), "length": array.nbytes}
      for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))
      file.write(array.tobytes())
      tensors.append(tensor)
  return tensors


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


def convert(
  graph: Graph, closed: ClosedJaxpr, arguments: Sequence[Value], outer: str = ""
) -> list[Value]:
  """Adds the operations of a jaxpr to a graph and returns its results.

  What depends on weights alone is computed here.

  Args:
    graph: to add to.
    closed: the jaxpr.
    arguments: its inputs.
    outer: the part of the network that it belongs to.
  """
  values: dict[Any, Value] = dict(
    zip(closed.jaxpr.constvars, map(np.asarray, closed.consts), strict=True)
  )
  values |= dict(zip(closed.jaxpr.invars, arguments, strict=True))

  def read(atom: Any) -> Value:
    return np.asarray(atom.val, _dtype(atom)) if isinstance(atom, core.Literal) else values[atom]

  for equation in closed.jaxpr.eqns:
    operands, name = [read(atom) for atom in equation.invars], equation.primitive.name
    graph.scope = f"{outer}/{_part(equation)}".strip("/")
    if name in _CALLS:
      results = convert(graph, _closed(equation.params[_CALLS[name]]), operands, graph.scope)
    elif _is_known(graph, equation, operands):
      results = _compute(graph, equation, operands)
    elif name in TABLE:
      results = TABLE[name](graph, equation, *operands)
    else:
      raise NotImplementedError(f"onnx: no conversion for the primitive {name}: {equation}")
    results = [results] if isinstance(results, str | np.ndarray) else results
    values |= dict(zip(equation.outvars, results, strict=True))
  return [read(atom) for atom in closed.jaxpr.outvars]


def _part(equation: Any) -> str:
  """Returns the module of the network that an operation is in, as in `encoder/block00/qkv`."""
  parts = str(equation.source_info.name_stack).split("/")
  # The first is the whole network; methods have a dot, and einsums are formulas.
  return "/".join(part for part in parts[1:] if part.isidentifier())


def _is_known(graph: Graph, equation: Any, operands: Sequence[Value]) -> bool:
  """Returns whether the results can be computed now, and are not much larger than the operands."""
  if any(isinstance(x, str) for x in operands):
    return False
  shapes = [atom.aval.shape for atom in equation.outvars]
  if any(graph.is_batch(size) for shape in shapes for size in shape):
    return False
  repeats = equation.primitive.name in ("broadcast_in_dim", "iota")
  return not repeats or math.prod(shapes[0]) <= max(_SMALL, *(np.size(x) for x in operands), 0)


def _compute(graph: Graph, equation: Any, operands: Sequence[Any]) -> list[np.ndarray]:
  name, parameters = equation.primitive.name, equation.params
  if name in ("reshape", "squeeze"):
    results = [np.reshape(operands[0], equation.outvars[0].aval.shape)]  # Not a copy.
  else:
    found = equation.primitive.bind(*operands, **parameters)
    results = [np.asarray(x) for x in (found if equation.primitive.multiple_results else [found])]
  named = [graph.label_of(x) for x in operands if graph.label_of(x)]
  return [graph.label(x, named[0]) for x in results] if len(named) == 1 else results


def _dtype(atom: Any) -> Any:
  return atom.aval.dtype


def _closed(jaxpr: Any) -> ClosedJaxpr:
  return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())
