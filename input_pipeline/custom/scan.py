"""Checks of a whole file of annotations: its lines, what they share, and where each one starts."""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from input_pipeline.common import parallel, places, untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import announce
from input_pipeline.custom import across_lines, duplicates
from input_pipeline.custom.check import CheckLevel, CheckResult, LineChecker, LineSummary
from input_pipeline.custom.line_files import Row, read_rows
from input_pipeline.custom.line_table import LineTable
from input_pipeline.custom.masks import PathResolver, open_coco
from input_pipeline.custom.schema import MAX_LINE, LineError, Problem

# Lines per unit of work.
_CHUNK = 256
# Up to this many lines, starting processes takes longer than the work.
_SINGLE_PROCESS = 2000


@dataclasses.dataclass(frozen=True)
class Scan:
  """The result of checking a file of annotations."""

  path: str
  paths: PathResolver
  lines: LineTable
  """Lines without errors."""
  problems: list[Problem]

  def errors(self) -> list[Problem]:
    """Returns the problems that are not warnings."""
    return [problem for problem in self.problems if not problem.warning]

  def warnings(self) -> list[Problem]:
    """Returns the warnings."""
    return [problem for problem in self.problems if problem.warning]

  def leakage(self) -> list[Problem]:
    """Returns the warnings about copies of an image in two splits."""
    return [problem for problem in self.warnings() if problem.kind in duplicates.KINDS]

  def splits(self) -> list[str]:
    """Returns the splits; `train` and `val` come first."""
    splits = {split for (split,) in self.lines.query("SELECT DISTINCT split FROM lines")}
    first = [split for split in ("train", "val") if split in splits]
    return [*first, *sorted(splits - {*first})]


def scan(
  path: str,
  images: str | None = None,
  annotations: str | None = None,
  level: CheckLevel = CheckLevel.HEADERS,
  workers: int | None = None,
) -> Scan:
  """Checks a file of annotations and collects all problems.

  Args:
    path: JSON Lines (docs/reference/formats.md).
    images: the folder that paths of images and masks are relative to; the file's own by default.
    annotations: the COCO file that `ann_id` refers to; by default the one that a line names.
    level: how thoroughly lines are checked.
    workers: number of processes; by default one per core, or one for a short file.

  Raises:
    InputError: the file cannot be read, or the folder does not exist.
  """
  root = images if images is not None else os.path.dirname(path) or "."
  if not places.is_folder(root):
    raise InputError(f"--images {root}: no such folder; it must contain the images")
  with announce(f"reading {path}"):
    coco_file, problems = _find_annotations(path)
    coco_file = annotations or coco_file or ""
    paths = PathResolver(places.absolute(root), coco_file, follow_links=images is not None)
    if paths.annotations:
      problems += _check_annotations(paths.annotations)
  lines, latest = LineTable(), [0]
  results = _check_lines(path, LineChecker(paths, level), workers)
  with announce(lambda: f"{path}: checked up to line {latest[0]:,}"):
    lines.fill(_summaries(results, problems, latest))
  if not lines and not problems:
    raise InputError(f"{path}: the file is empty; docs/guides/custom-data.md describes its lines")
  problems += [
    *across_lines.check_refs(lines),
    *across_lines.number_images(lines),
    *across_lines.check_instances(lines),
    *across_lines.check_splits(lines),
    *across_lines.check_coco_images(lines),
  ]
  lines.leave_out({problem.line for problem in problems if not problem.warning})
  problems += across_lines.check_expressions(path, lines)
  scanned = Scan(path, paths, lines, problems)
  if level is not CheckLevel.FAST:
    first = "number IN (SELECT min(number) FROM lines WHERE split = ? GROUP BY image)"
    firsts = [[*lines.where(first, split)] for split in scanned.splits()]
    problems.extend(duplicates.find(firsts, paths, workers))
  problems.sort()
  return scanned


def _summaries(
  results: Iterable[CheckResult], problems: list[Problem], latest: list[int]
) -> Iterator[LineSummary]:
  """Yields what is kept of lines, collects their problems, and notes the latest line."""
  for result in results:
    problems += result.problems
    # A line with an invalid image or mask still counts for what lines share.
    if result.summary is not None:
      latest[0] = result.summary.number
      yield result.summary


def _check_lines(path: str, checker: LineChecker, workers: int | None) -> Iterator[CheckResult]:
  rows = read_rows(path)
  first = list(itertools.islice(rows, _SINGLE_PROCESS))
  following = next(rows, None)
  count = workers or (parallel.available_cores() if following is not None else 1)
  if following is not None:
    rows = itertools.chain([following], rows)
  chunks = _chunks(itertools.chain(first, rows))
  if count == 1:
    results: Iterable[list[CheckResult]] = map(checker, chunks)
  else:
    pool = parallel.start_workers(count)
    results = parallel.ordered_map(pool, checker, chunks, 4 * count)
  return itertools.chain.from_iterable(results)


def _chunks(rows: Iterable[Row]) -> Iterator[Sequence[Row]]:
  rows = iter(rows)
  while chunk := list(itertools.islice(rows, _CHUNK)):
    yield chunk


def _find_annotations(path: str) -> tuple[str | None, list[Problem]]:
  """Returns the COCO file that a line names, and problems of lines that name another one."""
  coco_file: str | None = None
  problems = []
  for number, _, data in read_rows(path):
    if b'"annotations"' not in data:
      continue
    name = _annotations_of(data)
    if not isinstance(name, str) or not name:
      # `schema.parse` reports it.
      continue
    home = os.path.dirname(path) or "."
    try:
      resolved = PathResolver(home).inside(name, "annotations")
    except InputError as error:
      problems.append(LineError("path outside the folder", str(error)).at(number))
      continue
    coco_file = coco_file or resolved
    if resolved != coco_file:
      message = (
        f"annotations: {name} differs from the file that an earlier line names; use one file"
      )
      problems.append(Problem(number, "several COCO files", message))
  return coco_file, problems


def _annotations_of(data: bytes) -> Any:
  try:
    fields = untrusted_json.loads(data, "the line", max_bytes=MAX_LINE)
  except InputError:
    # `schema.parse` reports it.
    return None
  return fields.get("annotations") if isinstance(fields, dict) else None


def _check_annotations(path: str) -> list[Problem]:
  try:
    open_coco(path)
  except InputError as error:
    return [Problem(0, "no COCO file", str(error))]
  return []
