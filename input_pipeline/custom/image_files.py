"""Images in files of any format: their size from the header, and how a record stores them."""

import dataclasses
import functools
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from input_pipeline import preprocess
from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.custom.schema import LineError

# Formats and modes that the training pipeline decodes to the same pixels as Pillow. All others are
# stored as PNG.
_STORED_UNCHANGED = {
  "JPEG": ("RGB", "L"),
  # JPEG from phones with a second image appended.
  "MPO": ("RGB", "L"),
  "PNG": ("RGB", "L"),
}


@dataclasses.dataclass(frozen=True)
class Header:
  """The header of an image file."""

  size: tuple[int, int]
  """Height and width in pixels, upright."""
  orientation: int
  """As in EXIF: 1 is upright; from 5 on, the stored height and width are swapped."""

  @property
  def stored_size(self) -> tuple[int, int]:
    """Height and width of the pixels as stored."""
    height, width = self.size
    return (width, height) if self.orientation >= 5 else self.size

  @property
  def turned_unseen(self) -> bool:
    """Whether EXIF rotates or mirrors the image without changing its size."""
    return self.orientation != 1 and self.size == self.stored_size


@functools.lru_cache(maxsize=4096)
def read_header(path: str) -> Header:
  """Reads the header of an image file.

  Raises:
    LineError: the file is missing, not an image, or too large.
  """
  try:
    with untrusted_files.open_file(path, path) as file, preprocess.open_header(file) as image:
      width, height = image.size
      orientation = preprocess.read_orientation(image)
  except InputError as error:
    missing = isinstance(error.__cause__, FileNotFoundError)
    kind = "image is missing" if missing else "image cannot be read"
    raise LineError(kind, f"{path}: no such file" if missing else str(error)) from error
  except UnidentifiedImageError as error:
    raise LineError("image cannot be read", f"{path} {error}") from error
  except preprocess.TooManyPixels as error:
    raise LineError("image is too large", f"{path} {error}") from error
  except Exception as error:  # Pillow raises almost any exception on damaged files.
    raise LineError("image cannot be read", f"{path} cannot be read ({error})") from error
  return Header((width, height) if orientation >= 5 else (height, width), orientation)


def stored_upright(data: bytes, path: str) -> tuple[bytes, UInt8[np.ndarray, "h w 3"]]:
  """Returns an image as a record stores it, and its pixels; both upright.

  The bytes are unchanged if they are a JPEG or PNG that is upright and opaque; otherwise they are a
  PNG of the same pixels.

  Args:
    data: the file's bytes.
    path: the file's name, for errors.

  Raises:
    InputError: the bytes are not a complete image.
  """
  pixels = preprocess.decode_image(data, path)
  with preprocess.open_header(io.BytesIO(data)) as image:
    unchanged = preprocess.read_orientation(image) == 1 and not image.has_transparency_data
    if unchanged and image.mode in _STORED_UNCHANGED.get(image.format or "", ()):
      return data, pixels
  png = io.BytesIO()
  Image.fromarray(pixels).save(png, format="PNG")
  return png.getvalue(), pixels
