"""Text, image and mask preparation that training, evaluation, prediction and export share.

Numpy and Pillow only: prediction imports this on machines without the training pipeline.
The training pipeline decodes with native ops, and resizes images and planes by these functions;
`tests/tf/test_loader.py` holds the two together.
"""

import contextlib
import io
import os
import re
import threading
import unicodedata
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from input_pipeline.common.errors import InputError
from input_pipeline.common.untrusted_files import read

MAX_PIXELS = 89_478_485
"""Of a photo; above it Pillow warns of a decompression bomb. A photo of so many takes 270 MB as RGB."""

MAX_FILE = 1 << 30
"""Bytes of a file with a picture in it."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""As Pillow names them. It knows more: some start other programs (EPS), some are hardly ever tested."""

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Of the pictures in a folder."""

_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
_LIMIT_LOCK = threading.Lock()
_FORMAT_CATEGORIES = ("Cc", "Cf", "Co", "Cs")
_OTHER_SIDE = {
  "left": "right",
  "Left": "Right",
  "LEFT": "RIGHT",
  "right": "left",
  "Right": "Left",
  "RIGHT": "LEFT",
}
# What people glue to left and right in the RefCOCO expressions. "up" is not among the prefixes
# (upright), nor "over" among the suffixes (leftover): a compound that is not listed is left alone.
_SIDE = re.compile(
  r"\b((?i:on|the|far|top|bottom|upper|lower|front|back|middle|mid|center|centre)?)"
  r"(left|right|Left|Right|LEFT|RIGHT)"
  r"(?=(?i:most|est|iest|yest|ier|y|ish|side|hand|handed|facing|wards?"
  r"|top|bottom|upper|lower|front|back|middle|center|centre|corner)?\b)"
)


def normalise_text(text: str) -> str:
  """The one normal form of an expression: NFKC, no control characters, lower case, single spaces.

  Applying it twice changes nothing.

  Args:
    text: an expression as a person typed it.

  Returns:
    The expression as tokenizers see it; never empty.

  Raises:
    InputError: nothing is left of the text.
  """
  if text.isascii() and text.isprintable():
    normal = text.lower()
  else:
    normal = unicodedata.normalize("NFKC", "".join(map(_without_control, text)))
    # Lower-casing can leave characters that compose, and composing can leave capitals.
    normal = unicodedata.normalize("NFKC", normal.lower()).lower()
  normal = " ".join(normal.split())
  if not normal:
    raise empty_text(text)
  return normal


def empty_text(text: str) -> InputError:
  """The error for an expression in which there is nothing to read."""
  return InputError(
    f"expression {text[:40]!r} is empty; write what to look for, such as 'the leftmost cup'"
  )


def _without_control(char: str) -> str:
  if char.isspace():
    return " "
  return "" if unicodedata.category(char) in _FORMAT_CATEGORIES else char


def exchange_left_right(text: str) -> str:
  """Exchanges left and right in an expression, as mirroring the image does to what it says.

  Covers compounds (leftmost, right-hand, topleft, lefty, rightside); never touches words that only
  contain the letters (bright, upright, leftover, copyright). Doing it twice gives the text back.
  """
  return _SIDE.sub(lambda match: match.group(1) + _OTHER_SIDE[match.group(2)], text)


def decode_image(
  data: bytes, name: str, *, upright: bool = True, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
  """Decodes a picture of a kind of `FORMATS` to RGB.

  The first picture of an animation; of 16 bits the upper eight; what is transparent stands before white; CMYK by
  Pillow's plain formula, without colour profiles. TIFFs stand upright in any case, by their own tag.

  Args:
    data: the file's bytes.
    name: what to call the image if it cannot be decoded.
    upright: turns it as its EXIF says; data sets whose annotations are for the pixels as they are stored say False.
    max_pixels: a larger one is refused by what its head says, before it is decoded.

  Raises:
    InputError: the bytes are no complete image, or one of too many pixels.
  """
  try:
    with open_head(io.BytesIO(data), max_pixels) as image:
      return _rgb(image, upright)
  except UnidentifiedImageError as error:
    what = "it is no picture of a known kind" if data else "it is empty"
    raise InputError(f"image {name} cannot be decoded: {what}") from error
  except TooManyPixels as error:
    raise InputError(f"image {name} {error}") from error
  except MemoryError as error:
    raise InputError(
      f"image {name} cannot be decoded: it takes more memory than there is"
    ) from error
  except Exception as error:  # Pillow's decoders raise nearly anything of damaged files.
    raise InputError(f"image {name} cannot be decoded ({error}); is the file complete?") from error


class TooManyPixels(ValueError):
  """By what its head says, a picture is too large."""


@contextlib.contextmanager
def open_head(
  source: Any, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS
) -> Iterator[Image.Image]:
  """Reads the head of a picture; its pixels are not decoded yet.

  Args:
    source: a path or an open file.
    max_pixels: of the picture.
    formats: as Pillow names them.

  Raises:
    TooManyPixels: it has more pixels.
    Exception: what Pillow raises of what is no picture.
  """
  try:
    with _pillows_limit(max_pixels):
      image = Image.open(source, formats=formats)
  except Image.DecompressionBombError as error:
    raise TooManyPixels(_too_many("far too many", max_pixels)) from error
  with image:
    _check_pixels(image, max_pixels)
    yield image


@contextlib.contextmanager
def _pillows_limit(max_pixels: int) -> Iterator[None]:
  """Pillow has a limit of its own, one for everybody: it is lifted for as long as somebody asks for more."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # judged by our own limit
    if Image.MAX_IMAGE_PIXELS is None or max_pixels <= 2 * Image.MAX_IMAGE_PIXELS:
      yield
      return
    with _LIMIT_LOCK:
      before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
      try:
        yield
      finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
  if image.width * image.height > max_pixels:
    raise TooManyPixels(_too_many(f"{image.width * image.height / 1e6:.0f}", max_pixels))


def _too_many(count: str, max_pixels: int) -> str:
  return (
    f"has {count} megapixels, and {max_pixels / 1e6:.0f} are the most that is read; make it smaller"
  )


def _rgb(image: Image.Image, upright: bool) -> UInt8[np.ndarray, "h w 3"]:
  image.load()
  if upright and (turned := _TURNS.get(read_orientation(image))) is not None:
    image = image.transpose(turned)
  if image.mode.startswith("I"):
    # Pillow clips 16 bits at 255; the high byte is what other decoders keep.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
      raise ValueError("its pixels are numbers of 32 bits; write it with 8 or 16")
    return np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
  if image.mode == "F":
    raise ValueError(
      "its pixels are fractions, and what is white is not said; write it with 8 bits"
    )
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return np.array(image.convert("RGB"))


def read_orientation(image: Image.Image) -> int:
  """Returns how EXIF says that a picture lies: 1 is upright, from 5 on width and height are exchanged.

  Without EXIF, or where it is damaged, that is 1, as viewers have it. So it is for TIFFs: Pillow turns them itself.
  """
  if image.format == "TIFF":
    return 1
  try:
    found = image.getexif().get(_ORIENTATION, 1)
  except Exception:  # damaged EXIF raises nearly anything, and the pixels may be sound
    return 1
  return found if isinstance(found, int) and 1 <= found <= 8 else 1


def resize_image(
  image: UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Resizes to a square with an antialiased triangle filter, without keeping the aspect ratio."""
  if image.shape[:2] == (size, size):
    return image
  return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def nearest_indices(length: int, size: int) -> Int64[np.ndarray, "{size}"]:
  """The source index of every output pixel when `length` pixels become `size`.

  Output pixel i has its centre at (i + 1/2) * length / size source pixels and takes the pixel that
  this falls into. Computed in integers, so that no rounding differs between implementations.
  """
  return (2 * np.arange(size, dtype=np.int64) + 1) * length // (2 * size)


def resize_planes(
  planes: Shaped[np.ndarray, "g h w"], size: int
) -> Shaped[np.ndarray, "g {size} {size}"]:
  """Resizes bit planes, or masks, to a square by nearest neighbour, half-pixel centres."""
  _, height, width = planes.shape
  # Rows first: whole ones are copied at the speed of memory. A third of the time of one index of both.
  rows = planes.take(nearest_indices(height, size), axis=1)
  return rows.take(nearest_indices(width, size), axis=2)


def open_image(
  image: str | os.PathLike | bytes | Image.Image | np.ndarray, *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
  """Opens a photo, upright as its EXIF says; see `decode_image`.

  Args:
    image: a path, the bytes of a file, an image of Pillow, or RGB pixels.
    max_pixels: a larger photo is refused; pixels that are given as an array are taken as they are.

  Raises:
    InputError: no such file, no complete image, too many pixels, or an array of another kind.
  """
  if isinstance(image, bytes):
    return decode_image(image, "of the given bytes", max_pixels=max_pixels)
  if isinstance(image, Image.Image):
    try:
      _check_pixels(image, max_pixels)
      return _rgb(image, True)
    except TooManyPixels as error:
      raise InputError(f"image that was given {error}") from error
    except Exception as error:  # as above
      raise InputError(f"image that was given cannot be decoded ({error})") from error
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
      raise InputError(
        f"image: an array must be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}"
      )
    return image
  data = read(image, f"image {image}", MAX_FILE)
  return decode_image(data, str(image), max_pixels=max_pixels)


def check_instances(
  masks: Bool[np.ndarray, "k h w"] | None, height: int, width: int
) -> Bool[np.ndarray, "k {height} {width}"]:
  """Instance masks that fit a photo; none at all is fine.

  Raises:
    InputError: the masks have another size than the photo.
  """
  if masks is None or not len(masks):
    return np.zeros((0, height, width), bool)
  if masks.shape[1:] != (height, width):
    raise InputError(
      f"instances: the masks are {masks.shape[1]} x {masks.shape[2]} pixels, the image {height} x {width}"
    )
  return masks
