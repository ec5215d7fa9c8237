"""Images inside an export: their headers are checked and the files written out unchanged."""

import contextlib
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from PIL import UnidentifiedImageError

from input_pipeline import preprocess
from input_pipeline.common import atomic_files, image_names
from input_pipeline.common.errors import InputError

# By Pillow's name of the format; the first one replaces a wrong extension.
_EXTENSIONS = {
  "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
  "MPO": (".jpg", ".jpeg", ".mpo"),
  "PNG": (".png",),
  "WEBP": (".webp",),
  "GIF": (".gif",),
  "BMP": (".bmp",),
  "TIFF": (".tif", ".tiff"),
  "PPM": (".ppm", ".pgm", ".pbm"),
  "AVIF": (".avif",),
  "JPEG2000": (".jp2",),
}
# Accepted by every file system.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*\ud800-\udfff]')
_MAX_NAME = 120


@contextlib.contextmanager
def written_to(folder: str, overwrite: bool = False) -> Iterator["EmbeddedImages"]:
  """Yields a folder of images, created atomically when the context ends, if there are any.

  Args:
    folder: for the images.
    overwrite: replaces an existing folder.

  Raises:
    InputError: the folder exists, or has files that the new one lacks.
  """
  with contextlib.ExitStack() as stack:
    images = EmbeddedImages(folder, overwrite, stack)
    yield images
    images.check_replaced()


class Written(NamedTuple):
  """An image in the folder."""

  path: str
  """Relative to the folder of the lines, which contains that of the images."""
  size: tuple[int, int]
  """Height and width after the EXIF rotation."""
  turned: bool
  """Whether EXIF rotates it."""


class EmbeddedImages:
  """A folder of images; see `written_to`."""

  def __init__(self, folder: str, overwrite: bool, stack: contextlib.ExitStack):
    """Creates an empty set of images.

    Args:
      folder: for the images.
      overwrite: replaces an existing folder.
      stack: closes what writes the folder.
    """
    self.folder = folder
    self._overwrite = overwrite
    self._stack = stack
    self._staging: pathlib.Path | None = None
    self._written: dict[str, tuple[str, Written]] = {}
    self._paths: set[str] = set()

  def add(self, data: bytes, name: str, where: str) -> Written:
    """Writes an image unchanged, unless it has been written before.

    Args:
      data: the file's bytes.
      name: as given in the export, or empty. Without a name, or if another image has it, a hash of
        the content is the name.
      where: place of the image, for error messages.

    Raises:
      InputError: the bytes are not an image, or another image has the same COCO name.
    """
    digest = hashlib.sha256(data).hexdigest()
    path = _safe_path(name) or digest[:32]
    known, written = self._written.get(path.casefold(), ("", None))
    if written and known != digest:
      if image_names.coco_number(path) is not None:
        raise InputError(
          f"{where}: a different image is already named {path}; COCO names must be unique"
        )
      path = digest[:32]
      known, written = self._written.get(path, ("", None))
    if written:
      return written
    written = self._write(data, path, where)
    # Some file systems are case-insensitive.
    self._written[path.casefold()] = digest, written
    return written

  def check_replaced(self) -> None:
    """Checks that replacing an existing folder would not delete other files.

    Raises:
      InputError: it would; the folder may not come from an earlier conversion.
    """
    for base, _, files in os.walk(self.folder) if self._staging else ():
      for file in files:
        path = os.path.relpath(os.path.join(base, file), self.folder).replace(os.sep, "/")
        if path.casefold() not in self._paths:
          raise InputError(
            f"{self.folder}: --overwrite would delete other files, such as {path}; move the folder "
            "or choose another --out"
          )

  def _write(self, data: bytes, path: str, where: str) -> Written:
    size, turned, kind = _read_header(data, where)
    stem, extension = os.path.splitext(path)
    extensions = _EXTENSIONS.get(kind, (extension,))
    if extension.lower() not in extensions:
      path = (stem if extension.lower() in _KNOWN else path) + extensions[0]
    if path.casefold() in self._paths:
      raise InputError(f"{where}: the name {path} would be used for two images; rename one of them")
    if self._staging is None:
      folder = atomic_files.whole_folder(self.folder, self._overwrite)
      self._staging = self._stack.enter_context(folder)
    target = self._staging / path
    try:
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(data)
    except OSError as error:
      reason = atomic_files.describe_error(error, self.folder, len(data))
      raise InputError(f"{self.folder}/{path} cannot be written: {reason}") from error
    self._paths.add(path.casefold())
    return Written(f"{os.path.basename(self.folder)}/{path}", size, turned)


_KNOWN = {extension for extensions in _EXTENSIONS.values() for extension in extensions}


def _safe_path(name: str) -> str:
  """Returns a relative path without `..` that is valid on every file system; may be empty."""
  parts = _UNSAFE.sub("_", name.replace("\\", "/")).split("/")
  kept = [part.strip(" .") for part in parts if part.strip(" .")]
  if ".." in parts:
    kept = kept[-1:]
  return "" if any(len(os.fsencode(part)) > _MAX_NAME for part in kept) else "/".join(kept)


def _read_header(data: bytes, where: str) -> tuple[tuple[int, int], bool, str]:
  """Returns the size of an upright image, whether EXIF rotates it, and its format."""
  try:
    with preprocess.open_header(io.BytesIO(data)) as image:
      width, height = image.size
      orientation = preprocess.read_orientation(image)
      size = (width, height) if orientation >= 5 else (height, width)
      return size, orientation != 1, str(image.format)
  except UnidentifiedImageError as error:
    reason = "are not an image in a known format" if data else "are empty"
    raise InputError(f"{where}: the bytes {reason}") from error
  except preprocess.TooManyPixels as error:
    raise InputError(f"{where}: {error}") from error
  except Exception as error:  # Pillow raises almost any exception on damaged files.
    raise InputError(f"{where}: the image cannot be read ({error})") from error
