"""ONNX models of a few nodes, written by hand.

A model is a protocol buffer, and these need five of its messages.
"""

import dataclasses
import pathlib
import struct
from collections.abc import Sequence

FLOAT, UINT8, INT32, INT64, BOOL = 1, 2, 6, 7, 9
"""Element types, as TensorProto numbers them."""


@dataclasses.dataclass(frozen=True)
class Value:
  """An input or output; a dimension given by a name is open."""

  name: str
  kind: int
  shape: Sequence[int | str]


@dataclasses.dataclass(frozen=True)
class Node:
  operator: str
  inputs: Sequence[str]
  outputs: Sequence[str]
  attributes: dict[str, int | Sequence[int]] = dataclasses.field(default_factory=dict)


def write(
  path: pathlib.Path,
  inputs: Sequence[Value],
  nodes: Sequence[Node],
  outputs: Sequence[Value],
  constants: dict[str, tuple[int, Sequence[float]]] | None = None,
  metadata: dict[str, str] | None = None,
) -> str:
  """Writes a model; constants are name.

  (element type, values), of no dimension where there is one value.
  """
  graph = b"".join(
    [
      *(_message(1, _node(node)) for node in nodes),
      _text(2, "graph"),
      *(_message(5, _constant(name, *value)) for name, value in (constants or {}).items()),
      *(_message(11, _value(value)) for value in inputs),
      *(_message(12, _value(value)) for value in outputs),
    ]
  )
  entries = [_message(14, _text(1, k) + _text(2, v)) for k, v in (metadata or {}).items()]
  opset = _message(8, _text(1, "") + _number(2, 13))
  path.write_bytes(_number(1, 8) + _message(7, graph) + opset + b"".join(entries))
  return str(path)


def _node(node: Node) -> bytes:
  return b"".join(
    [
      *(_text(1, name) for name in node.inputs),
      *(_text(2, name) for name in node.outputs),
      _text(4, node.operator),
      *(_message(5, _attribute(*item)) for item in node.attributes.items()),
    ]
  )


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
  if isinstance(value, int):
    return _text(1, name) + _number(3, value) + _number(20, 2)
  return _text(1, name) + b"".join(_number(8, each) for each in value) + _number(20, 7)


def _constant(name: str, kind: int, values: Sequence[float]) -> bytes:
  shape = _number(1, len(values)) if len(values) != 1 else b""
  form = {FLOAT: "f", INT64: "q"}[kind]
  raw = struct.pack(f"<{len(values)}{form}", *values)
  return shape + _number(2, kind) + _text(8, name) + _message(9, raw)


def _value(value: Value) -> bytes:
  sides = (
    _message(1, _number(1, side) if isinstance(side, int) else _text(2, side))
    for side in value.shape
  )
  tensor = _number(1, value.kind) + _message(2, b"".join(sides))
  return _text(1, value.name) + _message(2, _message(1, tensor))


def _text(field: int, text: str) -> bytes:
  return _message(field, text.encode())


def _message(field: int, content: bytes) -> bytes:
  return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, number: int) -> bytes:
  return _varint(field << 3) + _varint(number)


def _varint(number: int) -> bytes:
  groups = bytearray()
  while number > 127:
    groups.append(number & 127 | 128)
    number >>= 7
  return bytes(groups) + bytes([number])
