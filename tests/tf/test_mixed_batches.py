"""Batches of mixtures, in every way of reading and on any number of processes."""

import collections
import itertools
from typing import Any

import mixed_photos
import numpy as np
import pytest
import read_batches
import tensorflow as tf
from mixed_photos import COPIES, MIXTURE, SPLITS, refs_of

from input_pipeline import image_hashes, storage
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from input_pipeline.tf import loader, record_reader, train_samples

NAMES = tuple(SPLITS)
READING = {"streamed": {}, "cached": {"cache": True}, "grouped": {"refs_per_image": 2}}
OPTIONS = {"image_size": 16, "max_instances": 1, "max_tokens": 16, "seed": 3, "exclude": ("auto",)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
  return mixed_photos.write(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def tokenizer(data_dir) -> SentencePieceTokenizer:
  texts = loader.open_training_set(data_dir, MIXTURE).expressions()
  return SentencePieceTokenizer.train(texts, 300)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
  monkeypatch.setattr(train_samples, "window_of", lambda batch_size: 3)


def _batches(data_dir, tokenizer, count: int, **options: Any) -> list[dict[str, Any]]:
  options = {"batch_size": 6, "with_meta": True} | OPTIONS | options
  dataset = options.pop("dataset", MIXTURE)
  return list(itertools.islice(read_batches.train(data_dir, dataset, tokenizer, **options), count))


def _number(meta: dict[str, Any]) -> int:
  """Returns which photo a sample is of: its expression says so."""
  return int(meta["expression"].split()[1])


def _samples(batches) -> list[tuple[str, int, int]]:
  return [(m["dataset"], _number(m), m["ref_id"]) for batch in batches for m in batch["meta"]]


def _assert_same(batches, others) -> None:
  assert len(batches) == len(others) > 0
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for key in batch:
      np.testing.assert_array_equal(batch[key], other[key])


@pytest.mark.parametrize("reading", READING)
def test_no_evaluation_photo_is_in_a_mixture_and_all_others_are(data_dir, tokenizer, reading):
  samples = _samples(_batches(data_dir, tokenizer, 40, **READING[reading]))
  seen = {name: {n for dataset, n, _ in samples if dataset == name} for name in NAMES}
  assert seen == {name: set(SPLITS[name]["train"]) for name in NAMES}


def test_with_exclude_empty_they_are(data_dir, tokenizer):
  samples = _samples(_batches(data_dir, tokenizer, 60, exclude=()))
  for name in NAMES:
    assert {n for dataset, n, _ in samples if dataset == name} >= {*COPIES[name]}


@pytest.mark.parametrize("reading", READING)
def test_samples_have_their_data_sets_in_the_weights_and_epochs_of_their_own(
  data_dir, tokenizer, reading
):
  batches = _batches(data_dir, tokenizer, 24, **READING[reading])
  samples = _samples(batches)
  for batch in batches:
    assert batch["dataset"].dtype == np.int32
    assert [NAMES[n] for n in batch["dataset"]] == [m["dataset"] for m in batch["meta"]]
  counts = collections.Counter(name for name, _, _ in samples)
  assert [round(4 * counts[name] / len(samples), 1) for name in NAMES] == pytest.approx(
    [2, 1, 1], abs=0.21
  )
  for name in NAMES:
    size = refs_of(SPLITS[name]["train"])
    own = [sample for sample in samples if sample[0] == name]
    assert len({*own[:size]}) == min(size, len(own))


@pytest.mark.parametrize("reading", READING)
@pytest.mark.parametrize("step", [1, 9])
def test_a_mixture_that_starts_later_gives_the_same_batches(data_dir, tokenizer, reading, step):
  options = READING[reading] | {"jitter": 0.2}
  whole = _batches(data_dir, tokenizer, 14, **options)
  rest = _batches(data_dir, tokenizer, 14 - step, start_step=step, **options)
  _assert_same(whole[step:], rest)


@pytest.mark.parametrize("processes", [2, 3])
def test_batches_are_the_same_on_one_two_and_three_processes(data_dir, tokenizer, processes):
  whole = _batches(data_dir, tokenizer, 12, jitter=0.2)
  each = [
    _batches(
      data_dir, tokenizer, 12, jitter=0.2, cache=index == 1,
      batch_size=6 // processes, process_index=index, process_count=processes,
    )
    for index in range(processes)
  ]  # fmt: skip
  for step, batch in enumerate(whole):
    parts = [batches[step] for batches in each]
    for key, value in batch.items():
      np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)


def test_with_groups_processes_share_the_photos_of_every_data_set(data_dir, tokenizer):
  seen = []
  for index in range(2):
    share = {"process_index": index, "process_count": 2, "batch_size": 3, "refs_per_image": 2}
    samples = _samples(_batches(data_dir, tokenizer, 60, **share))
    seen.append({(dataset, number) for dataset, number, _ in samples})
  assert not seen[0] & seen[1]
  assert seen[0] | seen[1] == {(name, n) for name in NAMES for n in SPLITS[name]["train"]}


def test_what_is_left_out_is_counted_and_its_hashes_are_not_those_of_the_run(data_dir):
  found = loader.open_training_set(data_dir, MIXTURE, exclude=("auto",))
  assert found.sizes == tuple(refs_of(SPLITS[name]["train"]) for name in NAMES)
  noted = found.note()
  assert noted is not None
  assert sorted(noted["splits"]) == ["one/test", "one/val", "three/val", "two/val"]
  for name in NAMES:
    row = noted["datasets"][name]
    assert row["left_out"] == len(COPIES[name]) and row["same"] == 0
    assert row["images"] == len(COPIES[name]) + len(SPLITS[name]["train"])
    assert row["refs_left_out"] == refs_of(COPIES[name])
    assert row["refs"] == refs_of([*COPIES[name], *SPLITS[name]["train"]])
  trained_on = found.images()
  assert trained_on is not None and len(trained_on) == 3
  for name, splits in SPLITS.items():
    for split in splits.keys() - {"train"}:
      hashes = storage.read_hashes(data_dir, name, split)
      assert hashes is not None
      finding = image_hashes.find_seen(trained_on, hashes)
      assert (finding["seen"], finding["similar"]) == (0, 0)
  texts = found.expressions()
  assert {int(text.split()[1]) for text in texts} == {
    n for name in NAMES for n in SPLITS[name]["train"]
  }
  assert len(texts) == 2 * found.refs


def test_the_fingerprint_knows_what_is_left_out(data_dir):
  def fingerprint(dataset: str, exclude: tuple[str, ...]) -> str:
    return loader.open_training_set(data_dir, dataset, exclude=exclude).fingerprint()

  chosen = [
    ("one,two", ("auto",)),
    ("one,two", ()),
    ("two,one", ()),
    ("one", ()),
    ("one", ("two",)),
  ]
  prints = [fingerprint(*each) for each in chosen]
  assert len({*prints}) == len(prints) and all(prints)
  assert fingerprint("one", ()) == fingerprint("one", ("auto",))


def test_a_mixture_of_one_has_the_batches_of_the_data_set(data_dir, tokenizer):
  alone = _batches(data_dir, tokenizer, 8, dataset="two", exclude=(), jitter=0.2)
  weighted = _batches(data_dir, tokenizer, 8, dataset="two:3", exclude=(), jitter=0.2)
  _assert_same(alone, weighted)
  assert "dataset" not in alone[0]


@pytest.mark.parametrize("reading", READING)
def test_a_photo_that_cannot_be_decoded_is_named_with_its_data_set(
  data_dir, tokenizer, reading, monkeypatch
):
  decode = record_reader._decode_image
  original = mixed_photos.jpeg(23)

  def fail(data, size):
    # An empty file where the original is.
    return decode(tf.where(tf.equal(data, original), tf.constant(b""), data), size)

  monkeypatch.setattr(record_reader, "_decode_image", fail)
  with pytest.raises(InputError, match=r"two/train: image train_23\.jpg .* cannot be decoded"):
    _batches(data_dir, tokenizer, 60, **READING[reading])


def test_too_many_processes_are_told(data_dir, tokenizer):
  with pytest.raises(InputError, match=r"two/train: .*too few for 40 processes"):
    _batches(data_dir, tokenizer, 1, process_count=40, refs_per_image=2, dataset="two:1,one:1")
