"""Lists of images by their COCO ids, in the forms that people have them in."""

import gzip
import io
import zlib
from collections.abc import Iterable
from typing import Any

from input_pipeline.common import untrusted_files, untrusted_json
from input_pipeline.common.errors import InputError

_FORMS = (
  "a COCO file with `images`, a JSON list of ids, or of rows with `image_id` (as they are, or under "
  "`refs`), or text with one id a line"
)


def read_ids(path: str) -> frozenset[int]:
  """Returns the images that a file names, gzipped or not.

  Args:
    path: a COCO file (every image of it counts, annotated or not), a JSON list of ids or of rows with `image_id`,
      such rows under `refs`, or text with one id a line.

  Raises:
    InputError: the file cannot be read, is of another form, or names no image.
  """
  text = _read_text(path)
  try:
    ids = frozenset(
      _checked(_of_json(untrusted_json.loads(text, "it")) if _is_json(text) else _of_text(text))
    )
  except (KeyError, TypeError, ValueError) as error:
    why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    raise InputError(f"{path}: no list of images ({why}); it must be {_FORMS}") from error
  if not ids:
    raise InputError(f"{path}: names no image; it must be {_FORMS}")
  return ids


def _read_text(path: str) -> str:
  try:
    data = untrusted_files.read(path, path, untrusted_json.MAX_BYTES)
    # By what is in it, not by its name: browsers unpack or rename.
    if data.startswith(b"\x1f\x8b"):
      with gzip.open(io.BytesIO(data)) as file:
        data = file.read(untrusted_json.MAX_BYTES + 1)  # a thousand times as much may be packed
      if len(data) > untrusted_json.MAX_BYTES:
        raise InputError(f"{path}: unpacked more than {untrusted_json.MAX_BYTES:,} bytes")
    return data.decode("utf-8-sig")
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise InputError(f"{path}: the gzip file is damaged ({error}); is it complete?") from error
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: no text ({error}); it must be {_FORMS}") from error


def _is_json(text: str) -> bool:
  return text.lstrip().startswith(("[", "{"))


def _of_text(text: str) -> list[int]:
  return [int(line) for line in text.splitlines() if line.strip()]


def _of_json(content: Any) -> Iterable[Any]:
  if isinstance(content, dict) and "images" in content:
    return [row["id"] for row in content["images"]]
  rows = content["refs"] if isinstance(content, dict) else content
  return [row["image_id"] if isinstance(row, dict) else row for row in rows]


def _checked(ids: Iterable[Any]) -> Iterable[int]:
  for image_id in ids:
    if type(image_id) is not int or image_id < 0:
      raise ValueError(f"{image_id!r} is no image id")
    yield image_id
