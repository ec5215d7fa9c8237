"""Reads files of weights one array at a time, and never executes code in them."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 by it, in which safetensors may be
import numpy as np
import safetensors
import safetensors.numpy

from input_pipeline.common import untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.common.untrusted_files import check_pulled, resolve_inside
from mail_jax.pretrained.torch_files import Tensor, TorchFile, open_torch_file

_TORCH_FILES = (".bin", ".ckpt", ".pt", ".pth", ".zip")
# Where trainers put the weights in a file of PyTorch.
_TORCH_KEYS = ("state_dict", "model", "module")
_INDEX = ".index.json"


class Weights(Mapping[str, np.ndarray]):
  """A mapping from names to arrays, which are read on access, in the precision of the file."""

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
    path: `.safetensors`, or PyTorch's `.bin`, `.ckpt`, `.pt`, `.pth`, `.zip`; or the `.index.json`
      of Hugging Face, which lists several files.

  Raises:
    InputError: the file or one that it lists does not exist, has another format or is damaged.
  """
  if not path.is_file():
    raise InputError(f"{path}: no such file")
  check_pulled(path, str(path))
  if path.name.endswith(_INDEX):
    with contextlib.ExitStack() as stack:
      yield _open_shards(path, stack)
  elif path.suffix == ".safetensors":
    with _open_safetensors(path) as weights:
      yield weights
  elif path.suffix in _TORCH_FILES:
    with open_torch_file(path) as opened:
      yield _torch_weights(opened, path)
  else:
    raise InputError(
      f"{path}: expected .safetensors, or a PyTorch file ({', '.join(_TORCH_FILES)})"
    )


def _open_shards(index: pathlib.Path, stack: contextlib.ExitStack) -> Weights:
  """Opens the files that an index of Hugging Face lists."""
  content = untrusted_json.load_file(index)
  places = content.get("weight_map") if isinstance(content, dict) else None
  if not isinstance(places, dict) or not places:
    raise InputError(f"{index}: has no weight_map, which says in which file each tensor is")
  files: dict[str, Weights] = {}
  for name in dict.fromkeys(map(str, places.values())):
    path = pathlib.Path(resolve_inside(str(index.parent), name, str(index), follow_links=True))
    if not path.is_file() or path.name.endswith(_INDEX):
      raise InputError(f"{index}: lists {name}, which is not beside it; download it as well")
    files[name] = stack.enter_context(open_weights(path))
  lost = next((name for name, file in places.items() if name not in files[str(file)]), None)
  if lost is not None:
    raise InputError(f"{index}: {places[lost]} has no tensor {lost}; download both again")
  shapes = {name: files[str(file)].shapes[name] for name, file in places.items()}
  return Weights(lambda name: files[str(places[name])][name], shapes)


def write_safetensors(
  path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]
) -> None:
  """Writes a `.safetensors` file, with the permissions of any new file.

  Raises:
    OSError: the system refuses to write, as on a full disk.
  """
  path.touch()
  mode = path.stat().st_mode
  try:
    safetensors.numpy.save_file(dict(arrays), path, metadata)
  except safetensors.SafetensorError:
    # Its error is text alone; the system's own has a number, and leaves what it could write.
    path.write_bytes(safetensors.numpy.save(dict(arrays), metadata))
  # The library lets nobody but the owner read the file.
  path.chmod(mode & 0o777)


def read_metadata(path: pathlib.Path) -> dict[str, str]:
  """Returns the metadata of a `.safetensors` file.

  Raises:
    InputError: the file does not exist or is damaged.
  """
  with _safe_open(path) as file:
    return file.metadata() or {}


def _safe_open(path: pathlib.Path) -> Any:
  check_pulled(path, str(path))
  try:
    return safetensors.safe_open(path, framework="np")
  except (OSError, safetensors.SafetensorError) as error:
    raise InputError(f"{path}: not an intact .safetensors file ({error})") from error


@contextlib.contextmanager
def _open_safetensors(path: pathlib.Path) -> Iterator[Weights]:
  with _safe_open(path) as file:
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    yield Weights(file.get_tensor, shapes)


def _torch_weights(opened: TorchFile, path: pathlib.Path) -> Weights:
  state = opened.content
  for key in _TORCH_KEYS:
    if isinstance(state, dict) and isinstance(state.get(key), dict):
      state = state[key]
      break
  tensors = {k: v for k, v in state.items() if type(v) is Tensor} if isinstance(state, dict) else {}
  if not tensors:
    raise InputError(
      f"{path}: has no tensors, neither at the top level nor under {', '.join(_TORCH_KEYS)}"
    )
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  return Weights(lambda name: opened.read(tensors[name]), shapes)
