"""What many photos are asked: from a folder, or from lines of JSON."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.proposers.registry import SelectingProposer

_PROBLEMS = 5  # of a file of lines that are told


@dataclasses.dataclass(frozen=True)
class Question:
  """A photo and what is looked for in it.

  Attributes:
    image: the photo, as the input names it.
    path: of its file.
    sentences: what to look for.
    picture: the beginning of the names of its pictures, without an ending.
    line: of the file of lines, from 1; None of a folder.
    instances: masks that came with the line, as the line has them; None where it has none.
  """

  image: str
  path: str
  sentences: tuple[str, ...]
  picture: str
  line: int | None = None
  instances: tuple[dict, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Questions:
  """All that is asked in one run.

  Attributes:
    source: what an answer depends on beside the photos: texts, or the digest of the file of lines.
    asked: in the order of the input.
    root: the folder that lines are about.
    annotations: the COCO file that lines look their masks up in; empty where there is none.
  """

  source: dict[str, object]
  asked: list[Question]
  root: str = ""
  annotations: str = ""

  def masks_of(
    self, question: Question, pixels: UInt8[np.ndarray, "h w 3"]
  ) -> SelectingProposer | None:
    """A proposer of the masks that came with a line, for its photo alone; None where none came.

    Raises:
      InputError: they are not masks of this photo.
    """
    if question.instances is None:
      return None
    from input_pipeline.custom import masks
    from input_pipeline.custom.schema import LineError
    from input_pipeline.proposers.custom import CustomProposer
    from input_pipeline.proposers.selection import Selection

    places = masks.PathResolver(self.root, self.annotations)
    try:
      given = [
        whole | {key: mask[key] for key in ("score", "category") if key in mask}
        for mask in question.instances
        for whole in masks.resolve(mask, question.image, places)
      ]
    except LineError as error:
      raise InputError(f"instances: {error}") from error
    return SelectingProposer(CustomProposer(given={0: given}), Selection())


def from_folder(folder: str, texts: Sequence[str]) -> Questions:
  """Asks the same of every picture below a folder.

  Raises:
    InputError: there is no picture in it.
  """
  found = []
  for place, folders, names in os.walk(folder):
    folders.sort()
    inside = os.path.relpath(place, folder)
    found += [
      os.path.normpath(os.path.join(inside, name))
      for name in sorted(names)
      if name.lower().endswith(preprocess.EXTENSIONS)
    ]
  if not found:
    raise InputError(
      f"--image {folder}: there is no picture ({', '.join(preprocess.EXTENSIONS)}) in it"
    )
  stems = collections.Counter(os.path.splitext(name)[0] for name in found)
  asked = []
  for name in found:
    stem = os.path.splitext(name)[0]
    picture = stem if stems[stem] == 1 else name  # a.jpg and a.png have one picture each
    asked.append(Question(name, os.path.join(folder, name), tuple(texts), picture))
  return Questions({"texts": list(texts)}, asked)


def from_lines(path: str, images: str | None, option: str = "--pairs") -> Questions:
  """Asks what the lines of a file ask; a line needs `image` and `sentences` (docs/guides/custom-data.md).

  Args:
    path: of the file.
    images: the folder that paths of photos start in; the file's own by default.
    option: that named the file.

  Raises:
    InputError: the file cannot be read, a line is wrong, or there is none.
  """
  from input_pipeline.custom import masks, scan, schema
  from input_pipeline.custom.schema import LineError

  root = images if images is not None else os.path.dirname(path) or "."
  if not os.path.isdir(root):
    raise InputError(f"--images {root}: no such folder; paths of photos start there")
  places, digest = masks.PathResolver(os.path.abspath(root)), hashlib.sha256()
  asked, problems, annotations = [], [], ""
  for number, _, data in scan.read_rows(path):
    digest.update(data + b"\n")
    line, wrong = schema.parse(number, data, targets=False)
    problems += wrong
    if line is None:
      continue
    annotations = annotations or line.annotations or ""
    try:
      file = places.resolve(line.image)
    except LineError as error:
      problems.append(error.at(number, "image"))
      continue
    stem = os.path.splitext(os.path.basename(line.image))[0]
    asked.append(
      Question(line.image, file, line.sentences, f"{number:05d}_{stem}", number, line.instances)
    )
  if problems:
    told = "; ".join(map(str, problems[:_PROBLEMS]))
    more = f"; and {len(problems) - _PROBLEMS} more" if len(problems) > _PROBLEMS else ""
    raise InputError(
      f"{option} {path}: {told}{more} (docs/guides/custom-data.md says what a line holds)"
    )
  asked = _share_instances(asked)
  if not asked:
    raise InputError(f"{option} {path}: it has no line; a line is an image and its sentences")
  if annotations:
    annotations = os.path.join(os.path.dirname(os.path.abspath(path)), annotations)
  return Questions({"pairs": digest.hexdigest()}, asked, places.root, annotations)


def _share_instances(asked: list[Question]) -> list[Question]:
  """A photo's instances stand in one of its lines and are those of all."""
  given = {
    question.image: question.instances for question in asked if question.instances is not None
  }
  return [dataclasses.replace(one, instances=given.get(one.image)) for one in asked]


def in_order(
  asked: Sequence[Question], done: set[tuple[str, int | None, int]]
) -> Iterator[Question]:
  """Yields what is not answered yet: photos of which some sentence is left."""
  for question in asked:
    keys = {(question.image, question.line, k) for k in range(len(question.sentences))}
    if not keys <= done:
      yield question
