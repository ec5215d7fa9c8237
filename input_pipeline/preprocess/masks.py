"""Instance masks of an image, and the model's logits as a mask of the image's size."""

from collections.abc import Sequence

import numpy as np

from ..common.errors import InputError
from ..common.untrusted_files import open_file
from .array_types import Bool, Float, Float32, Int64, Shaped
from .images import open_image


def nearest_indices(length: int, size: int) -> Int64[np.ndarray, "{size}"]:
  """Returns the source index of every output pixel when `length` pixels become `size`.

  Output pixel i has its centre at (i + 1/2) * length / size source pixels and takes the pixel that
  contains it. Computed in integers, so that implementations cannot differ by rounding.
  """
  return (2 * np.arange(size, dtype=np.int64) + 1) * length // (2 * size)


def resize_planes(
  planes: Shaped[np.ndarray, "g h w"], size: int
) -> Shaped[np.ndarray, "g {size} {size}"]:
  """Resizes bit planes or masks to a square by nearest neighbour, half-pixel centres."""
  _, height, width = planes.shape
  # Whole rows first: they are copied at memory speed. Takes a third of the time of indexing both
  # axes at once.
  rows = planes.take(nearest_indices(height, size), axis=1)
  return rows.take(nearest_indices(width, size), axis=2)


def check_instances(
  masks: Bool[np.ndarray, "k h w"] | None, height: int, width: int
) -> Bool[np.ndarray, "k {height} {width}"]:
  """Returns instance masks that fit an image; there may be none.

  Raises:
    InputError: the masks differ from the image in size.
  """
  if masks is None or not len(masks):
    return np.zeros((0, height, width), bool)
  if masks.shape[1:] != (height, width):
    raise InputError(
      f"instances: the masks are {masks.shape[2]} x {masks.shape[1]} pixels, "
      f"the image {width} x {height}"
    )
  return masks


def read_masks(
  paths: Sequence[str], height: int, width: int
) -> Bool[np.ndarray, "k {height} {width}"]:
  """Reads the instance masks of an image from files, in that order.

  Args:
    paths: either images, one per instance, white where it is; or `.npy`, [k, h, w] of booleans or
      of 0 and 1.
    height: of the image, in pixels.
    width: of the image, in pixels.

  Raises:
    InputError: a file cannot be read, or differs from the image in size.
  """
  parts = [np.zeros((0, height, width), bool)]
  for path in paths:
    masks = _read_array(path) if path.endswith(".npy") else _read_image(path)
    parts.append(check_instances(masks, height, width))
  return np.concatenate(parts)


def _read_array(path: str) -> Bool[np.ndarray, "k h w"]:
  try:
    open_file(path, path).close()
    # Memory-mapped: the file must be as large as its header claims before memory is allocated for
    # it.
    masks = np.load(path, mmap_mode="r", allow_pickle=False)
  except InputError:
    raise
  except Exception as error:  # damaged headers raise nearly anything
    raise InputError(f"{path}: not an array that NumPy can read ({error})") from error
  if not isinstance(masks, np.ndarray):
    raise InputError(f"{path}: an archive; expected a single array of masks, .npy")
  if masks.ndim != 3:
    raise InputError(f"{path}: expected masks [k, height, width], got {list(masks.shape)}")
  return masks != 0


def _read_image(path: str) -> Bool[np.ndarray, "1 h w"]:
  return (open_image(path).max(-1) > 127)[None]


def mask_from_logits(
  logits: Float32[np.ndarray, "s s"], height: int, width: int, no_target: float | None = None
) -> Bool[np.ndarray, "{height} {width}"]:
  """Returns the mask at the image's size: where the probability is above 0.5.

  Args:
    logits: one per pixel of the model's square.
    height: of the image, in pixels.
    width: of the image, in pixels.
    no_target: logit that the expression has no target, of a model that predicts it; above 0 the
      mask is empty.
  """
  if no_target is not None and no_target > 0:
    return np.zeros((height, width), bool)
  return resize_logits(logits, height, width) > 0


def resize_logits(
  logits: Float32[np.ndarray, "s s"], height: int, width: int
) -> Float[np.ndarray, "{height} {width}"]:
  """Resizes the logits of the model's square to the image's size, bilinearly."""
  rows = _interpolation_matrix(height, logits.shape[0])
  columns = _interpolation_matrix(width, logits.shape[1])
  return rows @ logits @ columns.T


def _interpolation_matrix(size: int, source: int) -> Float[np.ndarray, "{size} {source}"]:
  """Returns bilinear weights, edges repeated: `mail_jax.models.resize` in NumPy."""
  centres = np.clip((np.arange(size) + 0.5) * (source / size) - 0.5, 0, source - 1)
  return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(source)))
