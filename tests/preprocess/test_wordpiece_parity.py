"""WordPiece ids equal those of `transformers.BertTokenizer`, an independent implementation."""

import gzip
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import normalise_text
from input_pipeline.preprocess.tokenizer import WordPieceTokenizer

transformers = pytest.importorskip("transformers", reason="needs transformers: make extras")

pytestmark = pytest.mark.extras
LENGTH = 100


@pytest.fixture(scope="module")
def reference(realdata):
  return transformers.BertTokenizer(str(realdata / "bert/vocab.txt"))


@pytest.fixture(scope="module")
def ours(realdata):
  return WordPieceTokenizer((realdata / "bert/vocab.txt").read_bytes())


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_official_expressions_have_the_same_ids(realdata, reference, ours, every):
  texts = []
  for file in sorted((realdata / "expressions").glob("*.json.gz")):
    texts += [row["sent"] for row in json.loads(gzip.decompress(file.read_bytes()))["refs"]]
  assert len(texts) >= 47_855
  texts = [text for text in texts if text.strip()][::every]
  theirs = [reference.encode(text, add_special_tokens=False) for text in texts]
  assert ours.encode(texts) == theirs
  # Records store normalised expressions.
  normal = [normalise_text(text) for text in texts]
  assert ours.encode(normal) == [reference.encode(t, add_special_tokens=False) for t in normal]
  tokens, lengths, was_cut = ours(texts, LENGTH)
  assert not was_cut.any()
  rows = reference(texts, padding="max_length", max_length=LENGTH)
  assert tokens.tolist() == rows["input_ids"]
  assert lengths.tolist() == [sum(mask) for mask in rows["attention_mask"]]


@hypothesis.settings(max_examples=10_000)
@hypothesis.given(text=st.text(max_size=60))
def test_any_text_has_the_same_ids(reference, ours, text):
  """Except special tokens written out in a text, which are plain text to us."""
  hypothesis.assume(not any(mark in text for mark in reference.all_special_tokens))
  theirs = reference.encode(text, add_special_tokens=False)
  if theirs:
    assert ours.encode([text]) == [theirs]
  else:
    with pytest.raises(InputError, match="is empty"):
      ours.encode([text])
