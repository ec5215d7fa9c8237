"""Instance masks as bit planes: bit `k % 16` of plane `k // 16` is set where instance k is.

Overlaps survive, a mask takes one bit per pixel, and the planes are a plain 16-bit PNG that
`tf.io.decode_png` and Pillow both read.
"""

import io

import numpy as np
from PIL import Image

from . import images
from .array_types import Bool, UInt16

PLANE_BITS = 16
MAX_PLANES = 64
"""Per record when reading; `prepare` writes at most four."""


def num_planes(count: int) -> int:
  """Returns how many planes hold `count` masks; at least 1."""
  return max(1, -(-count // PLANE_BITS))


def packbits(masks: Bool[np.ndarray, "k h w"]) -> UInt16[np.ndarray, "g h w"]:
  """Packs k masks into `num_planes(k)` planes of 16 bits."""
  count, height, width = masks.shape
  planes = np.zeros((num_planes(count), height, width), np.uint16)
  for k in range(count):
    planes[k // PLANE_BITS] |= masks[k].astype(np.uint16) << np.uint16(k % PLANE_BITS)
  return planes


def unpackbits(planes: UInt16[np.ndarray, "g h w"], count: int) -> Bool[np.ndarray, "{count} h w"]:
  """Returns the first `count` masks of the planes."""
  if count > planes.shape[0] * PLANE_BITS:
    raise ValueError(f"{count} masks do not fit into {planes.shape[0]} planes")
  masks = np.zeros((count, *planes.shape[1:]), bool)
  for k in range(count):
    masks[k] = (planes[k // PLANE_BITS] >> np.uint16(k % PLANE_BITS)) & 1
  return masks


def encode_png(planes: UInt16[np.ndarray, "g h w"]) -> bytes:
  """Encodes the planes, stacked vertically, as one 16-bit grayscale PNG of [g * h, w]."""
  return images.encode_png(Image.fromarray(planes.reshape(-1, planes.shape[2])))


def decode_png(
  png: bytes, height: int, width: int | None = None
) -> UInt16[np.ndarray, "g {height} w"]:
  """Decodes the planes of an image of that size.

  Raises:
    Exception: what Pillow raises for invalid PNGs; a ValueError for a PNG that does not hold planes
      of that size.
  """
  max_pixels = MAX_PLANES * (images.MAX_PIXELS if width is None else height * width)
  with images.open_header(io.BytesIO(png), max_pixels, ("PNG",)) as image:
    if height < 1 or image.height % height or width not in (None, image.width):
      raise ValueError(
        f"bit planes of {image.width} x {image.height} for {width} x {height} pixels"
      )
    if not image.mode.startswith("I"):
      raise ValueError(f"bit planes of mode {image.mode}, expected 16 bits")
    stacked = np.asarray(image).astype(np.uint16)
  return stacked.reshape(-1, height, stacked.shape[1])
