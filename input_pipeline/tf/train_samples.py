"""The order of training samples, their random numbers, and their augmentation.

All are pure functions of (seed, epoch, position). A sample is one ref: a record's image and planes,
and the ref's target and expressions. `streamed` reads samples one by one, `cached` takes them from
memory, and `grouped` decodes an image once for several of its refs; `augment` is the last step of
all three.
"""

import dataclasses
import functools
import math
import os

import numpy as np
import tensorflow as tf

from input_pipeline.common.errors import InputError
from input_pipeline.tf import pipelines, record_reader
from input_pipeline.tf.record_reader import Fields, Shape, Source

WINDOW = 64
"""Groups whose samples are shuffled together: 74 MB of images of 480 x 480 pixels."""
NUMBERS_PER_SAMPLE = 5
"""Random numbers: for the expression, the flip, brightness, contrast and saturation."""

_SAMPLES_PER_BLOCK = 1024
_OPEN_SHARDS = 16
# Of the SplitMix64 generator, as are the constants in _mix.
_GOLDEN = 0x9E3779B97F4A7C15


def random_key(seed: int, process_index: int) -> int:
  """Returns 64 bits that seed all random choices of a process."""
  return int(np.random.SeedSequence([seed, process_index]).generate_state(1, np.uint64)[0])


def uniform_numbers(key: int, start: int) -> tf.data.Dataset:
  """Returns `NUMBERS_PER_SAMPLE` numbers in [0, 1) for every sample from number `start` on.

  The numbers of a sample depend on the key and its number alone: they are SplitMix64 of a counter,
  computed for many samples at once, for a call per sample would cost more than a flip.
  """

  def block(first: tf.Tensor) -> tf.data.Dataset:
    counters = (
      first * NUMBERS_PER_SAMPLE
      + tf.range(_SAMPLES_PER_BLOCK * NUMBERS_PER_SAMPLE, dtype=tf.int64)
      + 1
    )
    bits = _mix(_uint64(key) + tf.cast(counters, tf.uint64) * _uint64(_GOLDEN))
    # The upper 24 bits, as many as float32 holds.
    numbers = tf.cast(tf.bitwise.right_shift(bits, _uint64(40)), tf.float32) * 2.0**-24
    return tf.data.Dataset.from_tensor_slices(
      tf.reshape(numbers, [_SAMPLES_PER_BLOCK, NUMBERS_PER_SAMPLE])
    )

  return tf.data.Dataset.range(start, tf.int64.max, _SAMPLES_PER_BLOCK).flat_map(block)


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


def _permutation(count: int, seed: tf.Tensor) -> tf.Tensor:
  indices = tf.range(count, dtype=tf.int64)
  return tf.random.experimental.stateless_shuffle(indices, tf.stack([seed, seed]))


def streamed(source: Source, key: int, start: int, buffer: int, threads: int) -> tf.data.Dataset:
  """Returns encoded samples from number `start` on: (record, index of the ref).

  Each epoch has a random order of shards, whose samples pass through a shuffle buffer. Samples
  before `start` in its epoch are read but not decoded.
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
  """Returns all records, encoded, by shards in the epoch's order."""
  order = _permutation(len(source.files), seed)
  shards = [tf.gather(column, order) for column in record_reader.shards(source)]
  examples = tf.data.Dataset.from_tensor_slices(tuple(shards)).interleave(
    record_reader.read_shard, cycle_length=_OPEN_SHARDS, block_length=16
  )
  return examples.map(record_reader.parse, num_parallel_calls=threads)


def by_refs(record: Fields, step: int = 1) -> tf.data.Dataset:
  """Repeats a record for every `step` of its refs, with the index of the first one."""
  count = tf.size(record["ref_id"], out_type=tf.int64)
  # The tensors are shared.
  repeated = tf.data.Dataset.from_tensors(record).repeat()
  return tf.data.Dataset.zip(repeated, tf.data.Dataset.range(0, count, step))


def decode(record: Fields, ref: tf.Tensor, shape: Shape) -> Fields:
  """Decodes and resizes one ref of a record."""
  return select_ref(record | record_reader.decode_record(record, shape), ref, shape)


def select_ref(record: Fields, ref: tf.Tensor, shape: Shape) -> Fields:
  """Returns one ref of a record whose image and planes are decoded; decodes its target."""
  start = tf.reduce_sum(record["count"][:ref])
  target = record_reader.decode_target(record["target"][ref])
  return {
    **{key: record[key] for key in ("image", "instances", "num_instances")},
    "target": record_reader.resize_target(target, shape.image_size),
    "expressions": record["normalised"][start : start + record["count"][ref]],
    "image_id": record["image_id"],
    "ref_id": record["ref_id"][ref],
  }


@dataclasses.dataclass(frozen=True)
class Cache:
  """All records of a source, decoded and resized: about 45 kB per image of 96 x 96 pixels."""

  image: tf.Tensor
  """uint8 [n, s, s, 3]."""
  instances: tf.Tensor
  """uint16 [n, g, s, s]."""
  num_instances: tf.Tensor
  """int32 [n]."""
  target: tf.Tensor
  """uint8 [refs, ceil(s * s / 8)], one bit per pixel."""
  record: tf.Tensor
  """int64 [refs], the record of each ref."""
  start: tf.Tensor
  """int64 [refs], the first of the ref's expressions in `expressions`."""
  count: tf.Tensor
  """int64 [refs], how many expressions the ref has."""
  expressions: tf.Tensor
  """string, all normalised expressions."""
  image_id: tf.Tensor
  """int64 [n]."""
  ref_id: tf.Tensor
  """int64 [refs]."""


def load_cache(source: Source, shape: Shape, threads: int) -> Cache:
  """Decodes all records into memory.

  Raises:
    InputError: they do not fit into memory.
    tf.errors.OpError: one of them cannot be decoded.
  """
  sizes = record_reader.scan(source)
  count, size = len(sizes.expressions), shape.image_size
  target_bytes = math.ceil(size * size / 8)
  _check_memory(source, count * size * size * (3 + 2 * shape.planes) + sizes.refs * target_bytes)
  image = _aligned_empty((count, size, size, 3), np.uint8)
  instances = _aligned_empty((count, shape.planes, size, size), np.uint16)
  num_instances = np.empty(count, np.int32)
  targets = _aligned_empty((sizes.refs, target_bytes), np.uint8)
  counts, expressions, image_ids, ref_ids = [], [], [], []

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
    expressions.extend(record["normalised"])
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
    expressions=tf.constant(expressions),
    image_id=tf.constant(np.array(image_ids, np.int64)),
    ref_id=tf.constant(np.concatenate(ref_ids)),
  )


def _check_memory(source: Source, need: int) -> None:
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  if need > 0.7 * memory:
    raise InputError(
      f"{source.name}: cache needs {need / 1e9:.1f} GB, this machine has {memory / 1e9:.1f} GB; "
      "set cache to False"
    )


def _aligned_empty(shape: tuple[int, ...], dtype: type) -> np.ndarray:
  """Returns an array whose memory a tensor can share: it starts at a multiple of 64 bytes."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  buffer = np.empty(size + 64, np.uint8)
  start = -buffer.ctypes.data % 64
  return buffer[start : start + size].view(dtype).reshape(shape)


def _shared(array: np.ndarray) -> tf.Tensor:
  """Returns a tensor of the same memory; a copy would need twice the cache's memory."""
  return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def cached(cache: Cache, key: int, start: int, threads: int) -> tf.data.Dataset:
  """Returns decoded samples from number `start` on; each epoch is a permutation of all refs."""
  refs, size = cache.record.shape[0], cache.image.shape[1]
  # The 8 pixels of every byte: a lookup is twice as fast as shifts.
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
      "expressions": cache.expressions[start : start + cache.count[ref]],
      "image_id": cache.image_id[record],
      "ref_id": cache.ref_id[ref],
    }

  refs_in_order = tf.data.Dataset.range(first, tf.int64.max).flat_map(one_epoch)
  return refs_in_order.map(sample, num_parallel_calls=threads)


@dataclasses.dataclass(frozen=True)
class Groups:
  """How refs of the same image are grouped, and how the groups are shuffled."""

  source: Source
  key: int
  refs_per_image: int
  """Refs of an image that share one decoding, at most; at least 2."""
  buffer: int
  """Refs to shuffle among, at most; their images stay encoded."""
  threads: int


def grouped(groups: Groups, start: int, shape: Shape) -> tf.data.Dataset:
  """Returns decoded samples from number `start` on, in epochs of groups.

  Groups are shuffled as they are read, and the samples of `WINDOW` groups among themselves, so that
  the samples of an image are spread although it is decoded once.
  """
  first, window, left = _locate(groups, start)

  def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    at_first = epoch == first
    skipped = tf.where(at_first, tf.constant(window, tf.int64), 0)
    seed = epoch_seed(groups.key, epoch)
    remaining = _groups_of_epoch(groups, seed).skip(skipped * WINDOW)
    shared = remaining.map(
      lambda record, ref: (record | record_reader.decode_record(record, shape), ref),
      num_parallel_calls=groups.threads,
    )
    windows = shared.window(WINDOW).enumerate(skipped)
    shuffle = functools.partial(_shuffle_window, refs_per_image=groups.refs_per_image, seed=seed)
    return windows.flat_map(shuffle).skip(tf.where(at_first, tf.constant(left, tf.int64), 0))

  samples = tf.data.Dataset.range(first, tf.int64.max).flat_map(one_epoch)
  select = functools.partial(select_ref, shape=shape)
  return samples.map(select, num_parallel_calls=groups.threads)


def grouped_suspects(groups: Groups, start: int, count: int) -> tf.data.Dataset:
  """Returns the encoded groups that `count` samples from number `start` on may wait for."""
  first, window, _ = _locate(groups, start)

  def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    skipped = tf.where(epoch == first, tf.constant(window * WINDOW, tf.int64), 0)
    return _groups_of_epoch(groups, epoch_seed(groups.key, epoch)).skip(skipped)

  epochs = tf.data.Dataset.range(first, tf.int64.max).flat_map(one_epoch)
  return epochs.take(count + 2 * WINDOW)


def _groups_of_epoch(groups: Groups, seed: tf.Tensor, only_sizes: bool = False) -> tf.data.Dataset:
  """Returns the encoded groups of an epoch, (record, index of the first ref), or their sizes."""
  records = records_of_epoch(groups.source, seed, groups.threads)
  encoded = records.flat_map(functools.partial(by_refs, step=groups.refs_per_image))
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
  seed = epoch_seed(groups.key, tf.constant(epoch, tf.int64))
  sizes = _groups_of_epoch(groups, seed, only_sizes=True).batch(WINDOW)
  window = 0
  for in_window in sizes.with_options(pipelines.options(groups.threads)).as_numpy_iterator():
    if left < in_window.sum():
      break
    left -= int(in_window.sum())
    window += 1
  return epoch, window, left


def augment(sample: Fields, numbers: tf.Tensor, flip: bool, jitter: float) -> Fields:
  """Selects an expression, mirrors the sample, and draws factors for its colours.

  Args:
    sample: `image`, `instances` and `target`, and all `expressions` of the ref.
    numbers: of `uniform_numbers`.
    flip: whether half of the samples are mirrored: image, planes and target. The text is left to
      the caller, who finds `flipped`.
    jitter: brightness, contrast and saturation change by a factor in [1 - jitter, 1 + jitter].

  Returns:
    The sample with one `expression`, `flipped` and, with jitter, the three `jitter_factors`,
    float32 [3]. The device applies them to the pixels (`mail_jax/train/step.py`), at no measurable
    cost.
  """
  expressions = sample["expressions"]
  choice = tf.cast(numbers[0] * tf.cast(tf.size(expressions), tf.float32), tf.int32)
  flipped = tf.logical_and(flip, numbers[1] < 0.5)
  image, instances, target = sample["image"], sample["instances"], sample["target"]
  if flip:
    image, instances, target = tf.cond(
      flipped,
      lambda: (tf.reverse(image, [1]), tf.reverse(instances, [2]), tf.reverse(target, [1])),
      lambda: (image, instances, target),
    )
  factors = {"jitter_factors": 1.0 + jitter * (2.0 * numbers[2:] - 1.0)} if jitter else {}
  return factors | {
    "image": image,
    "instances": instances,
    "num_instances": sample["num_instances"],
    "target": target,
    "expression": expressions[choice],
    "flipped": flipped,
    **{name: sample[name] for name in ("image_id", "ref_id") if name in sample},
  }
