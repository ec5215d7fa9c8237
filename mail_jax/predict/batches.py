"""Predictions for several images in one step of the model, for a server."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float32

from input_pipeline import preprocess
from input_pipeline.preprocess import model_inputs
from mail_jax.export import load
from mail_jax.models.build import Batch, Variables
from mail_jax.predict.auto_masks import AUTO
from mail_jax.predict.image_instances import InstancesLike
from mail_jax.predict.segmenter import ImageLike, Segmenter, find_selected, instance_weights

_WARM_UP = 64
"""Side of the image that the model is compiled with; every image has the model's size by then."""


@dataclasses.dataclass(frozen=True)
class PreparedImage:
  """An image and its instances at the model's size, a fraction of their own memory.

  Attributes:
    inputs: the image's part of a batch, without a batch axis.
    height, width: of the image, in pixels.
    count: of its instances.
  """

  inputs: Mapping[str, np.ndarray]
  height: int
  width: int
  count: int


@dataclasses.dataclass(frozen=True)
class RawPrediction:
  """What the model returns for an image and an expression, at the model's size.

  Attributes:
    logits: one per pixel of the model's square, positive inside the referent.
    weights: probabilities of the instances, with that of "none" last.
    no_target_probability: that there is no target; None if the model does not predict it.
    was_cut: whether the expression was longer than the model's limit.
  """

  logits: Float32[np.ndarray, "s s"]
  weights: Float32[np.ndarray, "j"]
  no_target_probability: float | None
  was_cut: bool


@dataclasses.dataclass(frozen=True)
class MaskPrediction:
  """A prediction at the image's size; its fields are those of `Segmentation`.

  Attributes:
    confidence: mean probability inside the mask; 0 if it is empty.
  """

  mask: Bool[np.ndarray, "h w"]
  confidence: float
  instance_probability: list[float]
  selected: int | None
  no_target_probability: float | None
  was_cut: bool


class BatchSegmenter(Segmenter):
  """A trained model that answers requests together.

  `prepare` and `finish` may run in any threads, `run` in one at a time. A batch is filled up to one
  of few sizes, so that nothing is compiled after `warm_up`, regardless of the images' sizes. A mask
  can differ from `Segmenter`'s where a pixel's probability is within 1e-4 of 0.5.

  Attributes:
    sizes: of the batches, ascending.
  """

  def __init__(self, model: load.LoadedModel, largest: int = 8):
    """Prepares a model that `load.load` returned.

    Args:
      model: the model.
      largest: examples in a batch, at least 1.
    """
    super().__init__(model)
    self.sizes = [*(1 << k for k in range((largest - 1).bit_length())), largest]
    self._forward = _jit_forward(model)

  def warm_up(self) -> None:
    """Compiles the model for every size of a batch."""
    image = self.prepare(np.zeros((_WARM_UP, _WARM_UP, 3), np.uint8), None)
    for size in self.sizes:
      self.run([image] * size, ["warm up"] * size)

  def prepare(self, image: ImageLike, instances: InstancesLike = AUTO) -> PreparedImage:
    """Prepares an image, as a call of `Segmenter` does.

    Args:
      image: see `Segmenter`.
      instances: see `Segmenter`.

    Raises:
      InputError: the image is unusable, or masks have another size.
    """
    pixels, masks = self._open(image, instances)
    config = self._model.config
    inputs = model_inputs.prepare_image(
      pixels, masks, image_size=config.image_size, max_instances=config.max_instances
    )
    height, width = pixels.shape[:2]
    inputs = {name: np.asarray(value) for name, value in inputs.items()}
    return PreparedImage(inputs, height, width, len(masks))

  def run(self, images: Sequence[PreparedImage], expressions: Sequence[str]) -> list[RawPrediction]:
    """Runs the model once.

    Args:
      images: one per expression, at most the largest of `sizes`.
      expressions: none of them empty.
    """
    text, was_cut = model_inputs.prepare_text(
      expressions, self._model.tokenizer, max_tokens=self._model.config.max_tokens
    )
    size = next(size for size in self.sizes if size >= len(images))
    # The last example fills up the batch.
    rows = [min(k, len(images) - 1) for k in range(size)]
    batch = {
      name: np.stack([images[k].inputs[name] for k in rows]) for name in images[0].inputs
    } | {name: value[rows] for name, value in text.items()}
    sizes = np.array([(images[k].height, images[k].width) for k in rows], np.int32)
    batch = self._model.complete(batch | {"original_size": sizes})
    logits, weights, no_target = jax.device_get(self._forward(self._variables, batch))
    return [
      RawPrediction(
        logits[k], weights[k], None if no_target is None else float(no_target[k]), bool(was_cut[k])
      )
      for k in range(len(images))
    ]


def _jit_forward(model: load.LoadedModel) -> Any:
  """Compiles (variables, batch) -> logits, weights of the instances, probability of no target."""
  selection = model.config.model.selection

  def forward(variables: Variables, batch: Batch):
    output = model.apply(variables, batch)
    no_target = None if output.no_target is None else jax.nn.sigmoid(output.no_target)
    weights = instance_weights(output.selection_logits, selection)
    return output.logits.astype("float32"), weights, no_target

  return jax.jit(forward)


def finish(image: PreparedImage, raw: RawPrediction) -> MaskPrediction:
  """Returns the prediction at the image's size."""
  no_target = raw.no_target_probability
  if no_target is not None and no_target > 0.5:
    mask, inside = np.zeros((image.height, image.width), bool), np.zeros(0)
  else:
    logits = preprocess.resize_logits(raw.logits, image.height, image.width)
    mask = logits > 0
    inside = logits[mask]
  return MaskPrediction(
    mask=mask,
    confidence=float((1 / (1 + np.exp(-inside))).mean()) if len(inside) else 0.0,
    instance_probability=[float(p) for p in raw.weights[: image.count]],
    selected=find_selected(raw.weights, image.count, no_target),
    no_target_probability=no_target,
    was_cut=raw.was_cut,
  )
