"""`refs_per_image`: one decoding for several samples of an image, and what does not change."""

import collections
import io
import itertools
import os
import subprocess
import sys

import half_records
import numpy as np
import pytest
import read_batches
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import preprocess, records
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from input_pipeline.tf import builder, loader, pipelines, record_reader, train_samples

NAME, SIZE = "refcoco_unc", 8
REFS_OF = {1: 1, 2: 4, 3: 2, 4: 7, 5: 3, 6: 1, 7: 5, 8: 2, 9: 4, 10: 3, 11: 6}
REFS = sum(REFS_OF.values())


def _record(image_id: int, refs: int) -> records.ImageRecord:
  """Returns a record: the image's gray value is its id; row n alone is the target of ref n."""
  side = 12 + image_id
  buffer = io.BytesIO()
  Image.fromarray(np.full((side, side, 3), 20 * image_id, np.uint8)).save(buffer, "PNG")
  targets = np.eye(8, dtype=bool)[:, preprocess.nearest_indices(8, side)]
  rows = tuple(
    records.Ref(
      ref_id=10 * image_id + n,
      ann_ids=(n,),
      target=np.repeat(targets[n][:, None], side, axis=1),
      sentences=tuple(f"the row {n} of {image_id}, {word}" for word in ("please", "now")),
    )
    for n in range(refs)
  )
  instances = records.no_instances(side, side)
  return records.ImageRecord(
    buffer.getvalue(), image_id, f"{image_id}.png", side, side, instances, rows
  )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
  folder = str(tmp_path_factory.mktemp("rows"))
  rows = [records.encode_record(_record(*item)) for item in REFS_OF.items()]
  broken = [row | {"image": row["image"][: 60 if row["image_id"] == 6 else None]} for row in rows]
  source = half_records._Records(train=rows, testA=broken)
  builder.write_dataset(folder, NAME, source, {})
  return folder


@pytest.fixture(scope="module")
def tokenizer(data_dir) -> SentencePieceTokenizer:
  return SentencePieceTokenizer.train(loader.train_expressions(data_dir, NAME), 300)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
  monkeypatch.setattr(train_samples, "window_of", lambda batch_size: 3)


def _groups(data_dir, most=3, key=5, window=3) -> train_samples.Groups:
  source = record_reader.open_source(record_reader.Split(data_dir, NAME, "train"))
  return train_samples.Groups(train_samples.load_table(source), key, most, window, threads=2)


def _stream(groups, start, count) -> list[tuple[int, int]]:
  """Returns (image, number of the ref) of decoded samples."""
  samples = train_samples.grouped(groups, start, record_reader.Shape(SIZE, 1)).take(count)
  return [
    (round(int(sample["image"][0, 0, 0]) / 20), int(sample["target"][:, 0].argmax()))
    for sample in samples.with_options(pipelines.options(2)).as_numpy_iterator()
  ]


EXPECTED = sorted((image_id, n) for image_id, refs in REFS_OF.items() for n in range(refs))


@pytest.mark.parametrize("most", [2, 8])
def test_an_epoch_is_every_ref_once_in_another_order(data_dir, most):
  seen = _stream(_groups(data_dir, most), 0, 2 * REFS)
  assert sorted(seen[:REFS]) == sorted(seen[REFS:]) == EXPECTED
  assert seen[:REFS] != seen[REFS:]


def test_a_window_has_the_refs_of_its_groups_and_no_others(data_dir):
  groups = _groups(data_dir)
  seen = _stream(groups, 0, REFS)
  # Independently: the groups in their order, split by hand.
  order = [
    [(int(record["image_id"]), n) for n in range(ref, min(ref + 3, len(record["ref_id"])))]
    for record, ref in train_samples.grouped_suspects(groups, 0, 100).as_numpy_iterator()
  ]
  assert sorted(itertools.chain(*order[:17])) == EXPECTED
  shuffled, done = 0, 0
  for first in range(0, 17, 3):
    window = list(itertools.chain(*order[first : min(first + 3, 17)]))
    assert sorted(seen[done : done + len(window)]) == sorted(window)
    shuffled += seen[done : done + len(window)] != window
    done += len(window)
  assert done == REFS and shuffled > 3


@pytest.mark.slow
def test_a_stream_from_anywhere_is_the_rest_of_the_whole_one(data_dir):
  groups = _groups(data_dir)
  whole = _stream(groups, 0, 3 * REFS)

  @settings(max_examples=4, deadline=None)
  @given(st.integers(0, 2 * REFS + REFS // 2))
  def check(start):
    assert _stream(groups, start, 10) == whole[start : start + 10]

  check()
  for start in (REFS - 1, REFS):
    assert _stream(groups, start, 10) == whole[start : start + 10]


def _batches(data_dir, tokenizer, count, **options):
  arguments = {"batch_size": 4, "image_size": SIZE, "max_instances": 16, "max_tokens": 24}
  arguments |= {"seed": 1, "jitter": 0.2, **options}
  return list(itertools.islice(read_batches.train(data_dir, NAME, tokenizer, **arguments), count))


@pytest.mark.parametrize("step", [3, 12])
def test_a_run_that_starts_later_gets_the_same_batches(data_dir, tokenizer, step):
  whole = _batches(data_dir, tokenizer, 15, refs_per_image=4)
  rest = _batches(data_dir, tokenizer, 15 - step, refs_per_image=4, start_step=step)
  for one, other in zip(whole[step:], rest, strict=True):
    for key in one:
      np.testing.assert_array_equal(one[key], other[key])


def test_every_sample_is_augmented_independently(data_dir, tokenizer):
  """Samples of one image are mirrored, jittered and given an expression independently."""
  batches = _batches(data_dir, tokenizer, 140, refs_per_image=8)
  factors = collections.defaultdict(set)
  drawn = set()
  for row in half_records.rows_of(batches):
    text = tokenizer.decode(row["tokens"][: row["num_tokens"]])
    drawn.add(text)
    factors[text.partition(",")[0].rpartition(" ")[2]].add(tuple(row["jitter_factors"]))
  assert len(drawn) == 2 * REFS
  assert all(len(seen) > 1 for seen in factors.values())


def test_a_large_batch_has_almost_as_many_images_as_without_groups(monkeypatch):
  """2.5 refs an image, as in RefCOCO, and the recipe of large batches: 1,024 of 4 refs an image."""
  monkeypatch.undo()
  refs_of, batch = np.array([2, 3] * 8_000), 1024
  record = np.repeat(np.arange(len(refs_of)), refs_of)
  table = train_samples.Table(
    *(tf.constant([0]),) * 4, refs_of, tf.constant(record), tf.constant(np.zeros_like(record))
  )
  window = train_samples.window_of(batch)
  groups = train_samples.Groups(table, 5, 4, window, threads=1)
  epoch = tf.constant(0, tf.int64)
  order = [int(n) for n, _, _ in train_samples._groups_of_epoch(groups, epoch, epoch)]
  rng = np.random.default_rng(0)
  samples = [
    rng.permutation(np.repeat(order[i : i + window], refs_of[order[i : i + window]]))
    for i in range(0, len(order), window)
  ]
  stream = np.concatenate(samples)
  distinct = [len(set(stream[i : i + batch])) for i in range(0, len(stream) - batch, batch)]
  assert np.mean(distinct) > 905


def test_an_image_is_decoded_once_for_its_samples(data_dir, monkeypatch):
  seen = collections.Counter()
  resize = preprocess.resize_image

  def counted(image, size):
    seen[round(int(image[0, 0, 0]) / 20)] += 1
    return resize(image, size)

  monkeypatch.setattr(preprocess, "resize_image", counted)
  shape = record_reader.Shape(SIZE, 1)
  # Only one epoch, so that nothing of the next is read ahead.
  groups = _groups(data_dir, most=3)
  whole = train_samples.grouped(groups, 0, shape).with_options(pipelines.options(1))
  iterator = whole.as_numpy_iterator()
  for _ in range(REFS):
    next(iterator)
  assert seen == {image_id: -(-refs // 3) for image_id, refs in REFS_OF.items()}


def test_an_image_that_cannot_be_decoded_is_named(data_dir, tokenizer):
  with pytest.raises(InputError, match=r"refcoco_unc/testA: image 6\.png .*image_id 6"):
    _batches(data_dir, tokenizer, REFS, split="testA", refs_per_image=4)


def test_invalid_numbers_are_refused(data_dir, tokenizer):
  with pytest.raises(InputError, match="refs_per_image is 2, but cache decodes"):
    _batches(data_dir, tokenizer, 1, refs_per_image=2, cache=True)
  with pytest.raises(InputError, match="refs_per_image is 0; it must be at least 1"):
    _batches(data_dir, tokenizer, 1, refs_per_image=0)


@pytest.mark.slow
def test_a_program_ends_while_its_pipeline_runs(data_dir):
  """Threads that call Python during its shutdown never return; TensorFlow would wait for them."""
  program = f"""
import read_batches
from input_pipeline.preprocess import tokenizer
from input_pipeline.tf import loader
texts = loader.train_expressions({data_dir!r}, {NAME!r})
words = tokenizer.SentencePieceTokenizer.train(texts, 300)
batches = read_batches.train({data_dir!r}, {NAME!r}, words, batch_size=2, image_size=480,
                               max_instances=1, max_tokens=8, seed=0)
next(batches)
"""
  path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
  subprocess.run(
    [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, check=True, timeout=60
  )
