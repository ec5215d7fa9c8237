"""The size of photos as they stand upright, from the beginning of their files."""

import functools
import os

from PIL import Image, UnidentifiedImageError

from input_pipeline.own_data.problems import Wrong
from input_pipeline.sources.photo_bytes import ORIENTATION


@functools.lru_cache(maxsize=4096)
def upright_size(path: str) -> tuple[int, int]:
  """Returns height and width of a photo that stands upright, from the beginning of its file.

  Raises:
    Wrong: the file is missing, no picture, or too big.
  """
  try:
    with Image.open(path) as image:
      width, height = image.size
      sideways = image.getexif().get(ORIENTATION, 1) >= 5
  except FileNotFoundError as error:
    raise Wrong("image is missing", f"{path}: no such file") from error
  except UnidentifiedImageError as error:
    what = "is no picture of a known kind" if os.path.getsize(path) else "is empty"
    raise Wrong("image cannot be read", f"{path} {what}") from error
  except Image.DecompressionBombError as error:
    raise Wrong("image is too big", f"{path}: {error}") from error
  except (OSError, SyntaxError, ValueError, TypeError) as error:
    raise Wrong("image cannot be read", f"{path} cannot be read ({error})") from error
  return (width, height) if sideways else (height, width)
