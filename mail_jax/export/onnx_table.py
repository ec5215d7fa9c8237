"""What each primitive of our forward is in ONNX: one row each, in the form (graph, equation, *inputs) -> outputs.

Types that onnxruntime's operators lack go through the next wider one that they have.
"""

import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mail_jax.export.onnx_model import Graph, Value

Row = Callable[..., Any]


def _named(op: str) -> Row:
  """An operator that does the same under another name."""
  return lambda graph, equation, *inputs: graph.add(op, *inputs)


def _same(graph: Graph, equation: Any, *inputs: Value) -> list[Value]:
  """Nothing at all; what it says is for XLA."""
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
  """A reduction; through another type where the operator lacks the one it is given."""

  def row(graph: Graph, equation: Any, x: Value) -> str:
    x = x if through is None else graph.cast(x, through)
    found = graph.add(op, x, np.array(equation.params["axes"], np.int64), keepdims=0)
    return found if through is None else graph.cast(found, _dtype(equation))

  return row


def _argmax(graph: Graph, equation: Any, x: Value) -> str:
  (axis,) = equation.params["axes"]
  x = graph.cast(x, np.int32) if _is_bool(equation.invars) else x
  return graph.cast(graph.add("ArgMax", x, axis=axis, keepdims=0), _dtype(equation))


def _sort(graph: Graph, equation: Any, *inputs: Value) -> list[str]:
  """By the first of them; TopK keeps the order of equals, as a stable sort does."""
  axis, key = equation.params["dimension"], inputs[0]
  if equation.params["num_keys"] != 1:
    raise NotImplementedError(f"onnx: sorting by several keys: {equation}")
  key = graph.cast(key, np.int32) if _is_bool(equation.invars) else key
  size = np.array([equation.invars[0].aval.shape[axis]], np.int64)
  _, order = graph.add("TopK", key, size, outputs=2, axis=axis, largest=0, sorted=1)
  return [graph.add("GatherElements", x, order, axis=axis) for x in inputs]


def _gather(graph: Graph, equation: Any, x: Value, where: Value) -> str:
  """Whole rows of x, whose first axes are batch axes and then those that are looked up; indices are in range."""
  numbers, shape = equation.params["dimension_numbers"], equation.invars[0].aval.shape
  batch = tuple(range(len(numbers.operand_batching_dims)))
  looked_up = tuple(range(len(batch), len(batch) + len(numbers.start_index_map)))
  rest = tuple(range(len(batch) + len(looked_up), len(shape)))
  rank = len(equation.outvars[0].aval.shape)
  if (
    numbers.operand_batching_dims != batch
    or numbers.start_indices_batching_dims != batch
    or numbers.start_index_map != looked_up
    or numbers.collapsed_slice_dims != looked_up
    or numbers.offset_dims != tuple(range(rank - len(rest), rank))
    or any(equation.params["slice_sizes"][i] != shape[i] for i in rest)
  ):
    raise NotImplementedError(f"onnx: a gather that takes no whole rows: {equation}")
  return graph.add("GatherND", x, graph.cast(where, np.int64), batch_dims=len(batch))


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
  """One axis is put in after the other, and then all become as long as they should be."""
  dims, places = equation.params["shape"], equation.params["broadcast_dimensions"]
  had = dict(zip(places, equation.invars[0].aval.shape, strict=True))
  before = [had.get(axis, 1) for axis in range(len(dims))]
  if len(had) != len(dims):
    x = graph.reshape(x, before)
  # A 1 keeps what is there.
  grown = [1 if old == new else new for old, new in zip(before, dims, strict=True)]
  return graph.name(x) if set(grown) <= {1} else graph.add("Expand", x, graph.shape(grown))


def _iota(graph: Graph, equation: Any, *_: Value) -> Value:
  dims, axis = equation.params["shape"], equation.params["dimension"]
  line = np.arange(dims[axis], dtype=equation.params["dtype"])
  line = line.reshape([-1 if i == axis else 1 for i in range(len(dims))])
  grown = [1 if i == axis else size for i, size in enumerate(dims)]
  return line if set(grown) <= {1} else graph.add("Expand", line, graph.shape(grown))


def _concatenate(graph: Graph, equation: Any, *inputs: Value) -> str:
  axis = equation.params["dimension"]
  filled = [x for x, atom in zip(inputs, equation.invars, strict=True) if atom.aval.shape[axis]]
  return graph.add("Concat", *filled, axis=axis)


def _stack(graph: Graph, equation: Any, *inputs: Value) -> str:
  axis, shape = equation.params["axis"], list(equation.outvars[0].aval.shape)
  shape[axis] = 1
  return graph.add("Concat", *(graph.reshape(x, shape) for x in inputs), axis=axis)


def _unstack(graph: Graph, equation: Any, x: Value) -> list[str]:
  axis = equation.params["axis"]
  return [graph.add("Gather", x, np.array(i), axis=axis) for i in range(len(equation.outvars))]


def _pad(graph: Graph, equation: Any, x: Value, value: Value) -> str:
  low, high, inside = zip(*equation.params["padding_config"], strict=True)
  if any(inside):
    raise NotImplementedError(f"onnx: padding between values: {equation}")
  return (
    graph.add("Pad", x, np.array([*low, *high], np.int64), value)
    if any(low + high)
    else graph.add("Identity", x)
  )


def _split(graph: Graph, equation: Any, x: Value) -> Any:
  sizes = equation.params["sizes"]
  found = graph.add(
    "Split", x, np.array(sizes, np.int64), outputs=len(sizes), axis=equation.params["axis"]
  )
  return found if len(sizes) > 1 else [found]


def _select(graph: Graph, equation: Any, which: Value, *cases: Value) -> str:
  if len(cases) != 2 or not _is_bool(equation.invars):
    raise NotImplementedError(f"onnx: a choice of more than two: {equation}")
  no, yes = cases
  if not _is_bool(equation.outvars):
    return graph.add("Where", which, yes, no)
  return graph.cast(
    graph.add("Where", which, graph.cast(yes, np.uint8), graph.cast(no, np.uint8)), bool
  )


def _integer_pow(graph: Graph, equation: Any, x: Value) -> str:
  power = equation.params["y"]
  return (
    graph.add("Mul", x, x)
    if power == 2
    else graph.add("Pow", x, np.asarray(power, _dtype(equation)))
  )


def _dot_general(graph: Graph, equation: Any, x: Value, y: Value) -> str:
  """MatMul where it is one as it stands, which runtimes know best; else Einsum."""
  (over_x, over_y), (batch_x, batch_y) = equation.params["dimension_numbers"]
  rank_x, rank_y = (len(atom.aval.shape) for atom in equation.invars)
  if equation.invars[0].aval.dtype != np.float32:
    raise NotImplementedError(f"onnx: products of other numbers than float32: {equation}")
  is_last = len(over_x) == 1 and over_x[0] == rank_x - 1
  if is_last and rank_y == 2 and over_y == (0,) and not batch_x:
    return graph.add("MatMul", x, y)
  alike = batch_x == batch_y == tuple(range(rank_y - 2)) and rank_x == rank_y
  if is_last and alike and over_y == (rank_y - 2,):
    return graph.add("MatMul", x, y)
  letters = iter(string.ascii_lowercase)
  of_x = [next(letters) for _ in range(rank_x)]
  of_y = [next(letters) for _ in range(rank_y)]
  for i, j in zip((*over_x, *batch_x), (*over_y, *batch_y), strict=True):
    of_y[j] = of_x[i]
  out = [of_x[i] for i in batch_x]
  out += [c for i, c in enumerate(of_x) if i not in (*batch_x, *over_x)]
  out += [c for j, c in enumerate(of_y) if j not in (*batch_y, *over_y)]
  return graph.add("Einsum", x, y, equation=f"{''.join(of_x)},{''.join(of_y)}->{''.join(out)}")


def _convolution(graph: Graph, equation: Any, x: Value, kernel: Value) -> str:
  parameters = equation.params
  numbers = parameters["dimension_numbers"]
  if set(parameters["lhs_dilation"]) != {1} or parameters["batch_group_count"] != 1:
    raise NotImplementedError(f"onnx: a transposed or grouped convolution: {equation}")
  low, high = zip(*parameters["padding"], strict=True)
  found = graph.add(
    "Conv",
    graph.add("Transpose", x, perm=numbers.lhs_spec),
    graph.add("Transpose", kernel, perm=numbers.rhs_spec),
    strides=parameters["window_strides"],
    pads=[*low, *high],
    dilations=parameters["rhs_dilation"],
    group=parameters["feature_group_count"],
  )
  return graph.add("Transpose", found, perm=[int(i) for i in np.argsort(numbers.out_spec)])


def _dtype(equation: Any) -> Any:
  return equation.outvars[0].aval.dtype


def _is_bool(atoms: Sequence[Any]) -> bool:
  return atoms[0].aval.dtype == np.dtype(bool)


TABLE: dict[str, Row] = {
  # one value to one value
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
  "rsqrt": lambda g, e, x: g.add("Reciprocal", g.add("Sqrt", x)),
  "sign": _named("Sign"),
  "sin": _named("Sin"),
  "sqrt": _named("Sqrt"),
  "square": lambda g, e, x: g.add("Mul", x, x),
  "tanh": _named("Tanh"),
  "convert_element_type": lambda g, e, x: g.cast(x, e.params["new_dtype"]),
  # two values to one
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
  "pow": _named("Pow"),
  "rem": lambda g, e, x, y: g.add("Mod", x, y, fmod=1),
  "shift_right_logical": _shift_right,
  "sub": _named("Sub"),
  "xor": _logical("Xor", "BitwiseXor"),
  # three
  "clamp": lambda g, e, low, x, high: g.add("Min", g.add("Max", x, low), high),
  "select_n": _select,
  # many to few
  "argmax": _argmax,
  "reduce_and": _reduce("ReduceMin", np.uint8),
  "reduce_max": _reduce("ReduceMax"),
  "reduce_min": _reduce("ReduceMin"),
  "reduce_or": _reduce("ReduceMax", np.uint8),
  "reduce_sum": _reduce("ReduceSum"),
  # products
  "conv_general_dilated": _convolution,
  "dot_general": _dot_general,
  # where things lie
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
  "transpose": lambda g, e, x: g.add("Transpose", x, perm=e.params["permutation"]),
  # nothing
  "copy": _same,
  "optimization_barrier": _same,
  "stop_gradient": _same,
}
