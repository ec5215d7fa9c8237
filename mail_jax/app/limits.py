"""What the page takes: how large a photo, how long a text, how many at a time."""

import dataclasses
import os

from input_pipeline import preprocess
from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError

# What cameras and browsers write; fewer kinds than `preprocess.FORMATS`.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SHOWN = 60  # characters of what a visitor wrote that a message repeats


@dataclasses.dataclass(frozen=True)
class Limits:
  """How much one request and all of them together may cost.

  Attributes:
    megapixels: of a photo, in millions of pixels; a larger one is refused before it is decoded.
    upload_megabytes: of an uploaded file, in millions of bytes.
    queue: requests that may wait; the next one is asked to come back.
    concurrency: requests that are worked on at the same time.
    expressions: of one request.
    words, characters: of one expression.
    examples: scenes or photos that are offered.
  """

  megapixels: float = 20.0
  upload_megabytes: float = 25.0
  queue: int = 32
  concurrency: int = 1
  expressions: int = 8
  words: int = 100
  characters: int = 1000
  examples: int = 12


def check_photo(path: str | None, limits: Limits) -> str:
  """Looks at the head of an uploaded photo; its pixels are not decoded.

  Args:
    path: of the uploaded file; None where nothing was uploaded.
    limits: of the page.

  Returns:
    The path.

  Raises:
    InputError: no photo, no picture, or one with too many pixels.
  """
  if not path:
    raise InputError("There is no photo yet: upload one, or pick an example.")
  name = shorten(os.path.basename(path))
  try:
    with (
      untrusted_files.open_file(path, name) as file,
      preprocess.open_header(file, formats=FORMATS) as image,
    ):
      width, height = image.size
  except preprocess.TooManyPixels as error:
    raise InputError(_too_large(name, "far too many", limits)) from error
  except Exception as error:  # Pillow raises nearly anything of damaged files.
    raise InputError(
      f"{name} is not a picture that can be opened here: upload a JPEG, PNG or WebP file."
    ) from error
  if width * height > limits.megapixels * 1e6:
    raise InputError(_too_large(name, f"{width * height / 1e6:.0f}", limits))
  return path


def _too_large(name: str, count: str, limits: Limits) -> str:
  return (
    f"{name} has {count} megapixels, and this page takes up to {limits.megapixels:g}: "
    "make the picture smaller and upload it again."
  )


def read_expressions(text: str | None, limits: Limits) -> list[str]:
  """Expressions from what was typed, one a line; empty lines are skipped.

  Raises:
    InputError: there is nothing to read, too many of them, or a text instead of an expression.
  """
  lines = [line.strip() for line in (text or "")[: 100 * limits.characters].splitlines()]
  lines = [line for line in lines if line]
  if not lines:
    raise InputError(
      "There is nothing to look for yet: write it in a few words, such as: the cup on the left."
    )
  if len(lines) > limits.expressions:
    raise InputError(
      f"These are {len(lines)} lines, and one request may have {limits.expressions}: one expression is one line."
    )
  for line in lines:
    words = len(line.split())
    if words > limits.words or len(line) > limits.characters:
      count = f"{words} words" if words > limits.words else f"{len(line)} characters"
      raise InputError(
        f"This expression has {count}, and up to {limits.words} words are read "
        f"({limits.characters} characters): say in one sentence what you mean."
      )
    _check_readable(line)
  return lines


def _check_readable(line: str) -> None:
  try:
    preprocess.normalise_text(line)
  except InputError as error:
    raise InputError(
      f"There is nothing to read in {shorten(line)!r}: write in a few words what to look for."
    ) from error


def shorten(text: str) -> str:
  """The beginning of a text of any length, to repeat it in a message."""
  return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
