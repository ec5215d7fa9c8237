"""Text, image and mask preparation that training, evaluation, prediction and export share."""

from .images import (
  ENDINGS,
  FORMATS,
  MAX_FILE,
  MAX_PIXELS,
  TooManyPixels,
  check_instances,
  decode_image,
  empty_text,
  exchange_left_right,
  nearest_indices,
  normalise_text,
  open_head,
  open_image,
  read_orientation,
  resize_image,
  resize_planes,
)

__all__ = [
  "ENDINGS",
  "FORMATS",
  "MAX_FILE",
  "MAX_PIXELS",
  "TooManyPixels",
  "check_instances",
  "decode_image",
  "empty_text",
  "exchange_left_right",
  "nearest_indices",
  "normalise_text",
  "open_head",
  "open_image",
  "read_orientation",
  "resize_image",
  "resize_planes",
]
