"""The ONNX operators for each JAX primitive, as functions (graph, equation, *inputs) -> outputs.

Where an operator of onnxruntime lacks a type, the value is cast to the next wider type it has.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mail_jax.export.onnx_graph import Graph, Value

Row = Callable[..., Any]


def _named(op: str) -> Row:
  """Returns a row for an operator that differs only in name."""
  return lambda graph, equation, *inputs: graph.add(op, *inputs)


def _same(graph: Graph, equation: Any, *inputs: Value) -> list[Value]:
  """Adds nothing: the primitive is a hint for XLA."""
  return list(inputs)


def _logical(boolean: str, bitwise: str) -> Row:
  def row(graph: Graph, equation: Any, *inputs: Value) -> str:
    return graph.add(boolean if _is_bool(equation.outvars) else bitwise, *inputs)

  return row


def _shift_right(graph: Graph, equation: Any, x: Value, by: Value) -> str:
  wide = graph.add(
    "BitShift", graph.cast(x, np.uint32), graph.cast(by, np.uint32), direction="RIGHT"
  )
  return graph.cast(wide, _dtype(equation))


def _reduce(op: str, through: Any = None) -> Row:
  """Returns a row for a reduction, computed in the dtype `through` if it is given."""

  def row(graph: Graph, equation: Any, x: Value) -> str:
    x = x if through is None else graph.cast(x, through)
    result = graph.add(op, x, np.array(equation.params["axes"], np.int64), keepdims=0)
    return result if through is None else graph.cast(result, _dtype(equation))

  return row


def _reduce_or(graph: Graph, equation: Any, x: Value) -> str:
  if _is_bool(equation.invars):
    return _reduce("ReduceMax", np.uint8)(graph, equation, x)
  sizes = equation.invars[0].aval.shape
  for axis in equation.params["axes"]:
    size = sizes[axis]
    # Halves may overlap: a bit that counts twice is the same.
    while size > 1:
      half = -(-size // 2)
      first, last = (_cut(graph, x, [axis], [start], [start + half]) for start in (0, size - half))
      x, size = graph.add("BitwiseOr", first, last), half
  return graph.add("Squeeze", x, np.array(equation.params["axes"], np.int64))


def _without_ties(graph: Graph, equation: Any, x: Value, axis: int, backwards: bool) -> Value:
  """Returns flags as integers, no two of them equal: TensorRT does not say which it takes first."""
  x, shape = graph.cast(x, np.int32), equation.invars[0].aval.shape
  if not graph.options.tensorrt:
    return x
  place = np.arange(shape[axis], dtype=np.int32)[:: -1 if backwards else 1]
  place = place.reshape([-1 if i == axis else 1 for i in range(len(shape))])
  return graph.add("Add", graph.add("Mul", x, np.array(shape[axis], np.int32)), place)


def _argmax(graph: Graph, equation: Any, x: Value) -> str:
  (axis,) = equation.params["axes"]
  if _is_bool(equation.invars):
    x = _without_ties(graph, equation, x, axis, backwards=True)
  return graph.cast(graph.add("ArgMax", x, axis=axis, keepdims=0), _dtype(equation))


def _sort(graph: Graph, equation: Any, *inputs: Value) -> list[str]:
  """Sorts by the first input; TopK keeps the order of equal values, as a stable sort does."""
  axis, key = equation.params["dimension"], inputs[0]
  if equation.params["num_keys"] != 1:
    raise NotImplementedError(f"onnx: sorting by several keys: {equation}")
  if _is_bool(equation.invars):
    key = _without_ties(graph, equation, key, axis, backwards=False)
  size = np.array([equation.invars[0].aval.shape[axis]], np.int64)
  _, order = graph.add("TopK", key, size, outputs=2, axis=axis, largest=0, sorted=1)
  return [graph.add("GatherElements", x, order, axis=axis) for x in inputs]


def _gather(graph: Graph, equation: Any, x: Value, indices: Value) -> str:
  """Gathers whole rows of x: batch axes first, then the indexed axes; indices are in range."""
  numbers, shape = equation.params["dimension_numbers"], equation.invars[0].aval.shape
  batch = tuple(range(len(numbers.operand_batching_dims)))
  indexed = tuple(range(len(batch), len(batch) + len(numbers.start_index_map)))
  rest = tuple(range(len(batch) + len(indexed), len(shape)))
  rank = len(equation.outvars[0].aval.shape)
  if (
    numbers.operand_batching_dims != batch
    or numbers.start_indices_batching_dims != batch
    or numbers.start_index_map != indexed
    or numbers.collapsed_slice_dims != indexed
    or numbers.offset_dims != tuple(range(rank - len(rest), rank))
    or any(equation.params["slice_sizes"][i] != shape[i] for i in rest)
  ):
    raise NotImplementedError(f"onnx: a gather of anything but whole rows: {equation}")
  return graph.add("GatherND", x, graph.cast(indices, np.int64), batch_dims=len(batch))


def _slice(graph: Graph, equation: Any, x: Value) -> Value:
  parameters, shape = equation.params, equation.invars[0].aval.shape
  steps = parameters["strides"] or (1,) * len(shape)
  axes = [
    i
    for i, size in enumerate(shape)
    if parameters["limit_indices"][i] != size or parameters["start_indices"][i] or steps[i] != 1
  ]
  begin, end = ([parameters[name][i] for i in axes] for name in ("start_indices", "limit_indices"))
  return _cut(graph, x, axes, begin, end, [steps[i] for i in axes])


def _cut(
  graph: Graph, x: Value, axes: list, begin: list, end: list, steps: list | None = None
) -> str:
  parts = [np.array(part, np.int64) for part in (begin, end, axes, steps or [1] * len(axes))]
  return graph.add("Slice", x, *parts) if axes else graph.add("Identity", x)


def _rev(graph: Graph, equation: Any, x: Value) -> str:
  axes = list(equation.params["dimensions"])
  backwards = [-1] * len(axes)
  return _cut(graph, x, axes, backwards, [np.iinfo(np.int64).min] * len(axes), backwards)


def _broadcast(graph: Graph, equation: Any, x: Value, *_: Value) -> str:
  """Inserts the missing axes, then expands all axes to their sizes."""
  dims, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
  sizes = dict(zip(axes, equation.invars[0].aval.shape, strict=True))
  inserted = [sizes.get(axis, 1) for axis in range(len(dims))]
  if len(sizes) != len(dims):
    x = graph.reshape(x, inserted)
  # Expand keeps an axis whose new size is 1.
  expanded = [1 if old == new else new for old, new in zip(inserted, dims, strict=True)]
  return graph.name(x) if set(expanded) <= {1} else graph.add("Expand", x, graph.shape(expanded))


def _iota(graph: Graph, equation: Any, *_: Value) -> Value:
  dims, axis = equation.params["shape"], equation.params["dimension"]
  line = np.arange(dims[axis], dtype=equation.params["dtype"])
  line = line.reshape([-1 if i == axis else 1 for i in range(len(dims))])
  expanded = [1 if i == axis else size for i, size in enumerate(dims)]
  return line if set(expanded) <= {1} else graph.add("Expand", line, graph.shape(expanded))


def _concatenate(graph: Graph, equation: Any, *inputs: Value) -> str:
  axis = equation.params["dimension"]
  parts = [x for x, atom in zip(inputs, equation.invars, strict=True) if atom.aval.shape[axis]]
  return graph.add("Concat", *parts, axis=axis)


def _stack(graph: Graph, equation: Any, *inputs: Value) -> str:
  axis, shape = equation.params["axis"], list(equation.outvars[0].aval.shape)
  shape[axis] = 1
  return graph.add("Concat", *(graph.reshape(x, shape) for x in inputs), axis=axis)


def _unstack(graph: Graph, equation: Any, x: Value) -> list[str]:
  axis = equation.params["axis"]
  return [graph.add("Gather", x, np.array(i), axis=axis) for i in range(len(equation.outvars))]


def _pad(graph: Graph, equation: Any, x: Value, value: Value) -> Value:
  low, high, interior = zip(*equation.params["padding_config"], strict=True)
  if any(interior):
    raise NotImplementedError(f"onnx: interior padding: {equation}")
  if not any(low + high):
    return x
  ends = np.array([*low, *high], np.int64)
  if not _is_bool(equation.invars):
    return graph.add("Pad", x, ends, value)
  flags = [graph.cast(flag, np.int32) for flag in (x, value)]
  return graph.cast(graph.add("Pad", flags[0], ends, flags[1]), bool)


def _split(graph: Graph, equation: Any, x: Value) -> Any:
  sizes = equation.params["sizes"]
  parts = graph.add(
    "Split", x, np.array(sizes, np.int64), outputs=len(sizes), axis=equation.params["axis"]
  )
  return parts if len(sizes) > 1 else [parts]


def _select(graph: Graph, equation: Any, condition: Value, *cases: Value) -> str:
  if len(cases) != 2 or not _is_bool(equation.invars):
    raise NotImplementedError(f"onnx: select_n with more than two cases: {equation}")
  if_false, if_true = cases
  if not _is_bool(equation.outvars):
    return graph.add("Where", condition, if_true, if_false)
  return graph.cast(
    graph.add("Where", condition, graph.cast(if_true, np.uint8), graph.cast(if_false, np.uint8)),
    bool,
  )


def _integer_pow(graph: Graph, equation: Any, x: Value) -> str:
  power = equation.params["y"]
  return (
    graph.add("Mul", x, x)
    if power == 2
    else graph.add("Pow", x, np.asarray(power, _dtype(equation)))
  )


def _product(graph: Graph, op: str, x: Value, y: Value, **attributes: Any) -> str:
  """Adds a product, in float16 if y are weights and those are wanted in float16."""
  if graph.options.precision != "float16" or isinstance(x, np.ndarray) or isinstance(y, str):
    return graph.add(op, x, y, **attributes)
  narrow = graph.add(op, graph.cast(x, np.float16), graph.half(y), **attributes)
  return graph.cast(narrow, np.float32)


def _dot_general(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
  """Adds a MatMul, which runtimes optimise best; onnxruntime's Einsum fails on empty batches."""
  (contract_x, contract_y), (batch_x, batch_y) = equation.params["dimension_numbers"]
  shape_x, shape_y = (atom.aval.shape for atom in equation.invars)
  if equation.invars[0].aval.dtype != np.float32:
    raise NotImplementedError(f"onnx: a product of other types than float32: {equation}")
  free_x = [i for i in range(len(shape_x)) if i not in (*contract_x, *batch_x)]
  free_y = [i for i in range(len(shape_y)) if i not in (*contract_y, *batch_y)]
  last = len(shape_y) - 1
  if not batch_x and len(shape_x) == 2 and contract_y == (last - 1,) and last > 1:
    # A matrix times many: the axes of the many come first.
    left = graph.arrange(x, shape_x, [free_x, contract_x])
    return graph.transpose(graph.add("MatMul", left, y), [last - 1, *range(last - 1), last])
  rows = [*([i] for i in batch_x), free_x] if batch_x else [[i] for i in free_x]
  left = graph.arrange(x, shape_x, [*rows, contract_x])
  right = graph.arrange(y, shape_y, [*([i] for i in batch_y), contract_y, free_y])
  found = _product(graph, "MatMul", left, right)
  merges = len(free_y) != 1 or (batch_x and len(free_x) != 1)
  return graph.reshape(found, equation.outvars[0].aval.shape) if merges else found


def _convolution(graph: Graph, equation: Any, x: Value, kernel: Value) -> Value:
  parameters = equation.params
  numbers = parameters["dimension_numbers"]
  if set(parameters["lhs_dilation"]) != {1} or parameters["batch_group_count"] != 1:
    raise NotImplementedError(f"onnx: a transposed or batch-grouped convolution: {equation}")
  low, high = zip(*parameters["padding"], strict=True)
  result = _product(
    graph,
    "Conv",
    graph.transpose(x, numbers.lhs_spec),
    graph.transpose(kernel, numbers.rhs_spec),
    strides=parameters["window_strides"],
    pads=[*low, *high],
    dilations=parameters["rhs_dilation"],
    group=parameters["feature_group_count"],
  )
  return graph.transpose(result, np.argsort(numbers.out_spec).tolist())


def _pow(graph: Graph, equation: Any, x: Value, y: Value) -> str:
  """Adds a power; TensorRT has none of integers."""
  exponent = equation.invars[1].aval.dtype
  return graph.add("Pow", x, y if exponent == _dtype(equation) else graph.cast(y, _dtype(equation)))


def _reduce_precision(graph: Graph, equation: Any, x: Value) -> str:
  bits = equation.params["exponent_bits"], equation.params["mantissa_bits"]
  if bits != (8, 7):
    raise NotImplementedError(f"onnx: rounding to {bits} bits: {equation}")
  return graph.cast(graph.cast(x, jnp.bfloat16), _dtype(equation))


def _dtype(equation: Any) -> Any:
  return equation.outvars[0].aval.dtype


def _is_bool(atoms: Sequence[Any]) -> bool:
  return atoms[0].aval.dtype == np.dtype(bool)


TABLE: dict[str, Row] = {
  # unary
  "abs": _named("Abs"),
  "ceil": _named("Ceil"),
  "cos": _named("Cos"),
  "erf": _named("Erf"),
  "erfc": lambda g, e, x: g.add("Sub", np.ones((), _dtype(e)), g.add("Erf", x)),
  "exp": _named("Exp"),
  "exp2": lambda g, e, x: g.add("Pow", np.full((), 2, _dtype(e)), x),
  "floor": _named("Floor"),
  "integer_pow": _integer_pow,
  "log": _named("Log"),
  "logistic": _named("Sigmoid"),
  "neg": _named("Neg"),
  "not": _logical("Not", "BitwiseNot"),
  "reduce_precision": _reduce_precision,
  "rsqrt": lambda g, e, x: g.add("Reciprocal", g.add("Sqrt", x)),
  "sign": _named("Sign"),
  "sin": _named("Sin"),
  "sqrt": _named("Sqrt"),
  "square": lambda g, e, x: g.add("Mul", x, x),
  "tanh": _named("Tanh"),
  "convert_element_type": lambda g, e, x: g.cast(x, e.params["new_dtype"]),
  # binary
  "add": _named("Add"),
  "and": _logical("And", "BitwiseAnd"),
  "div": _named("Div"),
  "eq": _named("Equal"),
  "ge": _named("GreaterOrEqual"),
  "gt": _named("Greater"),
  "le": _named("LessOrEqual"),
  "lt": _named("Less"),
  "max": _named("Max"),
  "min": _named("Min"),
  "mul": _named("Mul"),
  "ne": lambda g, e, x, y: g.add("Not", g.add("Equal", x, y)),
  "or": _logical("Or", "BitwiseOr"),
  "pow": _pow,
  "rem": lambda g, e, x, y: g.add("Mod", x, y, fmod=1),
  "shift_right_logical": _shift_right,
  "sub": _named("Sub"),
  "xor": _logical("Xor", "BitwiseXor"),
  # ternary
  "clamp": lambda g, e, low, x, high: g.add("Min", g.add("Max", x, low), high),
  "select_n": _select,
  # reductions
  "argmax": _argmax,
  "reduce_and": _reduce("ReduceMin", np.uint8),
  "reduce_max": _reduce("ReduceMax"),
  "reduce_min": _reduce("ReduceMin"),
  "reduce_or": _reduce_or,
  "reduce_sum": _reduce("ReduceSum"),
  # products
  "conv_general_dilated": _convolution,
  "dot_general": _dot_general,
  # shapes and indices
  "broadcast_in_dim": _broadcast,
  "concatenate": _concatenate,
  "gather": _gather,
  "iota": _iota,
  "pad": _pad,
  "reshape": lambda g, e, x: g.reshape(x, e.params["new_sizes"]),
  "rev": _rev,
  "slice": _slice,
  "sort": _sort,
  "split": _split,
  "stack": _stack,
  "squeeze": lambda g, e, x: g.add("Squeeze", x, np.array(e.params["dimensions"], np.int64)),
  "unstack": _unstack,
  "tile": lambda g, e, x: g.add("Tile", x, np.array(e.params["reps"], np.int64)),
  "transpose": lambda g, e, x: g.transpose(x, e.params["permutation"]),
  # identities
  "copy": _same,
  "optimization_barrier": _same,
  "stop_gradient": _same,
}
