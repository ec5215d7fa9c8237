"""A whole file of lines: every problem in it, what it holds, and where each line lies."""

import collections
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from input_pipeline.common import parallel, untrusted_json, untrusted_paths
from input_pipeline.common.errors import InputError
from input_pipeline.custom.check import Checked, Facts, How, LineChecker
from input_pipeline.custom.masks import Places, open_coco
from input_pipeline.custom.problems import Problem, Wrong
from input_pipeline.custom.schema import MAX_LINE

_CHUNK = 256  # lines a piece of work
_ALONE = 2000  # lines up to which starting processes takes longer than the work
_ID_BITS = 53  # of an image's own id: JSON of any reader keeps such a number whole

Row = tuple[int, int, bytes]
"""Number of a line, offset of its first byte, its bytes."""


@dataclasses.dataclass(frozen=True)
class Scan:
  """What is known of a file of lines."""

  path: str
  places: Places
  facts: list[Facts]
  """Of the lines that can be used, in the file's order."""
  problems: list[Problem]
  ref_ids: dict[int, int]
  """The id of each line's ref, by the number of the line."""
  image_ids: dict[str, int]
  """The id of each image, by its path."""

  def splits(self) -> dict[str, list[Facts]]:
    """Returns the lines of each split; `train` and `val` come first."""
    found: dict[str, list[Facts]] = {}
    for facts in self.facts:
      found.setdefault(facts.split, []).append(facts)
    first = ("train", "val")
    return {
      split: found[split] for split in [*filter(found.get, first), *sorted({*found} - {*first})]
    }


def scan(
  path: str,
  images: str | None = None,
  annotations: str | None = None,
  how: How | None = None,
  workers: int | None = None,
) -> Scan:
  """Reads a file of lines, and finds everything that is wrong with it.

  Args:
    path: JSON, a line each (docs/guides/custom-data.md).
    images: the folder that paths of images and masks start in; the file's own by default.
    annotations: the COCO file that `ann_id` looks into; by default the one that a line names.
    how: how closely lines are looked at.
    workers: processes; by default as many as there are cores, one for short files.

  Raises:
    InputError: the file cannot be read, or there is no such folder.
  """
  root = images if images is not None else os.path.dirname(path) or "."
  if not os.path.isdir(root):
    raise InputError(f"--images {root}: no such folder; paths of images start there")
  named, problems = _named_annotations(path)
  places = Places(os.path.abspath(root), annotations or named or "")
  if places.annotations:
    problems += _check_annotations(places.annotations)
  checker = LineChecker(places, how or How())
  facts: list[Facts] = []
  for checked in _check_all(path, checker, workers):
    problems += checked.problems
    # A line whose photo or masks are wrong still counts for what lines have in common.
    if checked.facts is not None:
      facts.append(checked.facts)
  if not facts and not problems:
    raise InputError(f"{path}: it has no line; docs/guides/custom-data.md says what belongs there")
  ref_ids, found = _number_refs(facts)
  image_ids, more = _number_images(facts)
  problems += [*found, *more, *_check_instances(facts), *_check_splits(facts)]
  wrong = {problem.line for problem in problems if not problem.warning}
  usable = [row for row in facts if row.number not in wrong]
  return Scan(path, places, usable, sorted(problems), ref_ids, image_ids)


def read_rows(path: str) -> Iterator[Row]:
  """Yields the lines of a file that are not blank.

  Raises:
    InputError: the file cannot be read.
  """
  offset = 0
  try:
    with open(path, "rb") as file:
      for number, data in enumerate(file, 1):
        text = data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data
        if text.strip():
          yield number, offset, text.strip()
        offset += len(data)
  except OSError as error:
    raise InputError(f"{path}: {error.strerror}; name a file with a line of JSON each") from error


def _check_all(path: str, checker: LineChecker, workers: int | None) -> Iterator[Checked]:
  rows = read_rows(path)
  first = list(itertools.islice(rows, _ALONE))
  more = next(rows, None)
  count = workers or (parallel.available_cores() if more is not None else 1)
  if more is not None:
    rows = itertools.chain([more], rows)
  chunks = _chunks(itertools.chain(first, rows))
  if count == 1:
    results: Iterable[list[Checked]] = map(checker, chunks)
  else:
    pool = parallel.start_workers(count)
    results = parallel.ordered_map(pool, checker, chunks, 4 * count)
  return itertools.chain.from_iterable(results)


def _chunks(rows: Iterable[Row]) -> Iterator[Sequence[Row]]:
  rows = iter(rows)
  while chunk := list(itertools.islice(rows, _CHUNK)):
    yield chunk


def _named_annotations(path: str) -> tuple[str | None, list[Problem]]:
  """The COCO file that a line names, and what is wrong with the lines that name another."""
  named: str | None = None
  problems = []
  for number, _, data in read_rows(path):
    if b'"annotations"' not in data:
      continue
    name = _annotations_of(data)
    if not isinstance(name, str) or not name:
      continue  # `lines.parse` tells it
    try:
      found = untrusted_paths.inside(os.path.dirname(path) or ".", name, "annotations")
    except InputError as error:
      problems.append(Wrong("path leaves the folder", str(error)).at(number))
      continue
    named = named or found
    if found != named:
      text = f"annotations: {name} is another file than an earlier line names; name one, once"
      problems.append(Problem(number, "two COCO files", text))
  return named, problems


def _annotations_of(data: bytes) -> Any:
  try:
    fields = untrusted_json.loads(data, "it", max_bytes=MAX_LINE)
  except InputError:
    return None  # `lines.parse` tells it
  return fields.get("annotations") if isinstance(fields, dict) else None


def _check_annotations(path: str) -> list[Problem]:
  try:
    open_coco(path)
  except InputError as error:
    return [Problem(0, "no COCO file", str(error))]
  return []


def _number_refs(facts: Sequence[Facts]) -> tuple[dict[int, int], list[Problem]]:
  """Ids of refs: those that lines give; the others are the numbers of their lines."""
  ids = {row.number: row.number if row.ref_id is None else row.ref_id for row in facts}
  first: dict[int, int] = {}
  problems = []
  for row in facts:
    ref_id = ids[row.number]
    if (other := first.setdefault(ref_id, row.number)) != row.number:
      own = "" if row.ref_id is not None else ", which is what a line without one gets"
      text = f"ref_id {ref_id}{own} is that of line {other} already"
      problems.append(Problem(row.number, "ref id twice", text))
  return ids, problems


def _number_images(facts: Sequence[Facts]) -> tuple[dict[str, int], list[Problem]]:
  """Ids of images: those that lines give, else a hash of the path."""
  ids: dict[str, int] = {}
  said: dict[str, Facts] = {}
  problems = []
  for row in facts:
    if row.image_id is None:
      continue
    earlier = said.setdefault(row.image, row)
    if earlier.image_id != row.image_id:
      text = (
        f"image_id {row.image_id}, but line {earlier.number} calls this image {earlier.image_id}"
      )
      problems.append(Problem(row.number, "image with two ids", text))
  owners: dict[int, str] = {}
  for row in facts:
    if row.image in ids:
      continue
    earlier = said.get(row.image)
    image_id = earlier.image_id if earlier is not None else None
    ids[row.image] = image_id = _hash(row.image) if image_id is None else image_id
    if (owner := owners.setdefault(image_id, row.image)) != row.image:
      text = f"image_id {image_id} is that of {owner} already"
      problems.append(Problem(row.number, "two images with one id", text))
  return ids, problems


def _hash(path: str) -> int:
  digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).digest()
  return int.from_bytes(digest[:8]) >> (64 - _ID_BITS)


def _check_instances(facts: Sequence[Facts]) -> Iterator[Problem]:
  """An image has one list of instances, whichever of its lines has it."""
  first: dict[str, Facts] = {}
  for row in facts:
    if row.instances and (other := first.setdefault(row.image, row)).instances != row.instances:
      text = (
        f"instances: line {other.number} has others for this image; give them once, or the same"
      )
      yield Problem(row.number, "two lists of instances", text)


def _check_splits(facts: Sequence[Facts]) -> Iterator[Problem]:
  """An image in two splits is judged, or trained on, twice: it may be meant so."""
  first: dict[str, Facts] = {}
  told: set[tuple[str, str]] = set()
  for row in facts:
    other = first.setdefault(row.image, row)
    if other.split != row.split and (row.image, row.split) not in told:
      told.add((row.image, row.split))
      text = (
        f"{row.image} is in {row.split}, and line {other.number} has it in {other.split}: leakage"
      )
      yield Problem(row.number, "image in two splits", text, warning=True)


def count_images(facts: Iterable[Facts]) -> int:
  """Returns of how many images lines speak."""
  return len({row.image for row in facts})


def sentences_an_image(facts: Iterable[Facts]) -> collections.Counter[str]:
  """Returns how many sentences each image has."""
  counts: collections.Counter[str] = collections.Counter()
  for row in facts:
    counts[row.image] += row.sentences
  return counts
