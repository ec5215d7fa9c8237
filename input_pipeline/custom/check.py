"""What is wrong with a line by itself: its keys, its photo, its masks."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from input_pipeline import preprocess
from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.custom import image_files, masks, schema
from input_pipeline.custom.problems import Problem, Wrong


@dataclasses.dataclass(frozen=True)
class How:
  """How closely lines are looked at."""

  fast: bool = False
  """No photo is opened, and no mask is drawn."""
  whole: bool = False
  """Photos are decoded to their end, not only their headers: one that breaks off is found."""


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is kept of a line, small: files may have millions."""

  number: int
  offset: int
  """Of its first byte in the file."""
  image: str
  size: tuple[int, int] | None
  """Height and width of the photo in pixels; None where it was not opened."""
  split: str
  sentences: int
  ref_id: int | None
  image_id: int | None
  area: int | None
  """Pixels of the target; 0 where nothing is meant, None where it was not drawn."""
  instances: str
  """A fingerprint of its instances; empty where the line says nothing of them."""


@dataclasses.dataclass(frozen=True)
class Checked:
  """A line after it was looked at."""

  problems: tuple[Problem, ...]
  facts: Facts | None
  """None where the line could not be read."""


@dataclasses.dataclass(frozen=True)
class LineChecker:
  """Looks at lines; picklable, for other processes."""

  places: masks.Places
  how: How = dataclasses.field(default_factory=How)

  def __call__(self, rows: Sequence[tuple[int, int, bytes]]) -> list[Checked]:
    """Looks at lines, each given as its number, its offset in the file and its bytes."""
    return [self._check(*row) for row in rows]

  def _check(self, number: int, offset: int, data: bytes) -> Checked:
    line, problems = schema.parse(number, data)
    if line is None:
      return Checked(tuple(problems), None)
    size = self._check_photo(line, problems)
    area = self._check_target(line, size, problems)
    self._check_instances(line, size, problems)
    return Checked(tuple(problems), _facts(line, offset, size, area))

  def _check_photo(self, line: schema.Line, problems: list[Problem]) -> tuple[int, int] | None:
    try:
      path = self.places.image(line.image)
      if self.how.fast:
        return None
      size = image_files.upright_size(path)
      if self.how.whole:
        _decode(path)
      return size
    except Wrong as wrong:
      problems.append(wrong.at(line.number, "image"))
      return None

  def _check_target(
    self, line: schema.Line, size: tuple[int, int] | None, problems: list[Problem]
  ) -> int | None:
    drawn = [
      self._draw(mask, line, size, problems, _where("target", number, len(line.target)))
      for number, mask in enumerate(line.target)
    ]
    if not drawn:
      return 0
    if any(mask is None for mask in drawn):
      return None
    area = int(np.count_nonzero(masks.union([mask for mask in drawn if mask is not None])))
    if not area:
      text = "it covers no pixel; if nothing is meant, write null"
      problems.append(Problem(line.number, "mask covers nothing", f"target: {text}"))
    return area

  def _check_instances(
    self, line: schema.Line, size: tuple[int, int] | None, problems: list[Problem]
  ) -> None:
    for number, mask in enumerate(line.instances or ()):
      where = _where("instances", number, 2)
      drawn = self._draw(mask, line, size, problems, where)
      if drawn is not None and not drawn.any():
        text = f"{where}: it covers no pixel; it is left out"
        problems.append(Problem(line.number, "instance covers nothing", text, warning=True))

  def _draw(
    self,
    mask: schema.Mask,
    line: schema.Line,
    size: tuple[int, int] | None,
    problems: list[Problem],
    where: str,
  ) -> Bool[np.ndarray, "h w"] | None:
    """The pixels of a mask, None where they cannot be known; what is wrong joins the problems."""
    try:
      parts = masks.resolve(mask, line.image, self.places)
      if size is None:
        return None
      return masks.union([masks.rasterise(part, *size) for part in parts])
    except Wrong as wrong:
      problems.append(wrong.at(line.number, where))
      return None


def _decode(path: str) -> None:
  try:
    data = untrusted_files.read(path, path, preprocess.MAX_FILE)
    image_files.stored_upright(data, path)
  except InputError as error:
    raise Wrong("image cannot be read", str(error)) from error


def _where(field: str, number: int, count: int) -> str:
  return f"{field} {number + 1}" if count > 1 else field


def _facts(line: schema.Line, offset: int, size: tuple[int, int] | None, area: int | None) -> Facts:
  return Facts(
    line.number, offset, line.image, size, line.split, len(line.sentences), line.ref_id,
    line.image_id, area, _fingerprint(line.instances),
  )  # fmt: skip


def _fingerprint(instances: Any) -> str:
  if instances is None:
    return ""
  return hashlib.sha256(json.dumps(instances, sort_keys=True).encode()).hexdigest()[:16]
