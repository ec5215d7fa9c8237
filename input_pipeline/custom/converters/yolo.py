"""Reads YOLO labels: text files with a row per object, and `data.yaml` with the categories.

A row is the category's number and the outline as x, y, x, y, ..., or a box as centre, width and
height, in fractions of the sides of the image as rotated by EXIF
(docs.ultralytics.com/datasets/segment). `labels/train/a.txt` belongs to `images/train/a.jpg`. The
only texts are the category names.
"""

import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.custom import image_files
from input_pipeline.custom.converters import export_files, geometry
from input_pipeline.custom.converters.collect import (
  CATEGORY,
  NEEDS_BOXES,
  Export,
  Options,
  box,
  split_in,
)
from input_pipeline.custom.converters.gather import (
  MALFORMED,
  Gatherer,
  Photo,
  Shape,
  photo_path,
  with_ending,
)
from input_pipeline.custom.schema import LineError, Mask

_LABELS, _PHOTOS = "labels", "images"
# Lists with a name per line, from Label Studio and labelImg, and from darknet.
_LISTS = ("classes.txt", "obj.names")
_ROW = 1 << 20
_MAX_SETTINGS = 1 << 20
# Tolerance for rounded fractions beyond the border, as in ultralytics.
_SLACK = 0.01


def read(path: str, options: Options) -> Export:
  """Reads an export.

  Args:
    path: of the folder or zip with `data.yaml`, or of that file.
    options: how it is read, including the folder of the images, whose sizes are needed.

  Raises:
    InputError: a file is missing, the categories have no names, or `options.text_keys` does not
      contain the category.
  """
  if CATEGORY not in options.text_keys:
    raise InputError(
      f"{path}: YOLO's labels have no texts; use category names as expressions with --text "
      f"{CATEGORY}"
    )
  if os.path.isfile(path) and not export_files.is_zip(path):
    path = os.path.dirname(path) or "."
  gatherer = Gatherer(path, options)
  with export_files.ExportFiles(path) as files:
    export_files.note_images(files, gatherer.export)
    names = _category_names(files, path)
    labels = _label_files(files.names)
    if not labels:
      raise InputError(f"{path}: contains no YOLO labels (labels/NAME.txt)")
    for name in labels:
      image = with_ending(_photo_stem(name), gatherer.photos)
      if image is None:
        gatherer.export.skip("labels without an image in --images", name)
        continue
      try:
        size = image_files.read_header(os.path.join(options.folder, image)).size
      except LineError as error:
        gatherer.export.skip(f"labels of an unreadable image ({error.kind})", name)
        continue
      photo = Photo(image, size, True, split_in(posixpath.dirname(name)))
      _read_rows(files.read_text(name), name, photo, names, gatherer)
  return gatherer.finish()


def is_labels(text: str) -> bool:
  """Returns whether a text looks like YOLO labels: a category and at least four fractions."""
  values = text.lstrip()[:_ROW].partition("\n")[0].split()
  try:
    shares = [float(value) for value in values[1:]]
  except ValueError:
    return False
  is_row = len(shares) >= 4 and values[0].isdecimal()
  return is_row and all(0 <= share <= 1 for share in shares)


def settings_file(names: Sequence[str]) -> str | None:
  """Returns the file with the names of the categories; None if there is none."""
  yaml = [name for name in names if name.endswith((".yaml", ".yml"))]
  lists = [name for name in names if posixpath.basename(name) in _LISTS]
  return min(
    yaml or lists,
    key=lambda name: (name.count("/"), not posixpath.basename(name).startswith("data"), name),
    default=None,
  )


def _label_files(names: Sequence[str]) -> list[str]:
  texts = [name for name in names if name.endswith(".txt") and name != settings_file(names)]
  labels = [name for name in texts if _LABELS in name.split("/")[:-1]]
  # Darknet's labels are beside the images.
  return labels or [name for name in texts if not _is_other(posixpath.basename(name))]


def _is_other(file: str) -> bool:
  return file.lower().startswith(("readme", "classes", "train.", "val.", "valid.", "test."))


def _category_names(files: export_files.ExportFiles, path: str) -> Mapping[int, str]:
  name = settings_file(files.names)
  if name is None:
    raise InputError(
      f"{path}: no data.yaml with the category names; use the folder that contains it"
    )
  full = files.full_name(name)
  text = files.read_text(name)
  if posixpath.basename(name) in _LISTS:
    return dict(enumerate(line.strip() for line in text.splitlines()))
  settings = _parse_yaml(text, full)
  if isinstance(settings, dict) and settings.get("kpt_shape"):
    raise InputError(f"{full}: pose labels (kpt_shape) have no masks; use segmentation labels")
  names = settings.get("names") if isinstance(settings, dict) else None
  if isinstance(names, list):
    names = dict(enumerate(names))
  if not isinstance(names, dict) or not names:
    raise InputError(f"{full}: `names` (the category names) is missing")
  try:
    return {int(key): str(value) for key, value in names.items()}
  except (TypeError, ValueError) as error:
    raise InputError(f"{full}: `names` must be a list or a mapping with integer keys") from error


def _parse_yaml(text: str, name: str) -> Any:
  try:
    import yaml
  except ImportError as error:
    raise InputError(f"{name}: reading YAML needs PyYAML; pip install pyyaml") from error
  if len(text) > _MAX_SETTINGS:
    raise InputError(untrusted_files.too_large(name, len(text), _MAX_SETTINGS))
  try:
    return yaml.safe_load(text)
  except (yaml.YAMLError, ValueError, RecursionError) as error:
    reason = " ".join(str(error).split())
    raise InputError(f"{name}: invalid YAML ({reason:.200})") from error


def _photo_stem(name: str) -> str:
  """Returns the path of the image of a label file, without its extension."""
  folder, file = posixpath.split(name)
  parts = folder.split("/")
  if _LABELS in parts:
    # The last such folder, as in ultralytics.
    parts[len(parts) - 1 - parts[::-1].index(_LABELS)] = _PHOTOS
  return photo_path(file.removesuffix(".txt"), "/".join(parts))


def _read_rows(
  text: str, name: str, photo: Photo, names: Mapping[int, str], gatherer: Gatherer
) -> None:
  for number, line in enumerate(text.splitlines(), 1):
    values = line.split()
    if not values:
      continue
    place = f"{name}, line {number}"
    if len(values) == 5 and not gatherer.options.boxes:
      gatherer.export.skip(NEEDS_BOXES, place)
      continue
    try:
      category = geometry.whole(values[0])
      mask = _mask([geometry.number(value) for value in values[1:]], photo.size)
      shape = Shape([], names[category], category)
    except MALFORMED as error:
      reason = f"category {error} has no name" if isinstance(error, KeyError) else error
      gatherer.export.skip(f"invalid row ({reason})", place)
      continue
    gatherer.add(photo, mask, shape)


def _mask(shares: Sequence[float], size: geometry.Size | None) -> Mask:
  height, width = size or (0, 0)
  if min(shares, default=0) < -_SLACK or max(shares, default=0) > 1 + _SLACK:
    raise ValueError("coordinates must be fractions of the sides, between 0 and 1")
  if len(shares) == 4:
    x, y, w, h = shares
    return box((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
  sides = (width, height)
  return geometry.flat_polygon([share * sides[k % 2] for k, share in enumerate(shares)])
