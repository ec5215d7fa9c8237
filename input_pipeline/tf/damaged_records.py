"""Damaged training records: finding them, and training without them (`loader.on_error`)."""

import dataclasses
import functools
import itertools

import tensorflow as tf

from input_pipeline.common.errors import InputError
from input_pipeline.tf import pipelines, record_frames, record_reader
from input_pipeline.tf.record_frames import Damage, Range, walk
from input_pipeline.tf.record_reader import Shape, Source

ON_ERROR = ("stop", "skip")
# A survey decodes every byte, and the pixels are not used.
_SHAPE = Shape(8, 1)


def check_on_error(on_error: str) -> None:
  """Checks `config.loader.on_error`.

  Raises:
    InputError: it is not one of ON_ERROR.
  """
  if on_error not in ON_ERROR:
    raise InputError(f"on_error is {on_error!r}; it must be one of {', '.join(ON_ERROR)}")


@dataclasses.dataclass(frozen=True)
class Survey:
  """Which records of a split are damaged, and which are intact."""

  name: str
  damaged: tuple[Damage, ...]
  intact: tuple[tuple[str, Range], ...]
  """With the paths of their files."""

  def describe(self) -> list[str]:
    """Returns a line per damage and a summary; nothing if all records are intact."""
    lost = sum(damage.count for damage in self.damaged)
    total = lost + sum(span.count for _, span in self.intact)
    summary = f"{self.name}: {lost} of {total} records are damaged; training continues without them"
    return [f"{self.name}: {damage}" for damage in self.damaged] + ([summary] if lost else [])


@functools.lru_cache(maxsize=8)
def survey(source: Source, threads: int = 2) -> Survey:
  """Decodes all records of a split once.

  Args:
    source: the whole split.
    threads: that decode it.

  Raises:
    InputError: none of them can be used.
  """
  damaged, intact = [], []
  for path, skip, take in source.files:
    for part in walk(path, skip + take):
      if isinstance(part, Damage):
        damaged.append(part)
      else:
        intact.append((path, part))
  undecodable = _undecodable(_with_ranges(source, intact), threads) if intact else []
  if undecodable:
    damaged += undecodable
    intact = _without(intact, {(damage.path, damage.position) for damage in undecodable})
  if not intact:
    raise InputError(
      f"{source.name}: no record can be used ({damaged[0]}); prepare it again with --overwrite"
    )
  return Survey(source.name, tuple(damaged), tuple(intact))


def without_damaged(source: Source, surveyed: Survey) -> Source:
  """Returns the intact part of a source.

  Args:
    source: the split, or a process's share of it.
    surveyed: of the whole split.

  Raises:
    InputError: nothing is left.
  """
  if not surveyed.damaged:
    return source
  files = []
  for path, skip, take in source.files:
    for intact_path, span in surveyed.intact:
      first, last = max(skip, span.position), min(skip + take, span.position + span.count)
      if intact_path == path and first < last:
        files.append((path, first, last - first))
  if not files:
    raise InputError(
      f"{source.name}: every record of a process is damaged; prepare it again with --overwrite"
    )
  return dataclasses.replace(source, files=tuple(files), refs=None)


def _with_ranges(source: Source, ranges: list[tuple[str, Range]]) -> Source:
  files = tuple((path, span.position, span.count) for path, span in ranges)
  return dataclasses.replace(source, files=files, refs=None)


def _undecodable(source: Source, threads: int) -> list[Damage]:
  """Returns the records whose bytes are intact but cannot be decoded."""

  def decoded(example: tf.Tensor) -> record_reader.Fields:
    # All of it is an output: TensorFlow would not compute the rest.
    return record_reader.decode_all(record_reader.parse(example), _SHAPE)

  dataset = record_reader.read(source).map(decoded, num_parallel_calls=threads)
  positions = ((path, skip + n) for path, skip, take in source.files for n in range(take))
  iterator, damaged = iter(dataset.with_options(pipelines.options(threads))), []
  for path, position in positions:
    try:
      next(iterator)  # continues after a failed record
    except tf.errors.OpError as error:
      reason = f"cannot be decoded ({record_reader.reason_of(error)})"
      damaged.append(Damage(path, position, None, reason, _image_at(path, position)))
  return damaged


def _image_at(path: str, position: int) -> str:
  """Returns which image a record is of, if its fields can be read."""
  try:
    (record,) = record_frames.read_range(path, position, 1).map(record_reader.parse)
    return f"image {record['file_name'].numpy().decode()} (image_id {int(record['image_id'])})"
  except (tf.errors.OpError, UnicodeDecodeError):
    return ""


def _without(
  ranges: list[tuple[str, Range]], excluded: set[tuple[str, int]]
) -> list[tuple[str, Range]]:
  kept = []
  for path, span in ranges:
    positions = range(span.position, span.position + span.count)
    remaining = [n for n in positions if (path, n) not in excluded]
    # Consecutive numbers have the same distance from their index in the list.
    for _, part in itertools.groupby(enumerate(remaining), lambda item: item[1] - item[0]):
      numbers = [n for _, n in part]
      kept.append((path, Range(numbers[0], len(numbers))))
  return kept
