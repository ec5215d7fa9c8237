"""Scale jitter: photo, planes and target of a training sample, zoomed alike.

Zooming in crops, but never a pixel of the target; zooming out pads with grey. Expressions of place
stay true: the target's centre stays in the same third of the image, along both axes, and nothing is
cropped where the expression counts ("the second from the left").
"""

import tensorflow as tf

from input_pipeline.tf.record_reader import Fields

NUMBERS = 3
"""Random numbers per sample: for the scale, and for the window's place along both axes."""

_GREY = 127.5
# Words that may count objects, which a crop could remove.
_COUNTING = (
  r"(?s)(?i).*\b(?:first|second|third|fourth|fifth|sixth|seventh|last|middle|mid|cent(?:er|re)|between"
  r"|only|all|both|one|two|three|four|five|six|seven|eight|nine|ten|\d+\w*)\b.*"
)


def zoom(sample: Fields, numbers: tf.Tensor, scale: tuple[float, ...]) -> Fields:
  """Zooms a sample by a random factor between the two of `scale`.

  Args:
    sample: `image`, `instances` and `target`, square, and their `expression`.
    numbers: random, in [0, 1), `NUMBERS` of them.
    scale: smallest and largest factor; 1 changes nothing.

  Returns:
    The sample with the three changed.
  """
  target = sample["target"]
  size = tf.shape(target)[0]
  counts = tf.strings.regex_full_match(sample["expression"], _COUNTING)
  start, side = draw_window(target, counts, numbers, scale)
  at = (tf.range(tf.cast(size, tf.float32)) + 0.5) / tf.cast(size, tf.float32)
  places = tf.cast(tf.floor((start[:, None] + side * at) * tf.cast(size, tf.float32)), tf.int32)
  return sample | {
    "image": _resample(sample["image"], start, side),
    "instances": _take(sample["instances"], places),
    "target": _take(tf.cast(target, tf.uint16)[None], places)[0] > 0,
  }


def draw_window(
  target: tf.Tensor, is_whole: tf.Tensor, numbers: tf.Tensor, scale: tuple[float, ...]
) -> tuple[tf.Tensor, tf.Tensor]:
  """Draws the square window of the image that fills the frame.

  Args:
    target: bool [s, s].
    is_whole: whether the window has to contain the whole image.
    numbers: random, in [0, 1), `NUMBERS` of them.
    scale: see `zoom`.

  Returns:
    Its top and left, and its side, in sides of the image; it may extend beyond the image.
  """
  extents = _extent(target, 1), _extent(target, 0)
  first, last = (tf.stack(edges) for edges in zip(*extents, strict=True))
  first, last = tf.cond(
    tf.logical_or(is_whole, tf.logical_not(tf.reduce_any(target))),
    lambda: (tf.zeros(2), tf.ones(2)),
    lambda: (first, last),
  )
  factor = scale[0] + (scale[1] - scale[0]) * numbers[0]
  side = tf.maximum(1 / factor, tf.reduce_max(last - first))
  # What the window must contain: the target, and of the image as much as it can.
  lowest = tf.maximum(last - side, tf.minimum(0.0, 1 - side))
  highest = tf.minimum(first, tf.maximum(0.0, 1 - side))
  centre = (first + last) / 2
  third = tf.minimum(tf.floor(3 * centre), 2.0)
  lowest = tf.maximum(lowest, centre - side * (third + 1) / 3)
  highest = tf.minimum(highest, centre - side * third / 3)
  start = lowest + (highest - lowest) * numbers[1:]
  return tf.cond(
    tf.reduce_all(lowest <= highest),
    lambda: (start, side),
    lambda: (tf.zeros(2), tf.constant(1.0)),
  )


def _extent(target: tf.Tensor, axis: int) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns where the target begins and ends along the other axis, in sides of the image."""
  places = tf.cast(tf.where(tf.reduce_any(target, axis))[:, 0], tf.float32)
  size = tf.cast(tf.shape(target)[0], tf.float32)
  return tf.reduce_min(places) / size, (tf.reduce_max(places) + 1) / size


def _resample(image: tf.Tensor, start: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
  """Resizes the window with an antialiased triangle filter, as all images are."""
  size = tf.shape(image)[:2]
  drawn = tf.raw_ops.ScaleAndTranslate(
    images=tf.cast(image, tf.float32)[None] - _GREY,
    size=size,
    scale=tf.repeat(1 / side, 2),
    translation=-start * tf.cast(size, tf.float32) / side,
    kernel_type="triangle",
    antialias=True,
  )[0]
  return tf.saturate_cast(tf.round(drawn + _GREY), tf.uint8)


def _take(planes: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
  """Takes rows and columns of each plane; 0 beyond its edges."""
  size = tf.shape(planes)[1]
  inside = tf.logical_and(places >= 0, places < size)
  rows, columns = tf.unstack(tf.clip_by_value(places, 0, size - 1))
  taken = tf.gather(tf.gather(planes, rows, axis=1), columns, axis=2)
  both = tf.logical_and(inside[0][:, None], inside[1])
  return tf.where(both, taken, tf.zeros([], planes.dtype))
