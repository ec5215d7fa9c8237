"""Training samples that share one decoding of their image: `loader.refs_per_image`.

An epoch is every ref once, as without sharing. The refs of a record are split into groups of at
most `refs_per_image`, encoded groups are shuffled, and each is decoded once. The samples of
`WINDOW` consecutive groups are shuffled among themselves, so that those of one image are not
neighbours. The order is a pure function of (seed, epoch, position): every window has its own seed,
and windows before the first sample are read but not decoded.
"""

import dataclasses
import functools

import tensorflow as tf

from input_pipeline.tf import pipelines, record_reader, train_samples
from input_pipeline.tf.record_reader import Fields, Shape, Source

WINDOW = 64
"""Groups whose samples are shuffled together: 74 MB of images of 480 x 480 pixels."""


@dataclasses.dataclass(frozen=True)
class Groups:
  """How refs are grouped and shuffled."""

  source: Source
  key: int
  refs_per_image: int
  """Refs of an image that share one decoding, at most; at least 2."""
  buffer: int
  """Refs to shuffle among, at most; their images stay encoded."""
  threads: int


def decoded(groups: Groups, start: int, shape: Shape) -> tf.data.Dataset:
  """Returns decoded samples from number `start` on, without end."""
  first, window, left = _locate(groups, start)

  def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    at_first = epoch == first
    skipped = tf.where(at_first, tf.constant(window, tf.int64), 0)
    seed = train_samples.epoch_seed(groups.key, epoch)
    remaining = _groups_of_epoch(groups, seed).skip(skipped * WINDOW)
    shared = remaining.map(
      lambda record, ref: (record | record_reader.decode_record(record, shape), ref),
      num_parallel_calls=groups.threads,
    )
    windows = shared.window(WINDOW).enumerate(skipped)
    shuffle = functools.partial(_shuffle_window, refs_per_image=groups.refs_per_image, seed=seed)
    return windows.flat_map(shuffle).skip(tf.where(at_first, tf.constant(left, tf.int64), 0))

  samples = tf.data.Dataset.range(first, tf.int64.max).flat_map(one_epoch)
  select_ref = functools.partial(train_samples.select_ref, shape=shape)
  return samples.map(select_ref, num_parallel_calls=groups.threads)


def suspects(groups: Groups, start: int, count: int) -> tf.data.Dataset:
  """Returns the encoded groups that `count` samples from number `start` on may wait for."""
  first, window, _ = _locate(groups, start)

  def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    skipped = tf.where(epoch == first, tf.constant(window * WINDOW, tf.int64), 0)
    return _groups_of_epoch(groups, train_samples.epoch_seed(groups.key, epoch)).skip(skipped)

  epochs = tf.data.Dataset.range(first, tf.int64.max).flat_map(one_epoch)
  return epochs.take(count + 2 * WINDOW)


def _groups_of_epoch(groups: Groups, seed: tf.Tensor, only_sizes: bool = False) -> tf.data.Dataset:
  """Returns the encoded groups of an epoch, (record, index of the first ref), or their sizes."""
  records = train_samples.records_of_epoch(groups.source, seed, groups.threads)
  encoded = records.flat_map(functools.partial(train_samples.by_refs, step=groups.refs_per_image))
  if only_sizes:
    encoded = encoded.map(functools.partial(_size, refs_per_image=groups.refs_per_image))
  # The order depends on the seed and on numbers, not on the elements.
  buffer = max(1, groups.buffer // groups.refs_per_image)
  return encoded.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)


def _size(record: Fields, ref: tf.Tensor, refs_per_image: int) -> tf.Tensor:
  return tf.minimum(tf.size(record["ref_id"], out_type=tf.int64) - ref, refs_per_image)


def _shuffle_window(
  number: tf.Tensor, window: tuple[Fields, tf.data.Dataset], refs_per_image: int, seed: tf.Tensor
) -> tf.data.Dataset:
  """Returns the samples of a window, (record, ref), shuffled; decoded tensors are shared."""

  def samples(record: Fields, ref: tf.Tensor) -> tf.data.Dataset:
    size = _size(record, ref, refs_per_image)
    repeated = tf.data.Dataset.from_tensors(record).repeat(size)
    return tf.data.Dataset.zip(repeated, tf.data.Dataset.range(ref, ref + size))

  return (
    tf.data.Dataset.zip(window)
    .flat_map(samples)
    .shuffle(WINDOW * refs_per_image, seed=seed + 1 + number, reshuffle_each_iteration=False)
  )


def _locate(groups: Groups, start: int) -> tuple[int, int, int]:
  """Returns the epoch and window of sample number `start`, and its position in the window."""
  if not start:  # a run from the beginning needs no count
    return 0, 0, 0
  epoch, left = divmod(start, record_reader.count_refs(groups.source))
  if not left:
    return epoch, 0, 0
  seed = train_samples.epoch_seed(groups.key, tf.constant(epoch, tf.int64))
  sizes = _groups_of_epoch(groups, seed, only_sizes=True).batch(WINDOW)
  window = 0
  for in_window in sizes.with_options(pipelines.options(groups.threads)).as_numpy_iterator():
    if left < in_window.sum():
      break
    left -= int(in_window.sum())
    window += 1
  return epoch, window, left
