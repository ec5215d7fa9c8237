"""Inputs of predictions: images and expressions of a folder or a file, or drawn scenes."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import UnidentifiedImageError

from input_pipeline import preprocess
from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.proposers.registry import SelectingProposer
from input_pipeline.proposers.selection import Selection
from input_pipeline.shapes import scenes

# Problems of a file that an error message lists.
_PROBLEMS = 5
# Of the scenes that are drawn to try a model: in no training data, and four times as large.
_SCENE_SEED, _SCENE_SIDE = 7, 384


class DrawnScene(NamedTuple):
  """A generated scene to try a model on.

  Attributes:
    image: RGB.
    expression: means one of its objects.
    instances: masks of the simulated detector, best first.
  """

  image: UInt8[np.ndarray, "h w 3"]
  expression: str
  instances: Bool[np.ndarray, "k h w"]


def draw_scene(number: int) -> DrawnScene:
  """Draws a scene of the kind that the demo's model is trained on, but was not trained on.

  Args:
    number: from 0; each has another scene, always the same.
  """
  scene = scenes.make_scene("val", _SCENE_SEED, number, _SCENE_SIDE)
  expressions = [max((x.text for x in texts), key=len) for texts in scene.expressions if texts]
  expression = expressions[number % len(expressions)]
  return DrawnScene(scene.image, expression, scene.instances.masks)


@dataclasses.dataclass(frozen=True)
class PredictionInput:
  """An image and the expressions to segment in it.

  Attributes:
    image: as the folder or the JSONL file names it.
    path: of its file.
    expressions: to segment.
    output: path of its outputs relative to the output folder, without an extension.
    line: in the JSONL file, from 1; None for a folder.
    instances: masks that came with the line, in the form of the file; None without.
  """

  image: str
  path: str
  expressions: tuple[str, ...]
  output: str
  line: int | None = None
  instances: tuple[dict, ...] | None = None


@dataclasses.dataclass(frozen=True)
class PredictionInputs:
  """All inputs of a run.

  Attributes:
    source: the part of the input that predictions depend on: expressions, or the file's digest.
    items: in the order of the input.
    root: the folder that paths in a JSONL file are relative to.
    annotations: the COCO file of the masks that lines look up; empty without one.
    ignored: files of a folder that are not images, each with the reason.
  """

  source: Mapping[str, object]
  items: list[PredictionInput]
  root: str = ""
  annotations: str = ""
  ignored: Sequence[tuple[str, str]] = ()

  def make_proposer(
    self, item: PredictionInput, pixels: UInt8[np.ndarray, "h w 3"]
  ) -> SelectingProposer | None:
    """Returns a proposer of the masks that came with an input, for its image; None without masks.

    Raises:
      InputError: they are not masks of this image.
    """
    if item.instances is None:
      return None
    from input_pipeline.custom import masks
    from input_pipeline.custom.schema import LineError
    from input_pipeline.proposers.custom import CustomProposer

    paths = masks.PathResolver(self.root, self.annotations)
    try:
      resolved = [
        whole | {key: mask[key] for key in ("score", "category") if key in mask}
        for mask in item.instances
        for whole in masks.resolve(mask, item.image, paths)
      ]
    except LineError as error:
      raise InputError(f"instances: {error}") from error
    return SelectingProposer(CustomProposer(given={0: resolved}), Selection())


def from_folder(folder: str, expressions: Sequence[str]) -> PredictionInputs:
  """Combines every image below a folder with the same expressions.

  Images are recognised by content, as for a single image; hidden files are ignored.

  Raises:
    InputError: there are no images in the folder.
  """
  names, others = [], []
  for place, folders, files in os.walk(folder):
    folders.sort()
    inside = os.path.relpath(place, folder)
    for name in sorted(files):
      if not name.startswith("."):
        path = os.path.normpath(os.path.join(inside, name))
        reason = _refuse(os.path.join(folder, path))
        names.append(path) if reason is None else others.append((path, reason))
  if not names:
    few = "; ".join(f"{name} {reason}" for name, reason in others[:_PROBLEMS])
    raise InputError(f"--image {folder}: no images in this folder{few and f' ({few})'}")
  stems = collections.Counter(os.path.splitext(name)[0] for name in names)
  items = []
  for name in names:
    stem = os.path.splitext(name)[0]
    # a.jpg and a.png need different outputs.
    output = stem if stems[stem] == 1 else name
    items.append(PredictionInput(name, os.path.join(folder, name), tuple(expressions), output))
  return PredictionInputs({"expressions": list(expressions)}, items, ignored=others)


def from_photo(path: str, expressions: Sequence[str]) -> PredictionInputs:
  """Combines one image with several expressions."""
  stem = os.path.splitext(os.path.basename(path))[0]
  source = {"image": path, "expressions": list(expressions)}
  return PredictionInputs(source, [PredictionInput(path, path, tuple(expressions), stem)])


def _refuse(path: str) -> str | None:
  """Returns why a file is not used; None for an image, even if it seems damaged."""
  try:
    with untrusted_files.open_file(path, path) as file, preprocess.open_header(file):
      return None
  except UnidentifiedImageError as error:
    known = str(error).startswith("is HEIC")
    return str(error) if known or not path.lower().endswith(preprocess.EXTENSIONS) else None
  except InputError as error:
    return str(error).removeprefix(f"{path}: ")
  except Exception:  # Pillow raises almost any exception; the prediction reports it.
    return None


def from_jsonl(path: str, images: str | None, option: str = "--pairs") -> PredictionInputs:
  """Reads images and expressions from a JSONL file (docs/reference/formats.md).

  Args:
    path: of the file; a line needs `image` and `sentences`.
    images: the folder that image paths are relative to; by default the folder of the file.
    option: the command-line option that named the file, for messages.

  Raises:
    InputError: the file cannot be read, a line is wrong, or the file is empty.
  """
  from input_pipeline.custom import line_files, masks, schema
  from input_pipeline.custom.schema import LineError, Problem

  home = os.path.dirname(path) or "."
  root = images if images is not None else home
  if not os.path.isdir(root):
    raise InputError(f"--images {root}: no such folder; image paths are relative to it")
  paths, digest = masks.PathResolver(os.path.abspath(root)), hashlib.sha256()
  items, problems, annotations = [], [], ""
  for number, _, data in line_files.read_rows(path):
    digest.update(data + b"\n")
    line, wrong = schema.parse(number, data, targets=False)
    problems += wrong
    if line is None:
      continue
    try:
      file = paths.resolve(line.image)
    except LineError as error:
      problems.append(error.at(number, "image"))
      continue
    if line.annotations is not None:
      try:
        named = untrusted_files.resolve_inside(home, line.annotations, "annotations")
      except InputError as error:
        problems.append(LineError("path outside the folder", str(error)).at(number))
        continue
      annotations = annotations or named
      if named != annotations:
        message = f"annotations: {line.annotations} differs from an earlier line; use one file"
        problems.append(Problem(number, "several COCO files", message))
    stem = os.path.splitext(os.path.basename(paths.name(line.image)))[0]
    output = f"{number:05d}_{stem}"
    items.append(PredictionInput(line.image, file, line.sentences, output, number, line.instances))
  for item, earlier in _conflicts(items):
    message = f"instances differ from those of line {earlier.line} for the same image"
    message += "; list them on one line only"
    problems.append(Problem(item.line or 0, "conflicting instances", message))
  if problems:
    shown = "; ".join(map(str, problems[:_PROBLEMS]))
    more = f"; and {len(problems) - _PROBLEMS} more" if len(problems) > _PROBLEMS else ""
    raise InputError(
      f"{option} {path}: {shown}{more} (docs/reference/formats.md describes the lines)"
    )
  if not items:
    raise InputError(
      f"{option} {path}: the file is empty; write an image and its sentences per line"
    )
  source = {"pairs": digest.hexdigest()}
  return PredictionInputs(source, _share_instances(items), paths.root, annotations)


def _conflicts(
  items: Sequence[PredictionInput],
) -> Iterator[tuple[PredictionInput, PredictionInput]]:
  """Yields inputs whose instances differ from an earlier input's of the same image."""
  first: dict[str, PredictionInput] = {}
  for item in items:
    if item.instances is not None:
      earlier = first.setdefault(item.path, item)
      if earlier.instances != item.instances:
        yield item, earlier


def _share_instances(items: list[PredictionInput]) -> list[PredictionInput]:
  """Gives the instances of an image, which one of its lines has, to all of its lines."""
  instances = {item.path: item.instances for item in items if item.instances is not None}
  return [dataclasses.replace(item, instances=instances.get(item.path)) for item in items]


def remaining(
  inputs: PredictionInputs, done: set[tuple[str, int | None, int]]
) -> list[PredictionInput]:
  """Returns the inputs with at least one expression that is not done, in order.

  Args:
    inputs: all of them.
    done: (image, line, number of the expression) of the finished ones.
  """
  return [
    item
    for item in inputs.items
    if any((item.image, item.line, k) not in done for k in range(len(item.expressions)))
  ]
