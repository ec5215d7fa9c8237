"""What a model takes over from another one of ours: equal, resized, found by text, or new."""

import jax
import numpy as np
import pytest
import tiny_model

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer, WordPieceTokenizer
from mail_jax.models.build import path_name
from mail_jax.pretrained import initialise
from mail_jax.pretrained.transfer import Side, check_leave_out, transfer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = WordPieceTokenizer("\n".join([*SPECIAL, "red", "##ing", "cup", "dog"]).encode())
OTHER = WordPieceTokenizer("\n".join(["dog", *SPECIAL, "red", "ing", "blue"]).encode())


def _model(tokenizer=WORDS, **changes) -> tuple[Side, dict[str, np.ndarray]]:
  """A model with random parameters: its config and tokenizer, and the parameters by name."""
  options = {k.removeprefix("model."): v for k, v in changes.items() if k.startswith("model.")}
  config = tiny_model.make_config(**options)
  config.update({k: v for k, v in changes.items() if not k.startswith("model.")})
  drawn = tiny_model.random_variables(config, tokenizer.vocab_size, seed=len(changes))["params"]
  leaves = jax.tree_util.tree_leaves_with_path(drawn)
  return Side(config, tokenizer), {path_name(path): np.asarray(x) for path, x in leaves}


def _transfer(old, new, leave_out=""):
  shapes = {name: value.shape for name, value in new[1].items()}
  return transfer(old[1], shapes, old[0], new[0], leave_out)


def test_all_parameters_of_a_model_of_the_same_sizes_are_taken_as_they_are():
  old = _model()
  taken = _transfer(old, _model(max_instances=30))
  assert taken.values.keys() == old[1].keys() and not taken.resized and not taken.unused
  for name, value in taken.values.items():
    np.testing.assert_array_equal(value, old[1][name])


def test_positions_of_another_image_size_are_interpolated_between_the_corners():
  old, new = _model(), _model(image_size=56)
  taken = _transfer(old, new)
  assert taken.resized == ("image/position (4 x 4 to 7 x 7 patches)",)
  before = old[1]["image/position"][1:].reshape(4, 4, -1)
  after = taken.values["image/position"]
  np.testing.assert_array_equal(after[0], old[1]["image/position"][0])
  # By hand: every second one of seven lies on one of four, the others halfway between two.
  grid = after[1:].reshape(7, 7, -1)
  np.testing.assert_allclose(grid[::2, ::2], before, atol=1e-6)
  np.testing.assert_allclose(grid[1::2, ::2], (before[:-1] + before[1:]) / 2, atol=1e-6)
  others = taken.values.keys() - {"image/position"}
  assert all(np.array_equal(taken.values[name], old[1][name]) for name in others)


def test_words_of_another_tokenizer_are_found_by_their_text():
  old, new = _model(), _model(OTHER, image_size=32)
  taken = _transfer(old, new)
  (resized,) = taken.resized
  assert resized == ("text/words/embedding (6 of 8 word pieces by their text, the others are new)")
  rows, before = taken.values["text/words/embedding"], old[1]["text/words/embedding"]
  # `ing` begins a word in the other vocabulary, and only continues one in the first.
  source = [7, 0, 1, 2, 3, 4, None, None]
  for row, number in zip(rows, source, strict=True):
    if number is None:
      assert row.mask.all()
    else:
      assert not np.ma.is_masked(row)
      np.testing.assert_array_equal(row, before[number])


def test_word_pieces_of_both_kinds_of_tokenizers_compare_by_text():
  pieces = SentencePieceTokenizer.train(["red cup", "redder cups", "a red dog"] * 3, 280).pieces()
  assert pieces[:4] == ["<pad>", "<unk>", "<s>", "</s>"]
  assert WORDS.pieces() == [*pieces[:4], "\u2581red", "ing", "\u2581cup", "\u2581dog"]
  assert {"\u2581red", "\u2581cup"} <= set(pieces)


@pytest.mark.parametrize(("before", "after"), [(6, 9), (9, 6)])
def test_positions_of_text_are_taken_as_far_as_there_are_any(before, after):
  old, new = _model(max_tokens=before), _model(max_tokens=after)
  value = _transfer(old, new).values["text/position"]
  common = min(before, after)
  np.testing.assert_array_equal(value[:common], old[1]["text/position"][:common])
  assert np.ma.getmaskarray(value)[common:].all() and len(value) == after


@pytest.mark.parametrize(("before", "after"), [(5, 7), (7, 5)])
def test_stacked_masks_of_another_number_keep_the_channels_that_both_have(before, after):
  stacked = {"model.mask_tokens": "stacked"}
  old, new = _model(max_instances=before, **stacked), _model(max_instances=after, **stacked)
  value = _transfer(old, new).values["mask/patches/kernel"].reshape(64, after, -1)
  common = min(before, after)
  expected = old[1]["mask/patches/kernel"].reshape(64, before, -1)[:, :common]
  np.testing.assert_array_equal(value[:, :common], expected)
  assert np.ma.getmaskarray(value)[:, common:].all()


@pytest.mark.parametrize("scans", [(False, True), (True, False), (True, True)])
def test_stacked_blocks_are_the_same_blocks(scans):
  old, new = (_model(**{"model.depth": 2, "model.scan": scan}) for scan in scans)
  values = _transfer(old, new).values
  assert values.keys() == new[1].keys()
  for i in range(2):
    kernels = [
      arrays["encoder/blocks/qkv/kernel"][i] if scan else arrays[f"encoder/block0{i}/qkv/kernel"]
      for arrays, scan in zip((old[1], values), scans, strict=True)
    ]
    np.testing.assert_array_equal(*kernels)


def test_a_block_that_is_left_out_of_a_stack_stays_new():
  options = {"model.depth": 2, "model.scan": True}
  old = _model(**options)
  value = _transfer(old, _model(**options), "block01").values["encoder/blocks/mlp_in/bias"]
  np.testing.assert_array_equal(value[0], old[1]["encoder/blocks/mlp_in/bias"][0])
  assert value[1].mask.all()


def test_parts_are_left_out_by_regex_and_what_nothing_takes_is_named():
  old, new = _model(), _model(**{"model.neighbours": False, "model.no_target": True})
  taken = _transfer(old, new, "^decoder|^type$")
  left = [n for n in old[1] if n.startswith(("decoder/", "mask/neighbours")) or n == "type"]
  assert taken.unused == tuple(sorted(left))
  assert new[1].keys() - taken.values.keys() == {
    *(name for name in new[1] if name.startswith(("decoder/", "no_target_logit/"))), "type",
  }  # fmt: skip


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model.width": 24}, r"config\.model\.width=16.*init_leave_out='.*\^encoder\|"),
    ({"model.heads": 4}, r"out/kernel of shape \(2, 8, 16\) does not fit .*config\.model\.heads=2"),
    ({"model.depth": 2}, r"config\.model\.depth=1.*--config\.init_leave_out='\^encoder'"),
    ({"model.decoder_widths": (8, 8, 8)}, r"decoder_widths=\[8, 8, 4\].*leave_out='\^decoder'"),
    ({"max_instances": 0}, r"config\.max_instances=18.*init_leave_out='\^decoder'"),
  ],
)
def test_what_does_not_fit_is_named_with_both_ways_out(changes, message):
  with pytest.raises(InputError, match=message):
    _transfer(_model(), _model(**changes))


def test_a_regex_of_parts_that_are_not_there_is_refused():
  names = _model()[1]
  check_leave_out("", names)
  with pytest.raises(InputError, match=r"'\^head' matches no parameter .*the parts are decoder, "):
    check_leave_out("^head", names)
  with pytest.raises(InputError, match=r"config\.init_leave_out: '\(' is not a regular expression"):
    check_leave_out("(", names)


def test_what_is_masked_stays_as_the_new_model_has_it():
  new = {"a": jax.numpy.arange(4.0), "b": jax.numpy.ones(2)}
  value = np.ma.masked_array([7.0, 7.0, 7.0, 7.0], [False, True, False, True])
  placed = initialise.place(new, {"a": value})
  np.testing.assert_array_equal(placed["a"], [7, 1, 7, 3])
  np.testing.assert_array_equal(placed["b"], [1, 1])
  assert initialise.summary(new, {"a": value}).startswith("0.00 M of 0.00 M")
