"""Example images for visitors: from a folder, from a JSONL file, or generated scenes."""

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.shapes import scenes
from mail_jax.app.limits import Limits, check_photo
from mail_jax.predict import inputs
from mail_jax.predict.inputs import PredictionInput

_SCENES, _SIZE = 8, 96
# Expressions of an example that are filled in.
_EXPRESSIONS = 3


@dataclasses.dataclass(frozen=True)
class Example:
  """An image to pick.

  Attributes:
    path: of its file.
    expressions: to try on it; may be empty.
    masks: its instance masks, best score first; None if it comes without.
  """

  path: str
  expressions: tuple[str, ...] = ()
  masks: Bool[np.ndarray, "k h w"] | None = None


def load(place: str | None, dataset: str, limits: Limits, folder: pathlib.Path) -> list[Example]:
  """Collects the examples.

  Args:
    place: a folder of images, or a JSONL file (docs/reference/formats.md); None for the model's
      default.
    dataset: that the model was trained on; a model of `shapes` gets generated scenes.
    limits: of the app, which hold for examples as well.
    folder: where generated images are written.

  Raises:
    InputError: no such place, a line that is not an example, or an image beyond the limits.
  """
  if place is None:
    return generated(folder) if dataset == "shapes" else []
  root = pathlib.Path(place)
  if root.is_dir():
    paths = sorted(path for path in root.iterdir() if path.suffix.lower() in preprocess.EXTENSIONS)
    examples = [Example(str(path)) for path in paths[: limits.examples]]
  elif root.is_file():
    examples = _read_jsonl(root, limits)
  else:
    raise InputError(f"--examples {place}: no such folder or JSONL file")
  if not examples:
    raise InputError(
      f"--examples {place}: no images in this folder ({', '.join(preprocess.EXTENSIONS)})"
    )
  for example in examples:
    check_photo(example.path, limits)
  return examples


def generated(folder: pathlib.Path) -> list[Example]:
  """Draws scenes that are not in the training data, with the masks of the simulated detector."""
  examples = []
  for index in range(_SCENES):
    scene = scenes.make_scene("val", 7, index, _SIZE)
    of_objects = [texts for texts in scene.expressions if texts]
    expressions = tuple(texts[index % len(texts)].text for texts in of_objects[:_EXPRESSIONS])
    path = folder / f"scene-{index + 1}.png"
    Image.fromarray(scene.image).save(path)
    examples.append(Example(str(path), expressions, scene.instances.masks))
  return examples


def _read_jsonl(path: pathlib.Path, limits: Limits) -> list[Example]:
  """Reads the images of a JSONL file, with a few expressions of each."""
  all_inputs = inputs.from_jsonl(str(path), None, "--examples")
  by_path: dict[str, list[PredictionInput]] = {}
  for item in all_inputs.items:
    by_path.setdefault(item.path, []).append(item)
  examples = []
  for file, items in list(by_path.items())[: limits.examples]:
    expressions = [expression for item in items for expression in item.expressions]
    check_photo(file, limits)
    pixels = preprocess.open_image(file)
    proposer = all_inputs.make_proposer(items[0], pixels)
    masks = None if proposer is None else proposer.propose([pixels], [0])[0].masks
    examples.append(Example(file, tuple(expressions[:_EXPRESSIONS]), masks))
  return examples


class ExampleMasks:
  """The masks of examples, looked up by the content of the file, regardless of its path."""

  def __init__(self, examples: list[Example]):
    """Indexes examples; some may come without masks."""
    self._masks = {digest(example.path): example.masks for example in examples}

  def find(self, path: str) -> Bool[np.ndarray, "k h w"] | None:
    """Returns the masks of the image in a file; None if it is not an example with masks."""
    return self._masks.get(digest(path)) if self._masks else None

  def digest(self, path: str) -> str | None:
    """Returns the SHA-256 of the image in a file; None if it is not an example."""
    found = digest(path) if self._masks else ""
    return found if found in self._masks else None


def digest(path: str) -> str:
  """Returns the SHA-256 of a file, in hexadecimal digits."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def find(examples: Sequence[Example], prefix: str) -> str | None:
  """Returns the path of the example whose SHA-256 begins with some digits; None without it."""
  if not prefix:
    return None
  return next((shown.path for shown in examples if digest(shown.path).startswith(prefix)), None)


def thumbnail(path: str, side: int = 240) -> Image.Image:
  """Returns an example scaled down to fit a square; a smaller one keeps its size."""
  image = Image.fromarray(preprocess.open_image(path))
  image.thumbnail((side, side))
  buffer = io.BytesIO()
  image.save(buffer, "PNG")
  return Image.open(buffer)
