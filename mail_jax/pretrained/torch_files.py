"""Reads the tensors of PyTorch's files without PyTorch, and without running what they hold.

Since PyTorch 1.6 such a file is a zip archive: a pickle of the objects, in which a tensor is a call
with the number of its storage, and the bytes of each storage.
"""

import collections
import contextlib
import dataclasses
import math
import pathlib
import pickle
import zipfile
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from input_pipeline.common.errors import InputError

# Of the pickle, in bytes; it has names and shapes, and is about 0.1 MB long.
_MAX_PICKLE = 1 << 26
_DTYPES = {
  "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
  "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A tensor of a file.

  Attributes:
    dtype: of its elements, as is that of its storage.
    storage: name of the storage in the archive.
    offset: of the first element in the storage.
    shape: of the tensor.
    strides: elements between neighbours of each axis.
  """

  dtype: np.dtype
  storage: str
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class TorchFile:
  """An open file of PyTorch.

  Attributes:
    content: what was saved, with a `Tensor` for each tensor and an empty dict for each other object
      that is not plain data.
  """

  def __init__(self, archive: zipfile.ZipFile, name: str):
    """Reads all but the storages.

    Raises:
      ValueError: the archive is not one of PyTorch. Damaged pickles raise nearly anything.
    """
    self._archive = archive
    pickles = [entry for entry in archive.namelist() if entry.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
      raise ValueError("a zip archive without data.pkl")
    self._folder = pickles[0].partition("/")[0]
    if archive.getinfo(pickles[0]).file_size > _MAX_PICKLE:
      raise ValueError(f"its data.pkl has more than {_MAX_PICKLE:,} bytes")
    order = f"{self._folder}/byteorder"
    if order in archive.namelist() and archive.read(order).strip() != b"little":
      raise ValueError("it was saved on a machine with another byte order")
    with archive.open(pickles[0]) as file:
      self.content = _Unpickler(file).load()
    self._name, self._cached = name, ("", b"")

  def read(self, tensor: Tensor) -> np.ndarray:
    """Returns the elements of a tensor, in its dtype.

    Raises:
      InputError: the storage is missing, damaged or too short.
    """
    data = self._storage(tensor.storage)
    span = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    last, size = tensor.offset + span, tensor.dtype.itemsize
    if math.prod(tensor.shape) == 0:
      return np.zeros(tensor.shape, tensor.dtype)
    if min(tensor.offset, *tensor.strides, *tensor.shape, 0) < 0 or (last + 1) * size > len(data):
      raise InputError(f"{self._name}: a tensor does not fit into its storage {tensor.storage}")
    flat = np.frombuffer(data, tensor.dtype, span + 1, tensor.offset * size)
    steps = [step * size for step in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False)

  def _storage(self, key: str) -> bytes:
    # Tensors that share a storage follow each other.
    if self._cached[0] != key:
      try:
        self._cached = (key, self._archive.read(f"{self._folder}/data/{key}"))
      except (KeyError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{self._name}: the storage {key} is damaged or missing") from error
    return self._cached[1]


@contextlib.contextmanager
def open_torch_file(path: pathlib.Path) -> Iterator[TorchFile]:
  """Opens a file that `torch.save` wrote, while the context lasts.

  Raises:
    InputError: the file is not one, or is one of PyTorch before 1.6.
  """
  if not zipfile.is_zipfile(path):
    raise InputError(
      f"{path}: not a file that PyTorch 1.6 or later saved; load one of an earlier version with "
      "torch.load, and save it again with torch.save"
    )
  with contextlib.ExitStack() as stack:
    try:
      archive = stack.enter_context(zipfile.ZipFile(path))
      opened = TorchFile(archive, str(path))
    except Exception as error:  # damaged pickles raise nearly anything
      reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
      raise InputError(f"{path}: not an intact file of PyTorch ({reason})") from error
    yield opened


class _StandIn(dict):
  """Takes the place of any class or function: accepts all that a pickle does to it."""

  __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

  def __init__(self, *_, **__):
    super().__init__()

  def __setstate__(self, state: Any) -> None:
    """Ignores the state."""

  def append(self, *_) -> None:
    """Ignores items; so do `extend` and `add`."""

  extend = add = append


class _Unpickler(pickle.Unpickler):
  """Makes tensors, dicts and stand-ins; nothing that a file names is imported."""

  def find_class(self, module: str, name: str) -> Any:
    if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
      return _make_tensor
    if module == "torch._utils" and name == "_rebuild_parameter":
      return lambda data, *_: data
    if module == "torch" and name in _DTYPES:
      return np.dtype(_DTYPES[name])
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    return _StandIn

  def persistent_load(self, pid: Any) -> Any:
    _, dtype, key, *_ = pid
    return dtype, str(key)


def _make_tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
  dtype, key = storage
  if not isinstance(dtype, np.dtype):
    raise ValueError("a tensor of an unknown type")
  return Tensor(dtype, key, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))
