"""Masks from PhraseCut's polygons."""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from input_pipeline.masks import segmentation


def decode(polygons: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
  """Rasterises the polygons of one instance as the authors' evaluation does.

  Coordinates are truncated to integers, and Pillow draws the polygon with its outline. The outline
  belongs to the region, so an object is about half a pixel larger on every side than by COCO's
  rule. Polygons with fewer than two points are ignored; overlaps count once.

  Args:
    polygons: lists of points [x, y], in pixels.
    height: of the image, in pixels.
    width: of the image, in pixels.

  Raises:
    ValueError: the polygons are malformed or exceed a limit in `segmentation.py`.
  """
  if not isinstance(polygons, list):
    raise ValueError(f"{polygons!r:.40} is not a list of polygons")
  segmentation.check_size(height, width)
  if len(polygons) > segmentation.MAX_POLYGONS:
    raise ValueError(f"{len(polygons):,} polygons; the limit is {segmentation.MAX_POLYGONS:,}")
  canvas = Image.new("L", (width, height))
  draw = ImageDraw.Draw(canvas)
  for polygon in polygons:
    points = [_point(point) for point in polygon] if isinstance(polygon, list) else None
    if points is None:
      raise ValueError(f"{polygon!r:.40} is not a list of points")
    if len(points) >= 2:
      draw.polygon(points, outline=1, fill=1)
  return np.asarray(canvas).astype(bool)


def _point(point: Any) -> tuple[int, int]:
  try:
    x, y = point
    if not max(abs(x), abs(y)) <= segmentation.MAX_COORDINATE or math.isnan(y):
      raise ValueError("far outside the image")
    return int(x), int(y)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{point!r:.40} is not a point [x, y]") from error
