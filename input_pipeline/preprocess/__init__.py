"""Image, text and mask preparation that training, evaluation, prediction and export share.

Needs NumPy and Pillow alone, and a tokenizer's library where one is used. Exported models ship a
copy of this folder with `common/errors.py` and `common/untrusted_files.py`: imports between these
files are relative, and nothing else of ours is imported.
"""

from .images import (
  EXTENSIONS,
  FORMATS,
  MAX_FILE_BYTES,
  MAX_PIXELS,
  WEB_FORMATS,
  TooManyPixels,
  decode_image,
  open_header,
  open_image,
  read_orientation,
  resize_image,
)
from .masks import (
  check_instances,
  mask_from_logits,
  nearest_indices,
  read_masks,
  resize_logits,
  resize_planes,
)
from .text import empty_text, exchange_left_right, is_expression, normalise_text

__all__ = [
  "EXTENSIONS",
  "FORMATS",
  "MAX_FILE_BYTES",
  "MAX_PIXELS",
  "WEB_FORMATS",
  "TooManyPixels",
  "check_instances",
  "decode_image",
  "empty_text",
  "exchange_left_right",
  "is_expression",
  "mask_from_logits",
  "nearest_indices",
  "normalise_text",
  "open_header",
  "open_image",
  "read_masks",
  "read_orientation",
  "resize_image",
  "resize_logits",
  "resize_planes",
]
