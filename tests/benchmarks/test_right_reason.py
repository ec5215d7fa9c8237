"""The batches and the table of `benchmarks.right_reason`."""

import json

import numpy as np
import pytest
import read_batches

from benchmarks import right_reason
from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from input_pipeline.tf import loader

SHAPE = {"batch_size": 16, "image_size": 32, "max_instances": 8, "max_tokens": 24}


@pytest.fixture(scope="module")
def tokenizer(shapes_data) -> SentencePieceTokenizer:
  return SentencePieceTokenizer.train(loader.train_expressions(shapes_data, "shapes"), 400)


@pytest.fixture
def batches(shapes_data, tokenizer) -> list[dict]:
  return list(read_batches.evaluation(shapes_data, "shapes", "val", tokenizer, **SHAPE))


def _rows(batches) -> list[dict]:
  rows = [
    {name: values[i] for name, values in batch.items()}
    for batch in batches
    for i in range(SHAPE["batch_size"])
  ]
  return [row for row in rows if row["weight"]]


def _text(row, tokenizer) -> str:
  return tokenizer.decode(row["tokens"][: row["num_tokens"]])


@pytest.mark.parametrize("move_target", [False, True])
def test_swapped_sentences_mean_another_object_of_the_same_scene(batches, tokenizer, move_target):
  rows = _rows(batches)
  target_of = {row["meta"]["ref_id"]: row["original_target"] for row in rows}
  text_of = {
    (row["meta"]["ref_id"], row["meta"]["expression_index"]): _text(row, tokenizer) for row in rows
  }
  by_image = {row["meta"]["image_id"]: row["image"] for row in rows}
  swapped = list(right_reason.swap_sentences(batches, move_target))
  assert all(batch["image"].shape == batches[0]["image"].shape for batch in swapped)
  actual = _rows(swapped)
  assert len(actual) == len(rows)  # every scene of this split has two referents
  for row in actual:
    meta = row["meta"]
    np.testing.assert_array_equal(row["image"], by_image[meta["image_id"]])
    assert _text(row, tokenizer) == text_of[meta["ref_id"], meta["expression_index"]]
    same_target = np.array_equal(row["original_target"], target_of[meta["ref_id"]])
    assert same_target == move_target
    overlap = (row["original_target"] & target_of[meta["ref_id"]]).any()
    assert overlap == move_target  # visible masks of two objects share no pixel


def test_old_targets_are_those_that_were(batches):
  actual = _rows(right_reason.swap_sentences(batches, move_target=False))
  kept = sorted(row["original_target"].tobytes() for row in actual)
  assert kept == sorted(row["original_target"].tobytes() for row in _rows(batches))


def test_an_only_object_has_no_sentence_to_swap_with(batches):
  rows = batches[0]
  only = {name: values[:1] for name, values in rows.items()}
  with pytest.raises(InputError, match="no image has two objects"):
    list(right_reason.swap_sentences([only], move_target=False))


def test_blanked_inputs_say_nothing_and_leave_the_rest_alone(batches, tokenizer):
  marks = tokenizer.bos_id, tokenizer.eos_id
  sentences = list(right_reason.blank_sentences(batches, *marks))
  blanked = {
    ("tokens", "num_tokens"): sentences,
    ("instances", "num_instances"): right_reason.blank_instances(batches),
    ("image",): right_reason.blank_images(batches),
  }
  for changed, result in blanked.items():
    for batch, before in zip(result, batches, strict=True):
      assert all(len(np.unique(batch[name], axis=0)) == 1 for name in changed)
      assert all(batch[name] is before[name] for name in before.keys() - set(changed))
  assert {_text(row, tokenizer) for row in _rows(sentences)} == {""}


def test_the_command_judges_every_condition(finished_run, shapes_data, tmp_path, capsys):
  oracle = str(tmp_path / "oracle")
  counts = ["--train_scenes", "1", "--eval_scenes", "12"]
  prepare.main(["--dataset", "shapes", "--data_dir", oracle, *counts, "--noise", "oracle"])
  command = ["--checkpoint", str(finished_run), "--data_dir", shapes_data]
  command += ["--data", "shapes/val", "--oracle_data_dir", oracle]
  right_reason.main([*command, "--json", str(tmp_path / "out.json"), "--markdown"])
  results = json.loads((tmp_path / "out.json").read_text())["shapes/val"]
  assert len(results) == 9
  assert results["instance masks blanked"]["selection_accuracy"] is None
  raw = [results[f"{kind} raw instance mask"]["mIoU"] for kind in ("picked", "best")]
  assert raw[0] <= raw[1] < 1
  table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
  assert len(table) == 2 + 9
  assert {line.count("|") for line in table} == {6}
