"""The Python API: a photo and expressions in, masks out."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Sequence
from typing import Any, overload

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.common import drawing
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import model_inputs
from mail_jax.export import load
from mail_jax.models.mail import find_mask
from mail_jax.models.resize import resize_logits
from mail_jax.predict import instances as photo_instances
from mail_jax.predict.instances import PhotoInstances

Photo = str | os.PathLike | bytes | Image.Image | np.ndarray

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
    selected: index of the instance that is meant, the likeliest of several; None for none of them.
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
  selected: int | None
  was_cut: bool
  no_target_probability: float | None = None

  def overlay(self) -> UInt8[np.ndarray, "h w 3"]:
    """The photo with the mask in blue and the outline of the selected instance in yellow."""
    return drawing.overlay(
      self.image,
      self.mask,
      selected=None if self.selected is None else self.instances[self.selected],
    )


class Segmenter:
  """A trained model, ready for photos; may be called by several threads.

  ```python
  segmenter = Segmenter.load("runs/demo")
  result = segmenter("photo.jpg", "the leftmost star")
  first, second = segmenter("photo.jpg", ["the leftmost star", "the large ring"])
  ```

  The first photo of a size (in steps of 64 pixels) waits for the compiler; later ones, and other expressions, do not.
  """

  def __init__(self, model: load.LoadedModel):
    """Args: model: as `load.load` returns it."""
    self._model = model
    self._variables = model.on_one_device()
    self._instances = PhotoInstances()
    self._compiled: set[tuple[int, int]] = set()
    self._compiler = threading.Lock()

    def predict(variables, batch, canvas):
      output = model.apply(variables, batch)
      logits = resize_logits(output.logits, batch["original_size"], canvas)
      nothing = None if output.no_target is None else jax.nn.sigmoid(output.no_target)
      mask = find_mask(logits, output.no_target)
      return jax.nn.sigmoid(logits), mask, self._weigh(output.selection_logits), nothing

    self._predict = jax.jit(predict, static_argnames="canvas")

  def _weigh(self, logits: Float[jax.Array, "b j"]) -> Float[jax.Array, "b j"]:
    """Probabilities of the instances, and of none of them last."""
    if self._model.config.model.selection == "multi":
      # Each has a gate of its own, and none is right where all are shut.
      return jax.nn.sigmoid(logits - logits[:, -1:])
    return jax.nn.softmax(logits, -1)

  @classmethod
  def load(cls, workdir: str, step: str | int = "best") -> "Segmenter":
    """Loads a checkpoint of a training run, or an exported model; see `mail_jax.export.load.load`."""
    return cls(load.load(workdir, step))

  @overload
  def __call__(  # pyright: ignore[reportOverlappingOverload]  # text is a sequence of texts too
    self, image: Photo, expression: str, instances: photo_instances.Given = None
  ) -> Segmentation: ...

  @overload
  def __call__(
    self, image: Photo, expression: Sequence[str], instances: photo_instances.Given = None
  ) -> list[Segmentation]: ...

  def __call__(self, image, expression, instances=None):
    """Segments what the expression refers to.

    Args:
      image: a path, the bytes of a file, an image of Pillow, or RGB pixels uint8 [h, w, 3]. Photos are turned as their
        EXIF says; pixels are taken as they are.
      expression: what to look for; or several, for which the photo is prepared once. An answer is the same, bit for
        bit, whatever else was asked with it.
      instances: what can be meant, best first: masks bool [k, h, w]; COCO annotations, a file or what it holds; a
        proposer, or its name as `--instances` takes it. The model works without, less well.

    Returns:
      What the model says; of several expressions a list, in their order.

    Raises:
      InputError: no image, no expression, or masks of another size than the image.
    """
    several = not isinstance(expression, str)
    expressions = _check_expressions(list(expression) if several else [expression])
    pixels = preprocess.open_image(image)
    name = _file_name(image)
    masks = self._instances.of(instances, pixels, name)[: self._model.config.max_instances]
    photo = self._prepare(pixels, masks)
    found = [self._segment(photo, text, pixels, masks) for text in expressions]
    return found if several else found[0]

  def _prepare(
    self, pixels: UInt8[np.ndarray, "h w 3"], masks: Bool[np.ndarray, "k h w"]
  ) -> dict[str, jax.Array]:
    """The photo's part of a batch of one, on the device."""
    config = self._model.config
    photo = model_inputs.prepare_image(
      pixels, masks, image_size=config.image_size, max_instances=config.max_instances
    )
    photo["original_size"] = np.array(pixels.shape[:2], np.int32)
    return jax.device_put({name: np.asarray(value)[None] for name, value in photo.items()})

  def _segment(
    self,
    photo: dict[str, jax.Array],
    expression: str,
    pixels: UInt8[np.ndarray, "h w 3"],
    masks: Bool[np.ndarray, "k h w"],
  ) -> Segmentation:
    tokens, was_cut = model_inputs.prepare_text(
      [expression], self._model.tokenizer, max_tokens=self._model.config.max_tokens
    )
    height, width = pixels.shape[:2]
    probability, mask, weights, nothing = self._run(photo | tokens, height, width)
    count = len(masks)
    best = int(np.argmax(weights[0]))
    no_target = None if nothing is None else float(nothing[0])
    found = best < count and not (no_target is not None and no_target > 0.5)
    return Segmentation(
      image=pixels,
      expression=expression,
      mask=mask[0, :height, :width],
      probability=probability[0, :height, :width],
      instances=masks,
      instance_probability=weights[0, :count],
      selected=best if found else None,
      was_cut=bool(was_cut[0]),
      no_target_probability=no_target,
    )

  def _run(self, batch: dict[str, Any], height: int, width: int) -> Any:
    """Runs the model; threads that need a new size wait for the one that compiles it."""
    canvas = (-(-height // _CANVAS) * _CANVAS, -(-width // _CANVAS) * _CANVAS)
    with contextlib.nullcontext() if canvas in self._compiled else self._compiler:
      answer = jax.device_get(self._predict(self._variables, batch, canvas))
    self._compiled.add(canvas)
    return answer


def _check_expressions(expressions: list[Any]) -> list[str]:
  """Refuses what cannot be read before a photo is opened."""
  if not expressions:
    raise InputError("expression: the list is empty; write what to look for")
  for expression in expressions:
    if not isinstance(expression, str):
      raise InputError(f"expression: must be text, not {type(expression).__name__}")
    preprocess.normalise_text(expression)
  return expressions


def _file_name(image: Any) -> str | None:
  """The name of a photo's file, where it came as one."""
  if isinstance(image, Image.Image):
    image = getattr(image, "filename", None) or None
  return os.path.basename(image) if isinstance(image, str | os.PathLike) else None
