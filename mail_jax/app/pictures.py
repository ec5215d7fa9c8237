"""What the page shows beside the overlay: one instance alone, and thumbnails."""

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from input_pipeline.common import drawing

SIDE = 640  # pixels of the longer side of an instance's picture
_DIMMED = 0.72


def instance_alone(
  image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], chosen: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
  """The photo with everything but one instance dimmed, the instance as it is with an outline.

  Args:
    image: RGB.
    mask: of the instance.
    chosen: whether the model chose it; its outline is yellow then, else white.
  """
  width = max(1, round(max(image.shape[:2]) / 300))
  dimmed = drawing.tint(image, ~mask, (20, 24, 32), _DIMMED)
  return drawing.outline(dimmed, mask, drawing.CHOSEN if chosen else drawing.TARGET, width)


def fit(
  image: UInt8[np.ndarray, "h w 3"], masks: Bool[np.ndarray, "k h w"], side: int = SIDE
) -> tuple[UInt8[np.ndarray, "y x 3"], Bool[np.ndarray, "k y x"]]:
  """Photo and masks with a longer side of `side` pixels: larger ones averaged, smaller ones kept pixel by pixel."""
  size = drawing.fitting_size(image.shape[0], image.shape[1], side)
  if max(image.shape[:2]) > side:
    small = np.array(Image.fromarray(image).resize(size, Image.Resampling.BOX))
  else:
    small = drawing.stretch(image, size)
  fitted = [drawing.stretch(mask, size) for mask in masks]
  return small, np.stack(fitted) if fitted else np.zeros((0, *small.shape[:2]), bool)
