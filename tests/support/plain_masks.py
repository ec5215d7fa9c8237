"""COCO's run lengths by NumPy and a loop: the reference of `decode_segmentation`."""

import numpy as np


def plain_decode(lengths: list[int], height: int, width: int) -> np.ndarray | None:
  """Decodes run lengths by NumPy alone; returns None if they do not cover the image."""
  if any(length < 0 for length in lengths) or sum(lengths) != height * width:
    return None
  values = np.arange(len(lengths)) % 2 == 1
  return np.repeat(values, lengths).reshape(width, height).T


def plain_lengths(text: bytes) -> list[int] | None:
  """Decodes COCO's string character by character; returns None if it is invalid."""
  lengths: list[int] = []
  group: list[int] = []
  for byte in text:
    if not 48 <= byte < 112:
      return None
    group.append(byte - 48)
    if byte - 48 < 32:
      value = sum((bits % 32) * 32**place for place, bits in enumerate(group))
      if group[-1] >= 16:
        value -= 32 ** len(group)
      lengths.append(value + (lengths[-2] if len(lengths) >= 3 else 0))
      group = []
  return None if group else lengths
