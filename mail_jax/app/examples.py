"""What a visitor without a photo can pick: a folder's pictures, the lines of a JSONL, or generated scenes."""

import dataclasses
import hashlib
import io
import pathlib

import numpy as np
from jaxtyping import Bool
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.shapes import scenes
from mail_jax.app.limits import Limits, check_photo
from mail_jax.predict import inputs
from mail_jax.predict.inputs import Question

_SCENES, _SIZE = 8, 96
_SENTENCES = 3  # of an example are typed for the visitor at most


@dataclasses.dataclass(frozen=True)
class Example:
  """A picture to pick.

  Attributes:
    path: of its file.
    expressions: to try on it; may be none.
    masks: its instance masks, best score first; None where it has none of its own.
  """

  path: str
  expressions: tuple[str, ...] = ()
  masks: Bool[np.ndarray, "k h w"] | None = None


def load(place: str | None, dataset: str, limits: Limits, folder: pathlib.Path) -> list[Example]:
  """Collects the examples.

  Args:
    place: a folder of pictures, or a file of lines (docs/guides/custom-data.md); None for what fits the model.
    dataset: that the model was trained on; a model of `shapes` gets generated scenes.
    limits: of the page; they hold for examples as well.
    folder: where generated pictures may be written.

  Raises:
    InputError: no such place, a line that is no example, or a picture that the page would refuse.
  """
  if place is None:
    return generated(folder) if dataset == "shapes" else []
  root = pathlib.Path(place)
  if root.is_dir():
    paths = sorted(path for path in root.iterdir() if path.suffix.lower() in preprocess.EXTENSIONS)
    found = [Example(str(path)) for path in paths[: limits.examples]]
  elif root.is_file():
    found = _read_jsonl(root, limits)
  else:
    raise InputError(f"--examples {place}: no such folder or JSONL file")
  if not found:
    raise InputError(
      f"--examples {place}: there is no picture ({', '.join(preprocess.EXTENSIONS)}) in it"
    )
  for example in found:
    check_photo(example.path, limits)
  return found


def generated(folder: pathlib.Path) -> list[Example]:
  """Draws scenes that no training has seen, with what the simulated detector finds in them."""
  found = []
  for index in range(_SCENES):
    scene = scenes.make_scene("val", 7, index, _SIZE)
    said = [texts for texts in scene.expressions if texts]
    chosen = tuple(texts[index % len(texts)].text for texts in said[:_SENTENCES])
    path = folder / f"scene-{index + 1}.png"
    Image.fromarray(scene.image).save(path)
    found.append(Example(str(path), chosen, scene.instances.masks))
  return found


def _read_jsonl(path: pathlib.Path, limits: Limits) -> list[Example]:
  """The photos of a user's own lines, a few sentences of each."""
  asked = inputs.from_lines(str(path), None, "--examples")
  by_photo: dict[str, list[Question]] = {}
  for question in asked.asked:
    by_photo.setdefault(question.path, []).append(question)
  found = []
  for photo, all_of_it in list(by_photo.items())[: limits.examples]:
    said = [text for question in all_of_it for text in question.sentences]
    check_photo(photo, limits)
    pixels = preprocess.open_image(photo)
    proposer = asked.masks_of(all_of_it[0], pixels)
    masks = None if proposer is None else proposer.propose([pixels], [0])[0].masks
    found.append(Example(photo, tuple(said[:_SENTENCES]), masks))
  return found


class Masks:
  """The masks of examples, found by what is in the picture's file: however it was picked, it is the same picture."""

  def __init__(self, examples: list[Example]):
    """Args: examples may have masks or not."""
    self._masks = {
      _digest(example.path): example.masks for example in examples if example.masks is not None
    }

  def of(self, path: str) -> Bool[np.ndarray, "k h w"] | None:
    """The masks that belong to the picture in a file; None where it is no example."""
    return self._masks.get(_digest(path)) if self._masks else None


def _digest(path: str) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def thumbnail(path: str, side: int = 240) -> Image.Image:
  """A small picture of an example; small ones keep their pixels."""
  pixels = preprocess.open_image(path)
  picture = Image.fromarray(pixels)
  picture.thumbnail((side, side))
  buffer = io.BytesIO()
  picture.save(buffer, "PNG")
  return Image.open(buffer)
