"""Stored records to tensors: which of them a process reads, and native decoding and resizing."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from input_pipeline import preprocess
from input_pipeline.common import places
from input_pipeline.common.errors import InputError
from input_pipeline.tf import builder, pipelines, record_frames, record_index
from input_pipeline.tf.record_frames import Damage

Fields = dict[str, Any]
# TensorFlow's errors for damaged files: a wrong checksum, number of records, or field.
DAMAGED = (
  tf.errors.DataLossError, tf.errors.FailedPreconditionError, tf.errors.InvalidArgumentError
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Split:
  """A split of a prepared data set, or one process's share of it.

  Attributes:
    data_dir: the folder that `prepare` wrote to.
    dataset: such as `refcoco_unc`.
    split: such as `val`.
    process_index: which process reads; each reads its own share of the records.
    process_count: how many processes there are.
  """

  data_dir: str
  dataset: str
  split: str
  process_index: int = 0
  process_count: int = 1

  def __post_init__(self) -> None:
    if not 0 <= self.process_index < self.process_count:
      raise ValueError(f"process_index is {self.process_index} of {self.process_count} processes")

  def whole(self) -> "Split":
    """Returns the split as if a single process read it."""
    return dataclasses.replace(self, process_index=0, process_count=1)


@dataclasses.dataclass(frozen=True)
class Source:
  """The records of a split, or one process's share of them."""

  name: str
  """For messages, such as refcoco_unc/val."""
  files: tuple[tuple[str, int, int], ...]
  """Path of a shard, records to skip, records to take."""
  refs: int | None
  """Number of refs in these records, if it is known without reading them."""
  stamp: int
  """Changes when the data set is prepared again."""
  way_out: str = ""
  """End of a message about a damaged record: what to do besides preparing the data set again."""
  left_out: tuple[int, ...] = ()
  """Ids of the images that are not used."""


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of a source's records."""

  refs_of: np.ndarray
  """The number of refs of each record; 0 if its image is left out."""
  expressions: np.ndarray
  """Their number in each record."""
  height: np.ndarray
  """Of each record's image, in pixels."""
  width: np.ndarray
  """Likewise."""

  @property
  def refs(self) -> int:
    """The number of refs of all records that are used."""
    return int(self.refs_of.sum())


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes that arrays are resized to: a square image and a number of bit planes."""

  image_size: int
  planes: int


def open_source(split: Split) -> Source:
  """Opens a split: consecutive records, evenly distributed over the processes.

  Files in a bucket are copied to this machine.

  Raises:
    InputError: the data set or the split does not exist, it has fewer images than processes, or a
      file cannot be read.
  """
  info = builder.open_dataset(split.data_dir, split.dataset).info
  name = f"{split.dataset}/{split.split}"
  if split.split not in info.splits:
    raise InputError(
      f"data set {split.dataset} in {split.data_dir} has no split {split.split!r}; it has "
      f"{', '.join(info.splits)}"
    )
  images = info.splits[split.split].num_examples
  if images < split.process_count:
    raise InputError(f"{name}: {images} images are too few for {split.process_count} processes")
  share = tfds.even_splits(split.split, split.process_count)[split.process_index]
  files = tuple(
    (_readable(os.fspath(file.filename), split.dataset), file.skip, file.take)
    for file in info.splits[share].file_instructions
  )
  counts = (info.metadata or {}).get("counts", {}).get(split.split, {})
  return Source(
    name=name,
    files=files,
    refs=counts.get("refs") if split.process_count == 1 else None,
    stamp=max(os.stat(path).st_mtime_ns for path, _, _ in files),
  )


def _readable(path: str, dataset: str) -> str:
  """Returns the path of a file of records on this machine."""
  if not places.is_file(path):
    raise InputError(f"{path} is missing; prepare {dataset} again with --overwrite")
  here = record_index.on_this_machine(path)
  try:
    with open(here, "rb") as file:
      file.read(1)
  except OSError as error:
    raise InputError(
      f"{path} cannot be read ({error.strerror or error}); change its permissions"
    ) from error
  return here


def split_sizes(data_dir: str, dataset: str) -> dict[str, int]:
  """Returns how many images each split of a data set has.

  Raises:
    InputError: there is no such data set; the message names the command that prepares it.
  """
  splits = builder.open_dataset(data_dir, dataset).info.splits
  return {split: splits[split].num_examples for split in splits}


def read_records(split: Split) -> Iterator[dict[str, Any]]:
  """Yields the fields of every record, as `records.encode_record` returned them, in stored order.

  Holds a few records at a time, encoded; `records.decode_record` decodes them.

  Raises:
    InputError: the data set or the split does not exist, or one of its files is damaged.
  """
  source = open_source(split)
  parse_all = builder.record_features().deserialize_example
  dataset = read(source).map(parse_all).prefetch(1)
  try:
    for fields in dataset.with_options(pipelines.options(threads=1)):
      yield _to_python(fields)
  except DAMAGED as error:
    raise_damaged(source, error, parse_all)


def _to_python(fields: dict[str, Any]) -> dict[str, Any]:
  """Converts tensors to Python values and arrays, and columns of refs to a list of refs."""
  plain = {key: value.numpy() for key, value in fields.items() if key != "refs"}
  for key in ("file_name", "instances_from", "instances_trained_on"):
    plain[key] = plain[key].decode()
  refs = fields["refs"]
  columns = {key: refs[key].numpy().tolist() for key in ("ref_id", "target")}
  columns |= {key: refs[key].to_list() for key in ("ann_ids", "sentences", "normalised")}
  rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
  for row in rows:
    row["sentences"] = [text.decode() for text in row["sentences"]]
    row["normalised"] = [text.decode() for text in row["normalised"]]
  return plain | {"refs": rows}


def count_refs(source: Source) -> int:
  """Returns how many refs the records of a source have, without images that are left out."""
  if source.refs is None or source.left_out:
    return scan(source).refs
  return source.refs


def read_shard(path: tf.Tensor, skip: tf.Tensor, take: tf.Tensor) -> tf.data.Dataset:
  """Returns the serialised records of a shard; too few of them are an error."""
  records_of_shard = tf.data.TFRecordDataset(path).skip(skip).take(take)
  return records_of_shard.apply(tf.data.experimental.assert_cardinality(take))


def read(source: Source) -> tf.data.Dataset:
  """Returns the serialised records in stored order."""
  paths, skips, takes = zip(*source.files, strict=True)
  shards = tf.constant(paths), tf.constant(skips, tf.int64), tf.constant(takes, tf.int64)
  return tf.data.Dataset.from_tensor_slices(shards).flat_map(read_shard)


def read_used(source: Source) -> tf.data.Dataset:
  """Returns the serialised records in stored order, without images that are left out."""
  if not source.left_out:
    return read(source)
  used = tf.data.Dataset.from_tensor_slices(scan(source).refs_of > 0)
  both = tf.data.Dataset.zip(read(source), used).filter(lambda _, used: used)
  return both.map(lambda example, _: example)


def parse(example: tf.Tensor) -> Fields:
  """Parses a record to its encoded fields; `count` is the number of expressions of each ref.

  Takes less than half the time of the TFDS parser, which is as long as decoding a small image.
  """
  scalar = functools.partial(tf.io.FixedLenFeature, [])
  vector = functools.partial(tf.io.FixedLenSequenceFeature, [], allow_missing=True)
  fields = tf.io.parse_single_example(
    example,
    {
      "image": scalar(tf.string),
      "image_id": scalar(tf.int64),
      "file_name": scalar(tf.string),
      "height": scalar(tf.int64),
      "width": scalar(tf.int64),
      "instances": scalar(tf.string),
      "instance_score": vector(tf.float32),
      "refs/ref_id": vector(tf.int64),
      "refs/target": vector(tf.string),
      "refs/normalised/ragged_flat_values": vector(tf.string),
      "refs/normalised/ragged_row_lengths_0": vector(tf.int64),
      "refs/sentences/ragged_flat_values": vector(tf.string),
    },
  )
  return {
    "image": fields["image"],
    "image_id": fields["image_id"],
    "file_name": fields["file_name"],
    "height": fields["height"],
    "width": fields["width"],
    "instances": fields["instances"],
    "num_instances": tf.size(fields["instance_score"]),
    "ref_id": fields["refs/ref_id"],
    "target": fields["refs/target"],
    "normalised": fields["refs/normalised/ragged_flat_values"],
    "sentences": fields["refs/sentences/ragged_flat_values"],
    "count": fields["refs/normalised/ragged_row_lengths_0"],
  }


@functools.lru_cache(maxsize=16)
def scan(source: Source) -> Sizes:
  """Reads a source once and measures it.

  Raises:
    InputError: a record is damaged; the message names it.
  """

  def sizes(example: tf.Tensor) -> Fields:
    record = parse(example)
    return {
      "refs": tf.size(record["count"]),
      "expressions": tf.reduce_sum(record["count"]),
      "height": record["height"],
      "width": record["width"],
      "image_id": record["image_id"],
    }

  dataset = read(source).map(sizes).batch(1024).with_options(pipelines.options(threads=1))
  try:
    batches = list(dataset.as_numpy_iterator())
  except DAMAGED as error:
    raise_damaged(source, error)
  columns = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
  used = ~np.isin(columns["image_id"], np.array(source.left_out, np.int64))
  return Sizes(
    refs_of=columns["refs"].astype(np.int64) * used,
    expressions=columns["expressions"],
    height=columns["height"],
    width=columns["width"],
  )


def decode_record(record: Fields, shape: Shape) -> Fields:
  """Decodes and resizes what the refs of a record share: the image and the instances."""
  return {
    "image": _decode_image(record["image"], shape.image_size),
    "instances": _decode_planes(record, shape),
    "num_instances": record["num_instances"],
  }


def _decode_image(data: tf.Tensor, size: int) -> tf.Tensor:
  """Decodes a JPEG or PNG to uint8 [size, size, 3]; antialiased where it shrinks."""
  # Reads PNG as well. The default DCT is fast, and up to 20 levels off from other decoders.
  image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
  image = tf.reshape(image, tf.shape(image)[-3:])  # some formats have a frame axis
  return _resize(preprocess.resize_image, image, size, axis=0)


def _decode_planes(record: Fields, shape: Shape) -> tf.Tensor:
  """Decodes bit planes to uint16 [planes, size, size]: drops extra planes, adds missing ones."""
  height, width = record["height"], record["width"]
  stacked = tf.io.decode_png(record["instances"], channels=1, dtype=tf.uint16)
  planes = tf.reshape(stacked, [-1, height, width])[: shape.planes]
  planes = _resize(preprocess.resize_planes, planes, shape.image_size, axis=1)
  missing = shape.planes - tf.shape(planes)[0]
  planes = tf.pad(planes, [[0, missing], [0, 0], [0, 0]])
  return tf.ensure_shape(planes, [shape.planes, shape.image_size, shape.image_size])


def decode_target(png: tf.Tensor) -> tf.Tensor:
  """Decodes a target to bool [h, w]."""
  return tf.io.decode_png(png, channels=1)[:, :, 0] > 0


def resize_target(target: tf.Tensor, size: int) -> tf.Tensor:
  """Resizes a target to bool [size, size], by the same pixels as the planes."""
  return _resize(preprocess.resize_planes, target[None], size, axis=1)[0]


def _resize(
  resize: Callable[[np.ndarray, int], np.ndarray], pixels: tf.Tensor, size: int, axis: int
) -> tf.Tensor:
  """Resizes two axes, `axis` and the next, to `size` by a function of `preprocess`.

  It is one call of Python, all but a few microseconds of which release the GIL. TensorFlow's own
  operations give the same pixels, within a level, and take twice as long for an image and six times
  for a mask (docs/reports/performance.md).
  """
  shape: list[int | None] = pixels.shape.as_list()
  shape[axis : axis + 2] = size, size

  def resized() -> tf.Tensor:
    result = tf.numpy_function(lambda x: resize(x, size), [pixels], pixels.dtype, stateful=False)
    return tf.ensure_shape(result, shape)

  fits = tf.reduce_all(tf.shape(pixels)[axis : axis + 2] == size)
  return tf.ensure_shape(tf.cond(fits, lambda: pixels, resized), shape)


def decode_all(record: Fields, shape: Shape) -> Fields:
  """Decodes and resizes a record and the targets of all its refs."""
  target = tf.map_fn(
    lambda png: resize_target(decode_target(png), shape.image_size),
    record["target"],
    fn_output_signature=tf.TensorSpec([shape.image_size, shape.image_size], tf.bool),
  )
  return decode_record(record, shape) | {"target": target}


def raise_undecodable(
  source: Source, suspects: tf.data.Dataset, decode: Callable[..., Fields]
) -> None:
  """Raises an `InputError` that names the first image that cannot be decoded, if there is one.

  Args:
    source: of the records.
    suspects: encoded records, or pairs of a record and an index.
    decode: the function that failed on one of them.
  """
  for suspect in suspects.with_options(pipelines.options(threads=1)):
    suspect = suspect if isinstance(suspect, tuple) else (suspect,)
    try:
      decode(*suspect)
    except tf.errors.OpError as error:
      name, image_id = suspect[0]["file_name"].numpy().decode(), int(suspect[0]["image_id"])
      raise InputError(
        f"{source.name}: image {name} (image_id {image_id}) or one of its masks cannot be decoded "
        f"({reason_of(error)}), {_locate(source, image_id)}; replace it and prepare the data set "
        f"again with --overwrite{source.way_out}"
      ) from error


def raise_damaged(
  source: Source, error: Exception, parse: Callable[[tf.Tensor], Any] = parse
) -> NoReturn:
  """Raises an error that names the damaged record of a source: its file, position and image.

  Args:
    source: that could not be read.
    error: TensorFlow's; raised itself if all records are intact after all.
    parse: parses the fields of an intact record.

  Raises:
    InputError: names the first damaged record, or the first without a record's fields.
  """
  damage = record_frames.first_damage(source.files) or _first_unparsable(source, parse)
  if damage is None:
    raise error
  raise InputError(
    f"{source.name}: {damage}; prepare it again with --overwrite{source.way_out}"
  ) from error


def _first_unparsable(source: Source, parse: Callable[[tf.Tensor], Any]) -> Damage | None:
  for path, skip, take in source.files:
    for n, example in enumerate(record_frames.read_range(path, skip, take)):
      try:
        parse(example)
      except tf.errors.OpError as error:
        return Damage(path, skip + n, None, f"cannot be read ({reason_of(error)})")
  return None


def reason_of(error: tf.errors.OpError) -> str:
  """Returns the reason in a TensorFlow error, without its place in the graph."""
  text = str(error.message).split("\n")[0].split(" [Op:")[0].split("}} ")[-1]
  text = re.sub(r"^.*\bIterator::[^ ]*: ", "", text).strip()
  # TensorFlow adds the bytes.
  return re.sub(r"^Could not parse example input.*", "not a tf.train.Example", text)


def _locate(source: Source, image_id: int) -> str:
  """Returns the file of an image's record, and its number there."""
  for path, skip, take in source.files:
    for n, record in enumerate(record_frames.read_range(path, skip, take).map(parse)):
      if record["image_id"] == image_id:
        return f"record {skip + n} of {path}"
  return "in one of its files"
