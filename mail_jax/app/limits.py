"""Limits of the app: the size of photos, the length of texts, the number of requests."""

import dataclasses
import os

from input_pipeline import preprocess
from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError

# The formats that cameras and browsers write; fewer than `preprocess.FORMATS`.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Characters of a visitor's text that a message repeats.
_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class Limits:
  """The limits of one request and of all requests together.

  Attributes:
    megapixels: of a photo, in millions of pixels; a larger one is rejected before decoding.
    upload_megabytes: of an uploaded file, in millions of bytes.
    queue: waiting requests; further ones are rejected.
    concurrency: requests that run at the same time.
    expressions: per request.
    words, characters: per expression.
    examples: scenes or photos to pick from.
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
  """Checks the header of an uploaded photo, without decoding its pixels.

  Args:
    path: of the uploaded file; None if nothing was uploaded.
    limits: of the app.

  Returns:
    The path.

  Raises:
    InputError: no file, a file that is not an image, or too many pixels.
  """
  if not path:
    raise InputError("No photo yet: upload one, or pick an example.")
  name = shorten(os.path.basename(path))
  try:
    with (
      untrusted_files.open_file(path, name) as file,
      preprocess.open_header(file, formats=FORMATS) as image,
    ):
      width, height = image.size
  except preprocess.TooManyPixels as error:
    raise InputError(_too_large(name, "far too many", limits)) from error
  # Pillow raises all kinds of exceptions for damaged files.
  except Exception as error:
    raise InputError(
      f"{name} cannot be opened as an image: upload a JPEG, PNG or WebP file."
    ) from error
  if width * height > limits.megapixels * 1e6:
    raise InputError(_too_large(name, f"{width * height / 1e6:.0f}", limits))
  return path


def _too_large(name: str, count: str, limits: Limits) -> str:
  return (
    f"{name} has {count} megapixels; the limit is {limits.megapixels:g}: make the photo smaller "
    "and upload it again."
  )


def read_expressions(text: str | None, limits: Limits) -> list[str]:
  """Splits the typed text into expressions, one per line; empty lines are skipped.

  Raises:
    InputError: no expression, too many of them, or one that is too long.
  """
  lines = [line.strip() for line in (text or "")[: 100 * limits.characters].splitlines()]
  lines = [line for line in lines if line]
  if not lines:
    raise InputError("No expression yet: write what to look for, such as: the cup on the left.")
  if len(lines) > limits.expressions:
    raise InputError(
      f"{len(lines)} lines; the limit is {limits.expressions}: write one expression per line."
    )
  for line in lines:
    words = len(line.split())
    if words > limits.words or len(line) > limits.characters:
      count = f"{words} words" if words > limits.words else f"{len(line)} characters"
      raise InputError(
        f"This expression has {count}; the limit is {limits.words} words and "
        f"{limits.characters} characters: describe it in one sentence."
      )
    _check_readable(line)
  return lines


def _check_readable(line: str) -> None:
  try:
    preprocess.normalise_text(line)
  except InputError as error:
    raise InputError(f"{shorten(line)!r} has no readable text: write what to look for.") from error


def shorten(text: str) -> str:
  """Returns the beginning of a text, to quote it in a message."""
  return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
