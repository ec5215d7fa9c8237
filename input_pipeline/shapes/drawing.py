"""Objects of generated scenes and how they are painted."""

import cmath
import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageDraw

# Distinct in hue, so that brightness jitter never makes two look alike.
COLOURS = {
  "red": (222, 36, 36),
  "orange": (250, 138, 20),
  "yellow": (246, 226, 52),
  "green": (34, 160, 62),
  "cyan": (64, 216, 224),
  "blue": (40, 76, 226),
  "purple": (128, 44, 176),
  "pink": (255, 140, 200),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
TEXTURES = ("plain", "striped", "dotted")
# Radii in fractions of the image side; nothing lies between the two ranges.
RADII = {"small": (0.086, 0.102), "large": (0.142, 0.176)}

_SUPERSAMPLE = 3
# Fraction of the image side: 6 pixels at 96.
_TEXTURE_PERIOD = 0.062
# Largest extent of an outline along an axis, in radii.
OUTLINE_REACH = 1.27
# Inner radius of a ring divided by its outer radius.
_HOLE = 0.52
# These dark colours have light stripes and dots, the others dark ones.
_DARK = ("blue", "purple", "red", "green")


@dataclasses.dataclass(frozen=True)
class ShapeObject:
  """An object of a scene. Positions and lengths are fractions of the image side.

  Attributes:
    shape: one of SHAPES.
    colour: a key of COLOURS.
    size: "small" or "large".
    texture: one of TEXTURES.
    x: centre, from the left.
    y: centre, from the top.
    radius: of the outline.
    angle: small rotation of the outline, in radians.
    texture_angle: direction of stripes and rows of dots, in radians.
    brightness: factor of the colour, about 1.
  """

  shape: str
  colour: str
  size: str
  texture: str
  x: float
  y: float
  radius: float
  angle: float
  texture_angle: float
  brightness: float


class Painting(NamedTuple):
  """A painted scene.

  Attributes:
    image: the painted image.
    areas: number of pixels of each object, including hidden ones.
    visible: the visible part of each object; these do not overlap.
  """

  image: UInt8[np.ndarray, "s s 3"]
  areas: tuple[int, ...]
  visible: Bool[np.ndarray, "n s s"]


def _circle_points(count: int) -> np.ndarray:
  turn = np.arange(count) * (2 * math.pi / count)
  return np.stack([np.cos(turn), np.sin(turn)], -1)


def _star_points() -> np.ndarray:
  turn = np.arange(10) * (math.pi / 5) - math.pi / 2
  reach = np.where(np.arange(10) % 2 == 0, 1.22, 0.52)[:, None]
  return reach * np.stack([np.cos(turn), np.sin(turn)], -1) + (0, 0.08)


def _cross_points() -> np.ndarray:
  arm = np.array([(-1, -3), (1, -3), (1, -1)])
  turns = [arm @ np.linalg.matrix_power(np.array([(0, 1), (-1, 0)]), k) for k in range(4)]
  return np.concatenate(turns) * 0.36


def _heart_points() -> np.ndarray:
  t = np.arange(28) * (2 * math.pi / 28)
  x = 16 * np.sin(t) ** 3
  y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
  return np.stack([x / 15.0, -(y + 2.5) / 14.5], -1)


# Outlines of radius 1, of about the same perceived size, as complex numbers x + iy.
_OUTLINES = {
  name: np.ascontiguousarray(points, np.float64).view(np.complex128)[:, 0]
  for name, points in {
    "circle": _circle_points(36),
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.88,
    "triangle": np.array([(0, -1.1), (1.16, 0.88), (-1.16, 0.88)]),
    "star": _star_points(),
    "cross": _cross_points(),
    "ring": _circle_points(36) * 1.06,
    "diamond": np.array([(0, -1.25), (0.86, 0), (0, 1.25), (-0.86, 0)]),
    "heart": _heart_points(),
  }.items()
}


class _Patch(NamedTuple):
  """A square part of the image that contains one object, in pixels."""

  left: int
  top: int
  side: int


def _patches(objects: Sequence[ShapeObject], size: int) -> list[_Patch]:
  """Returns the patch of each object, inside the image."""
  patches = []
  for obj in objects:
    reach = OUTLINE_REACH * obj.radius * size + 1
    side = min(int(2 * reach) + 2, size)
    left, top = int(obj.x * size - reach), int(obj.y * size - reach)
    patches.append(_Patch(max(0, min(left, size - side)), max(0, min(top, size - side)), side))
  return patches


def _coverage(
  objects: Sequence[ShapeObject], patches: list[_Patch], size: int
) -> list[Float32[np.ndarray, "p p"]]:
  """Returns the fraction of each pixel of its patch that an object's outline covers."""
  side = max(patch.side for patch in patches)
  # All objects on a single tall canvas: the number of calls, not of pixels, dominates the time.
  canvas = Image.new("L", (side * _SUPERSAMPLE, side * _SUPERSAMPLE * len(objects)))
  draw = ImageDraw.Draw(canvas)
  for row, (obj, patch) in enumerate(zip(objects, patches, strict=True)):
    centre = complex(obj.x * size - patch.left, obj.y * size - patch.top + row * side)
    centre = centre * _SUPERSAMPLE - (0.5 + 0.5j)
    spokes = _OUTLINES[obj.shape] * cmath.rect(obj.radius * size * _SUPERSAMPLE, obj.angle)
    draw.polygon((spokes + centre).view(np.float64).tolist(), fill=255)
    if obj.shape == "ring":
      draw.polygon((spokes * _HOLE + centre).view(np.float64).tolist(), fill=0)
  cover = np.asarray(canvas.reduce(_SUPERSAMPLE), np.float32) * np.float32(1 / 255)
  cover = cover.reshape(len(objects), side, side)
  return [whole[:side, :side] for whole, (_, _, side) in zip(cover, patches, strict=True)]


def _texture(obj: ShapeObject, patch: _Patch, size: int) -> Float32[np.ndarray, "p p"]:
  """Returns the weight of the second colour in each pixel of the patch, in [0, 1]."""
  pixels = np.arange(0.5, patch.side, dtype=np.float32)
  x = pixels[None, :] + (patch.left - obj.x * size)
  y = pixels[:, None] + (patch.top - obj.y * size)
  step = _TEXTURE_PERIOD * size
  cos, sin = math.cos(obj.texture_angle), math.sin(obj.texture_angle)
  u = (x * cos + y * sin) / step
  if obj.texture == "striped":
    edge = step * (np.abs(u - np.floor(u) - 0.5) - 0.28) + 0.5
    return edge.clip(0, 1)
  v = (y * cos - x * sin) / step
  u, v = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
  return (step * (0.34 - np.sqrt(u * u + v * v)) + 0.5).clip(0, 1)


def _colours(obj: ShapeObject, patch: _Patch, size: int) -> Float32[np.ndarray, "..."]:
  """Returns the colours of an object in its patch, or a single colour if it is plain."""
  base = np.array(COLOURS[obj.colour], np.float32) * np.float32(obj.brightness)
  base = base.clip(0, 255)
  if obj.texture == "plain":
    return base
  second = base + (250 - base) * 0.72 if obj.colour in _DARK else base * 0.36
  return base + _texture(obj, patch, size)[..., None] * (second - base)


def draw_background(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "{size} {size} 3"]:
  """Draws a dull, uneven background with thin lines and specks, none of which is an object.

  Args:
    rng: source of randomness.
    size: image side in pixels.

  Returns:
    Colours in [0, 255].
  """
  level = rng.uniform(60, 185)
  # A coarse grid, enlarged smoothly, gives both gradients and patches.
  grid = level + rng.uniform(-30, 30, (3, 3, 1)) + rng.uniform(-9, 9, (3, 3, 3))
  ground = Image.fromarray(grid.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
  draw = ImageDraw.Draw(ground)
  unit = size / 96
  for x0, y0, x1, y1, tone in rng.random((int(rng.integers(2, 6)), 5)).tolist():
    shade = int(level + 110 * (tone - 0.5))
    ends = (x0 * size, y0 * size, x1 * size, y1 * size)
    draw.line(ends, fill=(shade, shade, shade), width=max(1, round(unit * 0.8)))
  palette = list(COLOURS.values())
  for x, y, pick, mix in rng.random((int(rng.integers(5, 13)), 4)).tolist():
    colour = palette[int(pick * len(palette))]
    fill = tuple(int(level + (c - level) * (0.3 + 0.4 * mix)) for c in colour)
    x, y, r = x * size, y * size, 0.8 * unit
    draw.rectangle((x - r, y - r, x + r, y + r), fill=fill)
  grain = rng.integers(-4, 5, (size, size, 1), np.int8)
  return np.asarray(ground, np.float32) + grain


def paint_scene(
  background: Float32[np.ndarray, "s s 3"], objects: tuple[ShapeObject, ...]
) -> Painting:
  """Paints objects on a background, the first one at the back.

  Args:
    background: colours in [0, 255].
    objects: from back to front.

  Returns:
    The image and the masks. A pixel belongs to the topmost object that covers over half of it.
  """
  size = background.shape[0]
  canvas = background.copy()
  visible = np.zeros((len(objects), size, size), bool)
  areas = []
  patches = _patches(objects, size)
  coverage = _coverage(objects, patches, size)
  for index, (obj, patch) in enumerate(zip(objects, patches, strict=True)):
    left, top, side = patch
    box = slice(top, top + side), slice(left, left + side)
    beneath, taken = canvas[box], coverage[index] > 0.5
    beneath += coverage[index][..., None] * (_colours(obj, patch, size) - beneath)
    areas.append(np.count_nonzero(taken))
    visible[:index, *box] &= ~taken
    visible[index][box] = taken
  return Painting((canvas + 0.5).clip(0, 255).astype(np.uint8), tuple(areas), visible)
