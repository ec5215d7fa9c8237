"""What a visitor without a photo can pick: a folder's pictures, the lines of a JSONL, or generated scenes."""

import dataclasses
import hashlib
import io
import json
import os
import pathlib

import numpy as np
from jaxtyping import Bool
from PIL import Image

from input_pipeline import coco_annotations, preprocess
from input_pipeline.errors import InputError
from input_pipeline.sources import shapes
from mail_jax.page.limits import Limits, check_photo

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
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
    place: a folder of pictures, or a JSONL of {"image", "sentences", "instances"}; None for what fits the model.
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
    paths = sorted(path for path in root.iterdir() if path.suffix.lower() in _ENDINGS)
    found = [Example(str(path)) for path in paths[: limits.examples]]
  elif root.is_file():
    found = _read_jsonl(root, limits)
  else:
    raise InputError(f"--examples {place}: no such folder or JSONL file")
  if not found:
    raise InputError(f"--examples {place}: there is no picture ({', '.join(_ENDINGS)}) in it")
  for example in found:
    check_photo(example.path, limits)
  return found


def generated(folder: pathlib.Path) -> list[Example]:
  """Draws scenes that no training has seen, with what the simulated detector finds in them."""
  found = []
  for index in range(_SCENES):
    scene = shapes.make_scene("val", 7, index, _SIZE)
    said = [texts for texts in scene.expressions if texts]
    chosen = tuple(texts[index % len(texts)].text for texts in said[:_SENTENCES])
    path = folder / f"scene-{index + 1}.png"
    Image.fromarray(scene.image).save(path)
    found.append(Example(str(path), chosen, scene.instances.masks))
  return found


def _read_jsonl(path: pathlib.Path, limits: Limits) -> list[Example]:
  found = []
  with open(path, encoding="utf-8") as file:
    for number, line in enumerate(file, 1):
      if len(found) == limits.examples:
        break
      if line.strip():
        found.append(_read_line(line, path.parent, f"--examples {path}, line {number}"))
  return found


def _read_line(line: str, root: pathlib.Path, name: str) -> Example:
  try:
    row = json.loads(line)
    image, sentences = row["image"], row.get("sentences", [])
    if not isinstance(image, str) or not all(isinstance(text, str) for text in sentences):
      raise TypeError("`image` is a path, and `sentences` a list of texts")
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(f"{name}: no example ({error}); it needs `image` and `sentences`") from error
  real, home = os.path.realpath(root / image), os.path.realpath(root)
  if os.path.commonpath([real, home]) != home:
    raise InputError(f"{name}: image {image} is not below the folder of the file; move it there")
  return Example(real, tuple(sentences[:_SENTENCES]), _read_masks(row.get("instances"), real, name))


def _read_masks(rows, path: str, name: str) -> Bool[np.ndarray, "k h w"] | None:
  if rows is None:
    return None
  height, width = preprocess.open_image(path).shape[:2]
  masks = [np.zeros((0, height, width), bool)]
  try:
    for row in rows:
      shape = row.get("segmentation", row) if isinstance(row, dict) else row
      masks.append(coco_annotations.decode_segmentation(shape, height, width)[None])
  except (ValueError, TypeError) as error:
    raise InputError(f"{name}: `instances` are no masks of the photo ({error})") from error
  return np.concatenate(masks)


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
