"""Stored records to tensors: which of them a process reads, and native decoding and resizing."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.tf import builder, pipelines, record_frames
from input_pipeline.tf.record_frames import Damage

Fields = dict[str, Any]
# How TensorFlow says that a file of records is not what was written: a checksum, their number, or their fields.
DAMAGED = (
  tf.errors.DataLossError, tf.errors.FailedPreconditionError, tf.errors.InvalidArgumentError
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
  """The records of a split, or one process's share of them."""

  name: str
  """As in refcoco_unc/val."""
  files: tuple[tuple[str, int, int], ...]
  """Path of a shard, records to skip, records to take."""
  refs: int | None
  """How many refs these records have, where that is known without reading them."""
  stamp: int
  """Changes when the data set is prepared anew."""
  way_out: str = ""
  """What else can be done about a damaged record than to prepare the data set again, for the end of a message."""


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What a source holds."""

  refs: int
  sentences: np.ndarray
  """Their number in each record."""
  height: int
  """Of the tallest image, in pixels; `width` likewise."""
  width: int


@dataclasses.dataclass(frozen=True)
class Shape:
  """The sizes that arrays are brought to: a square image and a number of bit planes."""

  image_size: int
  planes: int


def open_source(
  data_dir: str, name: str, split: str, process_index: int = 0, process_count: int = 1
) -> Source:
  """Opens a process's share of a split: consecutive records, evenly many for each process.

  Raises:
    InputError: the data set or the split is not there, or there are more processes than images.
  """
  check_process(process_index, process_count)
  info = builder.open_dataset(data_dir, name).info
  if split not in info.splits:
    raise InputError(
      f"data set {name} in {data_dir} has no split {split!r}; it has {', '.join(info.splits)}"
    )
  images = info.splits[split].num_examples
  if images < process_count:
    raise InputError(f"{name}/{split}: {images} images are too few for {process_count} processes")
  share = tfds.even_splits(split, process_count)[process_index]
  files = tuple(
    (os.fspath(file.filename), file.skip, file.take)
    for file in info.splits[share].file_instructions
  )
  for path, _, _ in files:
    if not tf.io.gfile.exists(path):
      raise InputError(f"{path} is missing; prepare {name} again with --overwrite")
    try:
      with tf.io.gfile.GFile(path, "rb") as file:
        file.read(1)
    except tf.errors.OpError as error:
      reason = str(error.message).rpartition("; ")[2]
      raise InputError(f"{path} cannot be read ({reason}); change who may read it") from error
  counts = (info.metadata or {}).get("counts", {}).get(split, {})
  return Source(
    name=f"{name}/{split}",
    files=files,
    refs=counts.get("refs") if process_count == 1 else None,
    stamp=max(tf.io.gfile.stat(path).mtime_nsec for path, _, _ in files),
  )


def check_process(process_index: int, process_count: int) -> None:
  """Raises a `ValueError` where there is no such process."""
  if not 0 <= process_index < process_count:
    raise ValueError(f"process_index is {process_index} of {process_count} processes")


def count_refs(source: Source) -> int:
  """Returns how many refs the records of a source have."""
  return scan(source).refs if source.refs is None else source.refs


def shards(source: Source) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Returns paths, records to skip and records to take of the shards, for `read_shard`."""
  paths, skips, takes = zip(*source.files, strict=True)
  return tf.constant(paths), tf.constant(skips, tf.int64), tf.constant(takes, tf.int64)


def read_shard(path: tf.Tensor, skip: tf.Tensor, take: tf.Tensor) -> tf.data.Dataset:
  """Returns the serialised records of a shard; a file that ends early, between two of them, is an error as well."""
  records_of_shard = tf.data.TFRecordDataset(path).skip(skip).take(take)
  return records_of_shard.apply(tf.data.experimental.assert_cardinality(take))


def read(source: Source) -> tf.data.Dataset:
  """Returns the serialised records in the order in which they are stored."""
  return tf.data.Dataset.from_tensor_slices(shards(source)).flat_map(read_shard)


def parse(example: tf.Tensor) -> Fields:
  """A record's fields, undecoded; `ref` names the ref of each sentence.

  Costs less than half of what the TFDS parser does, which is what a small image costs to decode.
  """
  one = functools.partial(tf.io.FixedLenFeature, [])
  many = functools.partial(tf.io.FixedLenSequenceFeature, [], allow_missing=True)
  fields = tf.io.parse_single_example(
    example,
    {
      "image": one(tf.string),
      "image_id": one(tf.int64),
      "file_name": one(tf.string),
      "height": one(tf.int64),
      "width": one(tf.int64),
      "instances": one(tf.string),
      "instance_score": many(tf.float32),
      "refs/ref_id": many(tf.int64),
      "refs/target": many(tf.string),
      "refs/normalised/ragged_flat_values": many(tf.string),
      "refs/normalised/ragged_row_lengths_0": many(tf.int64),
      "refs/sentences/ragged_flat_values": many(tf.string),
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
  """Reads through a source once and counts.

  Raises:
    InputError: a record is damaged; the message names it.
  """

  def sizes(example: tf.Tensor) -> Fields:
    record = parse(example)
    return {
      "refs": tf.size(record["count"]),
      "sentences": tf.reduce_sum(record["count"]),
      "height": record["height"],
      "width": record["width"],
    }

  dataset = read(source).map(sizes).batch(1024).with_options(pipelines.options(threads=1))
  try:
    batches = list(dataset.as_numpy_iterator())
  except DAMAGED as error:
    raise_damaged(source, error)
  columns = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
  return Sizes(
    refs=int(columns["refs"].sum()),
    sentences=columns["sentences"],
    height=int(columns["height"].max()),
    width=int(columns["width"].max()),
  )


def decode_record(record: Fields, shape: Shape) -> Fields:
  """Decodes and resizes what the refs of a record share."""
  return {
    "image": _decode_image(record["image"], shape.image_size),
    "instances": _decode_planes(record, shape),
    "num_instances": record["num_instances"],
  }


def _decode_image(data: tf.Tensor, size: int) -> tf.Tensor:
  """A JPEG or PNG to uint8 [size, size, 3]; antialiased where it shrinks."""
  # Reads PNG as well. The default is the fast DCT, up to 20 levels from what other decoders give.
  image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
  image = tf.reshape(image, tf.shape(image)[-3:])  # Some formats come as a film of one frame.
  return _resize(preprocess.resize_image, image, size, axis=0)


def _decode_planes(record: Fields, shape: Shape) -> tf.Tensor:
  """Bit planes to uint16 [planes, size, size]: further planes are dropped, missing ones empty."""
  height, width = record["height"], record["width"]
  stacked = tf.io.decode_png(record["instances"], channels=1, dtype=tf.uint16)
  planes = tf.reshape(stacked, [-1, height, width])[: shape.planes]
  planes = _resize(preprocess.resize_planes, planes, shape.image_size, axis=1)
  missing = shape.planes - tf.shape(planes)[0]
  planes = tf.pad(planes, [[0, missing], [0, 0], [0, 0]])
  return tf.ensure_shape(planes, [shape.planes, shape.image_size, shape.image_size])


def decode_target(png: tf.Tensor) -> tf.Tensor:
  """A target to bool [h, w]."""
  return tf.io.decode_png(png, channels=1)[:, :, 0] > 0


def resize_target(target: tf.Tensor, size: int) -> tf.Tensor:
  """A target to bool [size, size], by the same pixels as the planes."""
  return _resize(preprocess.resize_planes, target[None], size, axis=1)[0]


def _resize(
  resize: Callable[[np.ndarray, int], np.ndarray], pixels: tf.Tensor, size: int, axis: int
) -> tf.Tensor:
  """Brings two dimensions, `axis` and the next, to `size` by a function of `preprocess`.

  One call of Python, a few microseconds of it outside of C code that lets other threads run. TF's own operations
  give the same pixels, within a level, and take twice as long for a photo and six times for a mask
  (docs/reports/performance.md).
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
    source: where they come from.
    suspects: undecoded records, or records each with an index.
    decode: what failed on one of them.
  """
  for suspect in suspects.with_options(pipelines.options(threads=1)):
    suspect = suspect if isinstance(suspect, tuple) else (suspect,)
    try:
      decode(*suspect)
    except tf.errors.OpError as error:
      name, image_id = suspect[0]["file_name"].numpy().decode(), int(suspect[0]["image_id"])
      raise InputError(
        f"{source.name}: image {name} (image_id {image_id}) or one of its masks cannot be decoded "
        f"({reason_of(error)}), {_place_of(source, image_id)}; replace it and prepare the data set again with "
        f"--overwrite{source.way_out}"
      ) from error


def raise_damaged(
  source: Source, error: Exception, parse: Callable[[tf.Tensor], Any] = parse
) -> NoReturn:
  """Raises what is wrong with the files of a source, by file, position and image.

  Args:
    source: what could not be read.
    error: what TensorFlow said of it; it is raised itself where all records are sound after all.
    parse: what the fields of a record have to be for.

  Raises:
    InputError: names the first damaged record, or the first whose fields are not those of a record.
  """
  damage = record_frames.first_damage(source.files) or _first_without_fields(source, parse)
  if damage is None:
    raise error
  raise InputError(
    f"{source.name}: {damage}; prepare it again with --overwrite{source.way_out}"
  ) from error


def _first_without_fields(source: Source, parse: Callable[[tf.Tensor], Any]) -> Damage | None:
  for path, skip, take in source.files:
    for n, example in enumerate(record_frames.stored(path, skip, take)):
      try:
        parse(example)
      except tf.errors.OpError as error:
        return Damage(path, skip + n, None, f"cannot be read ({reason_of(error)})")
  return None


def reason_of(error: tf.errors.OpError) -> str:
  """What TensorFlow has against something, without where in the graph."""
  text = str(error.message).split("\n")[0].split(" [Op:")[0].split("}} ")[-1]
  text = re.sub(r"^.*\bIterator::[^ ]*: ", "", text).strip()
  # TensorFlow adds the bytes.
  return re.sub(r"^Could not parse example input.*", "it is no tf.train.Example", text)


def _place_of(source: Source, image_id: int) -> str:
  """In which file the record of an image is, and its number there."""
  for path, skip, take in source.files:
    for n, record in enumerate(record_frames.stored(path, skip, take).map(parse)):
      if record["image_id"] == image_id:
        return f"record {skip + n} of {path}"
  return "in its files"
