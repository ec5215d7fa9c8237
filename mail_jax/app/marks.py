"""Instance masks that a visitor points at: by a click, a box or a stroke.

The photo is cut into segments as in Felzenszwalb and Huttenlocher, "Efficient graph-based image
segmentation", IJCV 2004, and a mark takes those that it means.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import cast

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from input_pipeline.common.errors import InputError
from mail_jax.app.limits import Limits

SIDE = 192
"""Longer side of the image that is segmented, in pixels."""
SCALES = (300.0, 1000.0, 3000.0, 100.0)
"""Of the segments that clicks on a point choose, one after the other."""
_FINE = 100.0
# Of scenes, what marks take overlaps the object more with these than with 20 and 0.8, the usual.
_MIN_SEGMENT = 60
_SIGMA = 0.5
# Shares of a segment's area that must be inside a box or a loop, and of a stroke's length that must
# be inside a segment, for it to be taken.
_INSIDE, _ALONG = 0.75, 0.08
# What a box takes must fill this share of it; otherwise the mask is the box itself.
_FILLED = 0.25
# A stroke that ends this close to its start, as a share of its box's diagonal, encloses its object.
_CLOSED = 0.2
_NUMBER = r"(?:0(?:\.\d{1,4})?|1(?:\.0{1,4})?)"
_LINE = re.compile(rf"(point|box|stroke)((?: {_NUMBER},{_NUMBER})+)(?: \+(\d))?")


@dataclasses.dataclass(frozen=True)
class Mark:
  """What a visitor drew on a photo.

  Attributes:
    kind: `point`, `box` (two opposite corners) or `stroke`.
    points: (x, y) as fractions of the photo's width and height, in [0, 1].
    larger: how often a point was clicked again, each time for the next larger segment.
  """

  kind: str
  points: tuple[tuple[float, float], ...]
  larger: int = 0

  def __str__(self) -> str:
    """Returns the line that `read` takes."""
    points = " ".join(f"{x:.4g},{y:.4g}" for x, y in self.points)
    return f"{self.kind} {points}" + (f" +{self.larger}" if self.larger else "")


def read(text: str | None, limits: Limits) -> list[Mark]:
  """Reads marks, one per line: `point 0.5,0.25 +1`, `box 0.1,0.2 0.4,0.6`, `stroke ...`.

  Raises:
    InputError: too many marks, too many points, or a line that is not a mark.
  """
  text = text or ""
  lines = [line for line in text.split("\n", limits.marks + 1) if line]
  if len(lines) > limits.marks:
    raise InputError(
      f"More than {limits.marks} instances are marked on the photo; remove some of them."
    )
  return [_read_line(line, number, limits) for number, line in enumerate(lines, 1)]


def _read_line(line: str, number: int, limits: Limits) -> Mark:
  # A point has at most 14 characters.
  if len(line) > 20 + 14 * limits.mark_points:
    raise InputError(
      f"Mark {number} on the photo has more than {limits.mark_points} points: draw it shorter."
    )
  match = _LINE.fullmatch(line)
  if match is None:
    raise InputError(f"Mark {number} on the photo cannot be read: remove it and draw it again.")
  kind, rest, larger = match[1], match[2].split(), int(match[3] or 0)
  points = tuple((float(x), float(y)) for x, y in (point.split(",") for point in rest))
  most = {"point": 1, "box": 2}.get(kind, limits.mark_points)
  if len(points) > most or (kind == "box" and len(points) < 2):
    raise InputError(
      f"Mark {number} on the photo has {len(points)} points: a point has one, a box two, and a "
      f"stroke at most {limits.mark_points}."
    )
  return Mark(kind, points, larger)


class Segments:
  """The segments of a photo at several scales; thread-safe."""

  def __init__(self, photo: UInt8[np.ndarray, "h w 3"]):
    """Prepares a photo, of which only a small copy is kept."""
    height, width = photo.shape[:2]
    self._size = (height, width)
    shrink = min(1.0, SIDE / max(height, width))
    small = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    self._pixels = np.asarray(Image.fromarray(photo).resize(small, Image.Resampling.BOX))
    self._at_scale = functools.cache(self._segment)

  def masks(self, marks: Sequence[Mark], side: int = 0) -> Bool[np.ndarray, "k y x"]:
    """Returns the mask of each mark; never an empty one.

    Args:
      marks: on this photo.
      side: the longer side of the masks; 0 for the size of the photo.
    """
    height, width = self._size
    if side:
      scale = side / max(height, width)
      height, width = max(1, round(height * scale)), max(1, round(width * scale))
    masks = [_resize(self._mask(mark), height, width) for mark in marks]
    return np.stack(masks) if masks else np.zeros((0, height, width), bool)

  def _segment(self, scale: float) -> Int[np.ndarray, "y x"]:
    # Marks are read and written without it.
    from skimage import segmentation  # pyright: ignore[reportMissingImports]

    return segmentation.felzenszwalb(
      self._pixels, scale=scale, sigma=_SIGMA, min_size=_MIN_SEGMENT, channel_axis=-1
    )

  def _mask(self, mark: Mark) -> Bool[np.ndarray, "y x"]:
    if mark.kind == "point":
      return self._at_point(mark)
    if mark.kind == "box":
      return self._within(self._area(mark, closed=True))
    line = self._area(mark, closed=False)
    if _is_closed(mark):
      return self._within(self._area(mark, closed=True) | line)
    segments = self._at_scale(_FINE)
    along = np.bincount(segments[line], minlength=segments.max() + 1) / line.sum()
    return _fill_holes((along >= _ALONG)[segments] | line)

  def _at_point(self, mark: Mark) -> Bool[np.ndarray, "y x"]:
    height, width = self._pixels.shape[:2]
    x, y = mark.points[0]
    row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
    choices: list[Bool[np.ndarray, "y x"]] = []
    for scale in SCALES:
      segments = self._at_scale(scale)
      mask = _fill_holes(segments == segments[row, column])
      if not any(np.array_equal(mask, other) for other in choices):
        choices.append(mask)
      if len(choices) > mark.larger:
        break
    return choices[mark.larger % len(choices)]

  def _within(self, area: Bool[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Returns the segments that lie inside an area, or the area if they fill too little of it."""
    segments = self._at_scale(_FINE)
    inside = np.bincount(segments[area], minlength=segments.max() + 1) / np.bincount(
      segments.ravel()
    )
    mask = _fill_holes((inside >= _INSIDE)[segments] & area)
    return mask if mask.sum() >= _FILLED * area.sum() else area

  def _area(self, mark: Mark, closed: bool) -> Bool[np.ndarray, "y x"]:
    """Draws a mark: its line, or the area that it encloses."""
    height, width = self._pixels.shape[:2]
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    points = [(x * (width - 1), y * (height - 1)) for x, y in mark.points]
    if mark.kind == "box":
      (left, top), (right, bottom) = np.sort(np.array(points), axis=0).tolist()
      draw.rectangle((left, top, right, bottom), fill=1)
    elif closed:
      draw.polygon(points, fill=1, outline=1)
    elif len(points) > 1:
      draw.line(points, fill=1, width=3, joint="curve")
    draw.point(points, fill=1)
    return np.asarray(canvas)


def _fill_holes(mask: Bool[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
  return cast(np.ndarray, ndimage.binary_fill_holes(mask))


def _is_closed(mark: Mark) -> bool:
  points = np.array(mark.points)
  gap, diagonal = np.linalg.norm(points[0] - points[-1]), np.linalg.norm(np.ptp(points, axis=0))
  return len(points) > 3 and bool(gap <= _CLOSED * diagonal)


def _resize(mask: Bool[np.ndarray, "_ _"], height: int, width: int) -> Bool[np.ndarray, "h w"]:
  """Resizes a mask, with smooth outlines instead of stairs."""
  if mask.shape == (height, width):
    return mask
  soft = Image.fromarray(mask.astype(np.uint8) * 255)
  smooth = np.asarray(soft.resize((width, height), Image.Resampling.BILINEAR)) > 127
  nearest = Image.Resampling.NEAREST
  return smooth if smooth.any() else np.asarray(soft.resize((width, height), nearest)) > 127
