"""A function of JAX as an ONNX model: its jaxpr, one primitive after the other, by the table in `onnx_table.py`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from input_pipeline.common.errors import InputError
from mail_jax.models.parameters import path_name

try:
  import onnx  # pyright: ignore[reportMissingImports]
  from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports]
except ImportError as error:
  raise InputError(
    '--format onnx needs the package onnx: pip install "mail_jax[export]"'
  ) from error

# The first operator set with all that the table uses, and the version of the format that came with it: what is older
# runs on more runtimes.
_OPSET, _IR_VERSION = 18, 8
_LARGEST = 2**31  # bytes of a protocol buffer
# Candidates for the number of examples while a function is traced: primes, of which one divides no other size. JAX has
# symbols for that, but then writes a slice as a gather with computed indices.
_MANY = (8191, 7919, 7907, 7901)
# A tensor of the graph by its name, or an array that is known beforehand.
Value = str | np.ndarray
# Calls of other jaxprs, by the parameter that holds them, which mean what stands in them.
_CALLS = {
  "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "checkpoint": "jaxpr",
  "remat2": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr",
}  # fmt: skip


class Graph:
  """An ONNX graph in the making."""

  def __init__(self, batch_of: str, many: int):
    """Args: batch_of: the input whose first axis is the number of examples; many: what stands for that number."""
    self.nodes: list[Any] = []
    self.weights: dict[str, np.ndarray] = {}
    self._batch_of, self._many, self._batch = batch_of, many, ""
    self._known: dict[int, tuple[str, np.ndarray]] = {}  # the arrays too: ids are of what lives

  def add(self, op: str, *inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
    """Adds a node; returns its output, or a list where it has several."""
    names = [f"{op.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
    self.nodes.append(helper.make_node(op, [self.name(x) for x in inputs], names, **attributes))
    return names[0] if outputs == 1 else names

  def cast(self, x: Value, dtype: Any) -> str:
    """Adds a conversion."""
    return self.add("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

  def name(self, x: Value) -> str:
    """The name of a value; a known array becomes a part of the model."""
    return x if isinstance(x, str) else self.keep(f"constant_{len(self.weights)}", x)

  def keep(self, name: str, array: np.ndarray) -> str:
    """Makes an array a part of the model, once."""
    if id(array) not in self._known:
      self._known[id(array)] = name, array
      self.weights[name] = array
    return self._known[id(array)][0]

  def shape(self, dims: Sequence[int]) -> Value:
    """A shape as a tensor, in which the number of examples is known only when the model runs."""
    if self._many not in dims:
      return np.array(dims, np.int64)
    self._batch = self._batch or self.add("Shape", self._batch_of, start=0, end=1)
    parts = [self._batch if size == self._many else np.array([size], np.int64) for size in dims]
    return self.add("Concat", *parts, axis=0)

  def reshape(self, x: Value, dims: Sequence[int]) -> str:
    """Adds a change of shape."""
    # A product of the examples with something else follows from the rest.
    known = [-1 if size and size % self._many == 0 else size for size in dims]
    return self.add("Reshape", x, np.array(known, np.int64))


def build(
  function: Callable[..., dict[str, jax.Array]],
  variables: Any,
  inputs: Mapping[str, jax.ShapeDtypeStruct],
) -> bytes:
  """Builds the model of (variables, *inputs) -> outputs by name.

  Args:
    function: to be converted.
    variables: a nest of arrays, which the model holds.
    inputs: shapes and dtypes by name; their first axis is the number of examples, which may be a symbol.

  Returns:
    The bytes of a `.onnx` file, which `onnx.checker` accepts.

  Raises:
    InputError: it would be larger than the format allows.
    NotImplementedError: the table lacks a primitive, or a way in which it is used.
  """
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  arrays = [np.asarray(leaf) for _, leaf in leaves]
  if sum(array.nbytes for array in arrays) >= _LARGEST:
    raise InputError(
      "--format onnx: the weights are larger than 2 GB, more than one .onnx file holds"
    )
  specs, many = _traced_with([array.shape for array in arrays], inputs)
  closed, shapes = jax.make_jaxpr(function, return_shape=True)(variables, *specs.values())
  graph = Graph(next(iter(inputs)), many)
  for (path, _), array in zip(leaves, arrays, strict=True):
    graph.keep(path_name(path), array)
  found = convert(graph, closed, [*arrays, *inputs])
  names = sorted(shapes)  # as jaxprs flatten a dictionary
  ends = [
    helper.make_node("Identity", [graph.name(value)], [name])
    for name, value in zip(names, found, strict=True)
  ]
  nodes = _needed([*graph.nodes, *ends], names)
  used = {name for node in nodes for name in node.input}
  made = helper.make_graph(
    nodes,
    "mail_jax",
    [_declare(name, spec, many) for name, spec in specs.items()],
    [_declare(name, shapes[name], many) for name in names],
    [numpy_helper.from_array(a, name) for name, a in graph.weights.items() if name in used],
  )
  model = helper.make_model(
    made,
    opset_imports=[helper.make_opsetid("", _OPSET)],
    ir_version=_IR_VERSION,
    producer_name="mail_jax",
  )
  onnx.checker.check_model(model, full_check=True)
  return model.SerializeToString()


def _traced_with(
  weights: Sequence[tuple[int, ...]], inputs: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[dict[str, jax.ShapeDtypeStruct], int]:
  """The inputs with a number in place of the symbol, and that number."""
  sizes = {
    size for shape in (*weights, *(spec.shape for spec in inputs.values())) for size in shape
  }
  known = [size for size in sizes if isinstance(size, int) and size]
  many = next(prime for prime in _MANY if all(size % prime for size in known))
  specs = {
    name: jax.ShapeDtypeStruct([s if isinstance(s, int) else many for s in spec.shape], spec.dtype)
    for name, spec in inputs.items()
  }
  return specs, many


def _declare(name: str, spec: Any, many: int) -> Any:
  dims = ["b" if size == many else size for size in spec.shape]
  return helper.make_tensor_value_info(
    name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), dims
  )


def _needed(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
  """The nodes that the outputs depend on."""
  wanted, kept = set(outputs), []
  for node in reversed(nodes):
    if wanted & set(node.output):
      wanted |= set(node.input)
      kept.append(node)
  return kept[::-1]


def convert(graph: Graph, closed: core.ClosedJaxpr, arguments: Sequence[Value]) -> list[Value]:
  """Adds what a jaxpr does with its arguments; returns its results."""
  from mail_jax.export.onnx_table import TABLE

  values: dict[Any, Value] = dict(
    zip(closed.jaxpr.constvars, map(np.asarray, closed.consts), strict=True)
  )
  values |= dict(zip(closed.jaxpr.invars, arguments, strict=True))

  def read(atom: Any) -> Value:
    return np.asarray(atom.val, _dtype(atom)) if isinstance(atom, core.Literal) else values[atom]

  for equation in closed.jaxpr.eqns:
    given, name = [read(atom) for atom in equation.invars], equation.primitive.name
    if name in _CALLS:
      results = convert(graph, _closed(equation.params[_CALLS[name]]), given)
    elif name in TABLE:
      results = TABLE[name](graph, equation, *given)
    else:
      raise NotImplementedError(f"onnx: there is no row for the primitive {name}: {equation}")
    results = [results] if isinstance(results, str | np.ndarray) else results
    values |= dict(zip(equation.outvars, results, strict=True))
  return [read(atom) for atom in closed.jaxpr.outvars]


def _dtype(atom: Any) -> Any:
  return atom.aval.dtype


def _closed(jaxpr: Any) -> core.ClosedJaxpr:
  return jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else core.ClosedJaxpr(jaxpr, ())
