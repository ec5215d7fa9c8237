"""Which training sample comes when, and the random numbers that it gets.

Both are pure functions of (seed, epoch, position). A sample is one ref: a record's image and planes
and the ref's target and sentences. It comes from the records as they stream by, or from memory.
"""

import dataclasses
import math
import os

import numpy as np
import tensorflow as tf

from input_pipeline.common.errors import InputError
from input_pipeline.tf import pipelines, record_reader
from input_pipeline.tf.record_reader import Fields, Shape, Source

# One each for the sentence, the flip, brightness, contrast and saturation.
DRAWS = 5
_DRAWN_AT_ONCE = 1024
_OPEN_SHARDS = 16
_GOLDEN = 0x9E3779B97F4A7C15  # Of the SplitMix64 generator, as the constants in _mix.


def key_of(seed: int, process_index: int) -> int:
  """Returns the 64 bits that all chance of one process starts from."""
  return int(np.random.SeedSequence([seed, process_index]).generate_state(1, np.uint64)[0])


def draws(key: int, start: int) -> tf.data.Dataset:
  """Returns `DRAWS` numbers in [0, 1) for every sample from number `start` on, without end.

  The numbers of a sample depend on the key and on its number alone: they are SplitMix64 of a
  counter, computed for many samples at once because a call a sample would cost more than a flip.
  """

  def block(first: tf.Tensor) -> tf.data.Dataset:
    counters = first * DRAWS + tf.range(_DRAWN_AT_ONCE * DRAWS, dtype=tf.int64) + 1
    bits = _mix(_uint64(key) + tf.cast(counters, tf.uint64) * _uint64(_GOLDEN))
    # The upper 24 bits, all that float32 holds.
    numbers = tf.cast(tf.bitwise.right_shift(bits, _uint64(40)), tf.float32) * 2.0**-24
    return tf.data.Dataset.from_tensor_slices(tf.reshape(numbers, [_DRAWN_AT_ONCE, DRAWS]))

  return tf.data.Dataset.range(start, tf.int64.max, _DRAWN_AT_ONCE).flat_map(block)


def _mix(x: tf.Tensor) -> tf.Tensor:
  x = (x ^ tf.bitwise.right_shift(x, _uint64(30))) * _uint64(0xBF58476D1CE4E5B9)
  x = (x ^ tf.bitwise.right_shift(x, _uint64(27))) * _uint64(0x94D049BB133111EB)
  return x ^ tf.bitwise.right_shift(x, _uint64(31))


def _uint64(value: int) -> tf.Tensor:
  return tf.constant(value, tf.uint64)


def epoch_seed(key: int, epoch: tf.Tensor) -> tf.Tensor:
  """Returns what the order of an epoch starts from."""
  mixed = _mix(_uint64(key) + tf.cast(epoch, tf.uint64) * _uint64(_GOLDEN))
  return tf.cast(tf.bitwise.right_shift(mixed, _uint64(1)), tf.int64)


def _permutation(count: int, seed: tf.Tensor) -> tf.Tensor:
  indices = tf.range(count, dtype=tf.int64)
  return tf.random.experimental.stateless_shuffle(indices, tf.stack([seed, seed]))


def streamed(source: Source, key: int, start: int, buffer: int, threads: int) -> tf.data.Dataset:
  """Returns undecoded samples from number `start` on: (record, which of its refs).

  The order of the shards is drawn for each epoch, and their samples pass through a shuffle buffer.
  What comes before `start` in its epoch is read but not decoded.
  """
  # A run from the beginning needs no count.
  first, skipped = divmod(start, record_reader.count_refs(source)) if start else (0, 0)

  def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    seed = epoch_seed(key, epoch)
    samples = records_of_epoch(source, seed, threads).flat_map(by_refs)
    samples = samples.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)
    return samples.skip(tf.where(epoch == first, tf.constant(skipped, tf.int64), 0))

  return tf.data.Dataset.range(first, tf.int64.max).flat_map(one_epoch)


def records_of_epoch(source: Source, seed: tf.Tensor, threads: int) -> tf.data.Dataset:
  """Returns all records, undecoded, by shards in an order of the epoch's own."""
  order = _permutation(len(source.files), seed)
  shards = [tf.gather(column, order) for column in record_reader.shards(source)]
  examples = tf.data.Dataset.from_tensor_slices(tuple(shards)).interleave(
    record_reader.read_shard, cycle_length=_OPEN_SHARDS, block_length=16
  )
  return examples.map(record_reader.parse, num_parallel_calls=threads)


def by_refs(record: Fields, step: int = 1) -> tf.data.Dataset:
  """Returns the record once for every `step` of its refs, with the first one's index; the tensors are shared."""
  count = tf.size(record["ref_id"], out_type=tf.int64)
  same = tf.data.Dataset.from_tensors(record).repeat()
  return tf.data.Dataset.zip(same, tf.data.Dataset.range(0, count, step))


def decode(record: Fields, ref: tf.Tensor, shape: Shape) -> Fields:
  """Decodes and resizes one ref of a record."""
  return pick(record | record_reader.decode_record(record, shape), ref, shape)


def pick(record: Fields, ref: tf.Tensor, shape: Shape) -> Fields:
  """Returns one ref, decoded, of a record whose image and planes are."""
  start = tf.reduce_sum(record["count"][:ref])
  target = record_reader.decode_target(record["target"][ref])
  return {
    **{key: record[key] for key in ("image", "instances", "num_instances")},
    "target": record_reader.resize_target(target, shape.image_size),
    "sentences": record["normalised"][start : start + record["count"][ref]],
    "image_id": record["image_id"],
    "ref_id": record["ref_id"][ref],
  }


@dataclasses.dataclass(frozen=True)
class Cache:
  """Every record of a source, decoded and resized: about 45 kB an image of 96 pixels."""

  image: tf.Tensor
  """uint8 [n, s, s, 3]; `instances` uint16 [n, g, s, s] and `num_instances` int32 [n] with it."""
  instances: tf.Tensor
  num_instances: tf.Tensor
  target: tf.Tensor
  """uint8 [refs, ceil(s * s / 8)], one bit a pixel."""
  record: tf.Tensor
  """int64 [refs], the record of each ref; `start` and `count` are its range of `sentences`."""
  start: tf.Tensor
  count: tf.Tensor
  sentences: tf.Tensor
  image_id: tf.Tensor
  """int64 [n]; `ref_id` int64 [refs]."""
  ref_id: tf.Tensor


def load(source: Source, shape: Shape, threads: int) -> Cache:
  """Decodes all records into memory.

  Raises:
    InputError: they do not fit into this machine's memory.
    tf.errors.OpError: one of them cannot be decoded.
  """
  sizes = record_reader.scan(source)
  count, size = len(sizes.sentences), shape.image_size
  target_bytes = math.ceil(size * size / 8)
  _check_memory(source, count * size * size * (3 + 2 * shape.planes) + sizes.refs * target_bytes)
  image = _aligned_empty((count, size, size, 3), np.uint8)
  instances = _aligned_empty((count, shape.planes, size, size), np.uint16)
  num_instances = np.empty(count, np.int32)
  targets = _aligned_empty((sizes.refs, target_bytes), np.uint8)
  counts, sentences, image_ids, ref_ids = [], [], [], []

  def decoded(example: tf.Tensor) -> Fields:
    record = record_reader.parse(example)
    texts = {key: record[key] for key in ("normalised", "count", "image_id", "ref_id")}
    return record_reader.decode_all(record, shape) | texts

  dataset = record_reader.read(source).map(decoded, num_parallel_calls=threads).prefetch(threads)
  dataset = dataset.with_options(pipelines.options(threads))
  done = 0
  for row, record in enumerate(pipelines.iterate(dataset)):
    image[row], instances[row] = record["image"], record["instances"]
    num_instances[row] = record["num_instances"]
    bits = record["target"].reshape(len(record["target"]), -1)
    targets[done : done + len(bits)] = np.packbits(bits, axis=1)
    done += len(bits)
    counts.append(record["count"])
    sentences.extend(record["normalised"])
    image_ids.append(record["image_id"])
    ref_ids.append(record["ref_id"])
  per_ref = np.concatenate(counts)
  return Cache(
    image=_shared(image),
    instances=_shared(instances),
    num_instances=tf.constant(num_instances),
    target=_shared(targets),
    record=tf.constant(np.repeat(np.arange(count), [len(refs) for refs in counts])),
    start=tf.constant(np.cumsum(per_ref) - per_ref),
    count=tf.constant(per_ref),
    sentences=tf.constant(sentences),
    image_id=tf.constant(np.array(image_ids, np.int64)),
    ref_id=tf.constant(np.concatenate(ref_ids)),
  )


def _check_memory(source: Source, need: int) -> None:
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  if need > 0.7 * memory:
    raise InputError(
      f"{source.name}: cache needs {need / 1e9:.1f} GB and this machine has {memory / 1e9:.1f} GB; "
      "set cache to False"
    )


def _aligned_empty(shape: tuple[int, ...], dtype: type) -> np.ndarray:
  """An array that a tensor can share: tensors start at multiples of 64 bytes."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  buffer = np.empty(size + 64, np.uint8)
  start = -buffer.ctypes.data % 64
  return buffer[start : start + size].view(dtype).reshape(shape)


def _shared(array: np.ndarray) -> tf.Tensor:
  """The same memory as a tensor; a copy would double what the cache takes while it is made."""
  return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def cached(cache: Cache, key: int, start: int, threads: int) -> tf.data.Dataset:
  """Returns decoded samples from number `start` on; each epoch is a permutation of all refs."""
  refs, size = cache.record.shape[0], cache.image.shape[1]
  # The 8 pixels of every byte: looking them up is twice as fast as shifting.
  pixels = tf.constant(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(bool))
  first, skipped = divmod(start, refs)

  def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    order = _permutation(refs, epoch_seed(key, epoch))
    return tf.data.Dataset.from_tensor_slices(order[tf.where(epoch == first, skipped, 0) :])

  def sample(ref: tf.Tensor) -> Fields:
    record, start = cache.record[ref], cache.start[ref]
    target = tf.reshape(tf.gather(pixels, tf.cast(cache.target[ref], tf.int32)), [-1])
    return {
      "image": cache.image[record],
      "instances": cache.instances[record],
      "num_instances": cache.num_instances[record],
      "target": tf.reshape(target[: size * size], [size, size]),
      "sentences": cache.sentences[start : start + cache.count[ref]],
      "image_id": cache.image_id[record],
      "ref_id": cache.ref_id[ref],
    }

  refs_in_order = tf.data.Dataset.range(first, tf.int64.max).flat_map(one_epoch)
  return refs_in_order.map(sample, num_parallel_calls=threads)
