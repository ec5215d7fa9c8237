"""SentencePiece tokens."""

import gzip
import json
import re

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.errors import InputError
from input_pipeline.preprocess import normalise_text
from input_pipeline.tokenizer import SentencePieceTokenizer

_COLOURS = ("red", "green", "blue", "yellow")
_SHAPES = ("circle", "square", "star", "ring")
_SENTENCES = [
  f"the {side}most {colour} {shape}"
  for side in ("left", "right")
  for colour in _COLOURS
  for shape in _SHAPES
]


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
  return SentencePieceTokenizer.train(_SENTENCES, 320)


def test_a_row_is_bos_pieces_eos_and_padding(tokenizer):
  tokens, lengths, was_cut = tokenizer(["the red star", "a leftmost green ring"], 32)
  assert tokens.shape == (2, 32) and not was_cut.any()
  reference = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.to_bytes())
  for row, length, text in zip(
    tokens, lengths, ["the red star", "a leftmost green ring"], strict=True
  ):
    assert row[0] == tokenizer.bos_id and row[length - 1] == tokenizer.eos_id
    assert (row[length:] == 0).all() and tokenizer.pad_id == 0
    assert row[1 : length - 1].tolist() == reference.encode(text)


@pytest.mark.parametrize("max_tokens", [3, 5, 30])
def test_a_cut_text_keeps_its_end_mark_and_is_reported(tokenizer, max_tokens):
  texts = ["red", "the leftmost red star " * 2500]
  tokens, lengths, was_cut = tokenizer(texts, max_tokens)
  whole = tokenizer([texts[0]], 1000)[1][0]
  assert was_cut.tolist() == [bool(whole > max_tokens), True]
  assert lengths[1] == max_tokens and tokens[1, -1] == tokenizer.eos_id


def test_training_twice_in_any_order_gives_the_same_model(tokenizer):
  again = SentencePieceTokenizer.train(reversed(_SENTENCES), 320)
  assert again.to_bytes() == tokenizer.to_bytes()


def test_the_vocabulary_is_clipped_to_what_the_text_allows():
  small = SentencePieceTokenizer.train(["a red star"], 5000)
  assert 260 < small.vocab_size < 300
  assert small.decode(small(["a red star"], 40)[0][0]) == "a red star"


@pytest.mark.parametrize("vocab_size", [1, 200, 262])
def test_a_vocabulary_without_room_for_bytes_is_refused(vocab_size):
  with pytest.raises(InputError, match=f"vocab_size {vocab_size} is too small") as error:
    SentencePieceTokenizer.train(_SENTENCES, vocab_size)
  enough = int(re.findall(r"(\d+) is enough", str(error.value))[0])
  assert SentencePieceTokenizer.train(_SENTENCES, enough).vocab_size <= enough


def test_bytes_bring_back_the_same_tokenizer(tokenizer):
  copy = SentencePieceTokenizer.from_bytes(tokenizer.to_bytes())
  assert copy.vocab_size == tokenizer.vocab_size
  np.testing.assert_array_equal(copy(_SENTENCES, 12)[0], tokenizer(_SENTENCES, 12)[0])


@pytest.mark.parametrize("data", [b"", b"not a model"])
def test_bytes_of_something_else_are_refused(data):
  with pytest.raises(InputError, match="SentencePiece model"):
    SentencePieceTokenizer.from_bytes(data)


def test_a_model_with_other_special_tokens_is_refused(tmp_path):
  prefix = str(tmp_path / "other")
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(_SENTENCES),
    model_prefix=prefix,
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  with pytest.raises(InputError, match="pad, unk, bos, eos"):
    SentencePieceTokenizer((tmp_path / "other.model").read_bytes())


@pytest.mark.parametrize("text", ["", " \t", "\u200b"])
def test_empty_text_is_refused(tokenizer, text):
  with pytest.raises(InputError, match="empty"):
    tokenizer(["the red star", text], 8)
  with pytest.raises(InputError, match="empty"):
    SentencePieceTokenizer.train(["the red star", text], 400)


def test_no_sentences_and_no_room_for_text_are_refused(tokenizer):
  with pytest.raises(InputError, match="train split"):
    SentencePieceTokenizer.train([], 400)
  with pytest.raises(InputError, match="max_tokens is 2"):
    tokenizer(["the red star"], 2)


def test_no_texts_give_no_rows(tokenizer):
  tokens, lengths, was_cut = tokenizer([], 8)
  assert tokens.shape == (0, 8) and lengths.shape == was_cut.shape == (0,)


@given(text=st.text(min_size=1))
def test_every_text_survives_a_round_trip_without_unknown_tokens(tokenizer, text):
  try:
    normal = normalise_text(text)
  except InputError:
    return
  tokens, lengths, _ = tokenizer([text], 4 * len(normal.encode()) + 3)
  assert (tokens != tokenizer.unk_id).all()
  # SentencePiece writes a space as U+2581 and cannot tell the two apart.
  assert tokenizer.decode(tokens[0]) == " ".join(normal.replace("\u2581", " ").split())
  assert (tokens[0, : lengths[0]] != tokenizer.pad_id).all()


def test_special_tokens_written_out_are_only_text(tokenizer):
  text = "<s> </s> <pad> <unk> <0x41>"
  tokens, lengths, _ = tokenizer([text], 200)
  special = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id)
  assert not np.isin(tokens[0, 1 : lengths[0] - 1], special).any()
  assert tokenizer.decode(tokens[0]) == text


def test_a_large_batch_in_threads_equals_one_text_at_a_time(tokenizer):
  texts = [f"{text} {n}" for n in range(140) for text in _SENTENCES]
  tokens, lengths, was_cut = tokenizer(texts, 10)
  for row in range(0, len(texts), 997):
    one = tokenizer([texts[row]], 10)
    np.testing.assert_array_equal(one[0][0], tokens[row])
    assert (one[1][0], one[2][0]) == (lengths[row], was_cut[row])


def test_official_expressions_survive_a_round_trip(realdata):
  rows = json.loads(gzip.decompress((realdata / "expressions/refcoco_testA.json.gz").read_bytes()))
  texts = [row["sent"] for row in rows["refs"] if row["sent"].strip()]
  tokenizer = SentencePieceTokenizer.train(texts[:2000], 1000)
  tokens, _, was_cut = tokenizer(texts, 200)
  assert len(texts) > 5000 and not was_cut.any() and (tokens != tokenizer.unk_id).all()
  assert [tokenizer.decode(row) for row in tokens] == [normalise_text(text) for text in texts]


def test_words_of_a_small_vocabulary_stay_whole():
  colours, shapes = ["red", "green", "purple"], ["star", "circle", "hexagon"]
  sentences = [f"the {colour} {shape}" for colour in colours for shape in shapes] * 20
  tokenizer = SentencePieceTokenizer.train(sentences, 512)
  _, lengths, _ = tokenizer(sentences, 32)
  assert set(lengths.tolist()) == {3 + 2}  # the words, the start and the end
