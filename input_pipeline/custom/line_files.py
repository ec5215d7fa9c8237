"""Reads JSONL files, in any encoding that `untrusted_files` converts to UTF-8."""

import codecs
import functools
import io
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator

from input_pipeline.common import places, untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters import parquet

Row = tuple[int, int, bytes]
"""A line: its number, the offset of its first byte, and its bytes."""


def read_rows(path: str) -> Iterator[Row]:
  """Yields the non-blank lines of a file as UTF-8; see `untrusted_files.open_text`.

  Raises:
    InputError: the file cannot be read, or is not JSONL.
  """
  offset, first = 0, True
  with _open(path) as file:
    for number, data in enumerate(file, 1):
      # Files with byte order marks may have been concatenated.
      if text := data.removeprefix(codecs.BOM_UTF8).strip():
        if first:
          _check_first(path, text)
        first = False
        yield number, offset, text
      offset += len(data)


def read_line(path: str, offset: int) -> bytes:
  """Returns the line that starts at an offset of `read_rows`."""
  with _open(path) as file:
    if file.seekable():
      file.seek(file.tell() + offset)
      data = file.readline()
    else:
      text = _converted(path, os.stat(places.local_copy(path)).st_mtime_ns)
      end = text.find(b"\n", offset)
      data = text[offset : end if end >= 0 else len(text)]
  return data.removeprefix(codecs.BOM_UTF8).strip()


@functools.lru_cache(maxsize=1)
def _converted(path: str, modified: int) -> mmap.mmap:
  """Returns a file as UTF-8; `modified` keys the cache."""
  del modified
  with _open(path) as file, tempfile.TemporaryFile() as copy:
    shutil.copyfileobj(file, copy)
    copy.flush()
    return mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ)


def _open(path: str) -> io.BufferedReader:
  try:
    path_here = places.local_copy(path)
    if not parquet.is_parquet(path_here):
      return untrusted_files.open_text(path_here, path)
  except InputError as error:
    raise InputError(f"{error}; expected a file with one JSON object per line") from error
  raise InputError(
    f"{path}: a parquet file; convert it with `python -m input_pipeline.custom convert "
    f"--from parquet {path} --out mine.jsonl`"
  )


def _check_first(path: str, text: bytes) -> None:
  """Raises InputError if the first line shows that the file is not JSONL."""
  if text[:1] == b"[":
    raise InputError(
      f"{path}: a JSON list; expected one object per line: run `jq -c '.[]' {path} > lines.jsonl`"
    )
  if text == b"{":
    raise InputError(
      f"{path}: an object over several lines; expected one object per line: run "
      f"`jq -c . {path} > lines.jsonl`, or `convert` for a tool's export"
    )
