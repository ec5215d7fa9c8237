"""Downloads files, and unpacks zip archives of them; both resume where an earlier attempt ended.

huggingface_hub transfers all of them: it resumes, follows redirects, and starts again where a
server refuses to resume, of which pooch and the download manager of TFDS do only the second.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence

from input_pipeline.common import atomic_files, hub, untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import announce, with_progress

_PART = ".part"
_TIMEOUT = 60.0


@dataclasses.dataclass(frozen=True)
class File:
  """A file on a web server."""

  url: str
  size: int | None = None
  """Bytes, where they are published."""
  sha256: str = ""
  """Where it is published."""


def fetch(file: File, path: pathlib.Path) -> None:
  """Downloads a file, unless it is there; goes on where an earlier attempt ended.

  Args:
    file: what to download.
    path: where to; the part that has come so far is beside it.

  Raises:
    InputError: the server does not have the file, ends early again and again, or has another one;
      or the disk is too small.
  """
  if path.exists():
    return
  part, size = part_of(path), _size_of(file, path)
  path.parent.mkdir(parents=True, exist_ok=True)
  if part.exists() and size is not None and part.stat().st_size > size:
    part.unlink()
  _check_space(part, size, file.url)
  try:
    hub.keep_trying(lambda: _transfer(file.url, part, size), part)
  except Exception as error:  # of requests or httpx, by the version of huggingface_hub
    got, reason = atomic_files.size_of(part), hub.first_line(error)
    if isinstance(error, OSError) and error.errno in atomic_files.FULL:
      reason = atomic_files.describe_error(error, part, size or 0)
    raise InputError(
      f"{file.url}: {reason}; {got:,}{f' of {size:,}' if size else ''} bytes are in {part}, and "
      f"the same command goes on from there; or download it by hand to {path}"
    ) from error
  _check_content(file, part, path)
  os.replace(part, path)


def _transfer(url: str, part: pathlib.Path, size: int | None) -> None:
  """Appends what is missing of a file to the part that is there."""
  from huggingface_hub import constants, file_download

  constants.DOWNLOAD_CHUNK_SIZE = hub.CHUNK
  with open(part, "r+b" if part.exists() else "w+b") as out:
    done = out.seek(0, os.SEEK_END)
    if size is None or done < size:
      file_download.http_get(url, out, resume_size=done, expected_size=size)
    done = out.tell()
  if size is not None and done > size:
    part.unlink()
    raise InputError(f"more than the {size:,} bytes that were announced came")


def _size_of(file: File, path: pathlib.Path) -> int | None:
  """Returns the bytes of a file as its server tells them, None if it does not.

  Raises:
    InputError: the server does not have the file, or tells another size than the published one.
  """
  try:
    try:
      told = _told_size(file.url, "HEAD")
    except urllib.error.HTTPError:  # some servers refuse HEAD
      told = _told_size(file.url, "GET")
  except (OSError, ValueError) as error:
    raise InputError(
      f"{file.url} cannot be reached ({hub.first_line(error)}); try again later, or download it by "
      f"hand to {path}"
    ) from error
  if file.size is not None and told is not None and int(told) != file.size:
    raise InputError(
      f"{file.url}: the server has {int(told):,} bytes, but {file.size:,} are published; download "
      f"the published file by hand to {path}"
    )
  return file.size if told is None else int(told)


def _told_size(url: str, method: str) -> str | None:
  request = urllib.request.Request(url, method=method)
  with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
    return answer.headers.get("Content-Length")


def _check_content(file: File, part: pathlib.Path, path: pathlib.Path) -> None:
  wrong = ""
  if file.sha256:
    with open(part, "rb") as content, announce(f"checking {part}"):
      actual = hashlib.file_digest(content, "sha256").hexdigest()  # pyright: ignore
    wrong = f"its SHA-256 is {actual}, not {file.sha256}" if actual != file.sha256 else ""
  elif path.suffix == ".zip" and not zipfile.is_zipfile(part):
    wrong = "not a zip archive"
  if wrong:
    part.unlink()
    raise InputError(
      f"{file.url}: {wrong}, so it was removed; run the command again, or download it by hand to "
      f"{path}"
    )


def _check_space(part: pathlib.Path, size: int | None, url: str) -> None:
  needed = (size or 0) - atomic_files.size_of(part)
  if needed > shutil.disk_usage(part.parent).free:
    raise InputError(
      f"{url} does not fit: {atomic_files.describe_space(part, needed)}; name folders on a larger "
      "disk"
    )


def fetch_from_hub(
  repository: str, patterns: Sequence[str], folder: pathlib.Path
) -> Sequence[pathlib.Path]:
  """Downloads files of a data set on the Hugging Face Hub; it checks their sizes and resumes.

  Args:
    repository: `owner/name`.
    patterns: of the names.
    folder: where to.

  Returns:
    Their paths.

  Raises:
    InputError: the Hub does not answer, or has no such file.
  """
  try:
    hub.snapshot(repository, patterns, kind="dataset", folder=folder)
  except Exception as error:  # of requests or httpx, by the version of huggingface_hub
    raise InputError(f"{hub.first_line(error)}; try again later") from error
  names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
  found = [name for name in names if any(name.match(pattern) for pattern in patterns)]
  if len(found) < len(patterns):
    raise InputError(f"it has no {' or '.join(patterns)}")
  return [folder / name for name in found]


def extract(
  archive: pathlib.Path, folder: pathlib.Path, names: Sequence[str] | None = None
) -> Sequence[pathlib.Path]:
  """Unpacks files of a zip archive into a folder, without the folders inside.

  Files that are there already with their size are kept, so that a second attempt is quick.

  Args:
    archive: its checksums are verified.
    folder: created if it is missing.
    names: of the files, or the ends of their paths; all photos by default.

  Returns:
    Their paths.

  Raises:
    InputError: the archive is damaged or lacks a file, or the disk is full.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as content:
      wanted = [info for info in content.infolist() if _is_wanted(info.filename, names)]
      if len(wanted) != len(names or wanted) or not wanted:
        raise InputError(f"{archive}: does not have {' and '.join(names or ('photos',))}")
      shown = with_progress(wanted, "unpacking", len(wanted), "files")
      return [_extract(content, info, folder) for info in shown]
  except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
    raise InputError(
      f"{archive}: damaged ({hub.first_line(error)}); remove it and run the command again"
    ) from error
  except OSError as error:
    raise InputError(f"{folder}: {atomic_files.describe_error(error, folder)}") from error


def _is_wanted(path: str, names: Sequence[str] | None) -> bool:
  if not untrusted_files.stays_inside(path) or path.startswith("__MACOSX/"):
    return False
  if names is None:
    return path.lower().endswith(".jpg")
  return any(f"/{path}".endswith(f"/{name}") for name in names)


def _extract(content: zipfile.ZipFile, info: zipfile.ZipInfo, folder: pathlib.Path) -> pathlib.Path:
  path = folder / info.filename.rpartition("/")[2]
  if not (path.exists() and path.stat().st_size == info.file_size):
    with (
      content.open(info) as source,
      atomic_files.whole_file(path) as temporary,
      open(temporary, "wb") as out,
    ):
      shutil.copyfileobj(source, out, 1 << 20)
  return path


def part_of(path: pathlib.Path) -> pathlib.Path:
  """Returns where the part of a file is that has come so far."""
  return path.with_name(path.name + _PART)
