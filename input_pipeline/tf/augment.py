"""What chance does to a training sample: its sentence, a mirror image, and which light and colours it is to have."""

import tensorflow as tf

from input_pipeline.tf.record_reader import Fields


def augment(sample: Fields, draws: tf.Tensor, flip: bool, jitter: float) -> Fields:
  """Chooses a sentence and changes the picture.

  Args:
    sample: `image`, `instances` and `target`, and all `sentences` of the ref.
    draws: five numbers in [0, 1), one for each choice.
    flip: whether half of the samples are mirrored: image, planes and target alike. The text is
      left to whoever reads `flipped`.
    jitter: brightness, contrast and saturation change by a factor in [1 - jitter, 1 + jitter].

  Returns:
    The sample with one `sentence`, `flipped` and, with jitter, `light`: the three factors, float32 [3]. The pixels are
    changed on the device (`mail_jax/colours.py`), where it costs nothing that one would notice.
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
  light = {"light": 1.0 + jitter * (2.0 * draws[2:] - 1.0)} if jitter else {}
  return light | {
    "image": image,
    "instances": instances,
    "num_instances": sample["num_instances"],
    "target": target,
    "sentence": sentences[choice],
    "flipped": flipped,
    **{name: sample[name] for name in ("image_id", "ref_id") if name in sample},
  }
