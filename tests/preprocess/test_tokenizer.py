"""Text to tokens: SentencePiece, WordPiece, and what both guarantee."""

import gzip
import json
import re

import beit3_weights
import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import normalise_text
from input_pipeline.preprocess import tokenizer as tokenizers
from input_pipeline.preprocess.tokenizer import (
  Beit3Tokenizer,
  SentencePieceTokenizer,
  Tokenizer,
  WordPieceTokenizer,
)
from input_pipeline.tokenizer import command

_COLOURS = ("red", "green", "blue", "yellow")
_SHAPES = ("circle", "square", "star", "ring")
_VOCAB = (
  *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "left", "right", "##most"),
  *("st", "##ar", "##a", "##r"),
  *_COLOURS, *_SHAPES, "s", "##t", "!", "cafe", "##s", "[", "]", "sep", "\u6bcd",
)  # fmt: skip
_SENTENCES = [
  f"the {side}most {colour} {shape}"
  for side in ("left", "right")
  for colour in _COLOURS
  for shape in _SHAPES
]


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
  return SentencePieceTokenizer.train(_SENTENCES, 320)


@pytest.fixture(scope="module")
def wordpiece() -> WordPieceTokenizer:
  return WordPieceTokenizer("\n".join(_VOCAB).encode())


@pytest.fixture(params=["sentencepiece", "wordpiece"])
def either(request, tokenizer, wordpiece) -> Tokenizer:
  return tokenizer if request.param == "sentencepiece" else wordpiece


def test_a_row_is_bos_pieces_eos_and_padding(tokenizer):
  tokens, lengths, was_cut = tokenizer(["the red star", "a leftmost green ring"], 32)
  assert tokens.shape == (2, 32) and not was_cut.any()
  reference = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.file_bytes())
  for row, length, text in zip(
    tokens, lengths, ["the red star", "a leftmost green ring"], strict=True
  ):
    assert row[0] == tokenizer.bos_id and row[length - 1] == tokenizer.eos_id
    assert (row[length:] == 0).all() and tokenizer.pad_id == 0
    assert row[1 : length - 1].tolist() == reference.encode(text)


@pytest.mark.parametrize("max_tokens", [3, 5, 30])
def test_a_truncated_text_keeps_its_end_token_and_is_reported(either, max_tokens):
  texts = ["red", "the leftmost red star " * 2500]
  tokens, lengths, was_cut = either(texts, max_tokens)
  whole = either([texts[0]], 1000)[1][0]
  assert was_cut.tolist() == [bool(whole > max_tokens), True]
  assert lengths[1] == max_tokens and tokens[1, -1] == either.eos_id
  # Words of its own at the beginning and at the end: what is kept is the beginning.
  text = "green " * 100 + "star " * 100
  kept = either([text], max_tokens)[0][0, : max_tokens - 1]
  np.testing.assert_array_equal(kept, either([text], 1000)[0][0, : max_tokens - 1])


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


def test_bytes_restore_the_same_tokenizer(either):
  copy = tokenizers.from_bytes(either.to_bytes())
  assert (type(copy), copy.vocab_size) == (type(either), either.vocab_size)
  np.testing.assert_array_equal(copy(_SENTENCES, 12)[0], either(_SENTENCES, 12)[0])


@pytest.mark.parametrize("data", [b"", b"not a model"])
def test_other_bytes_are_refused(data):
  with pytest.raises(InputError, match="is not a SentencePiece model"):
    SentencePieceTokenizer(data)
  with pytest.raises(InputError, match=r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]"):
    WordPieceTokenizer(data)
  with pytest.raises(InputError, match="one of wordpiece, sentencepiece, beit3"):
    tokenizers.from_bytes(data)


def test_a_vocabulary_in_another_encoding_is_refused():
  with pytest.raises(InputError, match=r"vocab\.txt is not UTF-8"):
    WordPieceTokenizer("[PAD]\ncaf\u00e9".encode("latin-1"))


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("bpe:vocab.json", "is not wordpiece:VOCAB.txt, sentencepiece:FILE.model or beit3:beit3"),
    ("wordpiece:missing.txt", "missing.txt: No such file"),
  ],
)
def test_a_tokenizer_that_cannot_be_opened_is_refused(spec, message):
  with pytest.raises(InputError, match=message):
    tokenizers.open_tokenizer(spec)


def test_ids_of_beit3_are_those_of_fairseq():
  model = beit3_weights.train_tokenizer()
  pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
  tokenizer = Beit3Tokenizer(model)
  texts = ["the left cup", "Red  DOG on the\tright", "zebra \u4e2d near \U0001f600 trees"]
  ids, lengths, _ = tokenizer(texts, 40)
  for row, length, text in zip(ids, lengths, texts, strict=True):
    normal = " ".join(text.lower().split())
    expected = [{0: 3}.get(i, i + 1) for i in pieces.encode(normal)]
    assert row.tolist() == [0, *expected, 2] + [1] * (40 - length)
    assert length == len(expected) + 2
  assert 3 in ids[2]
  assert tokenizer.vocab_size == pieces.vocab_size() + 10
  texts_of_ids = tokenizer.pieces()
  assert len(texts_of_ids) == len(set(texts_of_ids)) == tokenizer.vocab_size
  assert texts_of_ids[:5] == ["<s>", "<pad>", "</s>", "<unk>", pieces.id_to_piece(3)]
  assert tokenizer.decode(ids[1]) == "red dog on the right"
  assert "\u2047" in tokenizer.decode(ids[2])  # SentencePiece's sign for what it does not know


def test_the_tokenizer_of_beit3_survives_bytes_and_files(tmp_path):
  model = beit3_weights.train_tokenizer()
  (tmp_path / "beit3.spm").write_bytes(model)
  first = tokenizers.open_tokenizer(f"beit3:{tmp_path / 'beit3.spm'}")
  for again in (
    tokenizers.from_bytes(first.to_bytes()),
    tokenizers.from_file_bytes("beit3", first.file_bytes(), "beit3.spm"),
  ):
    assert again.kind == "beit3" and again.file_bytes() == model
    np.testing.assert_array_equal(again(["the red cup"], 9)[0], first(["the red cup"], 9)[0])


def test_a_model_that_is_not_of_beit3_is_refused(tokenizer):
  with pytest.raises(InputError, match="must have unk, bos, eos with the ids 0, 1, 2 and no pad"):
    Beit3Tokenizer(tokenizer.file_bytes())
  with pytest.raises(InputError, match=r"pad, unk, bos, eos with the ids 0, 1, 2, 3"):
    SentencePieceTokenizer(beit3_weights.train_tokenizer())


@pytest.mark.extras
def test_ids_of_beit3_are_those_of_transformers(tmp_path):
  transformers = pytest.importorskip("transformers", reason="needs transformers: make extras")
  (tmp_path / "beit3.spm").write_bytes(beit3_weights.train_tokenizer())
  theirs = transformers.XLMRobertaTokenizer(str(tmp_path / "beit3.spm"))
  ours = tokenizers.open_tokenizer(f"beit3:{tmp_path / 'beit3.spm'}")
  texts = [*beit3_weights.SENTENCES, "a blue zebra, \u4e2d!", "dogs \u00bd cup 3"]
  expected = theirs(texts, padding="max_length", max_length=48)["input_ids"]
  np.testing.assert_array_equal(ours(texts, 48)[0], expected)


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


@pytest.mark.parametrize("text", ["", " \t", "\u200b", "\ud800", "\0"])
def test_empty_text_is_refused(either, text):
  with pytest.raises(InputError, match="empty"):
    either(["the red star", text], 8)
  with pytest.raises(InputError, match="empty"):
    SentencePieceTokenizer.train(["the red star", text], 400)


def test_training_without_expressions_is_refused():
  with pytest.raises(InputError, match="train split"):
    SentencePieceTokenizer.train([], 400)


def test_no_room_for_text_is_refused(either):
  with pytest.raises(InputError, match="max_tokens is 2"):
    either(["the red star"], 2)


def test_no_texts_give_no_rows(either):
  tokens, lengths, was_cut = either([], 8)
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


def test_special_tokens_written_out_are_only_text(either):
  text = "<s> </s> <pad> <unk> <0x41> [SEP] [CLS] [PAD] [MASK]"
  tokens, lengths, _ = either([text], 200)
  special = (either.pad_id, either.bos_id, either.eos_id)
  assert not np.isin(tokens[0, 1 : lengths[0] - 1], special).any()
  if either.kind == "sentencepiece":
    assert either.decode(tokens[0]) == text.lower()


def test_a_large_batch_in_threads_equals_one_text_at_a_time(either):
  texts = [f"{text} {n}" for n in range(140) for text in _SENTENCES]
  tokens, lengths, was_cut = either(texts, 10)
  for row in range(0, len(texts), 997):
    single = either([texts[row]], 10)
    np.testing.assert_array_equal(single[0][0], tokens[row])
    assert (single[1][0], single[2][0]) == (lengths[row], was_cut[row])


@pytest.mark.slow
def test_every_official_expression_survives_a_round_trip(realdata):
  texts = []
  for file in sorted((realdata / "expressions").glob("*.json.gz")):
    texts += [row["sent"] for row in json.loads(gzip.decompress(file.read_bytes()))["refs"]]
  assert len(texts) >= 47_855
  texts = [text for text in texts if text.strip()]
  tokenizer = SentencePieceTokenizer.train(texts[::20], 1000)
  tokens, _, was_cut = tokenizer(texts, 400)
  assert not was_cut.any() and (tokens != tokenizer.unk_id).all()
  assert [tokenizer.decode(row) for row in tokens] == [normalise_text(text) for text in texts]


def test_words_of_a_small_vocabulary_stay_whole():
  colours, shapes = ["red", "green", "purple"], ["star", "circle", "hexagon"]
  sentences = [f"the {colour} {shape}" for colour in colours for shape in shapes] * 20
  tokenizer = SentencePieceTokenizer.train(sentences, 512)
  _, lengths, _ = tokenizer(sentences, 32)
  assert set(lengths.tolist()) == {3 + 2}  # the words, the start and the end


def _greedy(word: str) -> list[str]:
  """WordPiece as in its paper: the longest piece that fits, repeatedly."""
  pieces: list[str] = []
  while word:
    mark = "##" if pieces else ""
    for end in range(len(word), 0, -1):
      if mark + word[:end] in _VOCAB:
        pieces.append(mark + word[:end])
        word = word[end:]
        break
    else:
      return ["[UNK]"]
  return pieces


@given(
  words=st.lists(st.text("stareingmobluhf", min_size=1, max_size=9) | st.sampled_from(_VOCAB[5:12]))
)
def test_words_become_their_longest_pieces(wordpiece, words):
  words = [word.replace("#", "") for word in words]
  if not words:
    return
  expected = [_VOCAB.index(piece) for word in words for piece in _greedy(word)]
  assert wordpiece.encode([" ".join(words)]) == [expected]


@pytest.mark.parametrize(
  ("text", "pieces"),
  [
    ("  The\tLEFT\nstar!! ", ["the", "left", "star", "!", "!"]),
    ("Caf\u00e9s", ["cafe", "##s"]),  # accents are removed
    ("\u6bcdstar", ["\u6bcd", "star"]),  # Chinese characters are words
    (
      "st\u200bar\ud800 \U0001f600",
      ["star", "[UNK]"],
    ),  # invisible characters are removed, emoji are unknown
    ("s" * 101, ["[UNK]"]),
    ("s" * 10_000 + " star", ["[UNK]", "star"]),
  ],
)
def test_text_is_cleaned_as_bert_does(wordpiece, text, pieces):
  assert [_VOCAB[i] for i in wordpiece.encode([text])[0]] == pieces


def test_wordpiece_decodes_to_words(wordpiece):
  assert wordpiece.decode(wordpiece(["the leftmost star"], 12)[0][0]) == "the leftmost star"


def test_the_command_trains_on_lines_of_text(tmp_path, capsys):
  lines, out = tmp_path / "lines.txt", tmp_path / "new" / "f.model"
  lines.write_text("\n\n".join(_SENTENCES))
  command.main(["--train_from", str(lines), "--vocab_size", "320", "--out", str(out)])
  assert f"from {len(_SENTENCES)} expressions" in capsys.readouterr().out
  opened = tokenizers.open_tokenizer(f"sentencepiece:{out}")
  assert opened.to_bytes() == SentencePieceTokenizer.train(_SENTENCES, 320).to_bytes()


def test_the_command_trains_on_a_data_set(shapes_data, tmp_path):
  from input_pipeline.tf import loader

  arguments = ["--train_from", "shapes", "--data_dir", shapes_data, "--vocab_size", "400"]
  command.main([*arguments, "--out", str(tmp_path / "f.model")])
  expected = SentencePieceTokenizer.train(loader.train_expressions(shapes_data, "shapes"), 400)
  assert (tmp_path / "f.model").read_bytes() == expected.file_bytes()


def test_the_command_names_a_file_that_it_cannot_read(tmp_path):
  rest = ["--vocab_size", "320", "--out", str(tmp_path / "f.model")]
  with pytest.raises(InputError, match=r"missing\.txt: No such file.*--data_dir"):
    command.main(["--train_from", str(tmp_path / "missing.txt"), *rest])
  (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
  with pytest.raises(InputError, match=r"latin\.txt: not a UTF-8 text file"):
    command.main(["--train_from", str(tmp_path / "latin.txt"), *rest])
  assert not (tmp_path / "f.model").exists()
