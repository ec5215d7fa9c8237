"""Training batches: order, augmentation, and agreement with the NumPy preparation."""

import collections
import dataclasses
import itertools
import re
from typing import Any

import numpy as np
import pytest
import read_batches
import tensorflow as tf
import tensorflow_datasets as tfds
from half_records import NAME, RECORDS, REFS, SIZE, TEXT, ref_of, rows_of, write

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import bit_planes
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from input_pipeline.tf import (
  builder,
  loader,
  record_index,
  record_reader,
  sample_order,
  train_samples,
)

_BATCH = 4


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
  folder = str(tmp_path_factory.mktemp("records"))
  write(folder)
  return folder


@pytest.fixture(scope="module")
def tokenizer(data_dir) -> SentencePieceTokenizer:
  return SentencePieceTokenizer.train(loader.train_expressions(data_dir, NAME), 400)


@pytest.fixture(scope="module")
def train(data_dir, tokenizer):
  def batches(count: int, **options) -> list[dict]:
    arguments = {
      "batch_size": _BATCH,
      "image_size": SIZE,
      "max_instances": 16,
      "max_tokens": 24,
      "seed": 1,
      **options,
    }
    return list(itertools.islice(read_batches.train(data_dir, NAME, tokenizer, **arguments), count))

  return batches


def _same(first: list[dict], second: list[dict]) -> bool:
  return all(
    np.array_equal(batch[key], other[key])
    for batch, other in zip(first, second, strict=True)
    for key in batch
  )


@pytest.fixture(scope="module", params=[False, True], ids=["streamed", "cached"])
def run(train, request) -> tuple[dict, list[dict]]:
  """Options and the batches of three epochs, for each way of reading."""
  options = {"cache": request.param, "jitter": 0.2}
  return options, train(3 * REFS // _BATCH, **options)


def test_every_epoch_has_every_ref_once_in_another_order(train, run):
  batches = train(3 * REFS // _BATCH, **(run[0] | {"jitter": 0.0}))
  seen = [ref_of(row) for row in rows_of(batches)]
  epochs = [seen[start : start + REFS] for start in (0, REFS)]
  expected = [(record.image_id, ref.ref_id % 10 == 0) for record in RECORDS for ref in record.refs]
  assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(expected)
  assert epochs[0] != epochs[1]


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(train, run):
  options, batches = run
  assert _same(batches[:4], train(4, **options))
  assert not _same(batches[:4], train(4, **options | {"seed": 2}))


@pytest.mark.parametrize("step", [3, 8])
def test_a_run_that_starts_later_gets_the_same_batches(train, run, step):
  # Refs are not a multiple of the batch: batch 3 is in two epochs, and 8 in the third.
  assert REFS % _BATCH and 3 * _BATCH < REFS < 4 * _BATCH and 2 * REFS < 8 * _BATCH
  options, batches = run
  assert _same(batches[step:], train(len(batches) - step, start_step=step, **options))


def test_batches_have_the_types_and_shapes_that_the_model_takes(run):
  batch = run[1][0]
  assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
    "image": ("uint8", (_BATCH, SIZE, SIZE, 3)),
    "jitter_factors": ("float32", (_BATCH, 3)),
    "instances": ("uint16", (_BATCH, 1, SIZE, SIZE)),
    "num_instances": ("int32", (_BATCH,)),
    "tokens": ("int32", (_BATCH, 24)),
    "num_tokens": ("int32", (_BATCH,)),
    "target": ("bool", (_BATCH, SIZE, SIZE)),
    "weight": ("float32", (_BATCH,)),
  }
  assert (batch["weight"] == 1).all()


def test_a_flip_mirrors_image_planes_target_and_text_alike(train, tokenizer):
  seen = collections.Counter()
  for row in rows_of(train(12, jitter=0.0)):
    _, target_is_red = ref_of(row)
    red_left = row["image"][SIZE // 2, 0, 0] > 100
    target_left = bool(row["target"][SIZE // 2, 0])
    assert target_left == (red_left == target_is_red)
    text = tokenizer.decode(row["tokens"])
    assert text.startswith(TEXT["left" if target_left else "right"])
    if row["num_instances"]:
      planes = np.array(row["instances"])
      assert (planes[0, :, 0] & 1).all() == red_left and (planes[0, :, -1] & 1).all() != red_left
    seen[bool(red_left)] += 1
  assert min(seen.values()) > 12


@pytest.mark.parametrize("options", [{}, {"cache": True}, {"refs_per_image": 2}], ids=str)
def test_zoomed_batches_depend_on_the_seed_and_the_position_alone(train, options):
  zoomed = options | {"scale": (0.5, 0.9)}
  batches = train(2 * REFS // _BATCH, **zoomed)
  assert _same(batches[3:6], train(3, start_step=3, **zoomed))
  plain = train(len(batches), **options)
  texts = [np.concatenate([batch["tokens"] for batch in run]) for run in (batches, plain)]
  np.testing.assert_array_equal(*texts)
  targets = [np.concatenate([batch["target"] for batch in run]) for run in (batches, plain)]
  assert (targets[0] != targets[1]).any(axis=(1, 2)).mean() > 0.5
  assert targets[0].any(axis=(1, 2)).all()


@pytest.mark.parametrize("options", [{}, {"cache": True}, {"refs_per_image": 2}], ids=str)
def test_noise_changes_the_instances_alone_and_depends_on_the_position_alone(train, options):
  noised = options | {"mask_noise": 0.8, "scale": (0.8, 1.2), "jitter": 0.2}
  batches = train(2 * REFS // _BATCH, **noised)
  assert _same(batches[3:6], train(3, start_step=3, **noised))
  plain = train(len(batches), **noised | {"mask_noise": 0.0})
  pairs = list(zip(batches, plain, strict=True))
  same = [key for key in batches[0] if all(np.array_equal(a[key], b[key]) for a, b in pairs)]
  assert set(same) == batches[0].keys() - {"instances", "num_instances"}
  assert not _same(batches, train(len(batches), **noised | {"mask_noise": 0.4}))


@pytest.mark.parametrize("most", [0, 1, 16])
def test_a_noised_sample_has_no_more_instances_than_others(train, most):
  for row in rows_of(train(12, mask_noise=1.0, max_instances=most)):
    assert row["num_instances"] <= most
    assert not (row["instances"] >> row["num_instances"]).any() or not most


def test_a_noise_of_another_strength_is_refused(train):
  with pytest.raises(InputError, match=r"augment\.mask_noise is 1\.5; .*from 0, no noise, to 1"):
    train(1, mask_noise=1.5)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (1.5, 0.5), (1.0,)])
def test_a_scale_that_cannot_be_is_refused(train, scale):
  with pytest.raises(InputError, match=r"augment\.scale is .*smallest and the largest factor"):
    train(1, scale=scale)


def test_without_augmentation_pixels_are_those_of_the_numpy_preparation(train):
  originals = {record.image_id: record for record in RECORDS}
  for row in rows_of(train(4, flip=False, max_instances=40)):
    image_id, target_is_red = ref_of(row)
    record = originals[image_id]
    image = preprocess.resize_image(preprocess.decode_image(record.image, "test"), SIZE)
    np.testing.assert_array_equal(row["image"], image)
    planes = preprocess.resize_planes(bit_planes.packbits(record.instances.masks), SIZE)
    np.testing.assert_array_equal(row["instances"][: len(planes)], planes)
    assert row["instances"].shape[0] == 3 and not row["instances"][len(planes) :].any()
    assert row["num_instances"] == len(record.instances.scores)
    target = record.refs[0 if target_is_red else 1].target[None].astype(np.uint16)
    np.testing.assert_array_equal(row["target"], preprocess.resize_planes(target, SIZE)[0] > 0)


@pytest.mark.parametrize(("most", "planes"), [(0, 1), (17, 2)])
def test_instances_beyond_the_maximum_are_not_counted(train, most, planes):
  batches = train(4, max_instances=most, cache=True)
  assert batches[0]["instances"].shape[1] == planes
  assert max(batch["num_instances"].max() for batch in batches) == min(most, 18)


def test_every_expression_of_a_ref_is_drawn_eventually(train, tokenizer):
  drawn = collections.Counter(
    tokenizer.decode(row["tokens"]) for row in rows_of(train(20 * REFS // _BATCH, flip=False))
  )
  written = [text.lower() for record in RECORDS for ref in record.refs for text in ref.sentences]
  assert sorted(drawn) == sorted(written)


def test_rows_of_tokens_are_no_longer_than_their_batch_needs(shapes_data):
  sentences = loader.train_expressions(shapes_data, "shapes")
  tokenizer = SentencePieceTokenizer.train(sentences, 400)

  def batches(**options) -> list[dict]:
    numbers = {"batch_size": 2, "image_size": 32, "max_instances": 16, "max_tokens": 24, "seed": 1}
    endless = read_batches.train(shapes_data, "shapes", tokenizer, **numbers, **options)
    return list(itertools.islice(endless, 40))

  full, lengths = batches(), (6, 9)
  widths = collections.Counter()
  for batch, whole in zip(batches(text_buckets=lengths), full, strict=True):
    width = min(n for n in (*lengths, 24) if n >= whole["num_tokens"].max())
    np.testing.assert_array_equal(batch["tokens"], whole["tokens"][:, :width])
    np.testing.assert_array_equal(batch["num_tokens"], whole["num_tokens"])
    widths[width] += 1
  assert len(widths) > 1
  several = batches(text_buckets=lengths, process_count=2)
  assert {batch["tokens"].shape[1] for batch in several} == {24}


@pytest.mark.parametrize("lengths", [(0, 8), (8, 25)])
def test_impossible_lengths_of_text_are_refused(train, lengths):
  with pytest.raises(InputError, match=r"text_buckets .* must be between 1 and max_tokens, 24"):
    train(1, text_buckets=lengths)


@pytest.mark.parametrize("processes", [2, 4])
def test_batches_are_the_same_whatever_processes_make_them_and_cached_or_not(train, run, processes):
  options, whole = run
  each = [
    train(
      len(whole),
      **options | {"cache": index == 0},
      batch_size=_BATCH // processes,
      process_index=index,
      process_count=processes,
    )
    for index in range(processes)
  ]
  for step, batch in enumerate(whole):
    parts = [batches[step] for batches in each]
    for key, value in batch.items():
      np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)


def test_with_groups_processes_share_the_records_and_leave_none_out(train, data_dir):
  sources = [
    record_reader.open_source(record_reader.Split(data_dir, NAME, "train", i, 2)) for i in range(2)
  ]
  counts = [record_reader.scan(source).refs for source in sources]
  assert sum(counts) == REFS
  seen = []
  for index, count in enumerate(counts):
    share = {"process_index": index, "process_count": 2, "batch_size": 1, "refs_per_image": 2}
    seen.append({ref_of(row) for row in rows_of(train(count, **share))})
    assert len(seen[-1]) == count
  assert not seen[0] & seen[1]


def _epochs(refs: int, count: int) -> np.ndarray:
  order = sample_order.Order.of([refs], [1], seed=3)
  stream = sample_order.ordered(order, 0, sample_order.Share(rows=1)).take(count * refs)
  order = np.array([ref for ref, _ in stream.as_numpy_iterator()]).reshape(count, refs)
  return np.argsort(order, axis=1)


def test_the_order_of_an_epoch_says_nothing_of_the_next_one_nor_of_the_stored_one():
  places = _epochs(4096, 4)
  correlation = np.corrcoef([*places, np.arange(4096)])
  # Of independent orders it is 0 with a deviation of 1 / 64.
  assert np.abs(correlation - np.eye(5)).max() < 0.07


def test_refs_of_an_image_are_as_far_apart_as_any():
  places = _epochs(4096, 2)
  apart = np.abs(places[:, ::2] - places[:, 1::2]).mean()
  assert apart == pytest.approx(4096 / 3, rel=0.1)


def test_a_table_finds_every_record_of_every_range_of_files(data_dir):
  whole = record_reader.open_source(record_reader.Split(data_dir, NAME, "train"))
  (path, _, count) = whole.files[0]
  parts = ((path, 4, 3), (path, 0, 2), (path, 8, count - 8))
  table = train_samples.load_table(dataclasses.replace(whole, files=parts, refs=None))
  found = [int(table.read(tf.constant(n))["image_id"]) for n in range(len(table.refs_of))]
  stored = [
    int(record["image_id"])
    for record in tfds.as_numpy(builder.open_dataset(data_dir, NAME).as_dataset(split="train"))
  ]
  assert found == [stored[n] for n in (4, 5, 6, 0, 1, *range(8, count))]
  assert [int(n) for n in table.record] == list(np.repeat(range(len(found)), table.refs_of))
  assert [int(n) for n in table.ref] == [n for refs in table.refs_of for n in range(refs)]


def test_the_fingerprint_of_records_is_that_of_their_contents(data_dir, tmp_path):
  before = loader.fingerprint_of(data_dir, NAME, "train")
  assert re.fullmatch("[0-9a-f]{16}", before)
  write(str(tmp_path))
  assert loader.fingerprint_of(str(tmp_path), NAME, "train") == before
  assert loader.fingerprint_of(data_dir, NAME, "val") != before
  (shard,) = tmp_path.glob("**/*-train.tfrecord*")
  files = ((str(shard), 0, 9),)
  assert record_index.fingerprint_of(files) == before
  assert record_index.fingerprint_of(((str(shard), 1, 8),)) != before
  assert record_index.fingerprint_of(((str(shard), 0, 10),)) == "", "there are nine records"


def test_random_numbers_are_splitmix64():
  # The published first values for seed 1234567.
  published = (
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
  )
  first = next(sample_order.uniform_numbers(1234567, 0).as_numpy_iterator())
  numbers = [(value >> 40) / 2**24 for value in published]
  np.testing.assert_array_equal(first[: len(numbers)], numbers)


def test_random_numbers_depend_on_the_samples_number_alone_and_are_uniform():
  numbers = np.array(list(sample_order.uniform_numbers(5, 0).take(3000).as_numpy_iterator()))
  later = np.array(list(sample_order.uniform_numbers(5, 1700).take(1300).as_numpy_iterator()))
  np.testing.assert_array_equal(later, numbers[1700:])
  assert np.abs(np.histogram(numbers, 10, (0, 1))[0] / (numbers.size / 10) - 1).max() < 0.12
  assert np.abs(np.corrcoef(numbers.T) - np.eye(numbers.shape[1])).max() < 0.08


def test_a_sample_has_three_jitter_factors_about_one():
  draws = tf.constant([0.0, 0.9, 0.0, 0.5, 0.999], tf.float32)
  sample = {"expressions": tf.constant(["a"]), "image": 0, "instances": 0, "num_instances": 0}
  augmented = train_samples.augment(sample | {"target": 0}, draws, flip=False, jitter=0.4)
  np.testing.assert_allclose(augmented["jitter_factors"].numpy(), [0.6, 1.0, 1.4], atol=1e-3)


def test_a_cache_that_does_not_fit_is_refused(train):
  with pytest.raises(InputError, match=r"refcoco_unc/train: cache needs .* set cache to False"):
    train(1, cache=True, image_size=1 << 20)


@pytest.mark.parametrize("cache", [False, True])
def test_an_image_that_cannot_be_decoded_is_named(train, cache):
  with pytest.raises(InputError, match=r"refcoco_unc/testA: image picture_6\.png .*image_id 6"):
    train(REFS, split="testA", cache=cache)


@pytest.mark.parametrize("cache", [False, True])
def test_a_damaged_shard_is_named(data_dir, tokenizer, tmp_path, cache):
  write(str(tmp_path))
  (shard,) = tmp_path.glob("**/*-train.tfrecord*")
  data = bytearray(shard.read_bytes())
  data[len(data) // 2] ^= 255
  shard.write_bytes(data)
  options: dict[str, Any] = {
    "batch_size": 2,
    "image_size": SIZE,
    "max_instances": 1,
    "max_tokens": 8,
  }
  with pytest.raises(InputError, match=rf"refcoco_unc/train: .*{re.escape(str(shard.parent))}"):
    batches = read_batches.train(str(tmp_path), NAME, tokenizer, **options, seed=0, cache=cache)
    list(itertools.islice(batches, REFS))


def test_a_missing_data_set_or_split_is_named(train, tokenizer, tmp_path):
  with pytest.raises(InputError, match=re.escape(str(tmp_path))):
    loader.train_expressions(str(tmp_path), NAME)
  with pytest.raises(InputError, match=r"no split 'testC'; it has .*val"):
    train(1, split="testC")
  with pytest.raises(InputError, match="9 images are too few for 10 processes"):
    train(1, process_count=10, refs_per_image=2)
  with pytest.raises(InputError, match="batch_size is 0"):
    train(1, batch_size=0)


def test_refs_and_expressions_are_counted(data_dir):
  written = [text.lower() for record in RECORDS for ref in record.refs for text in ref.sentences]
  assert sorted(loader.train_expressions(data_dir, NAME)) == sorted(written)
  assert loader.num_refs(data_dir, NAME, "train") == REFS
  source = record_reader.open_source(record_reader.Split(data_dir, NAME, "train"))
  assert record_reader.scan(source).refs == REFS


def test_records_are_parsed_as_tfds_does(shapes_data):
  dataset = builder.open_dataset(shapes_data, "shapes").as_dataset(split="val")
  source = record_reader.open_source(record_reader.Split(shapes_data, "shapes", "val"))
  parsed = record_reader.read(source).map(record_reader.parse)
  pairs = list(zip(parsed.as_numpy_iterator(), dataset, strict=True))
  assert len(pairs) == 12
  for ours, theirs in pairs:
    for key in ("image", "image_id", "file_name", "height", "width", "instances"):
      assert ours[key] == theirs[key].numpy()
    refs = theirs["refs"]
    np.testing.assert_array_equal(ours["ref_id"], refs["ref_id"])
    np.testing.assert_array_equal(ours["target"], refs["target"])
    np.testing.assert_array_equal(ours["count"], refs["normalised"].row_lengths())
    np.testing.assert_array_equal(ours["normalised"], refs["normalised"].flat_values)
    np.testing.assert_array_equal(ours["sentences"], refs["sentences"].flat_values)
    assert ours["num_instances"] == len(theirs["instance_score"])


def test_real_images_are_decoded_and_shrunk_as_pillow_does(realdata):
  """Within a level, for JPEG decoders differ; the resizing is Pillow's own."""
  for path in sorted((realdata / "coco/train2014").glob("*.jpg"))[:12]:
    image = preprocess.decode_image(path.read_bytes(), path.name)
    record = {
      "image": tf.constant(path.read_bytes()),
      "instances": tf.constant(bit_planes.encode_png(np.zeros((1, *image.shape[:2]), np.uint16))),
      "height": tf.constant(image.shape[0], tf.int64),
      "width": tf.constant(image.shape[1], tf.int64),
      "num_instances": tf.constant(0),
    }
    shrunk = record_reader.decode_record(record, record_reader.Shape(96, 1))["image"].numpy()
    assert np.abs(shrunk.astype(int) - preprocess.resize_image(image, 96)).max() <= 1


def test_resizing_is_within_a_level_of_tensorflows(realdata):
  """Earlier versions resized so: runs resume with the same images."""
  path = sorted((realdata / "coco/train2014").glob("*.jpg"))[0]
  photo = preprocess.decode_image(path.read_bytes(), path.name)
  for size in (96, 384, 700):
    theirs = tf.image.resize(photo, [size, size], antialias=True)
    assert np.abs(preprocess.resize_image(photo, size) - np.clip(theirs, 0, 255)).max() <= 1.5


def test_decoding_at_half_size_is_far_from_exact(realdata):
  """Why images are not decoded at half size, even if large enough (docs/reports/performance.md)."""
  apart = []
  for path in sorted((realdata / "coco/train2014").glob("*.jpg"))[:12]:
    whole, half = (tf.io.decode_jpeg(path.read_bytes(), 3, ratio=n).numpy() for n in (1, 2))
    if min(half.shape[:2]) >= 192:
      resized = [preprocess.resize_image(image, 192).astype(int) for image in (whole, half)]
      apart.append(np.abs(resized[0] - resized[1]))
  assert len(apart) > 3
  assert np.max(apart) > 30 and np.mean(apart) > 1
