"""The order of training samples, their random numbers, and their augmentation.

All are pure functions of (seed, epoch, position). A sample is one ref: a record's image and planes,
and the ref's target and expressions. `ordered` is the order of `streamed`, which reads samples one
by one, and of `cached`, which takes them from memory; `grouped` decodes an image once for several
of its refs, in an order of its own. `augment` is the last step of all three.
"""

import dataclasses
import functools
import math
import os

import numpy as np
import tensorflow as tf

from input_pipeline.common.errors import InputError
from input_pipeline.masks import noise
from input_pipeline.tf import pipelines, record_index, record_reader, zoom
from input_pipeline.tf.record_reader import Fields, Shape, Source

WINDOW = 64
"""Groups whose samples are shuffled together, at least: 74 MB of images of 480 x 480 pixels."""
WINDOW_PER_SAMPLE = 3
"""Groups in a window per sample of a batch, so that a batch has many different images."""
NUMBERS_PER_SAMPLE = 5 + zoom.NUMBERS
"""Random numbers: for the expression, the flip, brightness, contrast, saturation and the zoom."""

_SAMPLES_PER_BLOCK = 1024
# Of the SplitMix64 generator, as are the constants in _mix.
_GOLDEN = 0x9E3779B97F4A7C15


def random_key(seed: int, process_index: int) -> int:
  """Returns 64 bits that seed all random choices of a process."""
  return int(np.random.SeedSequence([seed, process_index]).generate_state(1, np.uint64)[0])


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


def _permutation(count: int, seed: tf.Tensor) -> tf.Tensor:
  indices = tf.range(count, dtype=tf.int64)
  return tf.random.experimental.stateless_shuffle(indices, tf.stack([seed, seed]))


@dataclasses.dataclass(frozen=True)
class Share:
  """The rows of every batch that a process has."""

  rows: int
  """Their number."""
  index: int = 0
  """Of the process."""
  count: int = 1
  """Of the processes; a batch has `rows` of each."""


def ordered(refs: int, key: int, start_step: int, share: Share) -> tf.data.Dataset:
  """Returns (ref, its random numbers) for the samples of a process from a step on.

  Every epoch is a permutation of all refs, and the batches are cut from the sequence of the epochs,
  so that the samples of a batch do not depend on the number of processes.
  """
  batch = share.rows * share.count
  start = start_step * batch

  def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    positions = epoch * refs + tf.range(refs, dtype=tf.int64)
    ours = (positions >= start) & (positions % batch // share.rows == share.index)
    order = tf.boolean_mask(_permutation(refs, epoch_seed(key, epoch)), ours)
    numbers = uniform_of(key, tf.boolean_mask(positions, ours))
    return tf.data.Dataset.from_tensor_slices((order, numbers))

  return tf.data.Dataset.range(start // refs, tf.int64.max).flat_map(one_epoch)


@dataclasses.dataclass(frozen=True)
class Table:
  """Where the records of a source are, and which refs they have."""

  path: tf.Tensor
  """string, of every file."""
  file: tf.Tensor
  """int64 [n], the file of each record."""
  offset: tf.Tensor
  """int64 [n], where each record begins."""
  length: tf.Tensor
  """int64 [n], its bytes with their frame."""
  refs_of: np.ndarray
  """int64 [n], the number of its refs."""
  record: tf.Tensor
  """int64 [refs], the record of each ref."""
  ref: tf.Tensor
  """int64 [refs], its index in the record."""

  @property
  def refs(self) -> int:
    """Number of refs of all records."""
    return self.ref.shape[0]

  def read(self, record: tf.Tensor) -> Fields:
    """Reads and parses a record."""
    path = self.path[self.file[record]]
    example = record_index.read_at(path, self.offset[record], self.length[record])
    return record_reader.parse(example)


@functools.lru_cache(maxsize=4)
def load_table(source: Source) -> Table:
  """Reads a source once and finds its records.

  Raises:
    InputError: a record is damaged; the message names it.
  """
  refs_of = record_reader.scan(source).refs_of
  found = [record_index.frames(path, skip + take)[0][skip:] for path, skip, take in source.files]
  first = np.cumsum(refs_of) - refs_of
  return Table(
    path=tf.constant([path for path, _, _ in source.files]),
    file=tf.constant(np.repeat(np.arange(len(found)), [len(ends) - 1 for ends in found])),
    offset=tf.constant(np.concatenate([ends[:-1] for ends in found])),
    length=tf.constant(np.concatenate([np.diff(ends) for ends in found])),
    refs_of=refs_of,
    record=tf.constant(np.repeat(np.arange(len(refs_of)), refs_of)),
    ref=tf.constant(np.arange(refs_of.sum()) - np.repeat(first, refs_of)),
  )


def streamed(table: Table, ref: tf.Tensor) -> tuple[Fields, tf.Tensor]:
  """Reads the record of a ref; returns it, encoded, and the index of the ref in it."""
  return table.read(table.record[ref]), table.ref[ref]


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


def cached(cache: Cache, ref: tf.Tensor) -> Fields:
  """Returns the decoded sample of a ref."""
  size, record, start = cache.image.shape[1], cache.record[ref], cache.start[ref]
  # The 8 pixels of every byte: a lookup is twice as fast as shifts.
  pixels = tf.constant(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(bool))
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


@dataclasses.dataclass(frozen=True)
class Groups:
  """How refs of the same image are grouped, and how the groups are shuffled."""

  table: Table
  key: int
  refs_per_image: int
  """Refs of an image that share one decoding, at most; at least 2."""
  window: int
  """Groups whose samples are shuffled together."""
  threads: int

  def firsts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the record of every group, the index of its first ref there, and its size."""
    counts = -(-self.table.refs_of // self.refs_per_image)
    record = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    first = number * self.refs_per_image
    return record, first, np.minimum(self.table.refs_of[record] - first, self.refs_per_image)


def window_of(batch_size: int) -> int:
  """Returns the groups of a window for batches of this size."""
  return max(WINDOW, WINDOW_PER_SAMPLE * batch_size)


def grouped(groups: Groups, start: int, shape: Shape) -> tf.data.Dataset:
  """Returns decoded samples from number `start` on, in epochs of groups.

  Every epoch is a permutation of the groups, and the samples of `window` groups are shuffled among
  themselves, so that the samples of an image are spread although it is decoded once.
  """
  first, window, left = _locate(groups, start)

  def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    at_first = epoch == first
    skipped = tf.where(at_first, tf.constant(window, tf.int64), 0)
    remaining = _groups_of_epoch(groups, epoch, skipped * groups.window)

    def share(record: tf.Tensor, ref: tf.Tensor, size: tf.Tensor) -> tuple:
      fields = groups.table.read(record)
      return fields | record_reader.decode_record(fields, shape), ref, size

    # While a window is used up, the next one is decoded.
    shared = remaining.map(share, num_parallel_calls=groups.threads)
    windows = shared.window(groups.window).prefetch(1).enumerate(skipped)
    seed = epoch_seed(groups.key, epoch)
    buffer = groups.window * groups.refs_per_image
    shuffle = functools.partial(_shuffle_window, buffer=buffer, seed=seed)
    return windows.flat_map(shuffle).skip(tf.where(at_first, tf.constant(left, tf.int64), 0))

  samples = tf.data.Dataset.range(first, tf.int64.max).flat_map(one_epoch)
  select = functools.partial(select_ref, shape=shape)
  return samples.map(select, num_parallel_calls=groups.threads)


def grouped_suspects(groups: Groups, start: int, count: int) -> tf.data.Dataset:
  """Returns the encoded groups that `count` samples from number `start` on may wait for."""
  first, window, _ = _locate(groups, start)

  def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
    skipped = tf.where(epoch == first, tf.constant(window * groups.window, tf.int64), 0)
    found = _groups_of_epoch(groups, epoch, skipped)
    return found.map(lambda record, ref, _: (groups.table.read(record), ref))

  epochs = tf.data.Dataset.range(first, tf.int64.max).flat_map(one_epoch)
  return epochs.take(count + 2 * groups.window)


def _groups_of_epoch(groups: Groups, epoch: tf.Tensor, skipped: tf.Tensor) -> tf.data.Dataset:
  """Returns (record, index of the first ref, size) of the groups of an epoch after some."""
  columns = [tf.constant(column) for column in groups.firsts()]
  order = _permutation(columns[0].shape[0], epoch_seed(groups.key, epoch))[skipped:]
  return tf.data.Dataset.from_tensor_slices(tuple(tf.gather(c, order) for c in columns))


def _shuffle_window(number: tf.Tensor, window: tuple, buffer: int, seed: tf.Tensor):
  """Returns the samples of a window, (record, ref), shuffled; decoded tensors are shared."""

  def samples(record: Fields, ref: tf.Tensor, size: tf.Tensor) -> tf.data.Dataset:
    repeated = tf.data.Dataset.from_tensors(record).repeat(size)
    return tf.data.Dataset.zip(repeated, tf.data.Dataset.range(ref, ref + size))

  shuffled = tf.data.Dataset.zip(window).flat_map(samples)
  return shuffled.shuffle(buffer, seed=seed + 1 + number, reshuffle_each_iteration=False)


def _locate(groups: Groups, start: int) -> tuple[int, int, int]:
  """Returns the epoch and window of sample number `start`, and its position in the window."""
  epoch, left = divmod(start, groups.table.refs)
  sizes = groups.firsts()[2]
  order = _permutation(len(sizes), epoch_seed(groups.key, tf.constant(epoch, tf.int64))).numpy()
  done = np.cumsum(sizes[order])[groups.window - 1 :: groups.window]
  window = int(np.searchsorted(done, left, side="right"))
  return epoch, window, left - int(done[window - 1] if window else 0)


def augment(
  sample: Fields,
  numbers: tf.Tensor,
  flip: bool,
  jitter: float,
  scale: tuple[float, ...] = (1.0, 1.0),
  mask_noise: float = 0.0,
  most: int = 0,
) -> Fields:
  """Selects an expression, mirrors and zooms the sample, and draws factors for its colours.

  Args:
    sample: `image`, `instances` and `target`, and all `expressions` of the ref.
    numbers: of `uniform_numbers`.
    flip: whether half of the samples are mirrored: image, planes and target. The text is left to
      the caller, who finds `flipped`.
    jitter: brightness, contrast and saturation change by a factor in [1 - jitter, 1 + jitter].
    scale: smallest and largest factor of the zoom; see `zoom.zoom`.
    mask_noise: strength of the errors of the instance masks; see `noise.add_noise`.
    most: masks that a noised sample has, at most.

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
  factors = {"jitter_factors": 1.0 + jitter * (2.0 * numbers[2:5] - 1.0)} if jitter else {}
  augmented = factors | {
    "image": image,
    "instances": instances,
    "num_instances": sample["num_instances"],
    "target": target,
    "expression": expressions[choice],
    "flipped": flipped,
    **{name: sample[name] for name in ("image_id", "ref_id") if name in sample},
  }
  if scale != (1.0, 1.0):
    augmented = zoom.zoom(augmented, numbers[5:], scale)
  return _with_noise(augmented, numbers, mask_noise, most) if mask_noise and most else augmented


def _with_noise(sample: Fields, numbers: tf.Tensor, strength: float, most: int) -> Fields:
  """Adds the errors of a detector to the planes, drawn from the bits of the sample's numbers."""

  def noised(planes: np.ndarray, count: np.ndarray, drawn: np.ndarray) -> tuple:
    rng = np.random.default_rng(drawn.view(np.uint32))
    planes, left = noise.add_noise(planes, int(count), most, strength, rng)
    return planes, np.int32(left)

  planes, count = tf.numpy_function(
    noised,
    [sample["instances"], sample["num_instances"], numbers],
    (tf.uint16, tf.int32),
    stateful=False,
  )
  return sample | {
    "instances": tf.ensure_shape(planes, sample["instances"].shape),
    "num_instances": tf.ensure_shape(count, []),
  }
