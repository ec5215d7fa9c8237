"""Photos of any kind as records hold them: JPEG or PNG, standing upright."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from input_pipeline import preprocess
from input_pipeline.errors import InputError

ORIENTATION = 0x0112
"""EXIF's tag: 1 is upright, from 5 on width and height are exchanged."""
# What the training pipeline decodes to the pixels that Pillow gives; everything else is stored as PNG.
_AS_THEY_ARE = {
  "JPEG": ("RGB", "L"),
  "MPO": ("RGB", "L"),  # JPEG, with a second picture behind it, from phones
  "PNG": ("RGB", "L", "RGBA"),
}


def stored_upright(data: bytes, path: str) -> tuple[bytes, UInt8[np.ndarray, "h w 3"]]:
  """Returns a photo as a record holds it, and its pixels, upright.

  The bytes are untouched where they are a JPEG or PNG that stands upright; else they are a PNG of the same pixels.

  Args:
    data: the file's bytes.
    path: what to call it.

  Raises:
    InputError: the bytes are no complete image.
  """
  pixels = preprocess.decode_image(data, path)
  try:
    with Image.open(io.BytesIO(data)) as image:
      orientation = image.getexif().get(ORIENTATION, 1)
      kept = image.mode in _AS_THEY_ARE.get(image.format or "", ())
  except (OSError, SyntaxError, ValueError, TypeError) as error:
    raise InputError(f"image {path} cannot be decoded ({error}); is the file complete?") from error
  if orientation in (0, 1) and kept:
    return data, pixels
  plain = Image.fromarray(pixels)
  plain.getexif()[ORIENTATION] = orientation
  upright = ImageOps.exif_transpose(plain)
  png = io.BytesIO()
  Image.fromarray(np.asarray(upright)).save(png, format="PNG")
  return png.getvalue(), np.asarray(upright)
