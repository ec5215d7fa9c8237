"""Reads Supervisely's annotations of images: a JSON file per image in the folder `ann`.

The file `ann/a.jpg.json` belongs to `img/a.jpg`. An object has a description and tags with values;
`--text tags` uses the tags as expressions (developer.supervisely.com). Interiors of polygons are
holes.
"""

import posixpath
from collections.abc import Mapping
from typing import Any

from input_pipeline.custom.converters import geometry
from input_pipeline.custom.converters.collect import NEEDS_BOXES, Export, Options, rows_in, split_in
from input_pipeline.custom.converters.gather import (
  MALFORMED,
  Gatherer,
  Photo,
  Shape,
  has_image_ending,
  photo_path,
  with_ending,
)
from input_pipeline.custom.schema import Mask

_ANNOTATIONS, _PHOTOS = "ann", "img"


def read(path: str, options: Options) -> Export:
  """Reads an export.

  Args:
    path: of a file in `ann`, or of a folder or zip with such files.
    options: how it is read.

  Raises:
    InputError: the file is missing, or no object has an expression.
  """
  gatherer = Gatherer(path, options)
  missing = "no Supervisely annotation (JSON with `size` and the list `objects`)"
  for name, content in gatherer.json_files(is_supervisely, missing):
    _read_photo(content, name, gatherer)
  return gatherer.finish()


def is_supervisely(content: Any) -> bool:
  """Returns whether parsed JSON looks like a Supervisely annotation of an image."""
  return (
    isinstance(content, dict)
    and isinstance(content.get("objects"), list)
    and isinstance(content.get("size"), dict)
  )


def _read_photo(content: Mapping[str, Any], name: str, gatherer: Gatherer) -> None:
  folder, file = posixpath.split(name)
  if posixpath.basename(folder) == _ANNOTATIONS:
    folder = posixpath.join(posixpath.dirname(folder), _PHOTOS)
  image = photo_path(file.removesuffix(".json"), folder)
  if not has_image_ending(image):
    image = with_ending(image, gatherer.photos) or image
  try:
    size = geometry.size_of(content["size"].get("height"), content["size"].get("width"))
  except ValueError as error:
    gatherer.export.skip(f"file with an invalid image size ({error})", name)
    return
  photo = Photo(image, size, split=split_in(folder))
  for row in rows_in(content["objects"]):
    kind = str(row.get("geometryType"))
    if kind == "rectangle" and not gatherer.options.boxes:
      gatherer.export.skip(NEEDS_BOXES, image)
    elif kind not in _SHAPES:
      gatherer.export.skip(f"{kind:.20}: cannot be converted to a mask", image)
    else:
      try:
        mask = _SHAPES[kind](row, size)
      except MALFORMED as error:
        gatherer.export.skip(f"invalid {kind} ({error})", image)
        continue
      label = str(row.get("classTitle") or "")
      gatherer.add(photo, mask, Shape([_texts(row)], label))


def _texts(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an object's description, the value of each tag by name, and all values as `tags`."""
  tags = [(str(tag.get("name")), tag.get("value")) for tag in rows_in(row.get("tags"))]
  # The name of a tag without a value is its text.
  texts = [value if isinstance(value, str) and value else name for name, value in tags]
  named = {name: value for name, value in tags if isinstance(value, str)}
  return named | {"description": row.get("description"), "tags": texts}


def _polygon(row: Mapping[str, Any], size: geometry.Size | None) -> Mask:
  points = row["points"]
  holes = [geometry.polygon(hole) for hole in points.get("interior") or ()]
  return geometry.with_holes(geometry.polygon(points["exterior"]), holes, size)


def _bitmap(row: Mapping[str, Any], size: geometry.Size | None) -> Mask:
  left, top = (geometry.whole(value) for value in row["bitmap"]["origin"])
  return geometry.bitmap(geometry.decode_png(row["bitmap"]["data"]), left, top, size)


def _rectangle(row: Mapping[str, Any], size: geometry.Size | None) -> Mask:
  (x, y), (a, b) = ([geometry.number(v) for v in point] for point in row["points"]["exterior"])
  return geometry.polygon([(x, y), (a, y), (a, b), (x, b)])


_SHAPES = {"polygon": _polygon, "bitmap": _bitmap, "rectangle": _rectangle}
