"""Training records that cannot be used: which they are, and the others without them (`loader.on_error`)."""

import dataclasses
import functools
import itertools

import tensorflow as tf

from input_pipeline.common.errors import InputError
from input_pipeline.tf import pipelines, record_frames, record_reader
from input_pipeline.tf.record_frames import Damage, Run, walk
from input_pipeline.tf.record_reader import Shape, Source

ON_ERROR = ("stop", "skip")
# What a survey decodes to: it looks at every byte, and nobody looks at the pixels.
_SHAPE = Shape(8, 1)


@dataclasses.dataclass(frozen=True)
class Survey:
  """What all records of a split are worth."""

  name: str
  damaged: tuple[Damage, ...]
  runs: tuple[tuple[str, Run], ...]
  """The sound ones, by the paths of their files."""

  def lines(self) -> list[str]:
    """What to tell of it: a line for each damage and one that counts; nothing where all is well."""
    lost = sum(damage.count for damage in self.damaged)
    total = lost + sum(run.count for _, run in self.runs)
    counted = (
      f"{self.name}: {lost} of {total} records are damaged, and training goes on without them"
    )
    return [f"{self.name}: {damage}" for damage in self.damaged] + ([counted] if lost else [])


@functools.lru_cache(maxsize=8)
def survey(source: Source, threads: int = 2) -> Survey:
  """Reads and decodes all records of a split once.

  Args:
    source: the whole split.
    threads: that decode.

  Raises:
    InputError: not one of them can be used.
  """
  damaged, runs = [], []
  for path, skip, take in source.files:
    for found in walk(path, skip + take):
      if isinstance(found, Damage):
        damaged.append(found)
      else:
        runs.append((path, found))
  readable = _of_runs(source, runs)
  undecodable = _undecodable(readable, threads) if runs else []
  if undecodable:
    damaged += undecodable
    runs = _without(runs, {(damage.path, damage.position) for damage in undecodable})
  if not runs:
    raise InputError(
      f"{source.name}: not one record can be used ({damaged[0]}); prepare it again with --overwrite"
    )
  return Survey(source.name, tuple(damaged), tuple(runs))


def sound_part(source: Source, found: Survey) -> Source:
  """Returns a source, the split or a process's share of it, without what a survey found damaged."""
  if not found.damaged:
    return source
  files = []
  for path, skip, take in source.files:
    for of, run in found.runs:
      first, last = max(skip, run.position), min(skip + take, run.position + run.count)
      if of == path and first < last:
        files.append((path, first, last - first))
  if not files:
    raise InputError(
      f"{source.name}: every record of a process is damaged; prepare it again with --overwrite"
    )
  return dataclasses.replace(source, files=tuple(files), refs=None)


def _of_runs(source: Source, runs: list[tuple[str, Run]]) -> Source:
  files = tuple((path, run.position, run.count) for path, run in runs)
  return dataclasses.replace(source, files=files, refs=None)


def _undecodable(source: Source, threads: int) -> list[Damage]:
  """Those whose bytes are sound and no images."""

  def decoded(example: tf.Tensor) -> record_reader.Fields:
    # All of it is an output: what nobody asks for is not computed.
    return record_reader.decode_all(record_reader.parse(example), _SHAPE)

  dataset = record_reader.read(source).map(decoded, num_parallel_calls=threads)
  positions = ((path, skip + n) for path, skip, take in source.files for n in range(take))
  iterator, found = iter(dataset.with_options(pipelines.options(threads))), []
  for path, position in positions:
    try:
      next(iterator)  # goes on behind what failed
    except tf.errors.OpError as error:
      reason = f"cannot be decoded ({record_reader.reason_of(error)})"
      found.append(Damage(path, position, None, reason, _image_at(path, position)))
  return found


def _image_at(path: str, position: int) -> str:
  """Which image a record is of, where its fields can be read."""
  try:
    (record,) = record_frames.stored(path, position, 1).map(record_reader.parse)
    return f"image {record['file_name'].numpy().decode()} (image_id {int(record['image_id'])})"
  except (tf.errors.OpError, UnicodeDecodeError):
    return ""


def _without(runs: list[tuple[str, Run]], left_out: set[tuple[str, int]]) -> list[tuple[str, Run]]:
  kept = []
  for path, run in runs:
    positions = range(run.position, run.position + run.count)
    sound = [n for n in positions if (path, n) not in left_out]
    # Numbers that follow each other have the same distance from their place in the list.
    for _, part in itertools.groupby(enumerate(sound), lambda item: item[1] - item[0]):
      numbers = [n for _, n in part]
      kept.append((path, Run(numbers[0], len(numbers))))
  return kept
