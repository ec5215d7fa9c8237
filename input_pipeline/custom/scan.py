"""Checks of a whole file of annotations: its lines, what they share, and where each one starts."""

import codecs
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from input_pipeline.common import image_names, parallel, untrusted_files, untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.custom import duplicates
from input_pipeline.custom.check import CheckLevel, CheckResult, LineChecker, LineSummary
from input_pipeline.custom.converters import parquet
from input_pipeline.custom.masks import PathResolver, open_coco
from input_pipeline.custom.schema import MAX_LINE, LineError, Problem

# Lines per unit of work.
_CHUNK = 256
# Up to this many lines, starting processes takes longer than the work.
_SINGLE_PROCESS = 2000
# What other tools call the splits that training reads by default, in any case.
_OTHER_SPLITS = {
  "train": ("train", "training"),
  "val": ("val", "valid", "validation", "dev", "eval"),
}
# Of the id of an image without one: every JSON reader represents such integers exactly.
_ID_BITS = 53

Row = tuple[int, int, bytes]
"""A line: its number, the offset of its first byte, and its bytes."""


@dataclasses.dataclass(frozen=True)
class Scan:
  """The result of checking a file of annotations."""

  path: str
  paths: PathResolver
  lines: list[LineSummary]
  """Lines without errors, in the file's order."""
  problems: list[Problem]
  ref_ids: dict[int, int]
  """Line number -> id of its ref."""
  image_ids: dict[str, int]
  """Path of an image -> its id."""

  def errors(self) -> list[Problem]:
    """Returns the problems that are not warnings."""
    return [problem for problem in self.problems if not problem.warning]

  def warnings(self) -> list[Problem]:
    """Returns the warnings."""
    return [problem for problem in self.problems if problem.warning]

  def leakage(self) -> list[Problem]:
    """Returns those of the warnings that are about copies of an image in two splits."""
    return [problem for problem in self.warnings() if problem.kind in duplicates.KINDS]

  def splits(self) -> dict[str, list[LineSummary]]:
    """Returns the lines of each split; `train` and `val` come first."""
    lines: dict[str, list[LineSummary]] = {}
    for line in self.lines:
      lines.setdefault(line.split, []).append(line)
    first = [split for split in ("train", "val") if split in lines]
    return {split: lines[split] for split in [*first, *sorted({*lines} - {*first})]}


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
  if not os.path.isdir(root):
    raise InputError(f"--images {root}: no such folder; it must contain the images")
  coco_file, problems = _find_annotations(path)
  coco_file = annotations or coco_file or ""
  paths = PathResolver(os.path.abspath(root), coco_file, follow_links=images is not None)
  if paths.annotations:
    problems += _check_annotations(paths.annotations)
  lines: list[LineSummary] = []
  for result in _check_lines(path, LineChecker(paths, level), workers):
    problems += result.problems
    # A line with an invalid image or mask still counts for what lines share.
    if result.summary is not None:
      lines.append(result.summary)
  if not lines and not problems:
    raise InputError(f"{path}: the file is empty; docs/guides/custom-data.md describes its lines")
  ref_ids, ref_problems = _number_refs(lines)
  image_ids, image_problems = _number_images(lines)
  problems += [*ref_problems, *image_problems, *_check_instances(lines), *_check_splits(lines)]
  problems += _check_coco_images(lines)
  invalid = {problem.line for problem in problems if not problem.warning}
  valid = [line for line in lines if line.number not in invalid]
  problems += _check_expressions(path, valid)
  scanned = Scan(path, paths, valid, sorted(problems), ref_ids, image_ids)
  if level is not CheckLevel.FAST:
    scanned.problems.extend(duplicates.find([*scanned.splits().values()], paths, workers))
    scanned.problems.sort()
  return scanned


def read_rows(path: str) -> Iterator[Row]:
  """Yields the lines of a file that are not blank, as UTF-8; see `untrusted_files.open_text`.

  Raises:
    InputError: the file cannot be read, or is not one of lines.
  """
  offset, first = 0, True
  with _open(path) as file:
    for number, data in enumerate(file, 1):
      # Files with byte order marks may have been joined.
      if text := data.removeprefix(codecs.BOM_UTF8).strip():
        if first:
          _check_first(path, text)
        first = False
        yield number, offset, text
      offset += len(data)


def read_line(path: str, offset: int) -> bytes:
  """Returns the line that starts at an offset of `read_rows`."""
  with _open(path) as file:
    if file.seekable():
      file.seek(file.tell() + offset)
      data = file.readline()
    else:
      text = _converted(path, os.stat(path).st_mtime_ns)
      end = text.find(b"\n", offset)
      data = text[offset : end if end >= 0 else len(text)]
  return data.removeprefix(codecs.BOM_UTF8).strip()


@functools.lru_cache(maxsize=1)
def _converted(path: str, modified: int) -> mmap.mmap:
  """Returns a file, of the time when it was modified, as UTF-8."""
  del modified
  with _open(path) as file, tempfile.TemporaryFile() as copy:
    shutil.copyfileobj(file, copy)
    copy.flush()
    return mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ)


def _open(path: str) -> io.BufferedReader:
  try:
    if not parquet.is_parquet(path):
      return untrusted_files.open_text(path, path)
  except InputError as error:
    raise InputError(f"{error}; expected a file with one JSON object per line") from error
  raise InputError(
    f"{path}: parquet, not lines; write them by `python -m input_pipeline.custom convert "
    f"--from parquet {path} --out mine.jsonl`"
  )


def _check_first(path: str, text: bytes) -> None:
  """Raises InputError if the first line is that of another kind of file."""
  if text[:1] == b"[":
    raise InputError(
      f"{path}: a JSON list; expected one object per line: `jq -c '.[]' {path} > lines.jsonl` "
      "writes them"
    )
  if text == b"{":
    raise InputError(
      f"{path}: an object over several lines; expected one object per line: "
      f"`jq -c . {path} > lines.jsonl` joins them; for the export of a tool, see `convert`"
    )


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
      spelled = image_names.spelled(home, name) or name
      resolved = untrusted_files.resolve_inside(home, spelled, "annotations")
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


def _number_refs(lines: Sequence[LineSummary]) -> tuple[dict[int, int], list[Problem]]:
  """Returns the id of each line's ref: the line's `ref_id`, or else its number."""
  ids = {line.number: line.number if line.ref_id is None else line.ref_id for line in lines}
  owners: dict[int, int] = {}
  problems = []
  for line in lines:
    ref_id = ids[line.number]
    if (owner := owners.setdefault(ref_id, line.number)) != line.number:
      default = "" if line.ref_id is not None else " (the line number, since the line has none)"
      message = f"ref_id {ref_id}{default} is already that of line {owner}"
      problems.append(Problem(line.number, "duplicate ref id", message))
  return ids, problems


def _number_images(lines: Sequence[LineSummary]) -> tuple[dict[str, int], list[Problem]]:
  """Returns the id of each image: the `image_id` of its lines, or else a hash of its path."""
  ids: dict[str, int] = {}
  first: dict[str, LineSummary] = {}
  problems = []
  for line in lines:
    if line.image_id is None:
      continue
    earlier = first.setdefault(line.image, line)
    if earlier.image_id != line.image_id:
      message = f"image_id {line.image_id}, but line {earlier.number} has {earlier.image_id} for it"
      problems.append(Problem(line.number, "image with two ids", message))
  owners: dict[int, str] = {}
  for line in lines:
    if line.image in ids:
      continue
    earlier = first.get(line.image)
    image_id = earlier.image_id if earlier is not None else None
    ids[line.image] = image_id = _hash(line.image) if image_id is None else image_id
    if (owner := owners.setdefault(image_id, line.image)) != line.image:
      message = (
        f"image_id {image_id} is already that of {owner}; if two exports count from the same "
        "number, leave image_id out or convert them together"
      )
      problems.append(Problem(line.number, "duplicate image id", message))
  return ids, problems


def _hash(path: str) -> int:
  digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).digest()
  return int.from_bytes(digest[:8]) >> (64 - _ID_BITS)


def _check_instances(lines: Sequence[LineSummary]) -> Iterator[Problem]:
  """Yields a problem for each line whose instances differ from those of the same image before."""
  first: dict[str, LineSummary] = {}
  for line in lines:
    if not line.instances_hash:
      continue
    earlier = first.setdefault(line.image, line)
    if earlier.instances_hash != line.instances_hash:
      message = f"instances: differ from those of line {earlier.number} for the same image"
      yield Problem(line.number, "conflicting instances", f"{message}; give them once")


def _check_splits(lines: Sequence[LineSummary]) -> Iterator[Problem]:
  """Yields a warning for each image in two splits, which may be intended."""
  first: dict[str, LineSummary] = {}
  reported: set[tuple[str, str]] = set()
  for line in lines:
    earlier = first.setdefault(line.image, line)
    if earlier.split != line.split and (line.image, line.split) not in reported:
      reported.add((line.image, line.split))
      message = (
        f"{line.image} is in {line.split} here and in {earlier.split} on line {earlier.number}"
      )
      yield Problem(line.number, duplicates.SAME_PATH, f"{message}: leakage", warning=True)
  splits = {line.split for line in lines}
  for needed, others in _OTHER_SPLITS.items():
    for split in sorted(splits) if needed not in splits else ():
      if split.lower() in others:
        option = "; or train with --config.eval_split=" + split if needed == "val" else ""
        message = f"no split is called {needed}, but one {split}: rename it{option}"
        yield Problem(0, f"no split {needed}", message, warning=True)


def _check_coco_images(lines: Sequence[LineSummary]) -> Iterator[Problem]:
  """Yields a problem for each line that takes annotations of another image than its own.

  A COCO file may have several images of one name, and an image of a COCO file several copies.
  """
  image_of: dict[str, tuple[Any, int]] = {}
  owners: dict[Any, LineSummary] = {}
  for line in lines:
    for image_id in line.coco_images:
      other, number = image_of.setdefault(line.image, (image_id, line.number))
      owner = owners.setdefault(image_id, line)
      if other != image_id:
        message = (
          f"{line.image} has annotations of the images {other} (line {number}) and {image_id}, "
          "which have the same name; whose are they?"
        )
      elif owner.image != line.image:
        message = (
          f"{line.image} has annotations of image {image_id}, as {owner.image} on line "
          f"{owner.number} does; whose are they?"
        )
      else:
        continue
      yield Problem(line.number, "annotations of several images", message)
      break


def _check_expressions(path: str, lines: Sequence[LineSummary]) -> Iterator[Problem]:
  """Yields a warning for each line with an expression that has another target in its image."""
  first: dict[tuple[str, int], LineSummary] = {}
  for line in lines:
    for number, expression in enumerate(line.expression_hashes):
      earlier = first.setdefault((line.image, expression), line)
      if earlier.target_hash != line.target_hash:
        text = json.loads(read_line(path, line.offset))["sentences"][number]
        message = (
          f"{text!r:.60} has another target on line {earlier.number} for {line.image}; if it means "
          "both, list their masks in one target"
        )
        yield Problem(line.number, "ambiguous expression", message, warning=True)
        break
