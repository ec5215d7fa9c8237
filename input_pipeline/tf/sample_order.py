"""Which training sample comes when, and its random numbers.

Both are pure functions of (seed, epoch, position). An epoch has as many positions as all data sets
have refs. A data set of a mixture comes as often as its weight says: exactly, up to one sample, at
the end of every epoch. Which data set a position has is a shuffle; the samples of one follow each
other in epochs of its own, each a permutation of its refs. By size the two kinds of epochs are the
same, and a single data set is the simplest case.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from input_pipeline.common.errors import InputError
from input_pipeline.tf import zoom

NUMBERS_PER_SAMPLE = 5 + zoom.NUMBERS
"""Random numbers: for the expression, the flip, brightness, contrast, saturation and the zoom."""

_SAMPLES_PER_BLOCK = 1024
# Of the SplitMix64 generator, as are the constants in _mix.
_GOLDEN = 0x9E3779B97F4A7C15
# Largest product of weights and refs, so that thousands of epochs are counted in 64 bits.
_MAX_PRODUCT = 2**48


def random_key(seed: int, process_index: int, purpose: int = 0) -> int:
  """Returns 64 bits that seed random choices of a process.

  Args:
    seed: of the run.
    process_index: of a process whose choices are its own; otherwise 0.
    purpose: 0 for augmentation and the order of the first data set, others for further orders.
  """
  entropy = [seed, process_index, purpose] if purpose else [seed, process_index]
  return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def uniform_numbers(key: int, start: int) -> tf.data.Dataset:
  """Returns `NUMBERS_PER_SAMPLE` numbers in [0, 1) for every sample from number `start` on."""

  def block(first: tf.Tensor) -> tf.data.Dataset:
    numbers = first + tf.range(_SAMPLES_PER_BLOCK, dtype=tf.int64)
    return tf.data.Dataset.from_tensor_slices(uniform_of(key, numbers))

  return tf.data.Dataset.range(start, tf.int64.max, _SAMPLES_PER_BLOCK).flat_map(block)


def uniform_of(key: int, samples: tf.Tensor) -> tf.Tensor:
  """Returns the random numbers of samples, float32 [n, `NUMBERS_PER_SAMPLE`].

  They depend on the key and the number of the sample alone: they are SplitMix64 of a counter,
  computed for many samples at once, for a call per sample would cost more than a flip.
  """
  counters = samples[:, None] * NUMBERS_PER_SAMPLE + tf.range(NUMBERS_PER_SAMPLE, dtype=tf.int64)
  bits = _mix(_uint64(key) + tf.cast(counters + 1, tf.uint64) * _uint64(_GOLDEN))
  # The upper 24 bits, as many as float32 holds.
  return tf.cast(tf.bitwise.right_shift(bits, _uint64(40)), tf.float32) * 2.0**-24


def _mix(x: tf.Tensor) -> tf.Tensor:
  x = (x ^ tf.bitwise.right_shift(x, _uint64(30))) * _uint64(0xBF58476D1CE4E5B9)
  x = (x ^ tf.bitwise.right_shift(x, _uint64(27))) * _uint64(0x94D049BB133111EB)
  return x ^ tf.bitwise.right_shift(x, _uint64(31))


def _uint64(value: int) -> tf.Tensor:
  return tf.constant(value, tf.uint64)


def epoch_seed(key: int, epoch: tf.Tensor) -> tf.Tensor:
  """Returns the seed of an epoch's order."""
  mixed = _mix(_uint64(key) + tf.cast(epoch, tf.uint64) * _uint64(_GOLDEN))
  return tf.cast(tf.bitwise.right_shift(mixed, _uint64(1)), tf.int64)


def permutation(count: int, seed: tf.Tensor) -> tf.Tensor:
  """Returns the numbers below `count`, shuffled."""
  indices = tf.range(count, dtype=tf.int64)
  return tf.random.experimental.stateless_shuffle(indices, tf.stack([seed, seed]))


@dataclasses.dataclass(frozen=True)
class Order:
  """The endless order of the samples of one or several data sets.

  Attributes:
    sizes: refs of each data set.
    weights: how often a sample of each comes, as integers; no matter which for a single data set.
    keys: of `random_key`, one per data set and one for which of them comes when.
  """

  sizes: tuple[int, ...]
  weights: tuple[int, ...]
  keys: tuple[int, ...]

  @classmethod
  def of(
    cls, sizes: Sequence[int], weights: Sequence[int], seed: int, process_index: int = 0
  ) -> "Order":
    """Returns the order of a seed, or that of a process for the data sets' parts that it reads.

    Raises:
      InputError: a weight is so small that an epoch may have no sample of its data set.
    """
    total, epoch = sum(weights), sum(sizes)
    if len(sizes) > 1 and min(weights) * epoch < total:
      raise InputError(
        f"config.dataset: the smallest weight is {min(weights) / total:.2g} of all, less than one "
        f"of the {epoch:,} samples of an epoch; raise it, or leave its data set out"
      )
    if len(sizes) > 1 and total * epoch // math.gcd(total, epoch) > _MAX_PRODUCT:
      raise InputError(
        f"config.dataset: the weights have too many digits for {epoch:,} refs; round them, such as "
        "2:1:1"
      )
    keys = tuple(random_key(seed, process_index, n) for n in range(len(sizes) + 1))
    return cls(tuple(sizes), tuple(weights), keys)

  @property
  def epoch(self) -> int:
    """The number of samples of an epoch."""
    return sum(self.sizes)

  @property
  def is_mixture(self) -> bool:
    """Whether there are several data sets."""
    return len(self.sizes) > 1

  def done_before(self, epoch: tf.Tensor) -> tf.Tensor:
    """Returns how many samples of each data set the epochs before one have, int64 [d]."""
    ends, total = tf.constant(np.cumsum([0, *self.weights]), tf.int64), sum(self.weights)
    common = math.gcd(total, self.epoch)
    counted = ends * (self.epoch // common) * epoch // (total // common)
    return counted[1:] - counted[:-1]

  def datasets(self, epoch: tf.Tensor) -> tf.Tensor:
    """Returns the number of the data set at each position of an epoch, int64 [`epoch`]."""
    counts = self.done_before(epoch + 1) - self.done_before(epoch)
    sorted_numbers = tf.repeat(tf.range(len(self.sizes), dtype=tf.int64), counts)
    return tf.gather(sorted_numbers, permutation(self.epoch, epoch_seed(self.keys[-1], epoch)))

  def refs(self, epoch: tf.Tensor) -> tf.Tensor:
    """Returns the ref at each position of an epoch, int64 [`epoch`].

    The refs of all data sets are numbered one data set after the other.
    """
    if not self.is_mixture:
      return permutation(self.epoch, epoch_seed(self.keys[0], epoch))
    done, after = self.done_before(epoch), self.done_before(epoch + 1)
    streams = [
      first + _stream(size, key, done[n], after[n])
      for n, (first, size, key) in enumerate(
        zip(np.cumsum([0, *self.sizes[:-1]]).tolist(), self.sizes, self.keys[:-1], strict=True)
      )
    ]
    dataset = self.datasets(epoch)
    places = tf.concat([tf.where(dataset == n) for n in range(len(self.sizes))], 0)
    return tf.scatter_nd(places, tf.concat(streams, 0), tf.constant([self.epoch], tf.int64))

  def counts_until(self, start: int) -> tuple[int, ...]:
    """Returns how many of the first `start` samples each data set has."""
    if not self.is_mixture:
      return (start,)
    epoch, left = divmod(start, self.epoch)
    at = tf.constant(epoch, tf.int64)
    begun = np.bincount(self.datasets(at)[:left].numpy(), minlength=len(self.sizes))
    return tuple((self.done_before(at).numpy() + begun).tolist())

  def choices(self, start: int) -> tf.data.Dataset:
    """Returns the number of the data set of every sample from number `start` on."""
    first, left = divmod(start, self.epoch)
    epochs = tf.data.Dataset.range(first, tf.int64.max)
    return epochs.flat_map(
      lambda epoch: tf.data.Dataset.from_tensor_slices(self.datasets(epoch))
    ).skip(left)


def _stream(size: int, key: int, start: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
  """Returns samples number `start` to `end` of a data set whose epochs follow each other."""
  epochs = tf.range(start // size, (end + size - 1) // size)
  orders = tf.map_fn(
    lambda epoch: permutation(size, epoch_seed(key, epoch)),
    epochs,
    fn_output_signature=tf.TensorSpec([size], tf.int64),
  )
  skipped = start - start // size * size
  return tf.reshape(orders, [-1])[skipped : skipped + end - start]


@dataclasses.dataclass(frozen=True)
class Share:
  """The rows of every batch that a process has."""

  rows: int
  """Their number."""
  index: int = 0
  """Of the process."""
  count: int = 1
  """Of the processes; a batch has `rows` of each."""


def ordered(order: Order, start_step: int, share: Share) -> tf.data.Dataset:
  """Returns (ref, its random numbers) for the samples of a process from a step on.

  The batches are cut from the sequence of the epochs, so that the samples of a batch do not depend
  on the number of processes.
  """
  batch = share.rows * share.count
  start = start_step * batch

  def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    positions = epoch * order.epoch + tf.range(order.epoch, dtype=tf.int64)
    ours = (positions >= start) & (positions % batch // share.rows == share.index)
    refs = tf.boolean_mask(order.refs(epoch), ours)
    numbers = uniform_of(order.keys[0], tf.boolean_mask(positions, ours))
    return tf.data.Dataset.from_tensor_slices((refs, numbers))

  return tf.data.Dataset.range(start // order.epoch, tf.int64.max).flat_map(one_epoch)
