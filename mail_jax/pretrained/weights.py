"""Reads files of weights one array at a time, and never executes code in them."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors

from input_pipeline.common.errors import InputError

_TORCH_EXTRA = 'pip install "mail_jax[torch]"'
_TORCH_FILES = (".bin", ".ckpt", ".pt", ".pth")


class Weights(Mapping[str, np.ndarray]):
  """A mapping from names to arrays, which are read on access; floats become float32."""

  def __init__(self, read: Callable[[str], np.ndarray], shapes: dict[str, tuple[int, ...]]):
    """Wraps an open file.

    Args:
      read: returns the array of a name.
      shapes: of all arrays, by name.
    """
    self._read, self.shapes = read, shapes

  def __getitem__(self, name: str) -> np.ndarray:
    """Returns an array; raises `KeyError` for an unknown name."""
    if name not in self.shapes:
      raise KeyError(name)
    return self._read(name)

  def __iter__(self) -> Iterator[str]:
    """Iterates over the names."""
    return iter(self.shapes)

  def __len__(self) -> int:
    """Returns the number of arrays."""
    return len(self.shapes)


@contextlib.contextmanager
def open_weights(path: pathlib.Path) -> Iterator[Weights]:
  """Opens a file of weights while the context lasts.

  Args:
    path: `.safetensors`, or PyTorch's `.bin`, `.ckpt`, `.pt`, `.pth`, which need torch.

  Raises:
    InputError: the file does not exist, has another format or is damaged, or torch is missing.
  """
  if not path.is_file():
    raise InputError(f"{path}: no such file")
  if path.suffix == ".safetensors":
    with _open_safetensors(path) as weights:
      yield weights
  elif path.suffix in _TORCH_FILES:
    yield _open_torch(path)
  else:
    raise InputError(
      f"{path}: expected .safetensors, or a PyTorch file ({', '.join(_TORCH_FILES)})"
    )


def read_metadata(path: pathlib.Path) -> dict[str, str]:
  """Returns the metadata of a `.safetensors` file.

  Raises:
    InputError: the file does not exist or is damaged.
  """
  with _safe_open(path) as file:
    return file.metadata() or {}


def _safe_open(path: pathlib.Path) -> Any:
  try:
    return safetensors.safe_open(path, framework="np")
  except (OSError, safetensors.SafetensorError) as error:
    raise InputError(f"{path}: not an intact .safetensors file ({error})") from error


@contextlib.contextmanager
def _open_safetensors(path: pathlib.Path) -> Iterator[Weights]:
  with _safe_open(path) as file:
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    yield Weights(lambda name: _as_float32(file.get_tensor(name)), shapes)


def _as_float32(array: np.ndarray) -> np.ndarray:
  """Converts floats to float32, and leaves integers as they are."""
  is_integer = np.issubdtype(array.dtype, np.integer) or array.dtype == bool
  return array if is_integer else np.asarray(array, np.float32)


def _open_torch(path: pathlib.Path) -> Weights:
  try:
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise InputError(
      f"{path}: reading a PyTorch file needs torch: {_TORCH_EXTRA}; a .safetensors file does not"
    ) from error
  try:
    with torch.serialization.safe_globals(_stand_ins(torch, path)):
      loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
  except Exception as error:  # torch raises many kinds of errors.
    reason = str(error).strip().split("\n")[0]
    raise InputError(f"{path}: torch cannot read it as weights ({reason})") from error
  state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
  tensors = {} if state is None else {k: v for k, v in state.items() if torch.is_tensor(v)}
  if not tensors:
    raise InputError(f"{path}: has no tensors, neither at the top level nor under 'state_dict'")

  def read(name: str) -> np.ndarray:
    tensor = tensors[name]
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

  return Weights(read, {name: tuple(tensor.shape) for name, tensor in tensors.items()})


def _stand_ins(torch: Any, path: pathlib.Path) -> list[Any]:
  """Returns inert stand-ins for the classes in a training checkpoint.

  Lightning pickles callbacks and hyper-parameters with the weights. They are not needed, and their
  code is neither imported nor run.
  """
  try:
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
  except Exception:
    # Not an archive of the current format: torch.load reads it or explains why not.
    return []
  return [(type("StandIn", (_StandIn,), {}), name) for name in names]


class _StandIn(dict):
  """Accepts any arguments and ignores them."""

  def __init__(self, *_, **__):
    super().__init__()
