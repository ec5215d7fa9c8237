"""The Python API: a photo and expressions in, masks out."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from input_pipeline import drawing, one_photo, preprocess
from mail_jax import trained
from mail_jax.resize import resize_logits

# Results are made on canvases of a multiple of this many pixels, so that few sizes are compiled.
_CANVAS = 64


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """What the model says of one expression.

  Attributes:
    image: the photo, RGB.
    expression: as it was given.
    mask: where the referent is, at the photo's size.
    probability: of each pixel, in [0, 1]; the mask is where it exceeds 0.5.
    instances: the instance masks that the model chose from, best score first.
    instance_probability: of each instance to be the one that is meant; with that of "none of them" they sum to 1.
    chosen: index of the instance that is meant; None for none of them.
    was_cut: whether the expression was longer than the model reads.
  """

  image: UInt8[np.ndarray, "h w 3"]
  expression: str
  mask: Bool[np.ndarray, "h w"]
  probability: Float32[np.ndarray, "h w"]
  instances: Bool[np.ndarray, "k h w"]
  instance_probability: Float32[np.ndarray, "k"]
  chosen: int | None
  was_cut: bool

  def overlay(self) -> UInt8[np.ndarray, "h w 3"]:
    """The photo with the mask in blue and the outline of the chosen instance in yellow."""
    return drawing.overlay(
      self.image, self.mask, chosen=None if self.chosen is None else self.instances[self.chosen]
    )


class Segmenter:
  """A trained model, ready for photos.

  ```python
  segmenter = Segmenter.load("runs/demo")
  result = segmenter("photo.jpg", "the leftmost star")
  ```
  """

  def __init__(self, model: trained.Trained):
    """Args: model: as `trained.load` returns it."""
    self._trained = model
    self._variables = model.on_one_device()

    def predict(variables, batch, canvas):
      output = model.apply(variables, batch)
      logits = resize_logits(output.logits, batch["original_size"], canvas)
      return jax.nn.sigmoid(logits), jax.nn.softmax(output.selection_logits, -1)

    self._predict = jax.jit(predict, static_argnames="canvas")

  @classmethod
  def load(cls, workdir: str, which: str = "best") -> "Segmenter":
    """Loads the best (or the `last`) checkpoint of a training run, or an exported model; see `trained.load`."""
    return cls(trained.load(workdir, which))

  def __call__(
    self,
    image: str | bytes | UInt8[np.ndarray, "h w 3"],
    expression: str,
    instances: Bool[np.ndarray, "k h w"] | None = None,
  ) -> Segmentation:
    """Segments what the expression refers to.

    Args:
      image: a path, the bytes of a file, or RGB pixels.
      expression: what to look for.
      instances: masks from a detector, best score first; the model works without, less well.

    Raises:
      InputError: no image, no expression, or masks of another size than the image.
    """
    pixels = preprocess.open_image(image)
    height, width = pixels.shape[:2]
    masks = preprocess.check_instances(instances, height, width)
    config = self._trained.config
    batch, was_cut = one_photo.prepare(
      pixels, [expression], masks, self._trained.tokenizer,
      image_size=config.image_size, max_instances=config.max_instances, max_tokens=config.max_tokens,
    )  # fmt: skip
    batch["original_size"] = np.array([pixels.shape[:2]], np.int32)
    canvas = (-(-height // _CANVAS) * _CANVAS, -(-width // _CANVAS) * _CANVAS)
    probability, weights = jax.device_get(self._predict(self._variables, batch, canvas))
    count = int(batch["num_instances"][0])
    best = int(np.argmax(weights[0]))
    return Segmentation(
      image=pixels,
      expression=expression,
      mask=probability[0, :height, :width] > 0.5,
      probability=probability[0, :height, :width],
      instances=masks[:count],
      instance_probability=weights[0, :count],
      chosen=best if best < count else None,
      was_cut=bool(was_cut[0]),
    )
