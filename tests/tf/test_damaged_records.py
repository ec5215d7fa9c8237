"""Damaged records: named, or skipped where the options say so."""

import itertools
import re

import numpy as np
import pytest
import read_batches
import tensorflow as tf
import tensorflow_datasets as tfds
from half_records import NAME, RECORDS, REFS, SIZE, ref_of, rows_of, write
from shard_damage import flip, replace, spans, truncate, without_field

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from input_pipeline.tf import builder, damaged_records, loader, record_reader

_REFS_OF = {record.image_id: len(record.refs) for record in RECORDS}
_BATCH = 3
_DAMAGES = ("flipped", "length", "cut", "cut_between")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> SentencePieceTokenizer:
  folder = str(tmp_path_factory.mktemp("sound"))
  write(folder)
  return SentencePieceTokenizer.train(loader.train_expressions(folder, NAME), 400)


class _Damaged:
  """A data set with a damaged train split; which images are lost, and where the first one is."""

  def __init__(self, folder, how: str):
    write(str(folder))
    (self.shard,) = folder.glob("**/*-train.tfrecord*")
    stored = builder.open_dataset(str(folder), NAME).as_dataset(split="train")
    ids = [int(record["image_id"]) for record in tfds.as_numpy(stored)]
    found = spans(self.shard)
    self.position, last = 4, len(ids)
    start, end = found[self.position]
    if how == "flipped":
      # The pixels of an image and the middle of another record, not the names.
      flip(self.shard, end - 30)
      last = self.position + 1
    elif how == "length":
      flip(self.shard, start + 3)
    else:
      truncate(self.shard, start + (50 if how == "cut" else 0))
    self.data_dir, self.offset = str(folder), start
    self.lost = ids[self.position : last]
    self.left = sum(_REFS_OF[n] for n in ids if n not in self.lost)


@pytest.fixture(scope="module", params=_DAMAGES)
def damaged(request, tmp_path_factory) -> _Damaged:
  return _Damaged(tmp_path_factory.mktemp(request.param), request.param)


def _batches(data_dir, tokenizer, count, **options) -> list[dict]:
  numbers = {"batch_size": _BATCH, "image_size": SIZE, "max_instances": 4, "max_tokens": 24}
  endless = read_batches.train(data_dir, NAME, tokenizer, **numbers, seed=1, **options)
  return list(itertools.islice(endless, count))


_WAYS = {"streamed": {}, "cached": {"cache": True}, "shared": {"refs_per_image": 2}}
# Every kind of damage with one way of reading, and every way of reading with one kind.
_PAIRS = [(how, "streamed") for how in _DAMAGES] + [("flipped", "cached"), ("flipped", "shared")]
_pairs = pytest.mark.parametrize(("damaged", "way"), _PAIRS, indirect=["damaged"])


@_pairs
def test_training_stops_at_a_damaged_record_and_names_it(damaged, tokenizer, way):
  place = re.escape(f"of {damaged.shard}, from byte {damaged.offset}: ")
  with pytest.raises(InputError, match=rf"refcoco_unc/train: records? 4 .*{place}.*on_error"):
    _batches(damaged.data_dir, tokenizer, REFS, **_WAYS[way])


def test_the_image_of_a_flipped_record_is_named(tmp_path, tokenizer):
  damaged = _Damaged(tmp_path, "flipped")
  (image_id,) = damaged.lost
  with pytest.raises(
    InputError, match=rf"probably image picture_{image_id}\.png \(image_id {image_id}\)"
  ):
    _batches(damaged.data_dir, tokenizer, REFS)


@_pairs
def test_the_others_are_seen_once_per_epoch_in_an_order_that_a_resumed_run_shares(
  damaged, tokenizer, way
):
  epochs = 3
  count = epochs * damaged.left // _BATCH
  options = {"on_error": "skip", "jitter": 0.0, **_WAYS[way]}
  batches = _batches(damaged.data_dir, tokenizer, count, **options)
  seen = [ref_of(row) for row in rows_of(batches)]
  expected = {
    (record.image_id, ref.ref_id % 10 == 0)
    for record in RECORDS
    for ref in record.refs
    if record.image_id not in damaged.lost
  }
  for start in (0, damaged.left):
    assert sorted(seen[start : start + damaged.left]) == sorted(expected)
  for step in (1, count - 1):
    later = _batches(damaged.data_dir, tokenizer, count - step, start_step=step, **options)
    for one, other in zip(batches[step:], later, strict=True):
      for key in one:
        np.testing.assert_array_equal(one[key], other[key])


def test_skipped_records_are_reported_once_each_and_counted(damaged):
  *lines, total = loader.describe_damage(damaged.data_dir, NAME)
  assert len(lines) == 1 and f"{damaged.shard}, from byte {damaged.offset}" in lines[0]
  lost = len(damaged.lost)
  assert f"{lost} of {len(RECORDS)} records are damaged" in total
  assert loader.num_refs(damaged.data_dir, NAME, "train", "skip") == damaged.left
  assert not loader.describe_damage(damaged.data_dir, NAME, "val")


def test_expressions_of_damaged_records_raise_or_are_skipped(damaged):
  with pytest.raises(InputError, match=r"record.* 4 .*on_error"):
    loader.train_expressions(damaged.data_dir, NAME)
  left = loader.train_expressions(damaged.data_dir, NAME, "skip")
  written = [
    text.lower()
    for record in RECORDS
    if record.image_id not in damaged.lost
    for ref in record.refs
    for text in ref.sentences
  ]
  assert sorted(left) == sorted(written)


_STRANGE = {
  "not a tf.train.Example": lambda record: b"\x00\xff" + record,
  "image .* could not be found": lambda record: without_field(record, "image"),
  "height .* could not be found": lambda record: without_field(record, "height"),
}


@pytest.mark.parametrize("reason", _STRANGE)
def test_a_record_with_a_valid_checksum_and_invalid_fields_is_named(tmp_path, tokenizer, reason):
  write(str(tmp_path))
  (shard,) = tmp_path.glob("**/*-train.tfrecord*")
  replace(shard, 4, _STRANGE[reason])
  data_dir = str(tmp_path)

  def evaluate() -> None:
    numbers = {"batch_size": 2, "image_size": SIZE, "max_instances": 4, "max_tokens": 24}
    list(read_batches.evaluation(data_dir, NAME, "train", tokenizer, **numbers))

  for read in (
    *(lambda way=way: _batches(data_dir, tokenizer, REFS, **way) for way in _WAYS.values()),
    lambda: loader.train_expressions(data_dir, NAME),
    lambda: list(record_reader.read_records(record_reader.Split(data_dir, NAME, "train"))),
    evaluate,
  ):
    with pytest.raises(
      InputError, match=rf"refcoco_unc/train: record 4 of {re.escape(str(shard))}: .*{reason}"
    ) as caught:
      read()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
  line, _ = loader.describe_damage(data_dir, NAME)
  assert re.search(rf"record 4 of .*{reason}", line)


@pytest.mark.parametrize("way", _WAYS)
def test_an_image_that_cannot_be_decoded_is_skipped_alone(tmp_path, tokenizer, way):
  write(str(tmp_path))
  left = REFS - _REFS_OF[6]
  options = {"split": "testA", "on_error": "skip", "jitter": 0.0, **_WAYS[way]}
  seen = [ref_of(row)[0] for row in rows_of(_batches(str(tmp_path), tokenizer, left, **options))]
  assert 6 not in seen[:left] and set(seen[:left]) == set(_REFS_OF) - {6}
  line, total = loader.describe_damage(str(tmp_path), NAME, "testA")
  assert re.search(
    r"record \d of .*testA.*: cannot be decoded .*image picture_6\.png \(image_id 6\)", line
  )
  assert "1 of 9 records" in total


def test_an_image_that_cannot_be_decoded_is_named_with_its_file(tmp_path, tokenizer):
  write(str(tmp_path))
  with pytest.raises(
    InputError, match=r"picture_6\.png .*, record \d of .*testA.tfrecord.*on_error"
  ):
    _batches(str(tmp_path), tokenizer, REFS, split="testA")


@pytest.mark.parametrize("damage", ["fields", "image"])
def test_no_pipeline_that_looks_for_damage_autotunes(tmp_path, tokenizer, monkeypatch, damage):
  write(str(tmp_path))
  if damage == "fields":
    (shard,) = tmp_path.glob("**/*-train.tfrecord*")
    replace(shard, 4, _STRANGE["not a tf.train.Example"])
  tuned, iterate = [], tf.data.Dataset.__iter__

  def noting(dataset: tf.data.Dataset):
    tuned.append(dataset.options().autotune.enabled)
    return iterate(dataset)

  monkeypatch.setattr(tf.data.Dataset, "__iter__", noting)
  for way in _WAYS.values():
    before = len(tuned)
    with pytest.raises(InputError, match="record"):
      _batches(
        str(tmp_path), tokenizer, REFS, split="train" if damage == "fields" else "testA", **way
      )
    assert len(tuned) > before + 1  # the one that failed, and one that looks for the damage
  assert set(tuned) == {False}


@pytest.mark.parametrize("how", _DAMAGES)
def test_evaluation_never_skips_a_record(tmp_path, tokenizer, how):
  damaged = _Damaged(tmp_path, how)
  with pytest.raises(InputError, match=r"refcoco_unc/train: records? 4 .*--overwrite$"):
    list(
      read_batches.evaluation(
        damaged.data_dir, NAME, "train", tokenizer,
        batch_size=4, image_size=SIZE, max_instances=4, max_tokens=24,
      )
    )  # fmt: skip


def test_processes_share_the_intact_records(damaged, tokenizer):
  whole = damaged_records.survey(
    record_reader.open_source(record_reader.Split(damaged.data_dir, NAME, "train"))
  )
  shares = [
    record_reader.open_source(record_reader.Split(damaged.data_dir, NAME, "train", n, 2))
    for n in range(2)
  ]
  if len(damaged.lost) > 1:
    with pytest.raises(InputError, match="every record of a process is damaged"):
      damaged_records.without_damaged(shares[1], whole)
    return
  refs = [
    record_reader.count_refs(damaged_records.without_damaged(share, whole)) for share in shares
  ]
  assert sum(refs) == damaged.left and min(refs) > 0


def test_a_split_without_intact_records_is_refused(tmp_path):
  write(str(tmp_path))
  (shard,) = tmp_path.glob("**/*-train.tfrecord*")
  truncate(shard, 0)
  with pytest.raises(InputError, match=r"no record can be used .*ends early"):
    loader.describe_damage(str(tmp_path), NAME)


def test_an_unknown_on_error_is_refused(tmp_path, tokenizer):
  write(str(tmp_path))
  with pytest.raises(InputError, match="on_error is 'ignore'; it must be one of stop, skip"):
    _batches(str(tmp_path), tokenizer, 1, on_error="ignore")
