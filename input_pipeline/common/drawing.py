"""Images for people: overlays and contact sheets."""

import colorsys
import io
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from input_pipeline.common import atomic_files
from input_pipeline.common.errors import InputError

PREDICTION = (30, 110, 255)
TARGET = (255, 255, 255)
SELECTED = (255, 200, 0)
LEGEND = "blue: prediction, white: outline of the target, yellow: outline of the selected instance"
"""The colours of `overlay`."""


def tint(
  image: UInt8[np.ndarray, "h w 3"],
  mask: Bool[np.ndarray, "h w"],
  colour: tuple[int, int, int],
  strength: float = 0.5,
) -> UInt8[np.ndarray, "h w 3"]:
  """Blends a colour into the mask; `strength` is its share, in [0, 1]."""
  mixed = image * (1 - strength) + np.array(colour) * strength
  return np.where(mask[..., None], mixed, image).astype(np.uint8)


def outline(
  image: UInt8[np.ndarray, "h w 3"],
  mask: Bool[np.ndarray, "h w"],
  colour: tuple[int, int, int],
  width: int = 1,
) -> UInt8[np.ndarray, "h w 3"]:
  """Draws the inner edge of the mask, `width` pixels wide, with a dark line around it."""
  inner = mask.copy()
  for _ in range(width):
    inner = _erode(inner)
  result = image.copy()
  result[~_erode(~mask) & ~mask] = 0
  result[mask & ~inner] = colour
  return result


def _erode(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
  padded = np.pad(mask, 1, mode="edge")
  return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def overlay(
  image: UInt8[np.ndarray, "h w 3"],
  prediction: Bool[np.ndarray, "h w"],
  target: Bool[np.ndarray, "h w"] | None = None,
  selected: Bool[np.ndarray, "h w"] | None = None,
  colour: tuple[int, int, int] = PREDICTION,
) -> UInt8[np.ndarray, "h w 3"]:
  """Tints the prediction; outlines the selected instance and the target. See `LEGEND`."""
  width = max(1, round(max(image.shape[:2]) / 300))
  result = tint(image, prediction, colour)
  if selected is not None:
    result = outline(result, selected, SELECTED, width)
  return result if target is None else outline(result, target, TARGET, width)


def instance_overlay(
  image: UInt8[np.ndarray, "h w 3"],
  instances: Bool[np.ndarray, "k h w"],
  target: Bool[np.ndarray, "h w"],
  best: int | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
  """Tints each instance; outlines the best one in yellow and, inside it, the target in white."""
  width = max(1, round(max(image.shape[:2]) / 300))
  # The largest first, so that it does not hide the others.
  for k in np.argsort(-instances.sum((1, 2)), kind="stable"):
    image = tint(image, instances[k], _instance_colour(int(k)), 0.45)
  if best is not None:
    image = outline(image, instances[best], SELECTED, 3 * width)
  return outline(image, target, TARGET, width)


def _instance_colour(number: int) -> tuple[int, int, int]:
  """Returns one of a series of hues a golden ratio apart: neighbours differ, and none repeats."""
  red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.9, 1)
  return round(255 * red), round(255 * green), round(255 * blue)


def fitting_size(height: int, width: int, side: int) -> tuple[int, int]:
  """Returns (width, height) of an image of the same aspect ratio whose longer side is `side`."""
  scale = side / max(height, width)
  return max(1, round(width * scale)), max(1, round(height * scale))


def encode_jpeg(pixels: UInt8[np.ndarray, "h w 3"], quality: int = 80) -> bytes:
  """Encodes an image as JPEG, at a quality of 1 to 95; equal pixels give equal bytes."""
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, optimize=True)
  return buffer.getvalue()


def stretch(
  image: Shaped[np.ndarray, "h w ..."], size: tuple[int, int]
) -> Shaped[np.ndarray, "y x ..."]:
  """Resizes an image or a mask to (width, height) by nearest neighbour."""
  return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST))


def contact_sheet(
  tiles: Sequence[UInt8[np.ndarray, "_ _ 3"]],
  captions: Sequence[str],
  columns: int = 6,
  side: int = 240,
) -> Image.Image:
  """Returns a sheet of images with captions of up to three lines below.

  Args:
    tiles: the images, at most `side` pixels on a side.
    captions: one per image; line breaks are kept, long lines wrapped.
    columns: images per row.
    side: of a cell, in pixels.
  """
  font, line = ImageFont.load_default(13), 16
  rows, cell = -(-len(tiles) // columns), side + 3 * line + 14
  sheet = Image.new("RGB", (columns * (side + 10) + 10, rows * cell + 10), "white")
  draw = ImageDraw.Draw(sheet)
  for i, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
    left, top = 10 + i % columns * (side + 10), 10 + i // columns * cell
    sheet.paste(Image.fromarray(tile), (left, top))
    for n, text in enumerate(_wrap(caption, font, side)[:3]):
      draw.text((left, top + side + 2 + n * line), text, fill="black", font=font)
  return sheet


def strip_sheet(
  strips: Sequence[Sequence[UInt8[np.ndarray, "_ _ 3"]]],
  captions: Sequence[str],
  title: str,
  columns: int = 2,
  side: int = 150,
) -> Image.Image:
  """Returns a sheet of strips, equally many images side by side, with a line of caption above each.

  Args:
    strips: the images, at most `side` pixels on a side.
    captions: one per strip; what does not fit is cut.
    title: a line at the top.
    columns: strips per row.
    side: of an image, in pixels.
  """
  font, line, gap = ImageFont.load_default(13), 16, 10
  width, height = len(strips[0]) * (side + 4) + gap, side + line + gap
  rows = -(-len(strips) // columns)
  size = (columns * width + gap, rows * height + line + 2 * gap)
  sheet = Image.new("RGB", size, "white")
  draw = ImageDraw.Draw(sheet)
  draw.text((gap, gap), title, fill="black", font=font)
  for i, (tiles, caption) in enumerate(zip(strips, captions, strict=True)):
    left, top = gap + i % columns * width, line + 2 * gap + i // columns * height
    shown = _wrap(caption, font, width - 2 * gap)
    draw.text((left, top), shown[0] + " ..." * (len(shown) > 1), fill="black", font=font)
    for n, tile in enumerate(tiles):
      sheet.paste(Image.fromarray(tile), (left + n * (side + 4), top + line + 2))
  return sheet


def _wrap(caption: str, font, width: int) -> list[str]:
  lines: list[str] = []
  for paragraph in caption.split("\n"):
    lines.append("")
    for word in paragraph.split():
      longer = f"{lines[-1]} {word}".strip()
      if lines[-1] and font.getlength(longer) > width:
        lines.append(word)
      else:
        lines[-1] = longer
  return lines


def check_writable(path: str) -> None:
  """Checks that an image can be written to a path, before any long work.

  Raises:
    InputError: there is no such folder, or the file name's extension is not an image format.
  """
  atomic_files.check_folder(path)
  extension = os.path.splitext(path)[1].lower()
  if Image.registered_extensions().get(extension) not in Image.SAVE:
    raise InputError(f"{path}: unknown image format {extension!r}; use .png")


def save(image: Image.Image, path: str) -> None:
  """Writes an image whole or not at all.

  Raises:
    InputError: see `check_writable`; or the system refuses to write it.
  """
  check_writable(path)
  with atomic_files.whole_file(path) as temporary:
    image.save(temporary)
