"""Reads plain data from untrusted pickles without executing anything.

A pickle is a program for a small virtual machine. This one only implements the instructions that
build lists, dicts, text and numbers; there is nothing it could call. Tuples become lists, and NumPy
scalars numbers: they are recognised by the names in the file and decoded here.
"""

import codecs
import os
import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from typing import Any

from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError

MAX_BYTES = 1 << 28
"""Per file; the largest official one has a quarter of this."""

MAX_CONTAINERS = 10_000_000
"""Lists and dicts per file; an empty one takes one byte of it and 64 of memory. Official files have
a million."""

MAX_DEPTH = 20
"""Nesting limit of lists and dicts; refs have five."""

# In characters or bytes: far more than 64 bits need.
_MAX_NUMBER = 32
# Names in a pickled NumPy scalar; `encode` produces its bytes in protocols 0 to 2.
_DTYPE, _ENCODE = ("numpy", "dtype"), ("_codecs", "encode")
_SCALARS = (("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"))
_NAMES = {_DTYPE, _ENCODE, *_SCALARS}
# Codes of `struct` by kind and size in bytes.
_NUMBERS = {
  "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
  "f2": "e", "f4": "f", "f8": "d",
}  # fmt: skip
# Libraries whose objects can be saved as JSON instead.
_DATA_LIBRARIES = re.compile(r"it refers to (numpy|pandas|collections|torch)\b|a NumPy scalar of")


class _Refused(ValueError):
  """The pickle is not plain data."""


class _Name:
  """The name of a function, class or NumPy type in a pickle; not hashable, so never a key."""

  __hash__ = None  # pyright: ignore[reportAssignmentType]

  def __init__(self, path: tuple[str, str], kind: str = ""):
    self.path, self.kind, self.order = path, kind, "<"


def load(path: str | os.PathLike) -> Any:
  """Returns the plain data of a pickle, with lists for tuples and numbers for NumPy scalars.

  Raises:
    InputError: the file is missing, not a pickle, contains more than plain data, or exceeds a
      limit.
  """
  return loads(untrusted_files.read(path, str(path), MAX_BYTES), str(path))


def loads(data: bytes, name: str) -> Any:
  """Returns the plain data of a pickle's bytes; `name` is for error messages. See `load`."""
  try:
    # Python 2 wrote the official files: its byte strings are text.
    try:
      machine = _Machine(data, "utf-8")
      value = machine.run()
    except UnicodeDecodeError:
      machine = _Machine(data, "latin-1")
      value = machine.run()
    _check_value(value, len(data) + 10_000, machine.has_names)
    return value
  except Exception as error:  # damaged pickles raise nearly anything
    reason = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    raise InputError(
      f"{name}: not a pickle of plain lists and dicts ({reason}); nothing in it was executed. "
      f"{_way_out(name, error)}"
    ) from error


def _way_out(name: str, error: Exception) -> str:
  if isinstance(error, _Refused) and _DATA_LIBRARIES.search(str(error)):
    json_name = os.path.splitext(os.path.basename(name))[0] + ".json"
    return (
      f"If you saved it yourself, replace it with {json_name}: "
      "json.dump(refs, file, default=lambda value: value.tolist())"
    )
  return "Download it again from a source in docs/guides/datasets.md"


class _Machine:
  """Executes the instructions of a pickle on a stack of plain data.

  Attributes:
    has_names: whether the pickle refers to functions or classes, which the value must not contain.
  """

  def __init__(self, data: bytes, encoding: str):
    """Starts at the first instruction.

    Args:
      data: the pickle.
      encoding: of Python 2's byte strings.
    """
    self.data, self.encoding, self.position = data, encoding, 0
    self.stack: list[Any] = []
    self.outer: list[list[Any]] = []
    """The stacks below each mark."""
    self.memo: dict[int, Any] = {}
    self.containers = 0
    self.has_names = False

  def run(self) -> Any:
    """Returns the value.

    Raises:
      ValueError: unknown instruction, or a limit is exceeded.
      Exception: any other type means that the pickle is damaged.
    """
    data, instructions = self.data, _INSTRUCTIONS
    while self.position < len(data):
      code = data[self.position]
      self.position += 1
      if code == _STOP:
        return self.stack.pop()
      instruction = instructions[code]
      if instruction is None:
        raise _Refused(f"it contains the instruction {_OPCODES.get(code, hex(code))}")
      instruction(self)
    raise ValueError("it is truncated")

  # Reading arguments.

  def take(self, size: int) -> bytes:
    begin = self.position
    self.position = end = begin + size
    if end > len(self.data):
      raise ValueError("it is truncated")
    return self.data[begin:end]

  def unsigned(self, size: int) -> int:
    return int.from_bytes(self.take(size), "little")

  def line(self, limit: int | None = _MAX_NUMBER) -> bytes:
    end = self.data.find(b"\n", self.position)
    if end < 0 or (limit is not None and end - self.position > limit):
      raise ValueError("unterminated line")
    line, self.position = self.data[self.position : end], end + 1
    return line

  # Instructions, by what they do to the stack.

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def fixed(self, packed: struct.Struct) -> None:
    self.stack.append(packed.unpack(self.take(packed.size))[0])

  def long(self, size: int) -> None:
    length = self.unsigned(size)
    if length > _MAX_NUMBER:
      raise ValueError(f"a number of {length:,} bytes")
    self.stack.append(int.from_bytes(self.take(length), "little", signed=True))

  def decimal(self, make: Callable[[bytes], Any]) -> None:
    self.stack.append(make(self.line()))

  def text(self, size: int) -> None:
    self.stack.append(str(self.take(self.unsigned(size)), "utf-8", "surrogatepass"))

  def byte_string(self, size: int) -> None:
    self.stack.append(str(self.take(self.unsigned(size)), self.encoding))

  def binary(self, size: int) -> None:
    self.stack.append(self.take(self.unsigned(size)))

  def quoted(self) -> None:
    line = self.line(None)
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
      raise ValueError("a string without quotes")
    self.stack.append(str(codecs.escape_decode(line[1:-1])[0], self.encoding))  # pyright: ignore

  def escaped(self) -> None:
    self.stack.append(str(self.line(None), "raw-unicode-escape"))

  def mark(self) -> None:
    if len(self.outer) > 2 * MAX_DEPTH:
      raise ValueError(f"nested deeper than {MAX_DEPTH}")
    self.outer.append(self.stack)
    self.stack = []

  def to_mark(self) -> list[Any]:
    items, self.stack = self.stack, self.outer.pop()
    return items

  def pop(self) -> None:
    if self.stack:
      self.stack.pop()
    else:
      self.to_mark()

  def container(self, value: list | dict) -> None:
    self.containers += 1
    if self.containers > MAX_CONTAINERS:
      raise ValueError(f"more than {MAX_CONTAINERS:,} lists and dicts")
    self.stack.append(value)

  def new_dict(self) -> None:
    pairs = self.to_mark()
    self.container({})
    self.update(pairs)

  def last(self, count: int) -> None:
    if len(self.stack) < count:
      raise ValueError("a tuple has too few items")
    items = self.stack[-count:]
    del self.stack[-count:]
    self.container(items)

  def append(self) -> None:
    value = self.stack.pop()
    self.list_on_top().append(value)

  def extend(self) -> None:
    items = self.to_mark()
    self.list_on_top().extend(items)

  def list_on_top(self) -> list[Any]:
    if type(self.stack[-1]) is not list:
      raise ValueError("it appends to something that is not a list")
    return self.stack[-1]

  def set_item(self) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    self.update([key, value])

  def update(self, pairs: list[Any]) -> None:
    if type(self.stack[-1]) is not dict or len(pairs) % 2:
      raise ValueError("it sets items of something that is not a dict")
    self.stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))

  def get(self, key: int) -> None:
    self.stack.append(self.memo[key])

  def put(self, key: int) -> None:
    self.memo[key] = self.stack[-1]

  # Names, and the scalars of NumPy that they stand for.

  def name(self, module: Any, name: Any) -> None:
    if (module, name) not in _NAMES:
      raise _Refused(f"it refers to {module!s:.60}.{name!s:.60}")
    self.has_names = True
    self.stack.append(_Name((module, name)))

  def name_in_lines(self) -> None:
    module, name = self.line(), self.line()
    self.name(module.decode(), name.decode())

  def name_on_stack(self) -> None:
    name, module = self.stack.pop(), self.stack.pop()
    self.name(module, name)

  def frame(self) -> None:
    if self.position + self.unsigned(8) > len(self.data):
      raise ValueError("it is truncated")

  def reduce(self) -> None:
    args, name = self.stack.pop(), self.stack.pop()
    if not isinstance(name, _Name) or name.kind or type(args) is not list:
      raise _Refused("it contains a call")
    self.stack.append(_scalar(name.path, args, self.encoding))

  def build(self) -> None:
    state, dtype = self.stack.pop(), self.stack[-1]
    if not isinstance(dtype, _Name) or not dtype.kind or type(state) is not list:
      raise _Refused("it sets the state of an object")
    order = state[1]
    if order not in ("<", ">", "|"):
      raise _Refused(f"it has the byte order {order!r:.20}")
    dtype.order = "<" if order == "|" else order


def _scalar(path: tuple[str, str], args: list[Any], encoding: str) -> Any:
  """Returns the type, bytes or number that a NumPy name stands for."""
  if path == _ENCODE:
    text, target = args
    if target != "latin1" or type(text) is not str:
      raise _Refused("it encodes text")
    return text.encode("latin-1")
  if path == _DTYPE:
    kind = args[0]
    if type(kind) is not str or not (kind in _NUMBERS or re.fullmatch(r"U[0-9]{1,6}", kind)):
      raise _Refused(f"it has a NumPy scalar of the type {kind!r:.20}")
    return _Name(path, kind)
  dtype, data = args
  data = data.encode(encoding) if type(data) is str else data  # Python 2's bytes
  if not isinstance(dtype, _Name) or not dtype.kind or type(data) is not bytes:
    raise _Refused("it has a NumPy scalar of something that is not bytes")
  if dtype.kind in _NUMBERS:
    return struct.unpack(dtype.order + _NUMBERS[dtype.kind], data)[0]
  return data.decode("utf-32-le" if dtype.order == "<" else "utf-32-be").rstrip("\0")


def _check_value(value: Any, max_per_layer: int, has_names: bool) -> None:
  """Refuses data that contains itself, unresolved names or exponentially repeated references.

  Walks layer by layer, without recursion; a layer may have `max_per_layer` lists and dicts.
  """
  layer = [[value]]
  for _ in range(MAX_DEPTH + 1):
    inner: list[Any] = []
    for items in layer:
      values = items.values() if isinstance(items, dict) else items
      if has_names and any(isinstance(item, _Name) for item in values):
        raise _Refused("it contains an unused reference to a function or class")
      inner += [item for item in values if isinstance(item, list | dict)]
      if len(inner) > max_per_layer:
        raise ValueError("it references the same lists too often")
    if not inner:
      return
    layer = inner
  raise ValueError(f"nested deeper than {MAX_DEPTH}, or in itself")


def _boolean_or_int(line: bytes) -> int:
  return {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line)


_STRUCTS = [struct.Struct(code) for code in ("<i", "B", "<H", ">d")]
_BY_NAME: dict[str, Callable[[_Machine], Any]] = {
  "PROTO": lambda m: m.take(1),
  "FRAME": lambda m: m.frame(),
  "MARK": lambda m: m.mark(),
  "POP": lambda m: m.pop(),
  "POP_MARK": lambda m: m.to_mark(),
  "DUP": lambda m: m.push(m.stack[-1]),
  "NONE": lambda m: m.push(None),
  "NEWTRUE": lambda m: m.push(True),
  "NEWFALSE": lambda m: m.push(False),
  "BININT": lambda m: m.fixed(_STRUCTS[0]),
  "BININT1": lambda m: m.fixed(_STRUCTS[1]),
  "BININT2": lambda m: m.fixed(_STRUCTS[2]),
  "BINFLOAT": lambda m: m.fixed(_STRUCTS[3]),
  "INT": lambda m: m.decimal(_boolean_or_int),
  "LONG": lambda m: m.decimal(lambda line: int(line.removesuffix(b"L"))),
  "FLOAT": lambda m: m.decimal(float),
  "LONG1": lambda m: m.long(1),
  "LONG4": lambda m: m.long(4),
  "STRING": lambda m: m.quoted(),
  "UNICODE": lambda m: m.escaped(),
  "SHORT_BINSTRING": lambda m: m.byte_string(1),
  "BINSTRING": lambda m: m.byte_string(4),
  "SHORT_BINUNICODE": lambda m: m.text(1),
  "BINUNICODE": lambda m: m.text(4),
  "BINUNICODE8": lambda m: m.text(8),
  "SHORT_BINBYTES": lambda m: m.binary(1),
  "BINBYTES": lambda m: m.binary(4),
  "BINBYTES8": lambda m: m.binary(8),
  "EMPTY_LIST": lambda m: m.container([]),
  "EMPTY_TUPLE": lambda m: m.container([]),
  "EMPTY_DICT": lambda m: m.container({}),
  "LIST": lambda m: m.container(m.to_mark()),
  "TUPLE": lambda m: m.container(m.to_mark()),
  "DICT": lambda m: m.new_dict(),
  "TUPLE1": lambda m: m.last(1),
  "TUPLE2": lambda m: m.last(2),
  "TUPLE3": lambda m: m.last(3),
  "APPEND": lambda m: m.append(),
  "APPENDS": lambda m: m.extend(),
  "SETITEM": lambda m: m.set_item(),
  "SETITEMS": lambda m: m.update(m.to_mark()),
  "GET": lambda m: m.get(int(m.line())),
  "BINGET": lambda m: m.get(m.unsigned(1)),
  "LONG_BINGET": lambda m: m.get(m.unsigned(4)),
  "PUT": lambda m: m.put(int(m.line())),
  "BINPUT": lambda m: m.put(m.unsigned(1)),
  "LONG_BINPUT": lambda m: m.put(m.unsigned(4)),
  "MEMOIZE": lambda m: m.put(len(m.memo)),
  "GLOBAL": lambda m: m.name_in_lines(),
  "STACK_GLOBAL": lambda m: m.name_on_stack(),
  "REDUCE": lambda m: m.reduce(),
  "BUILD": lambda m: m.build(),
}
_OPCODES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_INSTRUCTIONS = [_BY_NAME.get(_OPCODES.get(code, "")) for code in range(256)]
_STOP = ord(pickle.STOP)
