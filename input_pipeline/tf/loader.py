"""Records to batches, for training and evaluation.

The order of the samples and what is done to each are pure functions of (seed, epoch, position), so
that a run resumed at step n gets the batches that it would have got. TensorFlow's operations handle
pixels; text stays text until the batch is complete, and is tokenized on the host by a thread that
keeps two batches ready.

Every epoch is a permutation of all refs, or a mixture of several such sequences, for any number of
processes (`sample_order.py`). The image of each is read and decoded as it comes or, with `cache`,
once, and all of them stay in memory. With `refs_per_image` an image is decoded once for several of
its refs: each process has a share of the images, whose groups of refs are permuted.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import numpy as np
import tensorflow as tf

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import bit_planes, exchange_left_right
from input_pipeline.preprocess.tokenizer import Tokenizer
from input_pipeline.tf import (
  builder,
  damaged_records,
  eval_rows,
  pipelines,
  record_reader,
  sample_order,
  train_samples,
)
from input_pipeline.tf.pipelines import prefetch
from input_pipeline.tf.record_reader import Fields, Shape, Source, Split
from input_pipeline.tf.training_set import TrainingSet, open_training_set

# Accelerators belong to the model.
tf.config.set_visible_devices([], "GPU")


@dataclasses.dataclass(frozen=True)
class BatchShape:
  """Sizes of a batch of one process.

  Attributes:
    batch_size: samples.
    image_size: side of the square that images and masks are resized to, in pixels.
    max_instances: instance masks per sample; the best are kept.
    max_tokens: length of a row of tokens.
  """

  batch_size: int
  image_size: int
  max_instances: int
  max_tokens: int

  def __post_init__(self) -> None:
    _check_positive(batch_size=self.batch_size, image_size=self.image_size)

  def decoded(self) -> Shape:
    """Returns the sizes that arrays are resized to."""
    return Shape(self.image_size, bit_planes.num_planes(self.max_instances))


@dataclasses.dataclass(frozen=True)
class TrainOptions:
  """How training samples are read and augmented.

  Attributes:
    seed: of order, expressions and augmentation.
    flip: mirrors half of the samples, and exchanges left and right in their text.
    jitter: brightness, contrast and saturation change by factors in [1 - jitter, 1 + jitter], which
      come with the batch.
    scale: smallest and largest factor by which samples are zoomed; see `zoom.zoom`.
    mask_noise: strength of the errors that instance masks get, 0 to 1; see `masks/noise.py`.
    cache: decodes and resizes every image once and keeps all in memory, in every process.
    refs_per_image: samples of an image, at most, that share one decoding in an epoch; each is
      augmented by itself. 1 spreads an image's samples over the whole epoch. Not with `cache`.
    text_buckets: shorter row lengths that a batch may have if its texts fit, such as (8, 12); each
      costs a compilation. With several processes all rows have `max_tokens`, for no process knows
      how long the others' texts are.
    threads: worker threads of the pipeline.
  """

  seed: int
  flip: bool = True
  jitter: float = 0.0
  scale: tuple[float, ...] = (1.0, 1.0)
  mask_noise: float = 0.0
  cache: bool = False
  refs_per_image: int = 1
  text_buckets: Sequence[int] = ()
  threads: int = 2

  def __post_init__(self) -> None:
    _check_positive(refs_per_image=self.refs_per_image)
    if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
      raise InputError(
        f"augment.scale is {self.scale}; it must be the smallest and the largest factor, above 0, "
        "such as (0.7, 1.3)"
      )
    if not 0 <= self.mask_noise <= 1:
      raise InputError(
        f"augment.mask_noise is {self.mask_noise}; it must be a strength from 0, no noise, to 1"
      )
    if self.cache and self.refs_per_image > 1:
      raise InputError(
        f"refs_per_image is {self.refs_per_image}, but cache decodes every image once for all "
        "epochs; set refs_per_image to 1, or cache to False"
      )


def train_expressions(data_dir: str, dataset: str, on_error: str = "stop") -> list[str]:
  """Returns every normalised expression of the train split, in a fixed order.

  Args:
    data_dir: the folder that `prepare` wrote to.
    dataset: such as `refcoco_unc`, or a mixture.
    on_error: see `TrainingSet`.

  Raises:
    InputError: the data set or its train split does not exist, or one of its records is damaged.
  """
  return open_training_set(data_dir, dataset, on_error=on_error).expressions()


def describe_damage(data_dir: str, dataset: str, split: str = "train") -> list[str]:
  """Decodes all records of a split; returns a line per damaged one, and a summary.

  Raises:
    InputError: the data set or the split does not exist, or none of its records can be used.
  """
  source = record_reader.open_source(Split(data_dir, dataset, split))
  return damaged_records.survey(source).describe()


def num_refs(data_dir: str, dataset: str, split: str, on_error: str = "stop") -> int:
  """Returns how many refs a split has.

  Raises:
    InputError: the data set or the split does not exist.
  """
  return open_training_set(data_dir, dataset, split=split, on_error=on_error).refs


def fingerprint_of(data_dir: str, dataset: str, split: str) -> str:
  """Returns a fingerprint of the records of a split, from their checksums; empty if unknown.

  Raises:
    InputError: the data set or the split does not exist.
  """
  return open_training_set(data_dir, dataset, split=split).fingerprint()


def splits(data_dir: str, dataset: str) -> list[str]:
  """Returns the names of the splits of a data set: `train`, `val`, and the others by name.

  Raises:
    InputError: the data set does not exist.
  """
  first = ("train", "val")
  names = set(builder.open_dataset(data_dir, dataset).info.splits)
  return [*(split for split in first if split in names), *sorted(names.difference(first))]


def train_batches(
  data: TrainingSet,
  tokenizer: Tokenizer,
  shape: BatchShape,
  options: TrainOptions,
  *,
  process_index: int = 0,
  process_count: int = 1,
  start_step: int = 0,
  with_meta: bool = False,
) -> Iterator[Fields]:
  """Yields batches without end: every ref once per epoch, with a random one of its expressions.

  An epoch need not end with a batch: the next one continues in the same batch. In a mixture, each
  data set has epochs of its own.

  Args:
    data: the refs.
    tokenizer: text to ids.
    shape: sizes of a batch.
    options: how samples are read and augmented.
    process_index: which process reads; each reads its own rows of every batch.
    process_count: how many processes there are.
    start_step: the first batch, as in a run from the beginning.
    with_meta: adds `meta` to a batch, a list that names the sample of each row.

  Returns:
    Batches as in docs/reference/formats.md; `weight` is 1. Some arrays are read-only.

  Raises:
    InputError: a data set or split does not exist, is too small for the processes or too large for
      the cache; or, maybe only when a batch is read, a record is damaged.
  """
  lengths = _row_lengths(options.text_buckets, shape.max_tokens, process_count)
  share = sample_order.Share(shape.batch_size, process_index, process_count)
  samples = _TrainSamples(data, shape, options, share)
  dataset = samples.augmented(start_step).batch(shape.batch_size).prefetch(2)

  def blame(batch: int) -> None:
    for source, suspects in samples.suspects(start_step + batch):
      record_reader.raise_undecodable(source, suspects, samples.decode)

  dataset = dataset.with_options(pipelines.options(options.threads))
  batches = _iterate(dataset, samples.sources, blame)
  names = data.names if with_meta else ()
  return prefetch(
    _finish_train(batch, tokenizer, shape.max_instances, lengths, names) for batch in batches
  )


class _TrainSamples:
  """The endless samples of a process, read in the way that the options choose."""

  def __init__(
    self, data: TrainingSet, shape: BatchShape, options: TrainOptions, share: sample_order.Share
  ):
    self._options, self._shape, self._share = options, shape.decoded(), share
    self._max_instances = shape.max_instances
    self._is_grouped = options.refs_per_image > 1
    # Of a process that has images of its own, or of all.
    own = share.index if self._is_grouped else 0
    self.sources = data.sources(own, share.count) if self._is_grouped else data.whole
    self._order = data.order(options.seed, self.sources, own)

  def augmented(self, start_step: int) -> tf.data.Dataset:
    """Returns decoded and augmented samples from a step on."""
    options, threads = self._options, self._options.threads
    augment = functools.partial(
      train_samples.augment,
      flip=options.flip,
      jitter=options.jitter,
      scale=options.scale,
      mask_noise=options.mask_noise,
      most=self._max_instances,
    )
    if self._is_grouped:
      start = start_step * self._share.rows
      numbers = sample_order.uniform_numbers(self._order.keys[0], start)
      samples = train_samples.mixed(self._groups(), self._order, start, self._shape)
      return tf.data.Dataset.zip(samples, numbers).map(augment, num_parallel_calls=threads)
    find, name = self._find(), self._dataset_of()
    order = sample_order.ordered(self._order, start_step, self._share)
    return order.map(
      lambda ref, numbers: augment(find(ref) | name(ref), numbers), num_parallel_calls=threads
    )

  def _find(self) -> Callable[[tf.Tensor], Fields]:
    """Returns the function that reads and decodes the sample of a ref."""
    if self._options.cache:
      # The processes fill theirs at the same time.
      shown = self._share.index == 0
      cache = _load_cache(self.sources, self._shape, self._options.threads, shown)
      return functools.partial(train_samples.cached, cache)
    table = train_samples.load_table(*self.sources)
    return lambda ref: self.decode(*train_samples.streamed(table, ref))

  def _dataset_of(self) -> Callable[[tf.Tensor], Fields]:
    """Returns the function that tells the number of a ref's data set, of a mixture."""
    if not self._order.is_mixture:
      return lambda ref: {}
    sizes = self._order.sizes
    numbers = tf.constant(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))
    return lambda ref: {"dataset": numbers[ref]}

  def decode(self, record: Fields, ref: tf.Tensor) -> Fields:
    """Decodes one sample."""
    return train_samples.decode(record, ref, self._shape)

  def suspects(self, step: int) -> Iterator[tuple[Source, tf.data.Dataset]]:
    """Yields the encoded samples that the batch of a step may wait for, by source."""
    rows = self._share.rows
    if self._is_grouped:
      starts = self._order.counts_until(step * rows)
      for source, groups, start in zip(self.sources, self._groups(), starts, strict=True):
        yield source, train_samples.grouped_suspects(groups, start, rows)
      return
    table = train_samples.load_table(*self.sources)
    order = sample_order.ordered(self._order, step, self._share).take(rows)
    ends = np.cumsum(self._order.sizes)
    for source, first, end in zip(self.sources, [0, *ends], ends, strict=False):
      own = order.filter(lambda ref, _: (ref >= first) & (ref < end))  # noqa: B023
      yield source, own.map(lambda ref, _: train_samples.streamed(table, ref))

  def _groups(self) -> list[train_samples.Groups]:
    weights = self._order.weights
    return [
      train_samples.Groups(
        train_samples.load_table(source),
        key,
        self._options.refs_per_image,
        train_samples.window_of(math.ceil(self._share.rows * weight / sum(weights))),
        self._options.threads,
      )
      for source, key, weight in zip(self.sources, self._order.keys, weights, strict=False)
    ]


def _row_lengths(
  text_buckets: Sequence[int], max_tokens: int, process_count: int
) -> tuple[int, ...]:
  """Returns all lengths that a row of tokens may have, the shortest first."""
  if any(not isinstance(n, int) or not 0 < n <= max_tokens for n in text_buckets):
    raise InputError(
      f"text_buckets {tuple(text_buckets)} must be between 1 and max_tokens, {max_tokens}"
    )
  return (*(sorted(text_buckets) if process_count == 1 else ()), max_tokens)


def _load_cache(
  sources: Sequence[Source], shape: Shape, threads: int, shown: bool
) -> train_samples.Cache:
  try:
    return train_samples.load_cache(sources, shape, threads, shown)
  except tf.errors.OpError as error:
    blame = functools.partial(_blame_any_record, sources, shape)
    _raise_input_error(error, sources, blame)


def _finish_train(
  batch: Fields,
  tokenizer: Tokenizer,
  max_instances: int,
  lengths: Sequence[int],
  names: Sequence[str],
) -> Fields:
  """Completes a batch on the host; adds `meta` if there are `names` of data sets."""
  texts = [text.decode() for text in batch.pop("expression")]
  flipped = batch.pop("flipped")
  texts = [
    exchange_left_right(text) if mirrored else text
    for text, mirrored in zip(texts, flipped, strict=True)
  ]
  ids = {name: batch.pop(name).tolist() for name in ("image_id", "ref_id")}
  if names:
    columns = ids | {"expression": texts, "flipped": flipped.tolist()}
    if "dataset" in batch:
      columns |= {"dataset": [names[number] for number in batch["dataset"]]}
    batch["meta"] = [
      dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]
  tokens, num_tokens, _ = tokenizer(texts, lengths[-1])
  length = next(length for length in lengths if length >= num_tokens.max())
  return batch | {
    "num_instances": np.minimum(batch["num_instances"], np.int32(max_instances)),
    "tokens": tokens[:, :length],
    "num_tokens": num_tokens,
    "weight": np.ones(len(texts), np.float32),
  }


def eval_batches(
  split: Split,
  tokenizer: Tokenizer,
  shape: BatchShape,
  *,
  limit: int | None = None,
  multiple: int = 1,
  threads: int = 2,
) -> Iterator[Fields]:
  """Yields every expression of a split exactly once, in a fixed order.

  Photos of similar sizes come together, the smallest first, since the rows of a batch share a
  canvas; those of up to 640 pixels are of one kind. The larger the canvas, the fewer the rows.
  Batches are full: rows of weight 0 pad the last one of each kind. The processes share the
  expressions of a kind evenly and yield equally many batches, so that each is a part of one global
  batch. `index` tells which expression a row has, on any process.

  Args:
    split: which expressions, and this process's share of them.
    tokenizer: text to ids.
    shape: sizes of a batch; `batch_size` is that of photos of up to 640 pixels, and the most.
    limit: number of expressions to stop after, over all processes.
    multiple: of the rows of each batch: this process's devices.
    threads: worker threads of the pipeline.

  Returns:
    Batches as in docs/reference/formats.md. `original_target` has each target at its original size
    in the upper left corner of a canvas, whose sides are `image_size` or, if that is too small, a
    multiple of 64. `meta` is a list of dicts with `image_id`, `ref_id`, `expression_index`,
    `expression` (as a person wrote it) and `file_name`; None where the weight is 0.

  Raises:
    InputError: the data set or split does not exist, or, when a batch is read, an image cannot be
      decoded.
  """
  _check_positive(limit=1 if limit is None else limit)
  source = record_reader.open_source(split.whole())
  decoded = shape.decoded()
  total = int(record_reader.scan(source).expressions.sum())
  total = total if limit is None else min(limit, total)
  kinds = eval_rows.buckets(source, shape.image_size, shape.batch_size, multiple, total)

  def batches(bucket: eval_rows.Bucket) -> Iterator[Fields]:
    share = math.ceil(len(bucket.numbers) / split.process_count)
    first = min(split.process_index * share, len(bucket.numbers))
    last = min(first + share, len(bucket.numbers))
    read: Iterator[Fields] = iter(())
    if first < last:
      rows = eval_rows.rows_dataset(source, decoded, bucket, first, last, threads)
      read = _iterate(rows, [source], lambda _: _blame_any_record([source], decoded))
    for start in range(first, first + share, bucket.batch_size):
      batch = next(read) if start < last else eval_rows.no_rows(decoded, bucket.canvas)
      padded = eval_rows.pad(_finish_eval(batch, tokenizer, shape), bucket)
      numbers = bucket.numbers[start : min(start + bucket.batch_size, last)]
      yield eval_rows.number(padded, numbers, total)

  return prefetch(itertools.chain.from_iterable(map(batches, kinds)))


def largest_photo(data_dir: str, dataset: str, split: str) -> tuple[int, int]:
  """Returns height and width of the photo of a split that has the most pixels."""
  sizes = record_reader.scan(record_reader.open_source(Split(data_dir, dataset, split)))
  largest = int((sizes.height * sizes.width).argmax())
  return int(sizes.height[largest]), int(sizes.width[largest])


def _finish_eval(batch: Fields, tokenizer: Tokenizer, shape: BatchShape) -> Fields:
  texts = [text.decode() for text in batch.pop("normalised")]
  tokens, num_tokens, was_cut = tokenizer(texts, shape.max_tokens)
  meta = eval_rows.pop_meta(batch)
  return batch | {
    "cut": was_cut,
    "num_instances": np.minimum(batch["num_instances"], np.int32(shape.max_instances)),
    "tokens": tokens,
    "num_tokens": num_tokens,
    "meta": meta,
  }


def _check_positive(**numbers: int) -> None:
  for name, number in numbers.items():
    if number < 1:
      raise InputError(f"{name} is {number}; it must be at least 1")


def _iterate(
  dataset: tf.data.Dataset, sources: Sequence[Source], blame: Callable[[int], None]
) -> Iterator[Fields]:
  """Yields batches; if one cannot be read, `blame(number)` looks for the reason."""
  iterator = pipelines.iterate(dataset)
  for number in itertools.count():
    try:
      batch = next(iterator)
    except StopIteration:
      return
    except tf.errors.OpError as error:
      _raise_input_error(error, sources, lambda: blame(number))  # noqa: B023
    yield batch


def _raise_input_error(
  error: tf.errors.OpError, sources: Sequence[Source], blame: Callable[[], None]
) -> NoReturn:
  """Raises an `InputError` if the input is at fault, else the error itself."""
  if isinstance(error, tf.errors.ResourceExhaustedError):
    raise error
  try:
    blame()
  except tf.errors.OpError as unreadable:
    error = unreadable
  if isinstance(error, record_reader.DAMAGED):
    for source in sources:
      # Raised itself if the source is intact.
      with contextlib.suppress(tf.errors.OpError):
        record_reader.raise_damaged(source, error)
  raise error


def _blame_any_record(sources: Sequence[Source], shape: Shape) -> None:
  decode = functools.partial(record_reader.decode_all, shape=shape)
  for source in sources:
    records = record_reader.read_used(source).map(record_reader.parse)
    record_reader.raise_undecodable(source, records, decode)
