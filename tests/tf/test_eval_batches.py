"""Evaluation batches: every expression once, for any batch size and number of processes."""

import numpy as np
import pytest
import read_batches
from half_records import NAME, RECORDS, SIZE, rows_of, write

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import bit_planes
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from input_pipeline.tf import builder, loader


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


def test_the_canvas_is_a_multiple_of_64_or_the_models_size(evaluate):
  batches = evaluate(batch_size=1)
  canvases = [batch["original_target"].shape[1:] for batch in batches]
  for canvas, batch in zip(canvases, batches, strict=True):
    size = batch["original_size"][0]
    assert canvas == tuple(SIZE if side <= SIZE else 64 if side <= 64 else 128 for side in size)
  assert {(32, 32), (64, 64)} < set(canvases)
  large = evaluate(image_size=96)
  assert {batch["original_target"].shape for batch in large} == {(5, 96, 96)}


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
