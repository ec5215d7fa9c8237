"""Writes files as `torch.save` does, without torch."""

import collections
import io
import pathlib
import pickle
import sys
import types
import zipfile
from typing import Any
from unittest import mock

import numpy as np

_STORAGES = {"float16": "HalfStorage", "float32": "FloatStorage", "int64": "LongStorage"}


def save(content: Any, path: pathlib.Path, folder: str = "archive") -> pathlib.Path:
  """Writes an object whose arrays become tensors.

  Args:
    content: dicts, lists, arrays and plain values.
    path: of the file.
    folder: name of the folder in the archive.
  """
  torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
  utils._rebuild_tensor_v2 = _named("_rebuild_tensor_v2", "torch._utils")  # pyright: ignore
  for name in _STORAGES.values():
    setattr(torch, name, type(name, (), {"__module__": "torch"}))
  with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
    data = io.BytesIO()
    pickler = _Pickler(data, torch, utils)
    pickler.dump(content)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr(f"{folder}/data.pkl", data.getvalue())
    archive.writestr(f"{folder}/byteorder", "little")
    for key, storage in pickler.storages.items():
      archive.writestr(f"{folder}/data/{key}", storage.tobytes())
    archive.writestr(f"{folder}/version", "3\n")
  return path


def _named(name: str, module: str) -> Any:
  def function(*_):
    raise AssertionError("a file must not run anything")

  function.__module__, function.__qualname__, function.__name__ = module, name, name
  return function


class _Storage:
  """The elements of one tensor."""

  def __init__(self, values: np.ndarray):
    self.values = values


class _Pickler(pickle.Pickler):
  def __init__(self, file: io.BytesIO, torch: Any, utils: Any):
    super().__init__(file, protocol=2)
    self._torch, self._utils = torch, utils
    self.storages: dict[str, np.ndarray] = {}

  def persistent_id(self, obj: Any) -> Any:
    if not isinstance(obj, _Storage):
      return None
    key, values = str(len(self.storages)), obj.values
    self.storages[key] = values
    kind = getattr(self._torch, _STORAGES[str(values.dtype)])
    return "storage", kind, key, "cpu", values.size

  def reducer_override(self, obj: Any) -> Any:
    if not isinstance(obj, np.ndarray):
      return NotImplemented
    # A storage is in the order of the memory.
    flat = obj.ravel(order="K")
    strides = tuple(step // obj.itemsize for step in obj.strides)
    hooks = collections.OrderedDict()
    return self._utils._rebuild_tensor_v2, (_Storage(flat), 0, obj.shape, strides, False, hooks)
