"""From what a visitor gave to the files that the page shows."""

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
from input_pipeline.common.errors import InputError
from input_pipeline.proposers.registry import SelectingProposer
from mail_jax.app import limits
from mail_jax.app.examples import Masks
from mail_jax.predict.instances import PhotoInstances
from mail_jax.predict.segmenter import Segmentation, Segmenter

KEPT_SECONDS = 3600  # what a visitor was shown can be looked at again for so long
# Photos of every other size are another program, and a page sees photos of all sizes. Its programs are forgotten
# after this many sizes, so that they do not fill the memory.
_SIZES, _CANVAS = 48, 64
SIDE = 640  # pixels of the longer side of an instance's picture
_DIMMED = 0.72


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the page shows of one expression.

  Attributes:
    expression: as it was typed.
    overlay, mask: paths of PNG files at the photo's size.
    instances: path of a picture and caption of each instance, the best one first.
    summary: HTML.
  """

  expression: str
  overlay: str
  mask: str
  instances: list[tuple[str, str]]
  summary: str


class Answerer:
  """Answers requests; may be called by several threads."""

  def __init__(
    self,
    segmenter: Segmenter,
    allowed: limits.Limits,
    folder: pathlib.Path,
    examples: Masks,
    proposer: SelectingProposer | None = None,
    proposer_name: str = "none",
  ):
    """Prepares to answer.

    Args:
      segmenter: the model.
      allowed: what a request may be.
      folder: where answers are written; the caller removes it.
      examples: masks that come with pictures known beforehand.
      proposer: makes masks for all other photos, if there is one.
      proposer_name: what to call it.
    """
    self._segmenter = segmenter
    self._allowed = allowed
    self._folder = folder
    self._examples = examples
    self._proposer = None if proposer_name == "none" else proposer
    self._proposer_name = proposer_name
    self._instances = PhotoInstances()
    self._turns = _Turns()

  def __call__(self, photo: str | None, text: str | None, masks_file: str | None) -> list[Answer]:
    """Answers one request, an answer an expression.

    Args:
      photo: path of the uploaded file.
      text: expressions, one a line.
      masks_file: path of an uploaded COCO JSON with the photo's instances.

    Raises:
      InputError: one sentence that says what to do.
    """
    path = limits.check_photo(photo, self._allowed)
    expressions = limits.read_expressions(text, self._allowed)
    self._sweep()
    try:
      pixels = preprocess.open_image(path)
    except InputError as error:
      raise InputError(_without_folder(str(error), path)) from error
    masks, source = self._find_masks(path, pixels, masks_file)
    place = pathlib.Path(tempfile.mkdtemp(dir=self._folder))
    with self._turns.of_size(*pixels.shape[:2]):
      return [
        _write(result, source, place, f"{number}-" if len(expressions) > 1 else "")
        for number, result in enumerate(self._segmenter(pixels, expressions, masks), 1)
      ]

  def _find_masks(
    self, path: str, pixels: UInt8[np.ndarray, "h w 3"], masks_file: str | None
  ) -> tuple[Bool[np.ndarray, "k h w"] | None, str]:
    """Instance masks of the photo, and where they come from in words."""
    if masks_file:
      return self._read_coco(masks_file, path, pixels), "those of your file"
    own = self._examples.of(path)
    if own is not None:
      return own, "those that come with this example"
    if self._proposer is None:
      return None, ""
    try:
      return self._instances.of(self._proposer, pixels, path), f"from {self._proposer_name}"
    except InputError as error:
      if hasattr(self._proposer.proposer, "image_id"):
        return None, ""  # a file of masks knows its own photos only
      why = _without_folder(str(error), path)
      raise InputError(f"The instance masks of this photo could not be made: {why}") from error

  def _read_coco(
    self, masks_file: str, photo: str, pixels: UInt8[np.ndarray, "h w 3"]
  ) -> Bool[np.ndarray, "k h w"]:
    """The instances of a photo in a COCO JSON: by its file name, or of the only image there is."""
    try:
      return self._instances.of(pathlib.Path(masks_file), pixels, photo)
    except InputError as error:
      shown = limits.shorten(os.path.basename(masks_file))
      why = _without_folder(str(error), masks_file)
      raise InputError(f"The instance masks in {shown} cannot be used: {why}") from error

  def _sweep(self) -> None:
    """Removes answers that are too old to be asked for again."""
    oldest = time.time() - KEPT_SECONDS
    for place in self._folder.iterdir():
      with contextlib.suppress(FileNotFoundError):
        if place.stat().st_mtime < oldest:
          shutil.rmtree(place, ignore_errors=True)


class _Turns:
  """Lets photos through, and forgets compiled programs when there are many, while nobody is inside."""

  def __init__(self):
    self._change = threading.Condition()
    self._inside = 0
    self._sizes: set[tuple[int, int]] = set()

  @contextlib.contextmanager
  def of_size(self, height: int, width: int) -> Iterator[None]:
    size = (-(-height // _CANVAS), -(-width // _CANVAS))
    with self._change:
      while size not in self._sizes and len(self._sizes) >= _SIZES:
        if self._inside == 0:
          jax.clear_caches()
          self._sizes.clear()
        else:
          self._change.wait()
      self._sizes.add(size)
      self._inside += 1
    try:
      yield
    finally:
      with self._change:
        self._inside -= 1
        self._change.notify_all()


def _without_folder(message: str, path: str) -> str:
  """A message that names an uploaded file as the visitor calls it, and no folder of the server."""
  return message.replace(path, os.path.basename(path)).replace("COCO annotations ", "", 1)


def _write(result: Segmentation, source: str, place: pathlib.Path, prefix: str) -> Answer:
  """Writes the pictures of an answer."""
  overlay, mask = place / f"{prefix}overlay.png", place / f"{prefix}mask.png"
  Image.fromarray(result.overlay()).save(overlay, compress_level=1)
  Image.fromarray(result.mask.astype(np.uint8) * 255).save(mask)
  small, fitted = fit(result.image, result.instances)
  instances = []
  for k in range(len(fitted)):
    path = place / f"{prefix}instance-{k + 1}.jpg"
    alone = instance_alone(small, fitted[k], k == result.selected)
    path.write_bytes(drawing.encode_jpeg(alone, 88))
    instances.append((str(path), caption(result, k)))
  return Answer(
    expression=result.expression,
    overlay=str(overlay),
    mask=str(mask),
    instances=_likeliest_first(instances, result.instance_probability),
    summary=summary(result, source),
  )


def _likeliest_first(
  instances: list[tuple[str, str]], chances: Float32[np.ndarray, "k"]
) -> list[tuple[str, str]]:
  return [instances[k] for k in np.argsort(-chances, kind="stable").tolist()]


def instance_alone(
  image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], chosen: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
  """The photo with everything but one instance dimmed, the instance as it is with an outline.

  Args:
    image: RGB.
    mask: of the instance.
    chosen: whether the model chose it; its outline is yellow then, else white.
  """
  width = max(1, round(max(image.shape[:2]) / 300))
  dimmed = drawing.tint(image, ~mask, (20, 24, 32), _DIMMED)
  return drawing.outline(dimmed, mask, drawing.SELECTED if chosen else drawing.TARGET, width)


def fit(
  image: UInt8[np.ndarray, "h w 3"], masks: Bool[np.ndarray, "k h w"], side: int = SIDE
) -> tuple[UInt8[np.ndarray, "y x 3"], Bool[np.ndarray, "k y x"]]:
  """Photo and masks with a longer side of `side` pixels: larger ones averaged, smaller ones kept pixel by pixel."""
  size = drawing.fitting_size(image.shape[0], image.shape[1], side)
  if max(image.shape[:2]) > side:
    small = np.array(Image.fromarray(image).resize(size, Image.Resampling.BOX))
  else:
    small = drawing.stretch(image, size)
  fitted = [drawing.stretch(mask, size) for mask in masks]
  return small, np.stack(fitted) if fitted else np.zeros((0, *small.shape[:2]), bool)


def summary(result: Segmentation, masks_from: str) -> str:
  """Says how much was found, how sure the model is, and what to know about it.

  Args:
    result: of one expression.
    masks_from: where the instance masks came from, in a few words; empty where there were none.
  """
  notes = [f"<li>{html.escape(note)}</li>" for note in _notes(result, masks_from)]
  return (
    f'<section class="answer" aria-live="polite"><p class="asked">“{html.escape(result.expression)}”</p>'
    f'<p class="found">{html.escape(headline(result))}</p><ul>{"".join(notes)}</ul></section>'
  )


def headline(result: Segmentation) -> str:
  """What was found, in one line."""
  nothing = result.no_target_probability
  if nothing is not None and nothing > 0.5:
    return f"Nothing in the photo is meant, {nothing:.0%} sure"
  if not result.mask.any():
    return "Nothing was found"
  share = result.mask.mean()
  return (
    f"Found: {share:.1%} of the photo" if share >= 0.001 else "Found: less than 0.1% of the photo"
  )


def _notes(result: Segmentation, masks_from: str) -> list[str]:
  notes = []
  if result.mask.any():
    sure = result.probability[result.mask].mean(dtype=np.float64)
    notes.append(f"{sure:.0%} sure of the pixels inside the mask, on average")
  count = len(result.instances)
  if count:
    notes.append(f"{_choice(result)}; the masks are {masks_from}")
  else:
    notes.append(
      "No instance masks: answered from the photo and the text alone, which is less exact"
    )
  if result.was_cut:
    notes.append("The text is longer than the model reads: its end was cut off")
  return notes


def _choice(result: Segmentation) -> str:
  count, chances = len(result.instances), result.instance_probability
  if result.selected is None:
    return f"None of the {count} instances was chosen"
  return f"Instance {result.selected + 1} of {count} chosen, {chances[result.selected]:.0%} sure"


def caption(result: Segmentation, k: int) -> str:
  """The line below the picture of instance k."""
  mark = " ✓" if k == result.selected else ""
  return f"{k + 1}: {result.instance_probability[k]:.0%}{mark}"


def title(name: str, selected: str, step: int, dataset: str) -> str:
  """The head of the page: which model this is."""
  about = " · ".join(
    html.escape(part)
    for part in (name, selected, f"step {step:,}", f"learned from {dataset}")
    if part
  )
  return (
    '<header><h1>Say it, see it</h1><p class="lead">Describe something in a photo; the model marks it.</p>'
    f'<p class="model"><span>mail_jax</span> {about}</p></header>'
  )
