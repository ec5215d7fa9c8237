"""Weights in fewer bits: how they are rounded, and what is left in float32."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int8

from input_pipeline.common.errors import InputError

PRECISIONS = ("float32", "float16", "bfloat16", "int8")
"""Values of `--precision`."""
HALVES: dict[str, np.dtype] = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(jnp.bfloat16)}
# Smaller arrays, such as biases and statistics, stay in float32.
_FEWEST = 1024
# A scale is shared by at least so many weights.
_PER_SCALE = 64


def is_reduced(array: np.ndarray) -> bool:
  """Returns whether an array is stored in fewer bits: matrices and kernels are."""
  return array.dtype == np.float32 and array.ndim > 1 and array.size >= _FEWEST


def to_half(array: Float[np.ndarray, "..."], precision: str, name: str) -> np.ndarray:
  """Rounds an array to `float16` or `bfloat16`.

  Raises:
    InputError: a number is too large for it.
  """
  with np.errstate(over="ignore"):
    rounded = array.astype(HALVES[precision])
  if np.isinf(rounded).any() and not np.isinf(array).any():
    raise InputError(
      f"--precision {precision}: {name} has {np.abs(array).max():.3g}, which is larger than "
      "float16 can be; export with --precision bfloat16"
    )
  return rounded


def to_int8(
  array: Float[np.ndarray, "..."], axes: tuple[int, ...]
) -> tuple[Int8[np.ndarray, "..."], Float[np.ndarray, "..."]]:
  """Rounds an array to integers of -127 to 127, times a scale.

  Args:
    array: of at least one dimension.
    axes: the axes that share a scale.

  Returns:
    The integers, and the scales, in which those axes have size 1.
  """
  scale = np.abs(array).max(axes, keepdims=True) / 127
  scale = np.where(scale > 0, scale, 1).astype(np.float32)
  return np.rint(array / scale).astype(np.int8), scale


def leading_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the axes that share a scale: as many of the first as hold 64 weights, not the last.

  The first axes of our kernels are the inputs of a unit.
  """
  count = 1
  while count < len(shape) - 1 and np.prod(shape[:count]) < _PER_SCALE:
    count += 1
  return tuple(range(count))
