"""Images to RGB pixels: decoding with limits, orientation, resizing.

The training pipeline decodes with TensorFlow's own operations and resizes by `resize_image`;
`tests/tf/test_loader.py` checks that both give the same pixels.
"""

import contextlib
import functools
import importlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..common.errors import InputError
from ..common.untrusted_files import read
from .array_types import UInt8

MAX_PIXELS = 89_478_485
"""Per image; above it Pillow warns of a decompression bomb. As RGB it takes 270 MB."""

MAX_FILE_BYTES = 1 << 30
"""Per image file."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""By Pillow's names. It reads more: some start other programs (EPS), some are hardly tested."""

WEB_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What servers accept of `FORMATS`: the formats that cameras and browsers write."""

EXTENSIONS = (
  *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".dib"),
  *(".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx"),
  *(".heic", ".heif", ".hif"),
)
"""Extensions of image files; only the content decides whether a file can be read."""

_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# Pillow's name of HEIC, if pillow-heif is installed.
_HEIC = "HEIF"
# Brands of HEIC, which follow a size and `ftyp` (ISO/IEC 23008-12).
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_HEAD = 12
_LIMIT_LOCK = threading.Lock()


def decode_image(
  data: bytes, name: str, *, upright: bool = True, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
  """Decodes an image of one of `FORMATS` to RGB.

  Takes the first frame of an animation and the upper eight of 16 bits, composites transparency on
  white, and converts CMYK by Pillow's plain formula, without colour profiles. TIFFs are always
  upright, by their own tag.

  Args:
    data: the file's bytes.
    name: of the image, for error messages.
    upright: rotates the image as its EXIF data says; False for data sets annotated on the pixels as
      stored.
    max_pixels: a larger image is refused by its header, before it is decoded.

  Raises:
    InputError: the bytes are not a complete image, or it has too many pixels.
  """
  try:
    with open_header(io.BytesIO(data), max_pixels) as image:
      return _rgb(image, upright)
  except (UnidentifiedImageError, TooManyPixels) as error:
    raise InputError(f"image {name} {error}") from error
  except MemoryError as error:
    raise InputError(f"image {name} cannot be decoded: not enough memory") from error
  except Exception as error:  # Pillow's decoders raise nearly anything for damaged files
    raise InputError(f"image {name} cannot be decoded ({error}); is the file complete?") from error


class TooManyPixels(ValueError):
  """An image that is too large by its header."""


@contextlib.contextmanager
def open_header(
  file: Any, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS
) -> Iterator[Image.Image]:
  """Reads the header of an image; its pixels are not decoded yet.

  Args:
    file: open for reading bytes, at its beginning.
    max_pixels: limit on width times height.
    formats: accepted formats, by Pillow's names; FORMATS and, if pillow-heif is installed, HEIC.

  Raises:
    UnidentifiedImageError: not in an accepted format; the message names the format, if known.
    TooManyPixels: the image is larger.
    Exception: what Pillow raises for invalid images.
  """
  if formats is FORMATS and _register_heic():
    formats = (*FORMATS, _HEIC)
  try:
    with _pillow_limit(max_pixels):
      image = Image.open(file, formats=formats)
  except UnidentifiedImageError as error:
    file.seek(0)
    raise UnidentifiedImageError(_describe_unknown(file.read(_HEAD))) from error
  except Image.DecompressionBombError as error:
    raise TooManyPixels(_too_many("far too many", max_pixels)) from error
  with image:
    _check_pixels(image, max_pixels)
    yield image


def _describe_unknown(head: bytes) -> str:
  if head[4:8] == b"ftyp" and head[8:] in _HEIC_BRANDS:
    return "is HEIC; run `pip install pillow-heif` or save it as JPEG"
  return "is not an image in a known format" if head else "is empty"


@functools.cache
def _register_heic() -> bool:
  """Registers HEIC with Pillow if pillow-heif is installed, which returns images upright."""
  try:
    importlib.import_module("pillow_heif").register_heif_opener()
  except ImportError:
    return False
  return True


@contextlib.contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
  """Raises Pillow's own process-wide limit for as long as a caller allows more pixels."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit decides
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
  return f"has {count} megapixels; the limit is {max_pixels / 1e6:.0f}; make it smaller"


def _rgb(image: Image.Image, upright: bool) -> UInt8[np.ndarray, "h w 3"]:
  image.load()
  if upright and (transpose := _TRANSPOSE.get(read_orientation(image))) is not None:
    image = image.transpose(transpose)
  if image.mode.startswith("I"):
    # Pillow clips 16 bits at 255; other decoders keep the high byte.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
      raise ValueError("its pixels are 32-bit integers; write it with 8 or 16 bits")
    return np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
  if image.mode == "F":
    raise ValueError("its pixels are floating point without a known range; write it with 8 bits")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return np.array(image.convert("RGB"))


def read_orientation(image: Image.Image) -> int:
  """Returns the EXIF orientation: 1 is upright; from 5 on, width and height are exchanged.

  Returns 1 without EXIF data or where it is damaged, as viewers do, and for TIFFs, which Pillow
  rotates itself.
  """
  if image.format == "TIFF":
    return 1
  try:
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
  except Exception:  # damaged EXIF data raises nearly anything, and the pixels may be intact
    return 1
  return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def resize_image(
  image: UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Resizes to a square with an antialiased triangle filter, without keeping the aspect ratio."""
  if image.shape[:2] == (size, size):
    return image
  return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def open_image(
  image: str | os.PathLike | bytes | Image.Image | np.ndarray, *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
  """Opens an image, upright as its EXIF data says; see `decode_image`.

  Args:
    image: a path, the bytes of a file, a Pillow image, or RGB pixels.
    max_pixels: a larger image is refused; pixels given as an array are used as they are.

  Raises:
    InputError: no such file, not a complete image, too many pixels, or an array of another shape or
      type.
  """
  if isinstance(image, bytes):
    return decode_image(image, "from bytes", max_pixels=max_pixels)
  if isinstance(image, Image.Image):
    try:
      _check_pixels(image, max_pixels)
      return _rgb(image, True)
    except TooManyPixels as error:
      raise InputError(f"the given image {error}") from error
    except Exception as error:  # as in decode_image
      raise InputError(f"the given image cannot be decoded ({error})") from error
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
      raise InputError(
        f"image: an array must be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}"
      )
    return image
  data = read(image, f"image {image}", MAX_FILE_BYTES)
  return decode_image(data, str(image), max_pixels=max_pixels)


def encode_png(image: Image.Image) -> bytes:
  """Encodes a mask or bit planes as a PNG."""
  buffer = io.BytesIO()
  # Masks are runs: zlib's run-length strategy takes half the time of the default and is a tenth
  # smaller.
  image.save(buffer, format="PNG", compress_type=Image.RLE)
  return buffer.getvalue()
