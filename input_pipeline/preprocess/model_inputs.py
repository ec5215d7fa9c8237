"""What a model is given of one photo, and what its answer means at the photo's size.

`mail_jax.predict.segmenter` and every exported model prepare a photo by `prepare`; the latter carry a copy of it.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from input_pipeline.common.errors import InputError
from input_pipeline.common.untrusted_files import open_file
from input_pipeline.preprocess import (
  check_instances,
  normalise_text,
  open_image,
  resize_image,
  resize_planes,
)
from input_pipeline.preprocess.tokenizer import Tokenizer
from input_pipeline.records import pack_planes


def prepare(
  pixels: UInt8[np.ndarray, "h w 3"],
  expressions: Sequence[str],
  masks: Bool[np.ndarray, "k h w"],
  tokenizer: Tokenizer,
  *,
  image_size: int,
  max_instances: int,
  max_tokens: int,
) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, "b"]]:
  """Prepares a photo and expressions of it, one example each.

  Args:
    pixels: RGB.
    expressions: as they were typed.
    masks: instance masks, best score first; the best `max_instances` are taken.
    tokenizer: of the model.
    image_size, max_instances, max_tokens: of the model's config.

  Returns:
    `image`, `instances`, `num_instances`, `tokens`, `num_tokens` (docs/reference/formats.md);
    and whether each expression was longer than the model reads.

  Raises:
    InputError: an expression is empty.
  """
  text, was_cut = prepare_text(expressions, tokenizer, max_tokens=max_tokens)
  photo = prepare_photo(pixels, masks, image_size=image_size, max_instances=max_instances)
  count = len(expressions)
  return {
    name: np.repeat(np.asarray(value)[None], count, 0) for name, value in photo.items()
  } | text, was_cut


def prepare_text(
  expressions: Sequence[str], tokenizer: Tokenizer, *, max_tokens: int
) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, "b"]]:
  """The part of `prepare` that is about expressions."""
  tokens, num_tokens, was_cut = tokenizer(
    [normalise_text(expression) for expression in expressions], max_tokens
  )
  return {"tokens": tokens, "num_tokens": num_tokens}, was_cut


def prepare_photo(
  pixels: UInt8[np.ndarray, "h w 3"],
  masks: Bool[np.ndarray, "k h w"],
  *,
  image_size: int,
  max_instances: int,
) -> dict[str, np.ndarray]:
  """The part of `prepare` that is about the photo, of one example."""
  masks = masks[:max_instances]
  planes = pack_planes(masks)
  empty = pack_planes(np.zeros((max_instances, *masks.shape[1:]), bool))
  planes = np.concatenate([planes, empty[len(planes) :]])
  return {
    "image": resize_image(pixels, image_size),
    "instances": resize_planes(planes, image_size),
    "num_instances": np.asarray(len(masks), np.int32),
  }


def read_masks(
  paths: Sequence[str], height: int, width: int
) -> Bool[np.ndarray, "k {height} {width}"]:
  """Reads instance masks of a photo from files, in that order.

  Args:
    paths: pictures, white where the instance is, one each; or `.npy`, [k, h, w] of booleans or of 0 and 1.
    height, width: of the photo.

  Raises:
    InputError: a file cannot be read, or is of another size than the photo.
  """
  found = [np.zeros((0, height, width), bool)]
  for path in paths:
    if path.endswith(".npy"):
      try:
        open_file(path, path).close()
        # Mapped, for then the file must have what its head promises before there is memory for it.
        masks = np.load(path, mmap_mode="r", allow_pickle=False)
      except InputError:
        raise
      except Exception as error:  # Damaged heads raise nearly anything.
        raise InputError(f"{path}: no masks that NumPy can read ({error})") from error
      if not isinstance(masks, np.ndarray):
        raise InputError(f"{path}: an archive; masks are one array, .npy")
      if masks.ndim != 3:
        raise InputError(f"{path}: masks are [k, height, width], not {list(masks.shape)}")
      masks = masks != 0
    else:
      masks = (open_image(path).max(-1) > 127)[None]
    found.append(check_instances(masks, height, width))
  return np.concatenate(found)


def mask_from_logits(
  logits: Float32[np.ndarray, "s s"], height: int, width: int, no_target: float | None = None
) -> Bool[np.ndarray, "{height} {width}"]:
  """Where the referent is, at the photo's size: a probability above 0.5.

  Args:
    logits: one a pixel of the model's square.
    height, width: of the photo.
    no_target: logit that nothing is meant, of a model that says so; above 0 it empties the mask.
  """
  if no_target is not None and no_target > 0:
    return np.zeros((height, width), bool)
  rows = _interpolation_matrix(height, logits.shape[0])
  columns = _interpolation_matrix(width, logits.shape[1])
  return rows @ logits @ columns.T > 0


def _interpolation_matrix(size: int, source: int) -> Float[np.ndarray, "{size} {source}"]:
  """Bilinear, half-pixel centres, edges repeated: `mail_jax.models.resize` in NumPy."""
  at = np.clip((np.arange(size) + 0.5) * (source / size) - 0.5, 0, source - 1)
  return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(source)))
