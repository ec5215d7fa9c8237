"""Training samples of which several have one decoded image: `loader.refs_per_image`.

An epoch is every ref once, as ever. The refs of a record are taken in groups of at most `most`, groups are shuffled
undecoded, and each is decoded once. The samples of `MIXED` groups that follow each other, a window, are shuffled
among themselves, so that those of one image are not neighbours. What comes when is a pure function of
(seed, epoch, position): a window is shuffled by a seed of its own, and those before the first sample that
is wanted are read but not decoded.
"""

import dataclasses
import functools

import tensorflow as tf

from input_pipeline.tf import pipelines, record_reader, train_samples
from input_pipeline.tf.record_reader import Fields, Shape, Source

# Decoded images in memory: 74 MB of 480 x 480 pixels with one bit plane each.
MIXED = 64


@dataclasses.dataclass(frozen=True)
class Groups:
  """How refs are grouped and shuffled."""

  source: Source
  key: int
  most: int
  """Refs of an image that share one decoding, at least 2."""
  buffer: int
  """Refs to shuffle among, at most; their images stay undecoded."""
  threads: int


def decoded(groups: Groups, start: int, shape: Shape) -> tf.data.Dataset:
  """Returns decoded samples from number `start` on, without end."""
  first, window, left = _place(groups, start)

  def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    at_first = epoch == first
    skipped = tf.where(at_first, tf.constant(window, tf.int64), 0)
    seed = train_samples.epoch_seed(groups.key, epoch)
    of_epoch = _of_epoch(groups, seed).skip(skipped * MIXED)
    shared = of_epoch.map(
      lambda record, ref: (record | record_reader.decode_record(record, shape), ref),
      num_parallel_calls=groups.threads,
    )
    windows = shared.window(MIXED).enumerate(skipped)
    mix = functools.partial(_mixed, most=groups.most, seed=seed)
    return windows.flat_map(mix).skip(tf.where(at_first, tf.constant(left, tf.int64), 0))

  samples = tf.data.Dataset.range(first, tf.int64.max).flat_map(one_epoch)
  pick = functools.partial(train_samples.pick, shape=shape)
  return samples.map(pick, num_parallel_calls=groups.threads)


def suspects(groups: Groups, start: int, count: int) -> tf.data.Dataset:
  """Returns the undecoded groups that `count` samples from number `start` on may wait for."""
  first, window, _ = _place(groups, start)

  def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    skipped = tf.where(epoch == first, tf.constant(window * MIXED, tf.int64), 0)
    return _of_epoch(groups, train_samples.epoch_seed(groups.key, epoch)).skip(skipped)

  epochs = tf.data.Dataset.range(first, tf.int64.max).flat_map(one_epoch)
  return epochs.take(count + 2 * MIXED)


def _of_epoch(groups: Groups, seed: tf.Tensor, only_sizes: bool = False) -> tf.data.Dataset:
  """The groups of an epoch, undecoded: (record, first of its refs), or how many refs each has."""
  records = train_samples.records_of_epoch(groups.source, seed, groups.threads)
  made = records.flat_map(functools.partial(train_samples.by_refs, step=groups.most))
  if only_sizes:
    made = made.map(functools.partial(_size, most=groups.most))
  # The order depends on the seed and on numbers, not on what is shuffled.
  buffer = max(1, groups.buffer // groups.most)
  return made.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)


def _size(record: Fields, ref: tf.Tensor, most: int) -> tf.Tensor:
  return tf.minimum(tf.size(record["ref_id"], out_type=tf.int64) - ref, most)


def _mixed(
  number: tf.Tensor, window: tuple[Fields, tf.data.Dataset], most: int, seed: tf.Tensor
) -> tf.data.Dataset:
  """The samples of a window, (record, ref), in an order of their own; decoded tensors are shared."""

  def samples(record: Fields, ref: tf.Tensor) -> tf.data.Dataset:
    size = _size(record, ref, most)
    same = tf.data.Dataset.from_tensors(record).repeat(size)
    return tf.data.Dataset.zip(same, tf.data.Dataset.range(ref, ref + size))

  return (
    tf.data.Dataset.zip(window)
    .flat_map(samples)
    .shuffle(MIXED * most, seed=seed + 1 + number, reshuffle_each_iteration=False)
  )


def _place(groups: Groups, start: int) -> tuple[int, int, int]:
  """Where sample number `start` is: its epoch, its window, and how many samples come before it there."""
  if not start:  # A run from the beginning needs no count.
    return 0, 0, 0
  epoch, left = divmod(start, record_reader.count_refs(groups.source))
  if not left:
    return epoch, 0, 0
  seed = train_samples.epoch_seed(groups.key, tf.constant(epoch, tf.int64))
  sizes = _of_epoch(groups, seed, only_sizes=True).batch(MIXED)
  window = 0
  for in_window in sizes.with_options(pipelines.options(groups.threads)).as_numpy_iterator():
    if left < in_window.sum():
      break
    left -= int(in_window.sum())
    window += 1
  return epoch, window, left
