"""A model's inputs for one image, for `mail_jax.predict.segmenter` and every exported model.

Exported models ship a copy of this folder, so that theirs is the same code.
"""

from collections.abc import Sequence

import numpy as np

from . import bit_planes
from .array_types import Bool, UInt8
from .images import resize_image
from .masks import resize_planes
from .text import normalise_text
from .tokenizer import Tokenizer


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
  """Prepares an image and expressions about it, one example per expression.

  Args:
    pixels: RGB.
    expressions: as they were typed.
    masks: instance masks, best score first; the best `max_instances` are used.
    tokenizer: of the model.
    image_size: of the model's config, as are `max_instances` and `max_tokens`.
    max_instances: masks that the model has room for.
    max_tokens: tokens that the model has room for.

  Returns:
    `image`, `instances`, `num_instances`, `tokens` and `num_tokens` (docs/reference/formats.md,
    batches); and whether each expression was truncated.

  Raises:
    InputError: an expression is empty.
  """
  text, was_cut = prepare_text(expressions, tokenizer, max_tokens=max_tokens)
  image = prepare_image(pixels, masks, image_size=image_size, max_instances=max_instances)
  count = len(expressions)
  repeated = {name: np.repeat(np.asarray(value)[None], count, 0) for name, value in image.items()}
  return repeated | text, was_cut


def prepare_text(
  expressions: Sequence[str], tokenizer: Tokenizer, *, max_tokens: int
) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, "b"]]:
  """Prepares the expressions alone; see `prepare`."""
  tokens, num_tokens, was_cut = tokenizer(
    [normalise_text(expression) for expression in expressions], max_tokens
  )
  return {"tokens": tokens, "num_tokens": num_tokens}, was_cut


def prepare_image(
  pixels: UInt8[np.ndarray, "h w 3"],
  masks: Bool[np.ndarray, "k h w"],
  *,
  image_size: int,
  max_instances: int,
) -> dict[str, np.ndarray]:
  """Prepares the image and its masks alone, as one example without a batch axis; see `prepare`."""
  masks = masks[:max_instances]
  planes = bit_planes.packbits(masks)
  missing = bit_planes.num_planes(max_instances) - len(planes)
  planes = np.pad(planes, ((0, missing), (0, 0), (0, 0)))
  return {
    "image": resize_image(pixels, image_size),
    "instances": resize_planes(planes, image_size),
    "num_instances": np.asarray(len(masks), np.int32),
  }
