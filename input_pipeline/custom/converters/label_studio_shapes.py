"""Converts Label Studio's shapes to masks; coordinates are percentages of the image's sides."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from input_pipeline.custom.converters import geometry
from input_pipeline.custom.schema import Mask
from input_pipeline.masks.segmentation import check_size, encode_segmentation

# Red, green, blue and alpha.
_BRUSH_CHANNELS = 4
_DATA_URL = "data:image/png;base64,"


def kind_of(row: Mapping[str, Any]) -> str:
  """Returns the kind of shape of a row of `result`; `polygonlabels` counts as `polygon`."""
  return str(row.get("type", "")).lower().removesuffix("labels")


def size_of(row: Mapping[str, Any]) -> geometry.Size:
  """Returns height and width of the image as seen by the annotator.

  Raises:
    ValueError: invalid height or width, or the image was rotated in the tool.
  """
  if row.get("image_rotation"):
    turn = row["image_rotation"]
    raise ValueError(f"the image was rotated by {turn} degrees in the tool; undo this there")
  height, width = (geometry.whole(row.get(f"original_{side}")) for side in ("height", "width"))
  check_size(height, width)
  return height, width


def read_shape(row: Mapping[str, Any]) -> Mask:
  """Returns the mask of a row; polygons may extend beyond the border.

  Args:
    row: of `result`; `kind_of` is one of `SHAPES`.

  Raises:
    ValueError: the row is invalid.
  """
  kind = kind_of(row)
  try:
    return SHAPES[kind](row["value"], size_of(row))
  except KeyError as error:
    raise ValueError(f"invalid {kind} ({error} is missing)") from error
  except (TypeError, AttributeError, IndexError, OverflowError, ValueError) as error:
    raise ValueError(f"invalid {kind} ({error})") from error


def _polygon(value: Mapping[str, Any], size: geometry.Size) -> Mask:
  if value.get("closed") is False:
    raise ValueError("not closed")
  return _outline([(x, y) for x, y in value["points"]], size)


def _vector(value: Mapping[str, Any], size: geometry.Size) -> Mask:
  vertices = value["vertices"]
  if not value.get("closed") or any(vertex.get("isBezier") for vertex in vertices):
    raise ValueError("only closed vectors without curves are supported")
  return _outline([(vertex["x"], vertex["y"]) for vertex in vertices], size)


def _outline(points: Sequence[tuple[Any, Any]], size: geometry.Size) -> Mask:
  _check_percent(x for point in points for x in point)
  return geometry.polygon([_pixels(x, y, size) for x, y in points])


def _check_percent(values: Iterable[Any]) -> None:
  """Raises ValueError for values that look like fractions of the sides."""
  if all(-0.05 <= geometry.number(value) <= 1.05 for value in values):
    raise ValueError(
      "all coordinates are between 0 and 1, but Label Studio uses percentages; multiply by 100"
    )


def _pixels(x: Any, y: Any, size: geometry.Size) -> tuple[float, float]:
  """Returns a point, or a width and a height, in pixels."""
  return geometry.number(x) * size[1] / 100, geometry.number(y) * size[0] / 100


def _rectangle(value: Mapping[str, Any], size: geometry.Size) -> Mask:
  """Reads a box, rotated around its upper left corner."""
  _check_percent(value[key] for key in ("x", "y", "width", "height"))
  corner = _pixels(value["x"], value["y"], size)
  w, h = _pixels(value["width"], value["height"], size)
  points = [(0.0, 0.0), (w, 0.0), (w, h), (0.0, h)]
  return geometry.turn(points, corner, geometry.number(value.get("rotation") or 0))


def _ellipse(value: Mapping[str, Any], size: geometry.Size) -> Mask:
  _check_percent(value[key] for key in ("x", "y", "radiusX", "radiusY"))
  centre = _pixels(value["x"], value["y"], size)
  radii = _pixels(value["radiusX"], value["radiusY"], size)
  return geometry.ellipse(centre, radii, geometry.number(value.get("rotation") or 0))


def _brush(value: Mapping[str, Any], size: geometry.Size) -> Mask:
  if value.get("format") != "rle" or not isinstance(value["rle"], list):
    raise ValueError("the format is not rle")
  return {"rle": encode_segmentation(decode_brush(value["rle"], *size))}


def _bitmask(value: Mapping[str, Any], size: geometry.Size) -> Mask:
  """Reads a PNG with the object's pixels on a transparent background."""
  url = value["imageDataURL"]
  if not url.startswith(_DATA_URL):
    raise ValueError(f"the URL does not start with {_DATA_URL}")
  pixels = geometry.decode_png(url.removeprefix(_DATA_URL))
  if pixels.all():
    raise ValueError("it covers the whole image; the background must be transparent")
  if pixels.shape != size:
    height, width = pixels.shape
    raise ValueError(f"{width} x {height} pixels for an image of {size[1]} x {size[0]}")
  return {"rle": encode_segmentation(pixels)}


SHAPES = {
  "polygon": _polygon,
  "vector": _vector,
  "rectangle": _rectangle,
  "ellipse": _ellipse,
  "brush": _brush,
  "magicwand": _brush,
  "bitmask": _bitmask,
}
"""Readers by kind of shape."""
CONVEX = ("rectangle", "ellipse")
"""Shapes that may legitimately extend beyond the border."""


def decode_brush(
  data: Sequence[int], height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
  """Decodes a brush mask, a bit stream written by rle-pack (github.com/thi-ng/umbrella).

  Args:
    data: bytes: the number of values (32 bits), the bits per value minus 1 (5 bits) and four bit
      widths of lengths minus 1 (4 bits each), followed by runs: whether one value is repeated (1
      bit), the index of the length's width (2 bits), the length minus 1, and the values.
    height: of the image, in pixels.
    width: of the image, in pixels.

  Raises:
    ValueError: the data is malformed or has another size.
  """
  raw = bytes(data)
  total = 8 * len(raw)
  position = 0

  def take(count: int) -> int:
    nonlocal position
    position += count
    if position > total:
      raise ValueError("truncated brush")
    first = (position - count) >> 3
    last = -(-position // 8)
    window = int.from_bytes(raw[first:last])
    return (window >> (8 * last - position)) & ((1 << count) - 1)

  count = take(32)
  if count != height * width * _BRUSH_CHANNELS:
    raise ValueError(f"the brush has {count} values for {width} x {height} pixels")
  value_bits = take(5) + 1
  length_bits = [take(4) + 1 for _ in range(4)]
  values = np.zeros(count, np.uint32)
  start = 0
  while start < count:
    repeated = take(1)
    end = start + 1 + take(length_bits[take(2)])
    if end > count:
      raise ValueError("a run exceeds the brush")
    if repeated:
      values[start:end] = take(value_bits)
    else:
      values[start:end] = [take(value_bits) for _ in range(end - start)]
    start = end
  return values.reshape(height, width, _BRUSH_CHANNELS)[..., 3] != 0
