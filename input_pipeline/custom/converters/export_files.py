"""The files of an export (a file, a folder or a zip): names and bytes, with size limits."""

import collections
import os
import zipfile
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from input_pipeline import preprocess
from input_pipeline.common import untrusted_files, untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters.collect import Export

MAX_BYTES = 1 << 30
"""Per file, after unpacking."""
MAX_FILES = 2_000_000
# Number of JSON files listed in a message.
_LISTED = 4
_ZIP = b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"


class ExportFiles:
  """The files of an export; a context manager. Nothing is unpacked to disk."""

  names: list[str]
  """Sorted POSIX paths inside the export, without hidden files."""
  whole: bool
  """Whether the export is a single file."""

  def __init__(self, path: str):
    """Lists the files.

    Args:
      path: of a file, a folder or a zip.

    Raises:
      InputError: the file is missing, the zip is damaged, or there are too many files.
    """
    self._path = path
    self._zip: zipfile.ZipFile | None = None
    self.whole = False
    if os.path.isdir(path):
      names = list(_walk(path))
    elif is_zip(path):
      self._zip = _open_zip(path)
      names = [name for name in self._zip.namelist() if name and not name.endswith("/")]
      if len(set(names)) < len(names):
        twice = next(name for name, count in collections.Counter(names).items() if count > 1)
        raise InputError(f"{path}: duplicate file {twice}; unpack the zip and keep the right one")
    else:
      self.whole = True
      names = [os.path.basename(path)]
    if len(names) > MAX_FILES:
      raise InputError(f"{path}: {len(names):,} files; the limit is {MAX_FILES:,}")
    self.names = names if self.whole else sorted(name for name in names if not _is_hidden(name))

  @property
  def zipped(self) -> bool:
    """Whether the export is a zip."""
    return self._zip is not None

  def full_name(self, name: str) -> str:
    """Returns a file's name for messages."""
    return self._path if self.whole else f"{self._path}/{name}"

  def read(self, name: str) -> bytes:
    """Returns the bytes of a file.

    Raises:
      InputError: the file cannot be read, is damaged or encrypted, exceeds the limit, or is a link
        out of the folder.
    """
    full = self.full_name(name)
    if self.whole:
      return untrusted_files.read(self._path, full, MAX_BYTES)
    if self._zip is None:
      real = untrusted_files.resolve_inside(self._path, name, "file of the export")
      return untrusted_files.read(real, full, MAX_BYTES)
    size = self._zip.getinfo(name).file_size
    if size > MAX_BYTES:
      raise InputError(untrusted_files.too_large(full, size, MAX_BYTES))
    try:
      with self._zip.open(name) as member:
        data = member.read(MAX_BYTES + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
      raise InputError(f"{full}: damaged in the zip ({error}); export it again") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted or unknown compression
      raise InputError(f"{full}: {error}; unpack the zip first") from error
    if len(data) > MAX_BYTES:
      raise InputError(untrusted_files.too_large(full, len(data), MAX_BYTES))
    return data

  def read_text(self, name: str) -> str:
    """Returns the text of a file: UTF-8, or UTF-16 with a byte order mark.

    Raises:
      InputError: as in `read`, or it is not such text.
    """
    data = self.read(name)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
      return data.decode(encoding)
    except UnicodeDecodeError as error:
      raise InputError(f"{self.full_name(name)}: not text in UTF-8 ({error})") from error

  def read_json(self, name: str) -> Any:
    """Parses a JSON file; NaN, as written by pandas for missing values, becomes None.

    Raises:
      InputError: as in `read`, or it is not JSON.
    """
    if self.whole:
      # The file may be gzipped.
      return untrusted_json.load_file(self._path, nan_as_none=True)
    return untrusted_json.loads(self.read(name), self.full_name(name), nan_as_none=True)

  def __enter__(self) -> "ExportFiles":
    """Returns itself."""
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    """Closes the zip."""
    if self._zip is not None:
      self._zip.close()


def load_json(path: str, export: Export) -> Any:
  """Parses the JSON of an export; NaN, as written by pandas for missing values, becomes None.

  Args:
    path: of a JSON file, or of a zip or folder with one JSON file.
    export: notes images in a zip, which are not read.

  Raises:
    InputError: it cannot be read, or does not have exactly one JSON file.
  """
  with ExportFiles(path) as files:
    if files.whole:
      return files.read_json(files.names[0])
    found = [name for name in files.names if name.lower().endswith(".json")]
    if len(found) != 1:
      few = ", ".join(found[:_LISTED]) + ", ..." * (len(found) > _LISTED)
      unpack = "unpack it and " if files.zipped else ""
      several = f"{len(found)} JSON files ({few}); {unpack}name one, or all splits of one data set"
      raise InputError(f"{path}: contains {several if found else 'no JSON file'}")
    note_images(files, export)
    return files.read_json(found[0])


def note_images(files: ExportFiles, export: Export) -> None:
  """Notes images in a zip, which are not read."""
  images = sum(name.lower().endswith(preprocess.EXTENSIONS) for name in files.names)
  if images and files.zipped:
    export.noted["images in the zip are not read; unpack it and set --images"] = images


def is_zip(path: str) -> bool:
  """Returns whether a file is a zip, judging by its first bytes.

  Raises:
    InputError: the file is missing or not a regular file.
  """
  with untrusted_files.open_file(path, path) as file:
    return file.read(4) in (_ZIP, _EMPTY_ZIP)


def _open_zip(path: str) -> zipfile.ZipFile:
  try:
    return zipfile.ZipFile(path)
  except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
    raise InputError(f"{path}: damaged zip ({error}); export it again") from error


def _walk(folder: str) -> Iterator[str]:
  for base, _, files in os.walk(folder):
    for file in files:
      yield os.path.relpath(os.path.join(base, file), folder).replace(os.sep, "/")


def _is_hidden(name: str) -> bool:
  """Returns whether a file is hidden or a macOS metadata file."""
  return name.startswith("__MACOSX/") or any(part.startswith(".") for part in name.split("/"))
