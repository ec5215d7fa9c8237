"""What a run trains on: the records of a data set or of a mixture, without those left out."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline import left_out, mixture, storage
from input_pipeline.common import fingerprint
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted
from input_pipeline.image_hashes import ImageSet
from input_pipeline.left_out import LeftOut
from input_pipeline.mixture import Part
from input_pipeline.tf import damaged_records, pipelines, record_index, record_reader
from input_pipeline.tf.record_reader import Source, Split
from input_pipeline.tf.sample_order import Order

_SKIP_HINT = ", or train without it: config.loader.on_error = 'skip'"


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingSet:
  """The data sets of a run, opened by `open_training_set`.

  Attributes:
    data_dir: the folder that `prepare` wrote to.
    split: that is trained on.
    parts: the data sets.
    on_error: `stop` at a damaged record, or `skip` all of them: every record is read and decoded
      once at the start, and the samples are those of the others, in an order of their own.
    temperature: of a mixture by size.
    exclude: whose evaluation images are left out.
    evaluated: the splits that images are left out for.
    left_out: the images that are left out, by data set.
  """

  data_dir: str
  split: str
  parts: tuple[Part, ...]
  on_error: str
  temperature: float
  exclude: tuple[str, ...]
  evaluated: tuple[str, ...]
  left_out: Mapping[str, LeftOut]

  @property
  def names(self) -> tuple[str, ...]:
    """The names of the data sets."""
    return tuple(part.name for part in self.parts)

  @functools.cached_property
  def whole(self) -> tuple[Source, ...]:
    """The records of each data set."""
    return self.sources()

  @functools.cached_property
  def sizes(self) -> tuple[int, ...]:
    """The refs of each data set."""
    return tuple(map(record_reader.count_refs, self.whole))

  @property
  def refs(self) -> int:
    """The refs of all data sets: the samples of an epoch."""
    return sum(self.sizes)

  def sources(self, process_index: int = 0, process_count: int = 1) -> tuple[Source, ...]:
    """Returns the records of each data set, or a process's share of them.

    Raises:
      InputError: a data set or its split does not exist, or has fewer images than processes.
    """
    return tuple(
      self._open(Split(self.data_dir, name, self.split, process_index, process_count))
      for name in self.names
    )

  def _open(self, split: Split) -> Source:
    source = record_reader.open_source(split)
    if self.on_error == "skip":
      whole = record_reader.open_source(split.whole())
      source = damaged_records.without_damaged(source, damaged_records.survey(whole))
    else:
      source = dataclasses.replace(source, way_out=_SKIP_HINT)
    found = self.left_out.get(split.dataset)
    return dataclasses.replace(source, left_out=found.image_ids) if found else source

  def order(self, seed: int, sources: Sequence[Source], process_index: int = 0) -> Order:
    """Returns the order of samples.

    Args:
      seed: of the run.
      sources: all records, or the share of a process that has an order of its own.
      process_index: of that process.
    """
    sizes = [record_reader.scan(source).refs for source in sources]
    for name, size in zip(self.names, sizes, strict=True):
      if not size:
        raise InputError(f"{name}/{self.split}: a process has no refs; use fewer processes")
    weights = mixture.weights(self.parts, sizes, self.temperature)
    return Order.of(sizes, weights, seed, process_index)

  def expressions(self) -> list[str]:
    """Returns every normalised expression, in a fixed order.

    Raises:
      InputError: a record is damaged.
    """
    return [text for source in self.whole for text in _expressions(source)]

  def fingerprint(self) -> str:
    """Returns a fingerprint of the records and of what is left out; empty if it is unknown."""
    prints = [record_index.fingerprint_of(source.files) for source in self._undamaged()]
    if not all(prints) or (len(prints) == 1 and not self.left_out):
      return prints[0] if all(prints) else ""
    images = [
      ",".join(map(str, self.left_out[name].image_ids)) if name in self.left_out else ""
      for name in self.names
    ]
    return fingerprint.of_bytes("\n".join([*prints, *images]).encode())

  def _undamaged(self) -> list[Source]:
    """Returns the records as they are stored, damaged or not."""
    splits = (Split(self.data_dir, name, self.split) for name in self.names)
    return [record_reader.open_source(split) for split in splits]

  def images(self) -> dict[str, ImageSet] | None:
    """Returns hashes of the images that are used, by DATASET/SPLIT; None if they are unknown."""
    found = {}
    for name in self.names:
      kept = self.left_out.get(name)
      images = kept.kept if kept else storage.read_hashes(self.data_dir, name, self.split)
      if images is None:
        return None
      found[f"{name}/{self.split}"] = dataclasses.replace(images, image_ids=None)
    return found

  def describe(self) -> Iterator[str]:
    """Yields the refs of each data set of a mixture, and its share of the samples."""
    weights = mixture.weights(self.parts, self.sizes, self.temperature)
    for name, size, weight in zip(self.names, self.sizes, weights, strict=True):
      if len(self.parts) > 1:
        yield f"{name}: {counted(size, 'ref')}, {weight / sum(weights):.1%} of the samples"

  def note(self) -> dict[str, Any] | None:
    """Returns what a checkpoint notes of what was left out.

    None for a single data set, unless `config.exclude` names a data set.
    """
    if not self.evaluated and len(self.parts) == 1:
      return None
    refs = {}
    for name, source, used in zip(self.names, self.whole, self.sizes, strict=True):
      every = record_reader.count_refs(dataclasses.replace(source, left_out=()))
      refs[name] = (every - used, every)
    return left_out.note(self.exclude, self.evaluated, self.left_out, refs)


def _expressions(source: Source) -> list[str]:
  examples = record_reader.read_used(source)
  texts = examples.map(lambda example: record_reader.parse(example)["normalised"]).unbatch()
  batches = texts.batch(1024).with_options(pipelines.options(threads=1))
  try:
    return [text.decode() for batch in batches.as_numpy_iterator() for text in batch]
  except record_reader.DAMAGED as error:
    record_reader.raise_damaged(source, error)


def open_training_set(
  data_dir: str,
  dataset: str,
  *,
  split: str = "train",
  on_error: str = "stop",
  exclude: Sequence[str] = (),
  temperature: float = 1.0,
) -> TrainingSet:
  """Opens what a run trains on.

  Args:
    data_dir: the folder that `prepare` wrote to.
    dataset: the name of a data set, or a mixture; see `mixture.parse`.
    split: that is trained on.
    on_error: see `TrainingSet`.
    exclude: data sets whose evaluation images are left out; see `left_out.evaluation_splits`.
    temperature: see `mixture.weights`.

  Raises:
    InputError: a data set does not exist, or its images have no hashes to leave some out by.
  """
  damaged_records.check_on_error(on_error)
  parts = mixture.parse(dataset)
  names = [part.name for part in parts]
  for name in names:
    record_reader.open_source(Split(data_dir, name, split))  # fails early for an unknown name
  evaluated = left_out.evaluation_splits(data_dir, names, exclude)
  found = left_out.find(data_dir, names, evaluated, split)
  return TrainingSet(
    data_dir,
    split,
    parts,
    on_error,
    temperature,
    exclude=tuple(exclude),
    evaluated=tuple(evaluated),
    left_out=found,
  )
