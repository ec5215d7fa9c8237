"""Files of weights as a mapping from names to arrays, one array in memory at a time, nothing in them executed."""

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
  """Names and arrays; an array is read when it is asked for, as float32 where it is of floats."""

  def __init__(self, read: Callable[[str], np.ndarray], shapes: dict[str, tuple[int, ...]]):
    """Args: read gives one array; shapes has all names, with the shapes of the arrays."""
    self._read, self.shapes = read, shapes

  def __getitem__(self, name: str) -> np.ndarray:
    """One array; a `KeyError` where there is none of that name."""
    if name not in self.shapes:
      raise KeyError(name)
    return self._read(name)

  def __iter__(self) -> Iterator[str]:
    """The names."""
    return iter(self.shapes)

  def __len__(self) -> int:
    """How many there are."""
    return len(self.shapes)


@contextlib.contextmanager
def open_weights(path: pathlib.Path) -> Iterator[Weights]:
  """Opens a file of weights, for as long as the context lasts.

  Args:
    path: `.safetensors`, or PyTorch's `.bin`, `.ckpt`, `.pt`, `.pth`, which need torch.

  Raises:
    InputError: no such file, another kind of file, a damaged one, or torch is missing.
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
      f"{path}: weights are .safetensors, or {', '.join(_TORCH_FILES)} as PyTorch writes them"
    )


def read_metadata(path: pathlib.Path) -> dict[str, str]:
  """The text that a `.safetensors` file carries beside its arrays.

  Raises:
    InputError: no such file, or a damaged one.
  """
  with _safe_open(path) as file:
    return file.metadata() or {}


def _safe_open(path: pathlib.Path) -> Any:
  try:
    return safetensors.safe_open(path, framework="np")
  except (OSError, safetensors.SafetensorError) as error:
    raise InputError(f"{path}: not a whole .safetensors file ({error})") from error


@contextlib.contextmanager
def _open_safetensors(path: pathlib.Path) -> Iterator[Weights]:
  with _safe_open(path) as file:
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    yield Weights(lambda name: _as_float32(file.get_tensor(name)), shapes)


def _as_float32(array: np.ndarray) -> np.ndarray:
  """Floats of any width as float32; integers as they are."""
  integers = np.issubdtype(array.dtype, np.integer) or array.dtype == bool
  return array if integers else np.asarray(array, np.float32)


def _open_torch(path: pathlib.Path) -> Weights:
  try:
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise InputError(
      f"{path}: reading PyTorch's own files needs torch: {_TORCH_EXTRA}; a .safetensors file needs nothing"
    ) from error
  try:
    with torch.serialization.safe_globals(_stand_ins(torch, path)):
      loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
  except Exception as error:  # torch raises what its parts happen to raise
    reason = str(error).strip().split("\n")[0]
    raise InputError(f"{path}: torch cannot read it as weights only ({reason})") from error
  state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
  tensors = {} if state is None else {k: v for k, v in state.items() if torch.is_tensor(v)}
  if not tensors:
    raise InputError(f"{path}: holds no tensors, neither by name nor under 'state_dict'")

  def read(name: str) -> np.ndarray:
    tensor = tensors[name]
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

  return Weights(read, {name: tuple(tensor.shape) for name, tensor in tensors.items()})


def _stand_ins(torch: Any, path: pathlib.Path) -> list[Any]:
  """Inert stand-ins for the classes that a training checkpoint names beside its weights.

  Lightning saves callbacks and hyper-parameters as objects of its own. Nothing of them is wanted, and none of their
  code is imported or run.
  """
  try:
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
  except Exception:  # no archive of today's format: torch.load says what is wrong, or reads it
    return []
  return [(type("StandIn", (_StandIn,), {}), name) for name in names]


class _StandIn(dict):
  """Takes whatever it is made of and keeps none of it."""

  def __init__(self, *_, **__):
    super().__init__()
