"""Lists of images, and which of COCO's they are, for any numbers and names by a tool."""

import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from input_pipeline.common import image_names, json_rows, untrusted_files, untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted
from input_pipeline.masks.row_index import whole_number

# The lists of a file that are read; rows of `annotations` are ignored.
_SECTIONS = ("images", "refs", "annotations")
# Size limit of a list of ids or names in bytes.
_MAX_LIST = 256 << 20
_FORMATS = (
  "a COCO file with `images`; a JSON list of ids, of names, or of rows with `image_id` (at the top "
  "level or under `refs`); or text with one id or file name per line"
)


class CocoImages:
  """The images of a file and their COCO ids.

  Many tools renumber images, so a COCO number in the name takes precedence over the id. In a file
  with such names, images with other names are not COCO images.
  """

  def __init__(self, path: str):
    """Starts an empty list.

    Args:
      path: of the file, for messages.
    """
    self._path = path
    # Ids and COCO numbers in the names.
    self._images: dict[tuple[int, int | None], None] = {}
    # Images with other names: by id, and names without ids.
    self._others: dict[int, str] = {}
    self._other_names: dict[str, None] = {}
    # Ids that some row gives alone; they count even if another row has a name for them.
    self._nameless: set[int] = set()
    self._renumbered: dict[int, str] = {}

  def add(self, image_id: Any, name: str | None = None) -> int:
    """Adds an image and returns its id as an integer.

    Args:
      image_id: an integer, possibly as a float or text.
      name: of its file, if known.

    Raises:
      ValueError: not an id.
    """
    own = read_id(image_id)
    if own is None:
      raise ValueError(f"{image_id!r} is not an image id")
    number = None if name is None else _coco_number(name)
    self._images[own, number] = None
    if name is None:
      self._nameless.add(own)
    if number is None and name is not None:
      self._others.setdefault(own, name)
    elif number is not None and number != own:
      self._renumbered.setdefault(own, str(name))
    return own

  def add_text(self, text: str) -> None:
    """Adds an image given by its id or by its file's name."""
    if (own := read_id(text)) is not None:
      self._images[own, None] = None
    elif (number := _coco_number(text)) is not None:
      self._images[number, number] = None
    else:
      self._other_names[text] = None

  def by_id(self) -> dict[int, int | None]:
    """Returns the COCO id of each image by its id in the file; None if not a COCO image.

    Raises:
      InputError: several images share an id.
    """
    has_names = self._has_names()
    found: dict[int, int | None] = {}
    for own, number in self._images:
      if number is None and not (has_names and self._is_other(own)):
        number = own
      if found.setdefault(own, number) != number:
        raise InputError(
          f"{self._path}: image id {own} is used for two images, COCO {found[own]} and {number}; "
          "if files were merged, renumber the ids"
        )
    return found

  def coco_ids(self) -> frozenset[int]:
    """Returns the COCO ids of the images.

    Raises:
      ValueError: there are only names, none of them COCO's.
    """
    if self._other_names and not self._has_names():
      raise ValueError(f"{next(iter(self._other_names))!r} is neither an image id nor a COCO name")
    numbers = {number for _, number in self._images if number is not None}
    own = (i for i, number in self._images if number is None)
    return frozenset(numbers.union(i for i in own if not (numbers and self._is_other(i))))

  def notes(self) -> Iterator[str]:
    """Yields a line for each way in which ids were reinterpreted."""
    total = counted(len(self._images) + len(self._other_names), "image")
    if self._renumbered:
      own, name = next(iter(self._renumbered.items()))
      yield (
        f"{self._path}: {len(self._renumbered):,} of {total} have an id other than COCO's ({own} "
        f"is {name}); the COCO number in the name is used"
      )
    if others := [*self._others.values(), *self._other_names]:
      yield f"{self._path}: {len(others):,} of {total} " + (
        f"do not have a COCO name ({others[0]}) and are not counted as COCO images"
        if self._has_names()
        else f"do not have a COCO name ({others[0]}); their ids are read as COCO ids. If no image "
        "is from COCO, declare `--trained_on other`"
      )

  def _is_other(self, image_id: int) -> bool:
    return image_id in self._others and image_id not in self._nameless

  def _has_names(self) -> bool:
    return any(number is not None for _, number in self._images)


def _coco_number(name: str) -> int | None:
  """Returns COCO's number in a name with or without an extension."""
  number = image_names.coco_number(name)
  return image_names.coco_number(f"{name}.jpg") if number is None else number


def read_id(value: Any) -> int | None:
  """Returns an id of an image in any notation; None for other values, among them negatives."""
  number = whole_number(value)
  return number if number is not None and number >= 0 else None


def read_ids(path: str) -> frozenset[int]:
  """Reads the COCO ids of the images that a file lists; prints how other ids were interpreted.

  The file may be gzipped, and of any size.

  Args:
    path: a COCO file (all its images count, annotated or not), a JSON list of ids, of names or of
      rows with `image_id`, such rows under `refs`, or text with one id or file name per line.

  Raises:
    InputError: the file cannot be read, has another format, or is empty.
  """
  images = CocoImages(path)
  try:
    with untrusted_files.open_text(path, path) as file:
      _read_list(file, path, images)
    ids = images.coco_ids()
  except OSError as error:
    raise InputError(f"{path}: {error.strerror or error}") from error
  except (KeyError, TypeError, ValueError) as error:
    if str(error).startswith(path):
      raise
    reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    raise InputError(f"{path}: not a list of images ({reason}); it must be {_FORMATS}") from error
  if not ids:
    raise InputError(f"{path}: the list of images is empty; it must be {_FORMATS}")
  for note in images.notes():
    print(f"warning: {note}", file=sys.stderr)
  return ids


def _read_list(file: BinaryIO, path: str, images: CocoImages) -> None:
  text = json_rows.chunks(file)
  first = next(text, b"")
  text = itertools.chain([first], text)
  start = first.lstrip()[:1]
  if start == b"{" or re.match(rb"\s*\[\s*\{", first):
    _read_rows(json_rows.split(text, path, ("", *_SECTIONS)), path, images)
  elif start == b"[":
    for value in untrusted_json.loads(_join(text, path), "the file"):
      _add_value(images, value)
  else:
    if b"\0" in first:
      raise ValueError("not text")
    for line in _join(text, path).decode().splitlines():
      if line.strip():
        images.add_text(line.strip())


def _join(text: Iterable[bytes], path: str) -> bytes:
  data = bytearray()
  for chunk in text:
    data += chunk
    if len(data) > _MAX_LIST:
      raise InputError(f"{path}: exceeds the limit of {_MAX_LIST:,} bytes for a list")
  return bytes(data)


def _read_rows(parts: Iterable[json_rows.Row | bytes], path: str, images: CocoImages) -> None:
  """Adds the images of a COCO file, or the refs or rows of another file."""
  around = bytearray()
  for part in parts:
    if isinstance(part, bytes):
      around += part
    elif part.section == "images":
      row = part.loads(path)
      images.add(row["id"], image_names.name_of_row(row))
    elif part.section != "annotations":
      _add_value(images, part.loads(path))
  content = untrusted_json.loads(bytes(around), "the file", nan_as_none=True)
  lists = [content] if isinstance(content, list) else map(content.get, ("images", "refs"))
  if not any(isinstance(rows, list) for rows in lists):
    raise ValueError("it has no list of `images` or `refs`")


def _add_value(images: CocoImages, value: Any) -> None:
  if isinstance(value, str):
    images.add_text(value)
    return
  if not isinstance(value, dict):
    images.add(value)
    return
  name = image_names.name_of_row(value)
  image_id = value.get("image_id", value.get("id") if name else None)
  if image_id is None and name is None:
    raise KeyError("image_id")
  images.add(image_id, name)
