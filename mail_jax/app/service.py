"""Handles the requests of visitors: from a photo and expressions to files and HTML."""

import contextlib
import dataclasses
import html
import os
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.common import drawing
from input_pipeline.common.errors import InputError, memory_errors
from input_pipeline.proposers.registry import SelectingProposer
from mail_jax.app import limits
from mail_jax.app.examples import ExampleMasks
from mail_jax.predict.auto_masks import AUTO
from mail_jax.predict.image_instances import ImageInstances
from mail_jax.predict.segmenter import Segmentation, Segmenter

# Predictions can be viewed again for this time.
KEPT_SECONDS = 3600
# The longer side of an instance's picture, in pixels.
SIDE = 640
_DIMMED = 0.72
# Every size of photo is compiled once, in multiples of the canvas. Compiled programs are dropped
# after this many sizes, so that they do not fill the memory.
_SIZES, _CANVAS = 48, 64


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The files and the text that the page shows for one expression.

  Attributes:
    expression: as it was typed.
    overlay, mask: paths of PNG files at the photo's size.
    instances: path of a picture and caption of each instance, the most probable one first.
    summary: HTML.
  """

  expression: str
  overlay: str
  mask: str
  instances: list[tuple[str, str]]
  summary: str


class RequestHandler:
  """Handles requests; thread-safe."""

  def __init__(
    self,
    segmenter: Segmenter,
    allowed: limits.Limits,
    folder: pathlib.Path,
    examples: ExampleMasks,
    proposer: SelectingProposer | None = None,
    proposer_name: str = AUTO,
  ):
    """Stores what requests need.

    Args:
      segmenter: the model.
      allowed: the limits of a request.
      folder: where predictions are written; the caller removes it.
      examples: the masks of the examples.
      proposer: makes masks for all other photos, if given.
      proposer_name: its name on the page; `AUTO` for what made the masks of training.
    """
    self._segmenter = segmenter
    self._allowed = allowed
    self._folder = folder
    self._examples = examples
    self._proposer = None if proposer_name == "none" else proposer
    self._proposer_name = proposer_name
    self._instances = ImageInstances()
    self._sizes = _CompiledSizes()

  def __call__(
    self, photo: str | None, text: str | None, masks_file: str | None
  ) -> list[Prediction]:
    """Handles one request and returns one prediction per expression.

    Args:
      photo: path of the uploaded file.
      text: expressions, one per line.
      masks_file: path of an uploaded COCO JSON with the photo's instances.

    Raises:
      InputError: with one sentence that tells the visitor what to do.
    """
    with memory_errors(lambda: ["a smaller photo", "fewer expressions at a time"]):
      return self._answer(photo, text, masks_file)

  def _answer(
    self, photo: str | None, text: str | None, masks_file: str | None
  ) -> list[Prediction]:
    path = limits.check_photo(photo, self._allowed)
    expressions = limits.read_expressions(text, self._allowed)
    self._remove_old()
    try:
      pixels = preprocess.open_image(path)
    except InputError as error:
      raise InputError(_without_folder(str(error), path)) from error
    masks, source = self._find_masks(path, pixels, masks_file)
    place = pathlib.Path(tempfile.mkdtemp(dir=self._folder))
    with self._sizes.use(*pixels.shape[:2]):
      return [
        _write(result, source, place, f"{number}-" if len(expressions) > 1 else "")
        for number, result in enumerate(self._segmenter(pixels, expressions, masks), 1)
      ]

  def _find_masks(
    self, path: str, pixels: UInt8[np.ndarray, "h w 3"], masks_file: str | None
  ) -> tuple[Bool[np.ndarray, "k h w"] | None, str]:
    """Returns the instance masks of the photo, and their source in words."""
    if masks_file:
      return self._read_coco(masks_file, path, pixels), "from your file"
    masks = self._examples.find(path)
    if masks is not None:
      return masks, "from the example"
    if self._proposer_name == AUTO:
      return self._segmenter.instances.find_auto(pixels)
    if self._proposer is None:
      return None, ""
    try:
      return self._instances.find(self._proposer, pixels, path), f"from {self._proposer_name}"
    except InputError as error:
      if hasattr(self._proposer.proposer, "find_image"):
        # A file of masks covers its own photos only.
        return None, ""
      reason = _without_folder(str(error), path)
      raise InputError(f"Instance masks for this photo could not be made: {reason}") from error

  def _read_coco(
    self, masks_file: str, photo: str, pixels: UInt8[np.ndarray, "h w 3"]
  ) -> Bool[np.ndarray, "k h w"]:
    """Returns the instances of a photo in a COCO JSON, found by file name or as the only image."""
    try:
      return self._instances.find(pathlib.Path(masks_file), pixels, photo)
    except InputError as error:
      shown = limits.shorten(os.path.basename(masks_file))
      reason = _without_folder(_without_folder(str(error), masks_file), photo)
      raise InputError(f"The instance masks in {shown} cannot be used: {reason}") from error

  def _remove_old(self) -> None:
    """Removes predictions that are too old to be viewed again."""
    oldest = time.time() - KEPT_SECONDS
    for place in self._folder.iterdir():
      with contextlib.suppress(FileNotFoundError):
        if place.stat().st_mtime < oldest:
          shutil.rmtree(place, ignore_errors=True)


class _CompiledSizes:
  """Counts the sizes that are compiled, and drops the programs of all when no photo is in use."""

  def __init__(self):
    self._change = threading.Condition()
    self._in_use = 0
    self._sizes: set[tuple[int, int]] = set()

  @contextlib.contextmanager
  def use(self, height: int, width: int) -> Iterator[None]:
    size = (-(-height // _CANVAS), -(-width // _CANVAS))
    with self._change:
      while size not in self._sizes and len(self._sizes) >= _SIZES:
        if self._in_use == 0:
          jax.clear_caches()
          self._sizes.clear()
        else:
          self._change.wait()
      self._sizes.add(size)
      self._in_use += 1
    try:
      yield
    finally:
      with self._change:
        self._in_use -= 1
        self._change.notify_all()


def _without_folder(message: str, path: str) -> str:
  """Returns a message with the name of an uploaded file instead of its path on the server."""
  return message.replace(path, os.path.basename(path)).replace("COCO annotations ", "", 1)


def _write(result: Segmentation, source: str, place: pathlib.Path, prefix: str) -> Prediction:
  """Writes the files of a prediction."""
  overlay, mask = place / f"{prefix}overlay.png", place / f"{prefix}mask.png"
  Image.fromarray(result.overlay()).save(overlay, compress_level=1)
  Image.fromarray(result.mask.astype(np.uint8) * 255).save(mask)
  small, fitted = fit(result.image, result.instances)
  instances = []
  for k in range(len(fitted)):
    path = place / f"{prefix}instance-{k + 1}.jpg"
    picture = draw_instance(small, fitted[k], k == result.selected)
    path.write_bytes(drawing.encode_jpeg(picture, 88))
    instances.append((str(path), caption(result, k)))
  return Prediction(
    expression=result.expression,
    overlay=str(overlay),
    mask=str(mask),
    instances=_most_probable_first(instances, result.instance_probability),
    summary=summary(result, source),
  )


def _most_probable_first(
  instances: list[tuple[str, str]], probabilities: Float32[np.ndarray, "k"]
) -> list[tuple[str, str]]:
  return [instances[k] for k in np.argsort(-probabilities, kind="stable").tolist()]


def draw_instance(
  image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], selected: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
  """Outlines an instance and dims the rest of the image.

  Args:
    image: RGB.
    mask: of the instance.
    selected: whether the model selected it; the outline is yellow then, otherwise white.
  """
  width = max(1, round(max(image.shape[:2]) / 300))
  dimmed = drawing.tint(image, ~mask, (20, 24, 32), _DIMMED)
  return drawing.outline(dimmed, mask, drawing.SELECTED if selected else drawing.TARGET, width)


def fit(
  image: UInt8[np.ndarray, "h w 3"], masks: Bool[np.ndarray, "k h w"], side: int = SIDE
) -> tuple[UInt8[np.ndarray, "y x 3"], Bool[np.ndarray, "k y x"]]:
  """Resizes an image and masks to a longer side of `side`: averages, or repeats pixels."""
  size = drawing.fitting_size(image.shape[0], image.shape[1], side)
  if max(image.shape[:2]) > side:
    small = np.array(Image.fromarray(image).resize(size, Image.Resampling.BOX))
  else:
    small = drawing.stretch(image, size)
  fitted = [drawing.stretch(mask, size) for mask in masks]
  return small, np.stack(fitted) if fitted else np.zeros((0, *small.shape[:2]), bool)


def summary(result: Segmentation, masks_source: str) -> str:
  """Returns HTML that describes a result.

  Args:
    result: of one expression.
    masks_source: of the instance masks, in a few words; empty without masks.
  """
  notes = [f"<li>{html.escape(note)}</li>" for note in _notes(result, masks_source)]
  return (
    '<section class="answer" aria-live="polite">'
    f'<p class="asked">“{html.escape(result.expression)}”</p>'
    f'<p class="found">{html.escape(headline(result))}</p><ul>{"".join(notes)}</ul></section>'
  )


def headline(result: Segmentation) -> str:
  """Returns the result in one line."""
  no_target = result.no_target_probability
  if no_target is not None and no_target > 0.5:
    return f"Not in the photo ({no_target:.0%} certain)"
  if not result.mask.any():
    return "Nothing found"
  share = result.mask.mean()
  return (
    f"Found: {share:.1%} of the photo" if share >= 0.001 else "Found: less than 0.1% of the photo"
  )


def _notes(result: Segmentation, masks_source: str) -> list[str]:
  notes = []
  if result.mask.any():
    probability = result.probability[result.mask].mean(dtype=np.float64)
    notes.append(f"Mean probability inside the mask: {probability:.0%}")
  if len(result.instances):
    notes.append(f"{_selection(result)}; masks {masks_source}")
  else:
    notes.append(
      "No instance masks: the model saw only the photo and the text, which is less accurate"
    )
  if result.was_cut:
    notes.append("The text is longer than the model's limit; its end was cut off")
  return notes


def _selection(result: Segmentation) -> str:
  count, probabilities = len(result.instances), result.instance_probability
  if result.selected is None:
    return f"None of {count} instances selected"
  probability = probabilities[result.selected]
  return f"Instance {result.selected + 1} of {count} selected (probability {probability:.0%})"


def caption(result: Segmentation, k: int) -> str:
  """Returns the caption of instance k."""
  mark = " ✓" if k == result.selected else ""
  return f"{k + 1}: {result.instance_probability[k]:.0%}{mark}"


def title(name: str, step_name: str, step: int, dataset: str) -> str:
  """Returns the header of the page, with the model that it runs."""
  parts = (name, step_name, f"step {step:,}", f"trained on {dataset}")
  about = " · ".join(html.escape(part) for part in parts if part)
  return (
    "<header><h1>Say it, see it</h1>"
    '<p class="lead">Describe something in a photo, and the model marks it.</p>'
    f'<p class="model"><span>mail_jax</span> {about}</p></header>'
  )
