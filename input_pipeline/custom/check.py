"""Checks of a single line: its keys, its image and its masks."""

import dataclasses
import enum
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from input_pipeline import preprocess
from input_pipeline.common import fingerprint, untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.custom import image_files, masks, schema
from input_pipeline.custom.schema import LineError, Problem


class CheckLevel(enum.Enum):
  """How thoroughly lines are checked."""

  FAST = enum.auto()
  """No image is opened and no mask is rasterised."""
  HEADERS = enum.auto()
  """The headers of images are read, and masks are rasterised."""
  WHOLE = enum.auto()
  """Images are also decoded, which finds truncated ones."""


@dataclasses.dataclass(frozen=True, slots=True)
class LineSummary:
  """What is kept of a line."""

  number: int
  offset: int
  """Of the line's first byte in the file."""
  image: str
  size: tuple[int, int] | None
  """Height and width of the image in pixels; None if it was not opened."""
  split: str
  num_expressions: int
  ref_id: int | None
  image_id: int | None
  area: int | None
  """Pixels of the target; 0 without a target, None if it was not rasterised."""
  instances_hash: str
  """Empty if the line does not have `instances`."""
  expression_hashes: tuple[int, ...]
  """Of the normalised expressions."""
  target_hash: str
  """Of its pixels; of what the line says if it was not rasterised."""
  coco_images: tuple[Any, ...]
  """Ids of the images in the COCO file whose annotations the line refers to; at most two."""


@dataclasses.dataclass(frozen=True)
class CheckResult:
  """The outcome of checking a line."""

  problems: tuple[Problem, ...]
  summary: LineSummary | None
  """None if the line could not be parsed."""


@dataclasses.dataclass(frozen=True)
class LineChecker:
  """Checks lines; picklable, so that other processes can run it."""

  paths: masks.PathResolver
  level: CheckLevel = CheckLevel.HEADERS

  def __call__(self, rows: Sequence[tuple[int, int, bytes]]) -> list[CheckResult]:
    """Checks lines, each given as its number, its offset in the file and its bytes."""
    return [self._check(*row) for row in rows]

  def _check(self, number: int, offset: int, data: bytes) -> CheckResult:
    line, problems = schema.parse(number, data)
    if line is None:
      return CheckResult(tuple(problems), None)
    line = dataclasses.replace(line, image=self.paths.name(line.image))
    header = self._check_image(line, problems)
    area, target_hash = self._check_target(line, header, problems)
    self._check_instances(line, header, problems)
    size = header.size if header is not None else None
    return CheckResult(tuple(problems), self._summarise(line, offset, size, area, target_hash))

  def _check_image(
    self, line: schema.Annotation, problems: list[Problem]
  ) -> image_files.Header | None:
    try:
      path = self.paths.resolve(line.image)
      if self.level is CheckLevel.FAST:
        return None
      header = image_files.read_header(path)
      if self.level is CheckLevel.WHOLE:
        _decode(path)
      return header
    except LineError as error:
      problem = error.at(line.number, "image")
      if error.kind == "image is missing":
        where = f"paths are relative to {self.paths.root}; set another folder with --images"
        problem = dataclasses.replace(problem, message=f"{problem.message}; {where}")
      problems.append(problem)
      return None

  def _check_target(
    self, line: schema.Annotation, header: image_files.Header | None, problems: list[Problem]
  ) -> tuple[int | None, str]:
    """Returns the number of pixels, if known, and a hash of the target."""
    parts = [
      self._rasterise(mask, line, header, problems, _field("target", number, len(line.target)))
      for number, mask in enumerate(line.target)
    ]
    if not parts:
      return 0, ""
    if any(mask is None for mask in parts):
      return None, _hash(line.target)
    union = masks.union([mask for mask in parts if mask is not None])
    area = int(np.count_nonzero(union))
    if not area:
      message = "target: covers no pixel; use null if the expressions refer to nothing"
      problems.append(Problem(line.number, "empty mask", message))
    # In the memory order of pycocotools: reordering takes longer than drawing.
    return area, fingerprint.of_bytes(np.packbits(np.asfortranarray(union).T).tobytes())

  def _check_instances(
    self, line: schema.Annotation, header: image_files.Header | None, problems: list[Problem]
  ) -> None:
    for number, mask in enumerate(line.instances or ()):
      field = _field("instances", number, 2)
      pixels = self._rasterise(mask, line, header, problems, field)
      if pixels is not None and not pixels.any():
        message = f"{field}: covers no pixel; it is left out"
        problems.append(Problem(line.number, "empty instance", message, warning=True))

  def _summarise(
    self,
    line: schema.Annotation,
    offset: int,
    size: tuple[int, int] | None,
    area: int | None,
    target_hash: str,
  ) -> LineSummary:
    coco_images: set[Any] = set()
    for mask in (*line.target, *(line.instances or ())):
      coco_images |= masks.coco_images(mask, self.paths)
    return LineSummary(
      number=line.number,
      offset=offset,
      image=line.image,
      size=size,
      split=line.split,
      num_expressions=len(line.sentences),
      ref_id=line.ref_id,
      image_id=line.image_id,
      area=area,
      instances_hash=_hash(line.instances),
      expression_hashes=tuple(map(_hash_expression, line.sentences)),
      target_hash=target_hash,
      coco_images=tuple(coco_images)[:2],
    )

  def _rasterise(
    self,
    mask: schema.Mask,
    line: schema.Annotation,
    header: image_files.Header | None,
    problems: list[Problem],
    field: str,
  ) -> Bool[np.ndarray, "h w"] | None:
    """Returns the pixels of a mask, None if unknown; appends to `problems`."""
    try:
      parts = masks.resolve(mask, line.image, self.paths)
      if header is None:
        return None
      read = [masks.read(part, *header.size) for part in parts]
    except LineError as error:
      problems.append(error.at(line.number, field))
      return None
    warnings = [note.at(line.number, field) for _, notes in read for note in notes]
    if header.turned_unseen and any(masks.DECLARED in part for part in parts):
      message = (
        f"{field}: EXIF rotates the image, and its size does not tell whether the annotation is "
        "for the upright image; check with `draw`"
      )
      warnings.append(Problem(line.number, "annotation of a rotated image", message))
    problems += [dataclasses.replace(warning, warning=True) for warning in warnings]
    return masks.union([pixels for pixels, _ in read])


def _decode(path: str) -> None:
  try:
    data = untrusted_files.read(path, path, preprocess.MAX_FILE_BYTES)
    image_files.stored_upright(data, path)
  except InputError as error:
    raise LineError("image cannot be read", str(error)) from error


def _field(name: str, number: int, count: int) -> str:
  return f"{name} {number + 1}" if count > 1 else name


def _hash(masks: Any) -> str:
  if masks is None:
    return ""
  return fingerprint.of_bytes(json.dumps(masks, sort_keys=True).encode())


def _hash_expression(expression: str) -> int:
  text = preprocess.normalise_text(expression).encode("utf-8", "surrogatepass")
  return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), signed=True)
