"""The Python API: segments images by expressions."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.common import drawing
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import model_inputs
from mail_jax.export import load
from mail_jax.models.build import Batch, Variables
from mail_jax.models.mail import Output, find_mask
from mail_jax.models.resize import resize_logits
from mail_jax.predict import explanation
from mail_jax.predict.auto_masks import AUTO, AutoProposer
from mail_jax.predict.explanation import Explanation
from mail_jax.predict.image_instances import ImageInstances, InstancesLike

ImageLike = str | os.PathLike | bytes | Image.Image | np.ndarray

# Results are computed on canvases whose sides are multiples of this, so few sizes are compiled.
_CANVAS = 64
BATCH = 8
"""Images that run through the model together at most."""
# Of the results that are computed together: 5 bytes each.
_MAX_PIXELS = 2**26


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """The prediction of a model for one expression.

  Attributes:
    image: RGB.
    expression: as it was given.
    mask: of the referent, at the image's size.
    probability: of each pixel, in [0, 1]; the mask is where it exceeds 0.5, and empty if the model
      predicts that there is no target.
    instances: the instance masks that the model selected from, best score first.
    instance_probability: of each instance to be the target; with the probability of "none" they sum
      to 1. If the model selects several (`model.selection` is `multi`): of each to be one of the
      targets.
    selected: index of the most probable instance; None for "none".
    was_cut: whether the expression was longer than the model's limit.
    no_target_probability: that the image has no target; above 0.5 the mask is empty. None if the
      model does not predict it (`model.no_target`).
    explainer: computes `explain`.
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
  explainer: Callable[[], Explanation] | None = dataclasses.field(
    default=None, repr=False, compare=False
  )

  def explain(self) -> Explanation:
    """Returns what the choice of the instance depends on, word by word and instance by instance.

    Runs the encoder once per word and once per instance, and the decoder not at all, except for
    models that were exported as a program.

    Raises:
      InputError: the result is not a `Segmenter`'s.
    """
    if self.explainer is None:
      raise InputError("explain: only the results of a Segmenter can be explained")
    return self.explainer()

  def overlay(self) -> UInt8[np.ndarray, "h w 3"]:
    """Draws the mask in blue and the outline of the selected instance in yellow on the image."""
    instance = None if self.selected is None else self.instances[self.selected]
    return drawing.overlay(self.image, self.mask, selected=instance)


def jit_predict(apply: Callable[[Variables, Batch], Output], selection: str) -> Any:
  """Compiles a prediction: (variables, batch, canvas) -> what `Segmentation` shows of it.

  Args:
    apply: runs the model.
    selection: `config.model.selection`.

  Returns:
    A function of the variables, a batch with `original_size`, and the height and width of the
    results: the probability of each pixel, the mask, the probabilities of the instances with that
    of "none" last, and that of no target.
  """

  def predict(variables: Variables, batch: Batch, canvas: tuple[int, int]):
    output = apply(variables, batch)
    logits = resize_logits(output.tiles, batch["original_size"], canvas)
    no_target = None if output.no_target is None else jax.nn.sigmoid(output.no_target)
    mask, scores = find_mask(logits, output.no_target), output.selection_logits
    return jax.nn.sigmoid(logits), mask, instance_weights(scores, selection), no_target

  return jax.jit(predict, static_argnames="canvas")


def jit_choose(apply: Callable[[Variables, Batch], Output], selection: str) -> Any:
  """Compiles (variables, batch) -> the probabilities of the instances; see `jit_predict`.

  XLA leaves out the decoder, whose result is not used.
  """
  return jax.jit(
    lambda variables, batch: instance_weights(apply(variables, batch).selection_logits, selection)
  )


def instance_weights(scores: Float32[jax.Array, "b j"], selection: str) -> Any:
  """Returns the probabilities of the instances, with that of "none" last.

  Args:
    scores: `Output.selection_logits`.
    selection: `config.model.selection`.
  """
  # With `multi` each instance has its own gate, and "none" is right if all are closed.
  multi = selection == "multi"
  return jax.nn.sigmoid(scores - scores[:, -1:]) if multi else jax.nn.softmax(scores, -1)


def find_selected(
  weights: Float32[np.ndarray, "j"], count: int, no_target: float | None
) -> int | None:
  """Returns the index of the most probable instance; None for "none", or if there is no target.

  Args:
    weights: of one example, as `instance_weights` returns them.
    count: of its instances.
    no_target: probability that it has no target; None if the model does not predict it.
  """
  best = int(np.argmax(weights))
  has_target = no_target is None or no_target <= 0.5
  return best if best < count and has_target else None


class _Row(NamedTuple):
  """An image and an expression, ready for the model.

  Attributes:
    prepared: the image's part of a batch of one, on the device.
    expression: as it was given.
    pixels: RGB.
    masks: of the instances.
  """

  prepared: dict[str, jax.Array]
  expression: str
  pixels: UInt8[np.ndarray, "h w 3"]
  masks: Bool[np.ndarray, "k h w"]


class Segmenter:
  """A trained model, ready for images; thread-safe.

  ```python
  segmenter = Segmenter.load("runs/demo")
  result = segmenter("photo.jpg", "the leftmost star")
  first, second = segmenter("photo.jpg", ["the leftmost star", "the large ring"])
  results = segmenter.batch(["a.jpg", "b.jpg"], ["the leftmost star", "the large ring"])
  ```

  The first image of each size (in steps of 64 pixels) is slow because the model is compiled.
  """

  def __init__(self, model: load.LoadedModel):
    """Prepares a model that `load.load` returned."""
    self._model = model
    self._variables = model.prepare(model.on_one_device())
    self._instances = ImageInstances(
      AutoProposer(model.mask_recipes, uses_masks=model.config.max_instances > 0)
    )
    self._compiled: set[tuple[int, int, int]] = set()
    self._compiler = threading.Lock()

    self._predict = jit_predict(model.apply, model.config.model.selection)
    self._choose = jit_choose(model.apply, model.config.model.selection)

  @classmethod
  def load(cls, workdir: str, step: str | int = "best", backend: str = "") -> "Segmenter":
    """Loads the checkpoint of a run, an exported model, one on the Hub, or `demo`.

    Args:
      workdir: of the run, an exported folder, `hf://USER/NAME[@REVISION]` on the Hugging Face Hub,
        or `demo`, the model for generated scenes that comes with mail_jax
        (`mail_jax.predict.inputs.draw_scene` draws some).
      step: of a run: `best`, `last`, or a number.
      backend: of the attention; empty for that of the run, if it runs here.

    Raises:
      InputError: see `mail_jax.export.load.load`.
    """
    return cls(load.load(workdir, step, backend=backend))

  # A string is a sequence of strings, too.
  @overload
  def __call__(  # pyright: ignore[reportOverlappingOverload]
    self, image: ImageLike, expression: str, instances: InstancesLike = AUTO
  ) -> Segmentation: ...

  @overload
  def __call__(
    self, image: ImageLike, expression: Sequence[str], instances: InstancesLike = AUTO
  ) -> list[Segmentation]: ...

  def __call__(self, image, expression, instances: Any = AUTO):
    """Segments the referent of an expression.

    Args:
      image: a path, the bytes of a file, a Pillow image, or RGB pixels uint8 [h, w, 3]. The EXIF
        orientation is applied; pixels are taken as they are.
      expression: a string, or several, for which the image is prepared once. A result does not
        depend on the other expressions, bit for bit.
      instances: the candidates, best first: masks bool [k, h, w]; COCO annotations, a path or a
        dictionary; a proposer, or its name as `--instances` takes it. `auto` proposes them as in
        training, once per image. Without them, None, the model works, less accurately.

    Returns:
      The prediction; for several expressions a list, in their order.

    Raises:
      InputError: the image or an expression is unusable, masks have another size than the image, or
        what proposed the masks of training is not here.
    """
    several = not isinstance(expression, str)
    expressions = _check_expressions(list(expression) if several else [expression])
    pixels, masks = self._open(image, instances)
    prepared = self._prepare(pixels, masks)
    rows = [_Row(prepared, text, pixels, masks) for text in expressions]
    # One at a time: a result does not depend on the others.
    results = [self._segment_rows([row])[0] for row in rows]
    return results if several else results[0]

  def batch(
    self,
    images: Sequence[ImageLike],
    expressions: Sequence[str],
    instances: InstancesLike | list[InstancesLike] = AUTO,
  ) -> list[Segmentation]:
    """Segments several images, one expression each, which run through proposer and model together.

    A mask can differ from that of the image alone where a pixel's probability is nearly 0.5.

    Args:
      images: as for a call; the same one may come several times.
      expressions: of each image.
      instances: as for a call; or a list, with those of each image.

    Raises:
      InputError: as for a call; or there are not as many expressions as images.
    """
    texts = _check_expressions(list(expressions))
    given = instances if isinstance(instances, list) else [instances] * len(images)
    if not len(images) == len(texts) == len(given):
      raise InputError(
        f"batch: {len(images)} images, {len(texts)} expressions and instances of {len(given)}; "
        "give one expression per image"
      )
    opened = {id(image): preprocess.open_image(image) for image in images}
    if not isinstance(instances, list):
      self._instances.prefetch(instances, list(opened.values()))
    rows: list[_Row] = []
    prepared: dict[tuple[int, int], _Row] = {}
    for image, text, own in zip(images, texts, given, strict=True):
      key = (id(image), id(own))
      if key not in prepared:
        pixels = opened[id(image)]
        masks = self._find_masks(own, pixels, _path(image))
        prepared[key] = _Row(self._prepare(pixels, masks), text, pixels, masks)
      rows.append(prepared[key]._replace(expression=text))
    return [result for some in _groups(rows) for result in self._segment_rows(some)]

  @property
  def instances(self) -> ImageInstances:
    """What finds the instance masks of images."""
    return self._instances

  def _open(
    self, image: ImageLike, instances: Any
  ) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "k h w"]]:
    """Returns an image and the instance masks that the model selects from."""
    pixels = preprocess.open_image(image)
    return pixels, self._find_masks(instances, pixels, _path(image))

  def _find_masks(
    self, instances: Any, pixels: UInt8[np.ndarray, "h w 3"], path: str | None
  ) -> Bool[np.ndarray, "k h w"]:
    return self._instances.find(instances, pixels, path)[: self._model.config.max_instances]

  def _prepare(
    self, pixels: UInt8[np.ndarray, "h w 3"], masks: Bool[np.ndarray, "k h w"]
  ) -> dict[str, jax.Array]:
    """Returns the image's part of a batch of one, on the device."""
    config = self._model.config
    prepared = model_inputs.prepare_image(
      pixels, masks, image_size=config.image_size, max_instances=config.max_instances
    )
    prepared["original_size"] = np.array(pixels.shape[:2], np.int32)
    return jax.device_put({name: np.asarray(value)[None] for name, value in prepared.items()})

  def _segment_rows(self, rows: Sequence[_Row]) -> list[Segmentation]:
    """Runs the model once; the last row fills up the batch to a size that is compiled."""
    size = 1 << (len(rows) - 1).bit_length()
    filled = [*rows, *[rows[-1]] * (size - len(rows))]
    tokens, was_cut = model_inputs.prepare_text(
      [row.expression for row in filled],
      self._model.tokenizer,
      max_tokens=self._model.config.max_tokens,
    )
    images = [row.prepared for row in filled]
    image = images[0] if size == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *images)
    height, width = (max(row.pixels.shape[axis] for row in rows) for axis in (0, 1))
    found = self._run(image | tokens, height, width)
    return [
      self._result(row, [None if x is None else x[k] for x in found], bool(was_cut[k]))
      for k, row in enumerate(rows)
    ]

  def _result(self, row: _Row, found: Sequence[Any], was_cut: bool) -> Segmentation:
    """Returns the prediction of a row, from the row's part of what the model returned."""
    (height, width), count = row.pixels.shape[:2], len(row.masks)
    probability, mask, weights, no_target = found
    no_target_probability = None if no_target is None else float(no_target)
    return Segmentation(
      image=row.pixels,
      expression=row.expression,
      mask=mask[:height, :width],
      probability=probability[:height, :width],
      instances=row.masks,
      instance_probability=weights[:count],
      selected=find_selected(weights, count, no_target_probability),
      was_cut=was_cut,
      no_target_probability=no_target_probability,
      explainer=lambda: self._explain(row.prepared, row.expression, count),
    )

  def _explain(self, prepared: dict[str, jax.Array], expression: str, count: int) -> Explanation:
    image = jax.device_get({name: x for name, x in prepared.items() if name != "original_size"})

    def choose(batch: Mapping[str, Any]) -> Any:
      return jax.device_get(self._choose(self._variables, self._model.complete(batch)))

    tokenizer, max_tokens = self._model.tokenizer, self._model.config.max_tokens
    return explanation.explain(choose, image, expression, count, tokenizer, max_tokens)

  def _run(self, batch: dict[str, Any], height: int, width: int) -> Any:
    """Runs the model; threads with a new size wait for the one that compiles it."""
    canvas = (-(-height // _CANVAS) * _CANVAS, -(-width // _CANVAS) * _CANVAS)
    batch = self._model.complete(batch)
    sizes = (len(batch["original_size"]), *canvas)
    with contextlib.nullcontext() if sizes in self._compiled else self._compiler:
      output = jax.device_get(self._predict(self._variables, batch, canvas))
    self._compiled.add(sizes)
    return output


def _groups(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
  """Yields rows that run together: few, whose results fit into memory."""
  group: list[_Row] = []
  for row in rows:
    sizes = [other.pixels.shape for other in [*group, row]]
    area = max(height for height, *_ in sizes) * max(width for _, width, _ in sizes)
    if group and (len(group) == BATCH or area * len(sizes) > _MAX_PIXELS):
      yield group
      group = []
    group.append(row)
  if group:
    yield group


def _check_expressions(expressions: list[Any]) -> list[str]:
  """Checks expressions, before an image is opened."""
  if not expressions:
    raise InputError("expression: the list is empty; write what to look for")
  for expression in expressions:
    if not isinstance(expression, str):
      raise InputError(f"expression: must be text, not {type(expression).__name__}")
    preprocess.normalise_text(expression)
  return expressions


def _path(image: Any) -> str | None:
  """Returns the path of an image that was given as a file; otherwise None."""
  if isinstance(image, Image.Image):
    image = getattr(image, "filename", None) or None
  return os.fspath(image) if isinstance(image, str | os.PathLike) else None
