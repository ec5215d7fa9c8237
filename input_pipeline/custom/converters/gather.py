"""Combines the shapes of an export into regions with expressions.

Every reader of a tool's own format passes its shapes to a `Gatherer`.
"""

import contextlib
import dataclasses
import functools
import posixpath
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.common.image_names import AmbiguousImage, ImageFolder, ImageNames, ImageNotFound
from input_pipeline.custom.converters import export_files, geometry
from input_pipeline.custom.converters.collect import (
  CATEGORY,
  Export,
  Options,
  Region,
  read_mask,
  texts_in,
  texts_under,
)
from input_pipeline.custom.converters.export_files import ExportFiles
from input_pipeline.custom.schema import Mask

# Errors raised by readers on malformed values; the shape is skipped.
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)
_ABSOLUTE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*:")
_ANNOTATION_FOLDERS = ("labels", "label", "annotations", "annotation", "ann", "json", "jsons")


@dataclasses.dataclass(frozen=True)
class Photo:
  """An image, as named by the tool."""

  name: str
  size: geometry.Size | None = None
  """Declared height and width; None if the tool does not declare them."""
  upright: bool | None = None
  """As in `Region`."""
  split: str | None = None
  """As in `Region`."""


@dataclasses.dataclass(frozen=True)
class Shape:
  """The properties of a shape apart from its outline."""

  fields: Sequence[Mapping[str, Any]]
  """Objects with keys that may hold expressions."""
  label: str = ""
  """Category name."""
  category: int = 0
  group: Hashable = None
  """Shapes of an image with the same group and label are one object; None for a single shape."""


class Gatherer:
  """Collects the regions of an export."""

  def __init__(self, path: str, options: Options):
    """Starts without regions.

    Args:
      path: of the export, for messages.
      options: how it is read.
    """
    self._path = path
    self.options = options
    self._objects: dict[Hashable, list[tuple[Photo, Mask, Shape]]] = {}
    self._keys: set[str] = set()
    self._captions: dict[Hashable, list[str]] = {}
    self.export = Export()
    """Counts what is left out; `finish` adds the regions."""

  @functools.cached_property
  def photos(self) -> ImageFolder:
    """The images on disk."""
    return ImageFolder(self.options.folder)

  def has_photo(self, name: str) -> bool:
    """Returns whether one or more images on disk match a name."""
    try:
      self.photos.find(name)
    except AmbiguousImage:
      return True
    except ImageNotFound:
      return False
    return True

  def json_files(self, is_format: Callable[[Any], bool], missing: str) -> Iterator[tuple[str, Any]]:
    """Yields the names and the content of the JSON files of a format.

    Args:
      is_format: whether parsed JSON has the format.
      missing: the error message if there is no such file.

    Raises:
      InputError: no file has the format, or a file is invalid JSON.
    """
    found = False
    with ExportFiles(self._path) as files:
      export_files.note_images(files, self.export)
      for name in files.names:
        if not files.whole and not name.lower().endswith(".json"):
          continue
        content = files.read_json(name)
        if is_format(content):
          found = True
          yield name, content
        elif not files.whole:
          self.export.note("JSON file in another format not read", name)
    if not found:
      raise InputError(f"{self._path}: {missing}")

  def add(self, photo: Photo, mask: Mask, shape: Shape) -> None:
    """Adds a shape."""
    for field in shape.fields:
      self._keys.update(key for key, value in field.items() if texts_in(value, "\n"))
    alone = shape.group is None
    key = len(self._objects) if alone else (photo.name, shape.label, shape.group)
    self._objects.setdefault(key, []).append((photo, mask, shape))

  def add_caption(self, photo: Photo, group: Hashable, text: Any) -> None:
    """Adds an expression to all objects of a group."""
    texts = texts_in(text, self.options.separator)
    self._captions.setdefault((photo.name, group), []).extend(texts)

  def finish(self) -> Export:
    """Returns the regions.

    Raises:
      InputError: no region has an expression.
    """
    self.export.regions = list(self._regions())
    if not any(region.texts for region in self.export.regions):
      raise InputError(f"{self._path}: {self._no_expression()}")
    return self.export

  def _regions(self) -> Iterator[Region]:
    for parts in self._objects.values():
      photo, _, shape = parts[0]
      texts = [text for _, _, part in parts for text in self._texts(part, photo.name)]
      texts += self._captions.get((photo.name, shape.group), ())
      by_category = CATEGORY in self.options.text_keys
      try:
        mask = geometry.union([mask for _, mask, _ in parts], photo.size)
      except ValueError as error:
        self.export.skip(f"invalid object ({error})", photo.name)
        self.export.lose(photo.name, () if by_category else texts)
        continue
      if photo.size is not None:
        segmentation = mask.get("polygons", mask.get("rle"))
        mask = read_mask(segmentation, photo.size, self.export, photo.name)
        if mask is None:
          self.export.lose(photo.name, () if by_category else texts)
          continue
      yield Region(
        photo.name,
        mask,
        tuple(dict.fromkeys(texts)),
        shape.category,
        size=photo.size,
        upright=photo.upright,
        split=photo.split,
      )

  def _texts(self, shape: Shape, place: str) -> tuple[str, ...]:
    levels = list(shape.fields)
    if CATEGORY in self.options.text_keys:
      levels.append({CATEGORY: shape.label})
    return texts_under(levels, self.options, self.export, place)

  def _no_expression(self) -> str:
    if not self.export.regions:
      return "; ".join(["nothing to convert", *self.export.report()])
    keys = ", ".join(sorted(self._keys)) or "none"
    return (
      f"no region has an expression under {', '.join(self.options.text_keys)}; keys with text: "
      f"{keys}. Choose one with --text KEY, or use category names as expressions with "
      f"--text {CATEGORY}"
    )


def photo_path(name: str, folder: str = "") -> str:
  """Returns the path of an image inside an export.

  Args:
    name: a relative or absolute path of any operating system, or a URL.
    folder: base of relative names, inside the export. Typical annotation folders are removed: the
      images are beside them.
  """
  posix = name.replace("\\", "/")
  if _ABSOLUTE.match(posix):
    return posix
  parts = [part for part in folder.split("/") if part.lower() not in _ANNOTATION_FOLDERS]
  return posixpath.normpath(posixpath.join("/", *parts, posix)).lstrip("/")


def with_ending(path: str, photos: ImageNames) -> str | None:
  """Returns the name of the image for a path without an extension; None if there is none.

  Raises:
    AmbiguousImage: several images match.
  """
  found: set[str] = set()
  for ending in preprocess.EXTENSIONS:
    with contextlib.suppress(ImageNotFound):
      found.add(photos.find(path + ending))
  if len(found) > 1:
    first, second, *_ = sorted(found)
    raise AmbiguousImage(f"{path} matches both {first} and {second}; keep one of them in --images")
  return next(iter(found), None)


def has_image_ending(name: str) -> bool:
  """Returns whether a file name has the extension of an image."""
  return name.lower().endswith(preprocess.EXTENSIONS)
