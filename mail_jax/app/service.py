"""Handles the requests of visitors: from a photo and expressions to files and HTML."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.common import drawing
from input_pipeline.common.errors import InputError, memory_errors
from input_pipeline.proposers.registry import SelectingProposer
from mail_jax.app import limits, links, pictures, texts
from mail_jax.app import marks as marks_of
from mail_jax.app.examples import ExampleMasks
from mail_jax.predict.auto_masks import AUTO
from mail_jax.predict.image_instances import ImageInstances
from mail_jax.predict.segmenter import Segmentation, Segmenter

# Predictions can be viewed again for this time.
KEPT_SECONDS = 3600
# Every size of photo is compiled once, in multiples of the canvas. Compiled programs are dropped
# after this many sizes, so that they do not fill the memory.
_SIZES, _CANVAS = 48, 64
# IoU from which a proposed instance is the one that a visitor marked, as in `Selection`.
_SAME = 0.9
# Photos whose segments are kept, each of some 5 MB.
_SEGMENTED = 8


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The files and the text that the page shows for one expression, or for several together.

  Attributes:
    overlay: path of a PNG file: of one expression at the photo's size.
    mask: path of a PNG file at the photo's size; of several expressions, of a ZIP of such files.
    instances: path of a picture and caption of each instance, the most probable one first; empty
      for several expressions.
    summary: HTML.
  """

  overlay: str
  mask: str
  instances: list[tuple[str, str]]
  summary: str


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a request returns.

  Attributes:
    expressions: as they were typed.
    models: name of each model -> its predictions: of all expressions together, if there are
      several, then of each one.
    query: of a link that restores the request, see `links`; empty if no link can.
    has_photo: whether the link restores the photo too, because it is an example.
  """

  expressions: list[str]
  models: dict[str, list[Prediction]]
  query: str
  has_photo: bool


class RequestHandler:
  """Handles requests; thread-safe."""

  def __init__(
    self,
    segmenters: Mapping[str, Segmenter],
    allowed: limits.Limits,
    folder: pathlib.Path,
    examples: ExampleMasks,
    proposer: SelectingProposer | None = None,
    proposer_name: str = AUTO,
  ):
    """Stores what requests need.

    Args:
      segmenters: the models by name; all of them answer.
      allowed: the limits of a request.
      folder: where predictions are written; the caller removes it.
      examples: the masks of the examples.
      proposer: makes masks for all other photos, if given.
      proposer_name: its name on the page; `AUTO` for what made the masks of the first model's
        training.
    """
    self.names = list(segmenters)
    self._segmenters = segmenters
    self._allowed = allowed
    self._folder = folder
    self._examples = examples
    self._proposer = None if proposer_name == "none" else proposer
    self._proposer_name = proposer_name
    self._instances = ImageInstances()
    self._sizes = _CompiledSizes()
    self._segments = functools.lru_cache(_SEGMENTED)(self._read_segments)

  def __call__(
    self, photo: str | None, text: str | None, masks_file: str | None, marks: str | None = None
  ) -> Answer:
    """Handles one request.

    Args:
      photo: path of the uploaded file.
      text: expressions, one per line.
      masks_file: path of an uploaded COCO JSON with the photo's instances.
      marks: instances that the visitor marked on the photo, see `marks.read`.

    Raises:
      InputError: with one sentence that tells the visitor what to do.
    """
    with memory_errors(lambda: ["a smaller photo", "fewer expressions at a time"]):
      return self._answer(photo, text, masks_file, marks)

  def draw_marks(self, photo: str | None, marks: str | None) -> str:
    """Returns the areas that marks mean as the `data:` address of a picture; empty without marks.

    Args:
      photo: path of the uploaded file.
      marks: see `marks.read`.

    Raises:
      InputError: with one sentence that tells the visitor what to do.
    """
    read = marks_of.read(marks, self._allowed)
    if not read:
      return ""
    path = limits.check_photo(photo, self._allowed)
    return pictures.marked(self._segments(path).masks(read, pictures.MARKED_SIDE))

  def _answer(
    self, photo: str | None, text: str | None, masks_file: str | None, marks: str | None
  ) -> Answer:
    path = limits.check_photo(photo, self._allowed)
    expressions = limits.read_expressions(text, self._allowed)
    read = marks_of.read(marks, self._allowed)
    self._remove_old()
    pixels = _open(path)
    masks, source = self._find_masks(path, pixels, masks_file)
    if read:
      own = self._segments(path).masks(read)
      masks = own if masks is None else _put_first(own, masks)
      source = texts.join_sources(len(own), source if len(masks) > len(own) else "")
    place = pathlib.Path(tempfile.mkdtemp(dir=self._folder))
    with self._sizes.use(*pixels.shape[:2]):
      results = {
        name: segmenter(pixels, expressions, masks) for name, segmenter in self._segmenters.items()
      }
    models = {}
    for number, (name, found) in enumerate(results.items(), 1):
      others = [result for other, result in results.items() if other != name]
      models[name] = _write_all(found, others, source, len(read), place / f"model-{number}")
    photo_digest = links.shorten_digest(self._examples.digest(path) or "")
    shared = links.Shared(photo_digest, tuple(expressions), tuple(read))
    return Answer(expressions, models, links.write(shared), bool(photo_digest))

  def _read_segments(self, path: str) -> marks_of.Segments:
    return marks_of.Segments(_open(path))

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
      first = next(iter(self._segmenters.values()))
      return first.instances.find_auto(pixels)
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


def _open(path: str) -> UInt8[np.ndarray, "h w 3"]:
  try:
    return preprocess.open_image(path)
  except InputError as error:
    raise InputError(_without_folder(str(error), path)) from error


def _without_folder(message: str, path: str) -> str:
  """Returns a message with the name of an uploaded file instead of its path on the server."""
  return message.replace(path, os.path.basename(path)).replace("COCO annotations ", "", 1)


def _write_all(
  results: list[Segmentation],
  others: Sequence[list[Segmentation]],
  source: str,
  marked: int,
  place: pathlib.Path,
) -> list[Prediction]:
  """Writes the files of a model's results: of all expressions together, and of each one.

  Args:
    results: of each expression.
    others: the same of the other models, if any.
    source: of the instance masks, in words.
    marked: how many of the instances, the first ones, the visitor marked.
    place: the folder, which is made.
  """
  place.mkdir()
  predictions = []
  for k, result in enumerate(results):
    agreement = [_iou(result.mask, other[k].mask) for other in others]
    summary = texts.summary(result, source, k, agreement)
    predictions.append(_write(result, summary, marked, place / f"{k + 1}-", pictures.COLOURS[k]))
  if len(results) == 1:
    return predictions
  overlay, masks = place / "overlay.png", place / "masks.zip"
  picture = pictures.together(results[0].image, [result.mask for result in results])
  Image.fromarray(picture).save(overlay, compress_level=1)
  with zipfile.ZipFile(masks, "w") as file:
    for k, (result, prediction) in enumerate(zip(results, predictions, strict=True)):
      file.write(prediction.mask, texts.file_name(k + 1, result.expression) + ".png")
  return [Prediction(str(overlay), str(masks), [], texts.legend(results)), *predictions]


def _write(
  result: Segmentation,
  summary: str,
  marked: int,
  prefix: pathlib.Path,
  colour: tuple[int, int, int],
) -> Prediction:
  """Writes the files of a prediction for one expression, whose names begin with a prefix."""
  overlay, mask = f"{prefix}overlay.png", f"{prefix}mask.png"
  selected = None if result.selected is None else result.instances[result.selected]
  picture = drawing.overlay(result.image, result.mask, selected=selected, colour=colour)
  Image.fromarray(picture).save(overlay, compress_level=1)
  Image.fromarray(result.mask.astype(np.uint8) * 255).save(mask)
  small, fitted = pictures.fit(result.image, result.instances)
  instances = []
  for k in range(len(fitted)):
    path = pathlib.Path(f"{prefix}instance-{k + 1}.jpg")
    picture = pictures.draw_instance(small, fitted[k], k == result.selected)
    path.write_bytes(drawing.encode_jpeg(picture, 88))
    instances.append((str(path), texts.caption(result, k, marked)))
  return Prediction(
    overlay=overlay,
    mask=mask,
    instances=_most_probable_first(instances, result.instance_probability),
    summary=summary,
  )


def _most_probable_first(
  instances: list[tuple[str, str]], probabilities: Float32[np.ndarray, "k"]
) -> list[tuple[str, str]]:
  return [instances[k] for k in np.argsort(-probabilities, kind="stable").tolist()]


def _put_first(
  marked: Bool[np.ndarray, "k h w"], proposed: Bool[np.ndarray, "n h w"]
) -> Bool[np.ndarray, "m h w"]:
  """Joins instances that a visitor marked and proposed ones, without those that were marked."""
  # Every few pixels suffice, and large photos have many.
  step = max(1, max(marked.shape[1:]) // 512)
  small = marked[:, ::step, ::step]
  kept = [
    mask for mask in proposed if all(_iou(mask[::step, ::step], own) < _SAME for own in small)
  ]
  return np.concatenate([marked, kept]) if kept else marked


def _iou(a: Bool[np.ndarray, "h w"], b: Bool[np.ndarray, "h w"]) -> float:
  """Returns the overlap of two masks; 1 if both are empty."""
  union = np.count_nonzero(a | b)
  return np.count_nonzero(a & b) / union if union else 1.0
