"""Trains a SentencePiece model on expressions."""

import collections
import io
import tempfile
from collections.abc import Iterable

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import normalise_text

PAD, UNK, BOS, EOS = range(4)
_WORD_START = "\u2581"
_MAX_PIECE = 16
_MAX_SEEDS = 1_000_000
# SentencePiece leaves longer sentences out of the training; its own limit is 4192 bytes.
_MAX_SENTENCE_BYTES = 1 << 16


def train_model(sentences: Iterable[str], vocab_size: int) -> bytes:
  """Trains a unigram model with byte fallback; see `tokenizer.SentencePieceTokenizer.train`."""
  normal = sorted(map(normalise_text, sentences))
  if not normal:
    raise InputError("tokenizer: no sentences to train on; is the train split empty?")
  characters = len(set().union(*normal)) + 1
  model = io.BytesIO()
  try:
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as seeds:
      seeds.writelines(f"{piece}\t{score}\n" for piece, score in _seed_pieces(normal))
      seeds.flush()
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(normal),
        model_writer=model,
        model_type="unigram",
        seed_sentencepieces_file=seeds.name,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        # Rare characters of a large alphabet are left to the bytes instead of crowding out words.
        character_coverage=1.0 if characters * 8 <= vocab_size else 0.9995,
        normalization_rule_name="identity",
        max_sentence_length=_MAX_SENTENCE_BYTES,
        pad_id=PAD,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        num_threads=1,
        minloglevel=2,
      )
  except RuntimeError as error:
    raise InputError(
      f"tokenizer: vocab_size {vocab_size} is too small for 256 bytes, 4 special tokens and the "
      f"characters of these sentences; {characters + 260} is enough"
    ) from error
  return _without_path(model.getvalue())


def _seed_pieces(sentences: Iterable[str]) -> list[tuple[str, int]]:
  """Candidates for pieces, best first: what stands in a word, by characters covered.

  SentencePiece's own candidates are what two different words share, so that a small vocabulary of words falls into
  letters: "green" became five pieces of generated scenes' forty words.
  """
  counts: collections.Counter[str] = collections.Counter()
  for word, count in collections.Counter(w for s in sentences for w in s.split()).items():
    marked = _WORD_START + word
    for start in range(len(marked)):
      for end in range(start + 2, min(len(marked), start + _MAX_PIECE) + 1):
        counts[marked[start:end]] += count
  scored = [(piece, count * len(piece)) for piece, count in counts.items()]
  return sorted(scored, key=lambda row: (-row[1], row[0]))[:_MAX_SEEDS]


def _without_path(model: bytes) -> bytes:
  """The model without the name of the temporary file that its candidates came from: the same bytes every time."""
  proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # pyright: ignore[reportAttributeAccessIssue]
  proto.trainer_spec.ClearField("seed_sentencepieces_file")
  return proto.SerializeToString(deterministic=True)
