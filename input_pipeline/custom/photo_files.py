"""The size of photos as they stand upright, from the beginning of their files."""

import functools
import os

from PIL import UnidentifiedImageError

from input_pipeline import preprocess
from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.custom.problems import Wrong


@functools.lru_cache(maxsize=4096)
def upright_size(path: str) -> tuple[int, int]:
  """Returns height and width of a photo that stands upright, from the beginning of its file.

  Raises:
    Wrong: the file is missing, no picture, or too big.
  """
  try:
    with untrusted_files.open_file(path, path) as file, preprocess.open_head(file) as image:
      width, height = image.size
      sideways = preprocess.read_orientation(image) >= 5
  except InputError as error:
    missing = isinstance(error.__cause__, FileNotFoundError)
    kind = "image is missing" if missing else "image cannot be read"
    raise Wrong(kind, f"{path}: no such file" if missing else str(error)) from error
  except UnidentifiedImageError as error:
    what = "is no picture of a known kind" if os.path.getsize(path) else "is empty"
    raise Wrong("image cannot be read", f"{path} {what}") from error
  except preprocess.TooManyPixels as error:
    raise Wrong("image is too big", f"{path} {error}") from error
  except Exception as error:  # Pillow raises nearly anything of damaged files.
    raise Wrong("image cannot be read", f"{path} cannot be read ({error})") from error
  return (width, height) if sideways else (height, width)
