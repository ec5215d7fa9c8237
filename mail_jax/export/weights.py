"""Variables as a file of safetensors, and back."""

import jax
import numpy as np
import safetensors
import safetensors.numpy

from input_pipeline.common.errors import InputError
from mail_jax.export.folder import FORMAT
from mail_jax.models.parameters import Tree, path_name


def to_bytes(variables: Tree) -> bytes:
  """The variables by their paths, such as `params/encoder/block00/qkv/kernel`."""
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  arrays = {path_name(path): np.array(leaf, order="C") for path, leaf in leaves}
  return safetensors.numpy.save(arrays, {"format": FORMAT})


def from_bytes(data: bytes, shapes: Tree, name: str) -> Tree:
  """Undoes `to_bytes`.

  Args:
    data: of the file.
    shapes: the structure and the shapes of the variables that the model has.
    name: what to call the file in errors.

  Raises:
    InputError: it is no such file, or has other variables.
  """
  try:
    arrays = safetensors.numpy.load(data)
  except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
    raise InputError(f"{name}: not a whole .safetensors file ({error})") from error

  def take(path, leaf) -> np.ndarray:
    found = arrays.pop(path_name(path), None)
    if found is None or found.shape != leaf.shape:
      what = "is missing" if found is None else f"has the shape {found.shape}"
      raise InputError(
        f"{name}: {path_name(path)} {what}; config.json describes one of {leaf.shape}"
      )
    return found.astype(leaf.dtype, copy=False)

  variables = jax.tree_util.tree_map_with_path(take, shapes)
  if arrays:
    raise InputError(
      f"{name}: {min(arrays)} is no variable of the model that config.json describes"
    )
  return variables
