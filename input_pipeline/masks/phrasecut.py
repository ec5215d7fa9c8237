"""Which pixels a polygon of PhraseCut covers."""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from input_pipeline.masks import segmentation


def decode(polygons: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
  """Rasterises the polygons of one instance by the rule of the authors' evaluation.

  That is: coordinates without their fractions, Pillow's polygon with its outline. An outline belongs to the region, so
  an object is about half a pixel larger all around than under COCO's rule. Polygons of fewer than two points are left
  out; a pixel in two of them counts once.

  Args:
    polygons: lists of points [x, y], in pixels.
    height: of the image, in pixels.
    width: of the image, in pixels.

  Raises:
    ValueError: that is no list of lists of points, or beyond a limit of `segmentations`.
  """
  if not isinstance(polygons, list):
    raise ValueError(f"{polygons!r:.40} is no list of polygons")
  segmentation.check_size(height, width)
  if len(polygons) > segmentation.MAX_POLYGONS:
    raise ValueError(f"{len(polygons):,} polygons")
  canvas = Image.new("L", (width, height))
  draw = ImageDraw.Draw(canvas)
  for polygon in polygons:
    points = [_point(point) for point in polygon] if isinstance(polygon, list) else None
    if points is None:
      raise ValueError(f"{polygon!r:.40} is no list of points")
    if len(points) >= 2:
      draw.polygon(points, outline=1, fill=1)
  return np.asarray(canvas).astype(bool)


def _point(point: Any) -> tuple[int, int]:
  try:
    x, y = point
    if not max(abs(x), abs(y)) <= segmentation.MAX_COORDINATE or math.isnan(y):
      raise ValueError("nowhere near the image")
    return int(x), int(y)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{point!r:.40} is no point [x, y]") from error
