"""The run lengths of Label Studio's brush: bits, as github.com/thi-ng/umbrella's rle-pack writes them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

_CHANNELS = 4  # red, green, blue, and how much is covered


def decode_brush(
  data: Sequence[int], height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
  """Returns where a brush was.

  Args:
    data: bytes: 32 bits how many values there are, 5 bits their size less 1, four times 4 bits sizes of lengths less 1;
      then runs: a bit whether one value is repeated or each is written, 2 bits which size the length has, the length
      less 1, the values.
    height: of the photo, in pixels.
    width: of the photo, in pixels.

  Raises:
    ValueError: it is not that, or of another size.
  """
  raw = bytes(data)
  total = 8 * len(raw)
  position = 0

  def take(count: int) -> int:
    nonlocal position
    position += count
    if position > total:
      raise ValueError("a brush that breaks off")
    first = (position - count) >> 3
    last = -(-position // 8)
    window = int.from_bytes(raw[first:last])
    return (window >> (8 * last - position)) & ((1 << count) - 1)

  count = take(32)
  if count != height * width * _CHANNELS:
    raise ValueError(f"a brush of {count} values for {width} x {height} pixels")
  word = take(5) + 1
  sizes = [take(4) + 1 for _ in range(4)]
  values = np.zeros(count, np.uint32)
  done = 0
  while done < count:
    repeated = take(1)
    end = done + 1 + take(sizes[take(2)])
    if end > count:
      raise ValueError("a brush whose runs are too long")
    if repeated:
      values[done:end] = take(word)
    else:
      values[done:end] = [take(word) for _ in range(end - done)]
    done = end
  return values.reshape(height, width, _CHANNELS)[..., 3] != 0
