"""Untrusted pickles: plain data, read without executing anything.

A pickle is a program for a small virtual machine. All its instructions are checked before any is
executed: only those that make lists, dicts, text and numbers are allowed, and none may ask for more
memory than the size of the file justifies.
"""

import io
import os
import pickle
import pickletools
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
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_CODES = {name: code for code, name in _NAMES.items()}
# Bytes of an instruction's argument. Tuples are not allowed: hashing nested ones takes forever.
_FIXED = {
  "MARK": 0, "STOP": 0, "POP": 0, "POP_MARK": 0, "DUP": 0, "NONE": 0, "NEWTRUE": 0,
  "NEWFALSE": 0, "APPEND": 0, "APPENDS": 0, "SETITEM": 0, "SETITEMS": 0, "MEMOIZE": 0,
  "BININT": 4, "BININT1": 1, "BININT2": 2, "BINFLOAT": 8, "BINGET": 1, "LONG_BINGET": 4,
  "BINPUT": 1, "PROTO": 1,
}  # fmt: skip
_CONTAINERS = ("EMPTY_LIST", "EMPTY_DICT", "LIST", "DICT")
# Bytes of an argument's length. FRAME's length is only checked: its content is checked as
# instructions.
_COUNTED = {
  "SHORT_BINSTRING": 1, "BINSTRING": 4, "SHORT_BINUNICODE": 1, "BINUNICODE": 4,
  "BINUNICODE8": 8, "SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "LONG1": 1, "LONG4": 4,
  "FRAME": 8,
}  # fmt: skip
_LINES = ("STRING", "UNICODE", "INT", "LONG", "FLOAT", "GET", "PUT")
_STEPS = [0] * 256
for _name, _size in _FIXED.items():
  _STEPS[_CODES[_name]] = 1 + _size
_LENGTHS = {_CODES[name]: size for name, size in _COUNTED.items()}
_CONTAINER_CODES = frozenset(_CODES[name] for name in _CONTAINERS)
_LINE_CODES = frozenset(_CODES[name] for name in _LINES)
_TEXT_CODES = frozenset(_CODES[name] for name in ("STRING", "UNICODE"))
_STOP, _FRAME, _PUT, _LONG_BINPUT = (_CODES[n] for n in ("STOP", "FRAME", "PUT", "LONG_BINPUT"))
_LONGS = frozenset(_CODES[name] for name in ("LONG1", "LONG4"))


class _PlainUnpickler(pickle.Unpickler):
  """Builds plain data, and refuses classes and functions, as `_check` did before."""

  def find_class(self, module_name: str, global_name: str, /) -> Any:
    raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}")


def load(path: str | os.PathLike) -> Any:
  """Returns the plain data of a pickle.

  Raises:
    InputError: the file is missing, is not a pickle, holds more than plain data, or exceeds a
      limit.
  """
  return loads(untrusted_files.read(path, str(path), MAX_BYTES), str(path))


def loads(data: bytes, name: str) -> Any:
  """Returns the plain data of a pickle's bytes; `name` is for error messages. See `load`."""
  try:
    end = _check(data)
    # Python 2 wrote the official files: its byte strings are text.
    try:
      value = _PlainUnpickler(io.BytesIO(data[:end]), encoding="utf-8").load()
    except UnicodeDecodeError:
      value = _PlainUnpickler(io.BytesIO(data[:end]), encoding="latin-1").load()
    _check_nesting(value, len(data) + 10_000)
    return value
  except Exception as error:  # damaged pickles raise nearly anything
    raise InputError(
      f"{name}: not a pickle of plain lists and dicts ({error}); nothing in it was executed. "
      "Download it again from a source in docs/guides/datasets.md"
    ) from error


def _check(data: bytes) -> int:
  """Checks every instruction and returns where the last one ends.

  Raises:
    ValueError: an instruction is not allowed.
  """
  position, containers, stored = 0, 0, 0
  while position < len(data):
    code = data[position]
    if step := _STEPS[code]:
      position += step
      if code == _STOP:
        return position
    elif code in _CONTAINER_CODES:
      position += 1
      containers += 1
      if containers > MAX_CONTAINERS:
        raise ValueError(f"more than {MAX_CONTAINERS:,} lists and dicts")
    elif code == _LONG_BINPUT:
      _check_slot(int.from_bytes(data[position + 1 : position + 5], "little"), stored)
      stored += 1
      position += 5
    elif code in _LENGTHS:
      position = _check_length(data, position, code)
    elif code in _LINE_CODES:
      end = data.find(b"\n", position)
      if end < 0 or (code not in _TEXT_CODES and end - position > _MAX_NUMBER):
        raise ValueError(f"{_NAMES[code]} does not end")
      if code == _PUT:
        _check_slot(int(data[position + 1 : end]), stored)
        stored += 1
      position = end + 1
    else:
      raise ValueError(f"it has the instruction {_NAMES.get(code, hex(code))}")
  raise ValueError("it is truncated")


def _check_nesting(value: Any, max_per_layer: int) -> None:
  """Refuses data that contains itself, and repeated references that are endless to walk.

  Goes layer by layer, without recursion; a layer may have `max_per_layer` lists and dicts.
  """
  layer = [value]
  for _ in range(MAX_DEPTH):
    inner: list[Any] = []
    for items in layer:
      if isinstance(items, list | dict):
        values = items.values() if isinstance(items, dict) else items
        inner += [item for item in values if isinstance(item, list | dict)]
        if len(inner) > max_per_layer:
          raise ValueError("it repeats the same lists too often")
    if not inner:
      return
    layer = inner
  raise ValueError(f"nested deeper than {MAX_DEPTH}, or in itself")


def _check_length(data: bytes, position: int, code: int) -> int:
  begin = position + 1 + _LENGTHS[code]
  length = int.from_bytes(data[position + 1 : begin], "little")
  if begin + length > len(data):
    raise ValueError("it is truncated")
  if code in _LONGS and length > _MAX_NUMBER:
    raise ValueError(f"a number of {length:,} bytes")
  return begin if code == _FRAME else begin + length


def _check_slot(slot: int, stored: int) -> None:
  """Refuses memo slots far beyond the number in use: pickle allocates up to the highest slot."""
  if not 0 <= slot <= 2 * stored + 1000:
    raise ValueError(f"it stores memo {slot:,} after {stored:,} others")
