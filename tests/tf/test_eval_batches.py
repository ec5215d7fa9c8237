"""Evaluation batches: every expression once, for any batch size and number of processes."""

from unittest import mock

import hypothesis
import numpy as np
import pytest
import read_batches
from half_records import NAME, RECORDS, SIZE, rows_of, write
from hypothesis import strategies

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import bit_planes
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from input_pipeline.tf import builder, eval_rows, loader, record_reader


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
  folder = str(tmp_path_factory.mktemp("records"))
  write(folder)
  return folder


@pytest.fixture(scope="module")
def evaluate(data_dir):
  tokenizer = SentencePieceTokenizer.train(loader.train_expressions(data_dir, NAME), 400)

  def batches(split: str = "val", **options) -> list[dict]:
    arguments = {
      "batch_size": 5,
      "image_size": SIZE,
      "max_instances": 16,
      "max_tokens": 24,
      **options,
    }
    return list(read_batches.evaluation(data_dir, NAME, split, tokenizer, **arguments))

  return batches


@pytest.mark.parametrize(("process_count", "limit"), [(1, None), (2, 7), (3, None)])
def test_every_expression_comes_once(evaluate, data_dir, process_count, limit):
  shares = [
    evaluate(process_index=index, process_count=process_count, limit=limit, batch_size=2)
    for index in range(process_count)
  ]
  assert len({len(share) for share in shares}) == 1
  rows = [row for share in shares for row in rows_of(share)]
  assert all((row["meta"] is None) == (row["weight"] == 0) for row in rows)
  seen = [
    (row["meta"]["image_id"], row["meta"]["ref_id"], row["meta"]["expression_index"])
    for row in rows
    if row["weight"]
  ]
  dataset = builder.open_dataset(data_dir, NAME).as_dataset(split="val")
  expected = [
    (int(record["image_id"]), int(ref_id), index)
    for record in dataset
    for ref_id, sentences in zip(record["refs"]["ref_id"], record["refs"]["sentences"], strict=True)
    for index in range(len(sentences))
  ]
  assert seen == expected[: limit or len(expected)]
  index = [int(row["index"]) for row in rows if row["weight"]]
  assert index == list(range(len(seen)))
  assert {int(row["index"]) for row in rows if not row["weight"]} <= {-1}
  assert {int(row["total"]) for row in rows} == {len(seen)}


def test_more_processes_than_batches_still_yield_equally_many_of_one_shape(evaluate):
  shares = [
    evaluate(process_index=index, process_count=4, limit=3, batch_size=2) for index in range(4)
  ]
  assert [sum(batch["weight"].sum() for batch in share) for share in shares] == [1, 1, 1, 0]
  shapes = [[{key: np.shape(batch[key]) for key in batch} for batch in share] for share in shares]
  assert len(shapes[0]) == 1 and shapes == shapes[:1] * 4


def test_rows_have_the_content_of_the_record(evaluate):
  originals = {record.image_id: record for record in RECORDS}
  for row in rows_of(evaluate()):
    if not row["weight"]:
      assert not any(row[key].any() for key in row if key not in ("meta", "index", "total"))
      continue
    meta = row["meta"]
    record = originals[meta["image_id"]]
    ref = record.refs[meta["ref_id"] % 10]
    assert meta["expression"] == ref.sentences[meta["expression_index"]]
    assert meta["file_name"] == record.file_name and not row["cut"]
    height, width = ref.target.shape
    assert row["original_size"].tolist() == [height, width]
    np.testing.assert_array_equal(row["original_target"][:height, :width], ref.target)
    assert row["original_target"].sum() == ref.target.sum()
    image = preprocess.resize_image(preprocess.decode_image(record.image, "test"), SIZE)
    assert np.abs(row["image"].astype(int) - image).max() <= 1
    planes = bit_planes.packbits(record.instances.masks)
    np.testing.assert_array_equal(row["instances"], preprocess.resize_planes(planes, SIZE)[:1])
    assert row["num_instances"] == min(16, len(record.instances.scores))


def test_photos_of_similar_sizes_share_a_canvas_of_multiples_of_64_or_the_models_size(evaluate):
  assert {batch["original_target"].shape for batch in evaluate()} == {(5, 128, 128)}
  large = evaluate(image_size=160)
  assert {batch["original_target"].shape for batch in large} == {(5, 160, 160)}


@pytest.fixture
def small_photos_are_large(monkeypatch):
  """Photos of more than 48 pixels count as larger than COCO's."""
  monkeypatch.setattr(eval_rows, "_COCO_SIDE", 48)
  eval_rows.buckets.cache_clear()
  yield
  eval_rows.buckets.cache_clear()


@pytest.mark.parametrize(("process_count", "limit"), [(1, None), (2, 13), (3, None)])
def test_larger_photos_come_in_smaller_batches(
  evaluate, small_photos_are_large, process_count, limit
):
  shares = [
    evaluate(process_index=index, process_count=process_count, limit=limit, batch_size=6)
    for index in range(process_count)
  ]
  shapes = [[batch["original_target"].shape for batch in share] for share in shares]
  assert shapes == shapes[:1] * process_count
  assert {shape[0] for shape in shapes[0]} > {6} and len(set(shapes[0])) > 2
  assert all(rows == 1 or rows * h * w <= 6 * 48**2 for rows, h, w in shapes[0])
  rows = [row for share in shares for row in rows_of(share) if row["weight"]]
  index = sorted(int(row["index"]) for row in rows)
  assert index == list(range(limit or len(index)))
  by_number = {int(row["index"]): row for row in rows_of(evaluate(batch_size=1, image_size=SIZE))}
  for row in rows:
    plain = by_number[int(row["index"])]
    height, width = row["original_size"]
    assert row["meta"] == plain["meta"] and (row["image"] == plain["image"]).all()
    target = row["original_target"][:height, :width]
    assert (target == plain["original_target"][:height, :width]).all()
    assert row["original_target"].sum() == target.sum()


@hypothesis.given(
  sides=strategies.lists(
    strategies.tuples(strategies.integers(1, 9000), strategies.integers(1, 9000)), min_size=1
  ),
  batch_size=strategies.integers(1, 8),
  multiple=strategies.integers(1, 4),
  image_size=strategies.sampled_from([64, 480, 1024]),
)
def test_no_batch_has_more_pixels_than_photos_of_coco_or_than_one_photo(
  sides, batch_size, multiple, image_size
):
  heights, widths = np.array(sides).T
  counts = np.arange(len(sides)) % 3 + (len(sides) == 1)
  total = int(counts.sum())
  hypothesis.assume(total)
  sizes = record_reader.Sizes(counts, counts, heights, widths)
  source = record_reader.Source("any", (), None, hash((tuple(sides), image_size)))
  with mock.patch.object(record_reader, "scan", lambda _: sizes):
    found = eval_rows.buckets(source, image_size, batch_size * multiple, multiple, total)
  assert sorted(np.concatenate([bucket.numbers for bucket in found])) == list(range(total))
  photo_of = np.repeat(np.arange(len(sides)), counts)
  for bucket in found:
    height, width = bucket.canvas
    for photo in photo_of[bucket.numbers]:
      assert heights[photo] <= height and widths[photo] <= width
      for side, longest in ((heights[photo], height), (widths[photo], width)):
        assert longest <= max(640, image_size, 1.5 * side + 64)
    assert bucket.batch_size % multiple == 0 and multiple <= bucket.batch_size
    per_device = bucket.batch_size // multiple
    limit = batch_size * max(640, image_size) ** 2
    assert per_device * height * width <= limit or per_device == 1
    assert (per_device + 1) * height * width > limit or per_device == batch_size


def test_truncated_text_is_reported(evaluate):
  cut = [row["cut"] for row in rows_of(evaluate(max_tokens=4)) if row["weight"]]
  assert all(cut)


def test_reading_twice_gives_the_same(evaluate):
  for first, second in zip(evaluate(), evaluate(), strict=True):
    assert first.pop("meta") == second.pop("meta")
    for key, value in first.items():
      np.testing.assert_array_equal(value, second[key])


def test_an_image_that_cannot_be_decoded_is_named(evaluate):
  with pytest.raises(InputError, match=r"refcoco_unc/testA: image picture_6\.png .*image_id 6"):
    evaluate("testA")


def test_a_missing_split_and_impossible_numbers_are_named(evaluate):
  with pytest.raises(InputError, match="no split 'testB'"):
    evaluate("testB")
  with pytest.raises(InputError, match="limit is 0"):
    evaluate(limit=0)
  with pytest.raises(ValueError, match="process_index is 2 of 2"):
    evaluate(process_index=2, process_count=2)
