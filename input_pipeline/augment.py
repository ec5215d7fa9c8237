"""What chance does to a training sample: its sentence, a mirror image, other light and colours."""

import tensorflow as tf

from input_pipeline.record_reader import Fields

# Weights of red, green and blue in a gray value (ITU-R BT.601).
_GRAY = (0.299, 0.587, 0.114)


def augment(sample: Fields, draws: tf.Tensor, flip: bool, jitter: float) -> Fields:
  """Chooses a sentence and changes the picture.

  Args:
    sample: `image`, `instances` and `target`, and all `sentences` of the ref.
    draws: five numbers in [0, 1), one for each choice.
    flip: whether half of the samples are mirrored: image, planes and target alike. The text is
      left to whoever reads `flipped`.
    jitter: brightness, contrast and saturation change by a factor in [1 - jitter, 1 + jitter].

  Returns:
    The sample with one `sentence` and `flipped`.
  """
  sentences = sample["sentences"]
  choice = tf.cast(draws[0] * tf.cast(tf.size(sentences), tf.float32), tf.int32)
  flipped = tf.logical_and(flip, draws[1] < 0.5)
  image, instances, target = sample["image"], sample["instances"], sample["target"]
  if flip:
    image, instances, target = tf.cond(
      flipped,
      lambda: (tf.reverse(image, [1]), tf.reverse(instances, [2]), tf.reverse(target, [1])),
      lambda: (image, instances, target),
    )
  return {
    "image": _jitter(image, 1.0 + jitter * (2.0 * draws[2:] - 1.0)) if jitter else image,
    "instances": instances,
    "num_instances": sample["num_instances"],
    "target": target,
    "sentence": sentences[choice],
    "flipped": flipped,
  }


def _jitter(image: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
  """Brightness, then contrast about the mean gray, then saturation, in one pass over the pixels.

  With y = contrast * brightness * x + offset, saturation * y + (1 - saturation) * gray(y) is a
  weighted sum of x, gray(x) and the same offset, because the gray weights sum to 1.
  """
  brightness, contrast, saturation = tf.unstack(factors)
  pixels = tf.cast(image, tf.float32)
  gray = tf.linalg.matvec(pixels, tf.constant(_GRAY))[..., None]
  scale = contrast * brightness
  offset = (1.0 - contrast) * brightness * tf.reduce_mean(gray)
  changed = pixels * (scale * saturation) + (gray * (scale * (1.0 - saturation)) + offset)
  return tf.cast(tf.clip_by_value(changed, 0.0, 255.0) + 0.5, tf.uint8)
