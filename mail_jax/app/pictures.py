"""What the page draws: masks of several expressions together, single instances, marked areas."""

import base64
import io
from collections.abc import Sequence
from typing import cast

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from input_pipeline.common import drawing

# The longer side of an instance's picture, of one with several expressions, and of the marked
# areas, in pixels.
SIDE, TOGETHER_SIDE, MARKED_SIDE = 640, 1280, 640
_DIMMED = 0.72

COLOURS = (
  drawing.PREDICTION,
  (230, 159, 0),
  (0, 158, 115),
  (204, 121, 167),
  (240, 228, 66),
  (213, 94, 0),
  (86, 180, 233),
  (240, 240, 240),
)
"""Of the expressions, in their order: those of Okabe and Ito, "Color universal design", 2008, which
differ for colour-blind people too, after the blue of all other pictures; white in place of black.
"""


def together(
  image: UInt8[np.ndarray, "h w 3"], masks: Sequence[Bool[np.ndarray, "h w"]]
) -> UInt8[np.ndarray, "y x 3"]:
  """Draws masks in the colours of their expressions, each with its number, from 1.

  Args:
    image: RGB.
    masks: of the expressions, in their order; at most as many as `COLOURS`.

  Returns:
    The picture, with a longer side of `TOGETHER_SIDE`.
  """
  picture, fitted = fit(image, np.stack(masks), TOGETHER_SIDE)
  width = max(2, round(TOGETHER_SIDE / 360))
  # The largest first, so that it does not hide the others.
  order = np.argsort(-fitted.sum((1, 2)), kind="stable").tolist()
  for k in order:
    picture = drawing.tint(picture, fitted[k], COLOURS[k])
    picture = drawing.outline(picture, fitted[k], COLOURS[k], width)
  canvas = Image.fromarray(picture)
  for k in order:
    if fitted[k].any():
      _number(ImageDraw.Draw(canvas), fitted[k], k)
  return np.asarray(canvas)


def _number(draw: ImageDraw.ImageDraw, mask: Bool[np.ndarray, "y x"], k: int) -> None:
  """Writes the number of an expression where its mask is widest."""
  depth = cast(np.ndarray, ndimage.distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
  row, column = np.unravel_index(int(depth.argmax()), depth.shape)
  x, y, radius = int(column), int(row), round(TOGETHER_SIDE / 64)
  height, width = mask.shape
  # Whole inside the picture.
  x = max(min(x, width - radius - 3), radius + 2)
  y = max(min(y, height - radius - 3), radius + 2)
  box = (x - radius, y - radius, x + radius, y + radius)
  draw.ellipse(box, fill=COLOURS[k], outline="black", width=2)
  font = ImageFont.load_default(round(1.3 * radius))
  draw.text((x, y), str(k + 1), fill=ink(COLOURS[k]), font=font, anchor="mm")


def ink(colour: tuple[int, int, int]) -> str:
  """Returns the colour of text on a colour: white or black, whichever has the higher contrast."""
  channels = np.array(colour) / 255
  linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
  luminance = float(linear @ (0.2126, 0.7152, 0.0722))
  return "white" if 1.05 / (luminance + 0.05) >= (luminance + 0.05) / 0.05 else "black"


def css(colour: tuple[int, int, int]) -> str:
  """Returns a colour as CSS writes it."""
  return "#{:02x}{:02x}{:02x}".format(*colour)


def draw_instance(
  image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], selected: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
  """Outlines an instance and dims the rest of the image.

  Args:
    image: RGB.
    mask: of the instance.
    selected: whether the model selected it; the outline is yellow then, otherwise white.
  """
  width = max(1, round(max(image.shape[:2]) / 300))
  dimmed = drawing.tint(image, ~mask, (20, 24, 32), _DIMMED)
  return drawing.outline(dimmed, mask, drawing.SELECTED if selected else drawing.TARGET, width)


def fit(
  image: UInt8[np.ndarray, "h w 3"], masks: Bool[np.ndarray, "k h w"], side: int = SIDE
) -> tuple[UInt8[np.ndarray, "y x 3"], Bool[np.ndarray, "k y x"]]:
  """Resizes an image and masks to a longer side of `side`: averages, or repeats pixels."""
  size = drawing.fitting_size(image.shape[0], image.shape[1], side)
  if max(image.shape[:2]) > side:
    small = np.array(Image.fromarray(image).resize(size, Image.Resampling.BOX))
  else:
    small = drawing.stretch(image, size)
  fitted = [drawing.stretch(mask, size) for mask in masks]
  return small, np.stack(fitted) if fitted else np.zeros((0, *small.shape[:2]), bool)


def marked(masks: Bool[np.ndarray, "k h w"]) -> str:
  """Draws masks on a transparent ground, to be laid over the photo; returns a `data:` address."""
  height, width = masks.shape[1:]
  shades = np.zeros((height, width), np.uint8)
  outlines = np.zeros((height, width, 3), np.uint8)
  for mask in masks:
    shades[mask] = 1
    outlines = drawing.outline(outlines, mask, (1, 1, 1), 2)
  edge = outlines.any(-1)
  dark = cast(np.ndarray, ndimage.binary_dilation(edge)) & ~edge
  shades[dark], shades[edge] = 2, 3
  picture = Image.fromarray(shades, "P")
  picture.putpalette(
    [255, 255, 255, 0, 255, 255, 255, 90, 0, 0, 0, 170, 255, 255, 255, 255], "RGBA"
  )
  buffer = io.BytesIO()
  picture.save(buffer, "PNG")
  return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
