"""The Python API: a photo and expressions in, masks out."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from input_pipeline import drawing, one_photo, preprocess
from mail_jax import trained
from mail_jax.models.mail import find_mask
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
    probability: of each pixel, in [0, 1]; the mask is where it exceeds 0.5, and empty where nothing is meant.
    instances: the instance masks that the model chose from, best score first.
    instance_probability: of each instance to be the one that is meant; with that of "none of them" they sum to 1. Of a
      model for several referents (`model.selection` is `multi`): of each to be one of those that are meant.
    chosen: index of the instance that is meant, the likeliest of several; None for none of them.
    was_cut: whether the expression was longer than the model reads.
    no_target_probability: that nothing in the photo is meant; above 0.5 the mask is empty. None of a model that does
      not say (`model.no_target`).
  """

  image: UInt8[np.ndarray, "h w 3"]
  expression: str
  mask: Bool[np.ndarray, "h w"]
  probability: Float32[np.ndarray, "h w"]
  instances: Bool[np.ndarray, "k h w"]
  instance_probability: Float32[np.ndarray, "k"]
  chosen: int | None
  was_cut: bool
  no_target_probability: float | None = None

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
      nothing = None if output.no_target is None else jax.nn.sigmoid(output.no_target)
      mask = find_mask(logits, output.no_target)
      return jax.nn.sigmoid(logits), mask, self._weigh(output.selection_logits), nothing

    self._predict = jax.jit(predict, static_argnames="canvas")

  def _weigh(self, logits: Float[jax.Array, "b j"]) -> Float[jax.Array, "b j"]:
    """Probabilities of the instances, and of none of them last."""
    if self._trained.config.model.selection == "multi":
      # Each has a gate of its own, and none is right where all are shut.
      return jax.nn.sigmoid(logits - logits[:, -1:])
    return jax.nn.softmax(logits, -1)

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
    probability, mask, weights, nothing = jax.device_get(
      self._predict(self._variables, batch, canvas)
    )
    count = int(batch["num_instances"][0])
    best = int(np.argmax(weights[0]))
    no_target = None if nothing is None else float(nothing[0])
    found = best < count and not (no_target is not None and no_target > 0.5)
    return Segmentation(
      image=pixels,
      expression=expression,
      mask=mask[0, :height, :width],
      probability=probability[0, :height, :width],
      instances=masks[:count],
      instance_probability=weights[0, :count],
      chosen=best if found else None,
      was_cut=bool(was_cut[0]),
      no_target_probability=no_target,
    )
