"""An ONNX graph under construction: its nodes, and the weights in the precision that is asked."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper  # pyright: ignore[reportMissingImports]

from mail_jax.export import precision

# The name of a tensor in the graph, or an array that is known when the graph is built.
Value = str | np.ndarray
# TensorRT has no unsigned integers; bytes are accepted as inputs, and cast at once.
_SIGNED = {np.dtype(kind): np.dtype(np.int32) for kind in (np.uint8, np.uint16, np.uint32)}


@dataclasses.dataclass(frozen=True)
class Options:
  """What the model is made for.

  Attributes:
    precision: of `precision.PRECISIONS`. Products with weights are computed in float16 if it is
      that; all else is float32, and weights in fewer bits are converted when they are read.
    tensorrt: whether to use the types that TensorRT has.
  """

  precision: str = "float32"
  tensorrt: bool = False


class Graph:
  """An ONNX graph under construction.

  Attributes:
    nodes: in the order in which they were added.
    weights: arrays stored in the model, by name.
    options: what the model is made for.
    scope: of the nodes that are added next: the part of the network, as a path.
    batch_size: the size that stands for the batch in the traced function.
  """

  def __init__(self, batch_size: int, options: Options):
    """Makes an empty graph."""
    self.nodes: list[Any] = []
    self.weights: dict[str, np.ndarray] = {}
    self.options, self.scope, self.batch_size = options, "", batch_size
    self._batch_input, self._batch = "", ""
    # By the id of an array; they hold the arrays too, so that no other object gets that id.
    self._labels: dict[int, tuple[str, np.ndarray]] = {}
    self._stored: dict[int, tuple[str, np.ndarray]] = {}

  def add_input(self, name: str, dtype: Any) -> str:
    """Returns the value of an input, whose first axis is the batch, in a type to compute with."""
    value = name if self.dtype(dtype) == dtype else self.cast(name, dtype)
    self._batch_input = self._batch_input or value
    return value

  def add(self, op: str, *inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
    """Adds a node and returns the name of its output, or a list of names if it has several."""
    read = [self.name(x) for x in inputs]
    name = f"{self.scope}/{op}_{len(self.nodes)}".lstrip("/")
    names = [f"{name}_output_{i}" for i in range(outputs)]
    self.nodes.append(helper.make_node(op, read, names, name, **attributes))
    return names[0] if outputs == 1 else names

  def dtype(self, dtype: Any) -> np.dtype:
    """Returns the type that the graph has for a type of NumPy."""
    dtype = np.dtype(dtype)
    return _SIGNED[dtype] if self.options.tensorrt and dtype in _SIGNED else dtype

  def cast(self, x: Value, dtype: Any) -> str:
    """Adds a conversion to another dtype."""
    return self.add("Cast", x, to=helper.np_dtype_to_tensor_dtype(self.dtype(dtype)))

  def label(self, array: np.ndarray, name: str) -> np.ndarray:
    """Gives an array the name that it has if it is stored; returns the array."""
    self._labels[id(array)] = name, array
    return array

  def label_of(self, array: np.ndarray) -> str:
    """Returns the name that an array was given, or an empty text."""
    return self._labels.get(id(array), ("",))[0]

  def name(self, x: Value) -> str:
    """Returns the name of a value; an array is stored in the model first, once."""
    if isinstance(x, str):
      return x
    if id(x) not in self._stored:
      self._stored[id(x)] = self._store(x), x
    return self._stored[id(x)][0]

  def half(self, array: np.ndarray) -> np.ndarray:
    """Returns an array of weights in float16, by the same name."""
    name = self.label_of(array)
    return self.label(precision.to_half(array, "float16", name or "a constant"), name)

  def _store(self, array: np.ndarray) -> str:
    """Stores an array, and returns the name of its value in float32."""
    name = self.label_of(array) or "constant"
    if name in self.weights or name == "constant":
      name = f"{name}_{len(self.weights)}"
    wanted = self.options.precision
    if wanted == "float32" or not precision.is_reduced(array):
      self.weights[name] = np.asarray(array, self.dtype(array.dtype))
      return name
    if wanted in precision.HALVES:
      self.weights[name] = precision.to_half(array, wanted, name)
      return self.cast(name, np.float32)
    # Units are the last axis of a matrix and the first one of ONNX's convolutions.
    axis = 0 if array.ndim == 4 else array.ndim - 1
    others = tuple(i for i in range(array.ndim) if i != axis)
    self.weights[name], scale = precision.to_int8(array, others)
    self.weights[f"{name}/scale"] = scale.reshape(-1)
    return self.add("DequantizeLinear", name, f"{name}/scale", axis=axis)

  def is_batch(self, size: int) -> bool:
    """Returns whether a size depends on that of the batch."""
    return size > 0 and size % self.batch_size == 0

  def shape(self, dims: Sequence[int]) -> Value:
    """Returns a shape as a tensor whose batch size is read when the model runs."""
    if self.batch_size not in dims:
      return np.array(dims, np.int64)
    self._batch = self._batch or self.add("Shape", self._batch_input, start=0, end=1)
    parts = [self._batch if size == self.batch_size else np.array([size]) for size in dims]
    return self.add("Concat", *parts, axis=0)

  def transpose(self, x: Value, axes: Sequence[int]) -> Value:
    """Adds a change of the order of the axes."""
    if list(axes) == sorted(axes):
      return x
    if isinstance(x, np.ndarray):
      return self.label(np.ascontiguousarray(x.transpose(axes)), self.label_of(x))
    return self.add("Transpose", x, perm=[int(axis) for axis in axes])

  def reshape(self, x: Value, dims: Sequence[int]) -> Value:
    """Adds a change of shape."""
    if isinstance(x, np.ndarray):
      return self.label(x.reshape(dims), self.label_of(x))
    # An axis that is a multiple of the batch size follows from the others.
    sizes = [-1 if self.is_batch(size) else size for size in dims]
    return self.add("Reshape", x, np.array(sizes, np.int64))

  def arrange(self, x: Value, shape: Sequence[int], groups: Sequence[Sequence[int]]) -> Value:
    """Adds what merges each group of axes into one, in their order."""
    order = [axis for group in groups for axis in group]
    merged = [math.prod(shape[axis] for axis in group) for group in groups]
    x = self.transpose(x, order)
    return x if merged == [shape[axis] for axis in order] else self.reshape(x, merged)
