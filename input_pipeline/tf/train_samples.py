"""Training samples: reading, decoding and augmenting them.

A sample is one ref: a record's image and planes, and the ref's target and expressions. `streamed`
reads samples one by one and `cached` takes them from memory, both in the order of
`sample_order.ordered`; `grouped` decodes an image once for several of its refs, in an order of its
own. `augment` is the last step of all three.
"""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import with_progress
from input_pipeline.masks import noise
from input_pipeline.tf import pipelines, record_index, record_reader, zoom
from input_pipeline.tf.record_reader import Fields, Shape, Source
from input_pipeline.tf.sample_order import Order, epoch_seed, permutation

WINDOW = 64
"""Groups whose samples are shuffled together, at least: 74 MB of images of 480 x 480 pixels."""
WINDOW_PER_SAMPLE = 3
"""Groups in a window per sample of a batch, so that a batch has many different images."""


@dataclasses.dataclass(frozen=True)
class Table:
  """Where the records of one or several sources are, and which refs they have."""

  path: tf.Tensor
  """string, of every file."""
  file: tf.Tensor
  """int64 [n], the file of each record."""
  offset: tf.Tensor
  """int64 [n], where each record begins."""
  length: tf.Tensor
  """int64 [n], its bytes with their frame."""
  refs_of: np.ndarray
  """int64 [n], the number of its refs; 0 if it is left out."""
  record: tf.Tensor
  """int64 [refs], the record of each ref."""
  ref: tf.Tensor
  """int64 [refs], its index in the record."""

  @property
  def refs(self) -> int:
    """Number of refs of all records."""
    return self.ref.shape[0]

  def read(self, record: tf.Tensor) -> Fields:
    """Returns the fields of a record, read from its file."""
    path = self.path[self.file[record]]
    example = record_index.read_at(path, self.offset[record], self.length[record])
    return record_reader.parse(example)


@functools.lru_cache(maxsize=16)
def load_table(*sources: Source) -> Table:
  """Reads sources once and finds their records, one source after the other.

  Raises:
    InputError: a record is damaged; the message names it.
  """
  refs_of = np.concatenate([record_reader.scan(source).refs_of for source in sources])
  files = [file for source in sources for file in source.files]
  found = [record_index.frames(path, skip + take)[0][skip:] for path, skip, take in files]
  first = np.cumsum(refs_of) - refs_of
  return Table(
    path=tf.constant([path for path, _, _ in files]),
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
  """Records, decoded and resized: about 45 kB per image of 96 x 96 pixels."""

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


def load_cache(sources: Sequence[Source], shape: Shape, threads: int, shown: bool = True) -> Cache:
  """Decodes all records of sources into memory, except those that are left out.

  Args:
    sources: of the records.
    shape: that they are resized to.
    threads: that decode.
    shown: whether a progress bar is.

  Raises:
    InputError: they do not fit into memory.
    tf.errors.OpError: one of them cannot be decoded.
  """
  refs_of = np.concatenate([record_reader.scan(source).refs_of for source in sources])
  count, refs, size = int((refs_of > 0).sum()), int(refs_of.sum()), shape.image_size
  target_bytes = math.ceil(size * size / 8)
  _check_memory(sources, count * size * size * (3 + 2 * shape.planes) + refs * target_bytes)
  image = _aligned_empty((count, size, size, 3), np.uint8)
  instances = _aligned_empty((count, shape.planes, size, size), np.uint16)
  num_instances = np.empty(count, np.int32)
  targets = _aligned_empty((refs, target_bytes), np.uint8)
  counts, expressions, image_ids, ref_ids = [], [], [], []

  def decoded(example: tf.Tensor) -> Fields:
    record = record_reader.parse(example)
    texts = {key: record[key] for key in ("normalised", "count", "image_id", "ref_id")}
    return record_reader.decode_all(record, shape) | texts

  def read(source: Source) -> Iterator[Fields]:
    dataset = record_reader.read_used(source).map(decoded, num_parallel_calls=threads)
    return pipelines.iterate(dataset.prefetch(threads).with_options(pipelines.options(threads)))

  done = 0
  records = itertools.chain.from_iterable(map(read, sources))
  records = with_progress(records, "loader.cache", count, "images") if shown else records
  for row, record in enumerate(records):
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


def _check_memory(sources: Sequence[Source], need: int) -> None:
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  if need > 0.7 * memory:
    raise InputError(
      f"{', '.join(source.name for source in sources)}: cache needs {need / 1e9:.1f} GB, this "
      f"machine has {memory / 1e9:.1f} GB; set cache to False"
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


def mixed(groups: Sequence[Groups], order: Order, start: int, shape: Shape) -> tf.data.Dataset:
  """Returns decoded samples from number `start` on; those of a mixture with their `dataset`.

  Args:
    groups: of each data set.
    order: that chooses the data set of each sample.
    start: number of the first sample.
    shape: that samples are resized to.
  """
  if not order.is_mixture:
    return grouped(groups[0], start, shape)

  def with_number(number: int, samples: tf.data.Dataset) -> tf.data.Dataset:
    return samples.map(lambda sample: sample | {"dataset": tf.constant(number)})

  each = [
    with_number(number, grouped(own, done, shape))
    for number, (own, done) in enumerate(zip(groups, order.counts_until(start), strict=True))
  ]
  return tf.data.Dataset.choose_from_datasets(each, order.choices(start))


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
  order = permutation(columns[0].shape[0], epoch_seed(groups.key, epoch))[skipped:]
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
  order = permutation(len(sizes), epoch_seed(groups.key, tf.constant(epoch, tf.int64))).numpy()
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
    **{name: sample[name] for name in ("image_id", "ref_id", "dataset") if name in sample},
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
