"""Photos of any kind as records hold them: JPEG or PNG, standing upright."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from input_pipeline import preprocess

# What the training pipeline decodes to the pixels that Pillow gives; everything else is stored as PNG.
_AS_THEY_ARE = {
  "JPEG": ("RGB", "L"),
  "MPO": ("RGB", "L"),  # JPEG, with a second picture behind it, from phones
  "PNG": ("RGB", "L"),
}


def stored_upright(data: bytes, path: str) -> tuple[bytes, UInt8[np.ndarray, "h w 3"]]:
  """Returns a photo as a record holds it, and its pixels, upright.

  The bytes are untouched where they are a JPEG or PNG that stands upright and is nowhere transparent; else they are a
  PNG of the same pixels.

  Args:
    data: the file's bytes.
    path: what to call it.

  Raises:
    InputError: the bytes are no complete image.
  """
  pixels = preprocess.decode_image(data, path)
  with preprocess.open_head(io.BytesIO(data)) as image:
    stands = preprocess.read_orientation(image) == 1 and not image.has_transparency_data
    if stands and image.mode in _AS_THEY_ARE.get(image.format or "", ()):
      return data, pixels
  png = io.BytesIO()
  Image.fromarray(pixels).save(png, format="PNG")
  return png.getvalue(), pixels
