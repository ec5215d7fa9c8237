"""Records to batches: what training and evaluation read.

The order of the samples and what is done to each are pure functions of (seed, epoch, position), so
that a run that starts again at step n gets what it would have got. Pixels are handled by native
ops; text stays text until the batch is whole, and is tokenized on the host, by a thread that keeps
two batches ready.

Training reads in one of two ways. Streaming keeps a few thousand undecoded samples in memory and
decodes each as it comes, or, with `refs_per_image`, once for several of its samples
(`shared_images.py`). With `cache` every image is decoded and resized once, all of them are held
in memory, and every epoch is a permutation of all refs.
"""

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
  augment,
  builder,
  damaged_records,
  eval_rows,
  pipelines,
  record_reader,
  shared_images,
  train_samples,
)
from input_pipeline.tf.prefetch import prefetch
from input_pipeline.tf.record_reader import Fields, Shape, Source

_WITHOUT = ", or train without it: config.loader.on_error = 'skip'"

# Accelerators belong to the model.
tf.config.set_visible_devices([], "GPU")


def train_sentences(data_dir: str, name: str, on_error: str = "stop") -> list[str]:
  """Returns every normalised sentence of the train split, in a fixed order.

  Args:
    data_dir: what `prepare` was given.
    name: of the data set.
    on_error: as `train_batches` takes it.

  Raises:
    InputError: the data set or its train split is not there, or a record of it is damaged.
  """
  source = _open_train(data_dir, name, "train", on_error)
  examples = record_reader.read(source)
  texts = examples.map(lambda example: record_reader.parse(example)["normalised"]).unbatch()
  batches = texts.batch(1024).with_options(pipelines.options(threads=1))
  try:
    return [text.decode() for batch in batches.as_numpy_iterator() for text in batch]
  except record_reader.DAMAGED as error:
    record_reader.raise_damaged(source, error)


def damaged(data_dir: str, name: str, split: str = "train") -> list[str]:
  """Returns a line for each damaged record of a split, and one that counts them; all records are read and decoded.

  Raises:
    InputError: the data set or the split is not there, or no record of it can be used.
  """
  return damaged_records.survey(record_reader.open_source(data_dir, name, split)).lines()


def num_refs(data_dir: str, name: str, split: str, on_error: str = "stop") -> int:
  """Returns how many refs a split has: the samples of one epoch.

  Raises:
    InputError: the data set or the split is not there.
  """
  return record_reader.count_refs(_open_train(data_dir, name, split, on_error))


def _open_train(
  data_dir: str,
  name: str,
  split: str,
  on_error: str,
  process_index: int = 0,
  process_count: int = 1,
) -> Source:
  """Opens a process's share of a split, without its damaged records where they are to be skipped."""
  if on_error not in damaged_records.ON_ERROR:
    raise InputError(
      f"on_error is {on_error!r}; it must be one of {', '.join(damaged_records.ON_ERROR)}"
    )
  source = record_reader.open_source(data_dir, name, split, process_index, process_count)
  if on_error == "stop":
    return dataclasses.replace(source, way_out=_WITHOUT)
  whole = record_reader.open_source(data_dir, name, split)
  return damaged_records.sound_part(source, damaged_records.survey(whole))


def splits(data_dir: str, name: str) -> list[str]:
  """Returns the names of the splits of a data set: `train`, `val`, and the others by their names.

  Raises:
    InputError: the data set is not there.
  """
  first = ("train", "val")
  found = set(builder.open_dataset(data_dir, name).info.splits)
  return [*(split for split in first if split in found), *sorted(found.difference(first))]


def train_batches(
  data_dir: str,
  name: str,
  tokenizer: Tokenizer,
  *,
  split: str = "train",
  batch_size: int,
  image_size: int,
  max_instances: int,
  max_tokens: int,
  text_buckets: Sequence[int] = (),
  seed: int,
  start_step: int = 0,
  flip: bool = True,
  jitter: float = 0.0,
  cache: bool = False,
  refs_per_image: int = 1,
  shuffle_buffer: int = 4096,
  threads: int = 2,
  process_index: int = 0,
  process_count: int = 1,
  with_meta: bool = False,
  on_error: str = "stop",
) -> Iterator[Fields]:
  """Yields batches without end: every ref once an epoch, with a random sentence of its own.

  An epoch need not end with a batch: the next one continues in the same batch.

  Args:
    data_dir: what `prepare` was given.
    name: of the data set, such as `refcoco_unc`.
    tokenizer: text to ids.
    split: which refs.
    batch_size: samples in a batch of this process.
    image_size: side of the square that images and masks are resized to, in pixels.
    max_instances: how many instance masks count, best first.
    max_tokens: length of a row of tokens.
    text_buckets: shorter rows that a batch may have where its texts fit, such as (8, 12); each costs a compilation.
      With several processes all rows have `max_tokens`, for nobody knows how long the others' texts are.
    seed: of order, sentences and augmentation.
    start_step: the batch to begin with, the same as in a run from the beginning.
    flip: mirror half of the samples, with left and right exchanged in the text.
    jitter: brightness, contrast and saturation are to change by factors in [1 - jitter, 1 + jitter], which come with
      the batch.
    cache: decode and resize every image once and hold all in memory.
    refs_per_image: samples of an image, at most, that share one decoding in an epoch; each has a chance of its
      own. 1 spreads an image's samples over the whole shuffle buffer. Not with `cache`.
    shuffle_buffer: refs to shuffle among where nothing is cached; their images stay undecoded.
    threads: worker threads of the pipeline.
    process_index: which process this is; each reads its own share of the records.
    process_count: how many processes there are.
    with_meta: adds `meta` to a batch, a list that says of each row which sample it is.
    on_error: `stop` at a damaged record, or `skip` all of them: every record is read and decoded once, at the start,
      and the samples are those of the others, in an order of their own.

  Returns:
    Batches of `image` uint8 [b, s, s, 3], `instances` uint16 [b, g, s, s], `num_instances` int32
    [b], `tokens` int32 [b, l], `num_tokens` int32 [b], `target` bool [b, s, s], `weight` float32
    [b] (ones), and with jitter `light` float32 [b, 3], the factors. Some arrays are read-only.

  Raises:
    InputError: the data set or split is not there, too small for the processes or too large for the
      cache, `refs_per_image` comes with `cache`, or, perhaps only when a batch is asked for, a
      record is damaged.
  """
  _check_positive(
    batch_size=batch_size,
    image_size=image_size,
    shuffle_buffer=shuffle_buffer,
    refs_per_image=refs_per_image,
  )
  lengths = _row_lengths(text_buckets, max_tokens, process_count)
  if cache and refs_per_image > 1:
    raise InputError(
      f"refs_per_image is {refs_per_image}, but cache decodes every image once for all epochs; "
      "set refs_per_image to 1, or cache to False"
    )
  source = _open_train(data_dir, name, split, on_error, process_index, process_count)
  shape = Shape(image_size, bit_planes.num_planes(max_instances))
  key, start = train_samples.key_of(seed, process_index), start_step * batch_size
  decode = functools.partial(train_samples.decode, shape=shape)
  undecoded = functools.partial(
    train_samples.streamed, source, key, buffer=shuffle_buffer, threads=threads
  )
  groups = shared_images.Groups(source, key, refs_per_image, shuffle_buffer, threads)
  if cache:
    samples = train_samples.cached(_load(source, shape, threads), key, start, threads)
  elif refs_per_image > 1:
    samples = shared_images.decoded(groups, start, shape)
  else:
    samples = undecoded(start).map(decode, num_parallel_calls=threads)
  change = functools.partial(augment.augment, flip=flip, jitter=jitter)
  samples = tf.data.Dataset.zip(samples, train_samples.draws(key, start))
  dataset = samples.map(change, num_parallel_calls=threads).batch(batch_size).prefetch(2)

  def blame(batch: int) -> None:
    first = start + batch * batch_size
    if refs_per_image > 1:
      suspects = shared_images.suspects(groups, first, batch_size)
    else:
      suspects = undecoded(first).take(batch_size)
    record_reader.raise_undecodable(source, suspects, decode)

  dataset = dataset.with_options(pipelines.options(threads))
  batches = _iterate(dataset, source, blame)
  return prefetch(
    _finish_train(batch, tokenizer, max_instances, lengths, with_meta) for batch in batches
  )


def _row_lengths(
  text_buckets: Sequence[int], max_tokens: int, process_count: int
) -> tuple[int, ...]:
  """All lengths that a row of tokens may have, the shortest first."""
  if any(not isinstance(n, int) or not 0 < n <= max_tokens for n in text_buckets):
    raise InputError(
      f"text_buckets {tuple(text_buckets)} must be between 1 and max_tokens, {max_tokens}"
    )
  return (*(sorted(text_buckets) if process_count == 1 else ()), max_tokens)


def _load(source: Source, shape: Shape, threads: int) -> train_samples.Cache:
  try:
    return train_samples.load(source, shape, threads)
  except tf.errors.OpError as error:
    blame = functools.partial(_blame_any_record, source, shape)
    _raise_input_error(error, source, blame)


def _finish_train(
  batch: Fields, tokenizer: Tokenizer, max_instances: int, lengths: Sequence[int], with_meta: bool
) -> Fields:
  texts = [text.decode() for text in batch.pop("sentence")]
  flipped = batch.pop("flipped")
  texts = [
    exchange_left_right(text) if mirrored else text
    for text, mirrored in zip(texts, flipped, strict=True)
  ]
  ids = {name: batch.pop(name).tolist() for name in ("image_id", "ref_id")}
  if with_meta:
    columns = ids | {"expression": texts, "flipped": flipped.tolist()}
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
  data_dir: str,
  name: str,
  split: str,
  tokenizer: Tokenizer,
  *,
  batch_size: int,
  image_size: int,
  max_instances: int,
  max_tokens: int,
  limit: int | None = None,
  threads: int = 2,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Fields]:
  """Yields every sentence of every ref of a split exactly once, in a fixed order.

  Batches are full: rows of weight 0 fill the last one. The processes share the sentences evenly
  and all yield the same number of batches, so that each is a part of one global batch. `index`
  says which sentence a row is, wherever it is read.

  Args:
    data_dir: what `prepare` was given.
    name: of the data set, such as `refcoco_unc`.
    split: which refs.
    tokenizer: text to ids.
    batch_size: rows in a batch of this process.
    image_size: side of the square that images and masks are resized to, in pixels.
    max_instances: how many instance masks count, best first.
    max_tokens: length of a row of tokens.
    limit: stop after so many sentences, counted over all processes.
    threads: worker threads of the pipeline.
    process_index: which process this is.
    process_count: how many processes there are.

  Returns:
    Batches as in training, and `original_target` bool [b, ch, cw] (each target at its original size
    in the upper left corner of a canvas of zeros), `original_size` int32 [b, 2] (height and width;
    0 where weight is 0), `index` int32 [b] (number of the sentence in the split, -1 where weight is
    0), `total` int32 [b] (how many there are, over all processes), `cut` bool [b] (whether tokens
    were lost), `meta`: a list of b dicts with `image_id`, `ref_id`, `expression_index`, `expression`
    (as a person wrote it), `file_name`, None where weight is 0. A side of the canvas is
    `image_size` if that is enough, else a multiple of 64.

  Raises:
    InputError: the data set or split is not there, or, when a batch is asked for, an image cannot
      be decoded.
  """
  _check_positive(batch_size=batch_size, image_size=image_size, limit=1 if limit is None else limit)
  record_reader.check_process(process_index, process_count)
  source = record_reader.open_source(data_dir, name, split)
  shape = Shape(image_size, bit_planes.num_planes(max_instances))
  sizes = record_reader.scan(source)
  total = int(sizes.sentences.sum())
  total = total if limit is None else min(limit, total)
  share = math.ceil(total / process_count)
  first = min(process_index * share, total)
  last = min(first + share, total)
  # One global array has one shape on all processes.
  canvas = (sizes.height, sizes.width) if process_count > 1 else (1, 1)

  def batches() -> Iterator[Fields]:
    if first < last:
      rows = eval_rows.rows_dataset(source, shape, batch_size, first, last, threads)
      yield from _iterate(rows, source, lambda _: _blame_any_record(source, shape))
    for _ in range(math.ceil(share / batch_size) - math.ceil((last - first) / batch_size)):
      yield eval_rows.no_rows(shape)

  return prefetch(
    eval_rows.number(
      eval_rows.fill(
        _finish_eval(batch, tokenizer, max_instances, max_tokens), batch_size, image_size, canvas
      ),
      first + position * batch_size,
      total,
    )
    for position, batch in enumerate(batches())
  )


def _finish_eval(
  batch: Fields, tokenizer: Tokenizer, max_instances: int, max_tokens: int
) -> Fields:
  texts = [text.decode() for text in batch.pop("normalised")]
  tokens, num_tokens, was_cut = tokenizer(texts, max_tokens)
  meta = eval_rows.take_meta(batch)
  return batch | {
    "cut": was_cut,
    "num_instances": np.minimum(batch["num_instances"], np.int32(max_instances)),
    "tokens": tokens,
    "num_tokens": num_tokens,
    "meta": meta,
  }


def _check_positive(**numbers: int) -> None:
  for name, number in numbers.items():
    if number < 1:
      raise InputError(f"{name} is {number}; it must be at least 1")


def _iterate(
  dataset: tf.data.Dataset, source: Source, blame: Callable[[int], None]
) -> Iterator[Fields]:
  """Yields batches; `blame` looks for the reason why one, counted from 0, could not be read."""
  iterator = pipelines.iterate(dataset)
  for number in itertools.count():
    try:
      batch = next(iterator)
    except StopIteration:
      return
    except tf.errors.OpError as error:
      _raise_input_error(error, source, lambda: blame(number))  # noqa: B023
    yield batch


def _raise_input_error(
  error: tf.errors.OpError, source: Source, blame: Callable[[], None]
) -> NoReturn:
  """Raises what is wrong with the input; the error itself where it is no fault of the input."""
  try:
    blame()
  except tf.errors.OpError as unreadable:
    error = unreadable
  if isinstance(error, record_reader.DAMAGED):
    record_reader.raise_damaged(source, error)
  raise error


def _blame_any_record(source: Source, shape: Shape) -> None:
  records = record_reader.read(source).map(record_reader.parse)
  decode = functools.partial(record_reader.decode_all, shape=shape)
  record_reader.raise_undecodable(source, records, decode)
