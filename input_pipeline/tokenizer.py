"""Text to token ids: SentencePiece, trained on the dataset itself and kept in the checkpoint."""

import collections
import io
import os
import tempfile
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
from jaxtyping import Bool, Int32
from sentencepiece import sentencepiece_model_pb2

from input_pipeline.errors import InputError
from input_pipeline.preprocess import normalise_text

_PAD, _UNK, _BOS, _EOS = range(4)
# SentencePiece leaves longer sentences out of the training; its own limit is 4192 bytes.
_WORD_START = "\u2581"
_MAX_PIECE = 16
_MAX_SEEDS = 1_000_000
_MAX_SENTENCE_BYTES = 1 << 16
# Below this many texts, starting threads costs more than they save (measured on 2 cores).
_THREADED_BATCH = 4096


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


class SentencePieceTokenizer:
  """A unigram SentencePiece model with byte fallback: every text has tokens, none is unknown.

  A text becomes `<s> pieces </s>`, padded with `pad_id`. Text is normalised by `normalise_text`
  alone; the model's own normalisation is off, so that decoding gives the normalised text back.

  Attributes:
    pad_id: the id that fills rows up to `max_tokens`.
    unk_id, bos_id, eos_id: the other special tokens; `unk_id` never comes out.
    vocab_size: number of ids.
  """

  def __init__(self, model: bytes):
    """Takes a serialised SentencePiece model, as `to_bytes` gives it.

    Raises:
      InputError: the bytes are not such a model.
    """
    self._model = bytes(model)
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
    except (RuntimeError, OSError) as error:
      raise InputError("tokenizer: these bytes are not a SentencePiece model") from error
    if not self._model:
      raise InputError("tokenizer: the SentencePiece model is empty")
    self.pad_id: int = self._processor.pad_id()
    self.unk_id: int = self._processor.unk_id()
    self.bos_id: int = self._processor.bos_id()
    self.eos_id: int = self._processor.eos_id()
    if (self.pad_id, self.unk_id, self.bos_id, self.eos_id) != (_PAD, _UNK, _BOS, _EOS):
      raise InputError(
        "tokenizer: the SentencePiece model needs pad, unk, bos, eos with ids 0, 1, 2, 3"
      )
    self.vocab_size: int = self._processor.vocab_size()

  @classmethod
  def train(cls, sentences: Iterable[str], vocab_size: int) -> "SentencePieceTokenizer":
    """Trains on sentences; the result depends on which sentences there are, not on their order.

    Args:
      sentences: expressions, raw or normalised; none may be empty.
      vocab_size: number of ids wanted, 256 bytes and 4 special tokens among them. Clipped to what
        the text allows.

    Raises:
      InputError: no sentence, an empty one, or a vocabulary too small for the bytes, the special
        tokens and the characters.
    """
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
          pad_id=_PAD,
          unk_id=_UNK,
          bos_id=_BOS,
          eos_id=_EOS,
          num_threads=1,
          minloglevel=2,
        )
    except RuntimeError as error:
      raise InputError(
        f"tokenizer: vocab_size {vocab_size} is too small for 256 bytes, 4 special tokens and the "
        f"characters of these sentences; {characters + 260} is enough"
      ) from error
    return cls(_without_path(model.getvalue()))

  @classmethod
  def from_bytes(cls, data: bytes) -> "SentencePieceTokenizer":
    """The tokenizer that `to_bytes` wrote; an `InputError` if the bytes are something else."""
    return cls(data)

  def to_bytes(self) -> bytes:
    """The whole tokenizer, for the checkpoint."""
    return self._model

  def __call__(
    self, texts: Sequence[str], max_tokens: int
  ) -> tuple[Int32[np.ndarray, "b {max_tokens}"], Int32[np.ndarray, "b"], Bool[np.ndarray, "b"]]:
    """Tokenizes a batch.

    Args:
      texts: expressions, raw or normalised.
      max_tokens: length of a row, `<s>` and `</s>` included; at least 3.

    Returns:
      Ids padded with `pad_id`; the number of ids of each row; whether a text was cut. A cut row
      still ends in `</s>`.

    Raises:
      InputError: a text is empty, or `max_tokens` leaves no room for text.
    """
    if max_tokens < 3:
      raise InputError(
        f"max_tokens is {max_tokens}; it must be at least 3, two of them are <s> and </s>"
      )
    pieces = self._encode([normalise_text(text) for text in texts])
    ids = np.full((len(texts), max_tokens), self.pad_id, np.int32)
    lengths = np.zeros(len(texts), np.int32)
    was_cut = np.zeros(len(texts), bool)
    for row, piece in enumerate(pieces):
      kept = piece[: max_tokens - 2]
      ids[row, : len(kept) + 2] = [self.bos_id, *kept, self.eos_id]
      lengths[row] = len(kept) + 2
      was_cut[row] = len(piece) > len(kept)
    return ids, lengths, was_cut

  def decode(self, ids: Int32[np.ndarray, "l"]) -> str:
    """The text of ids; special tokens and padding are skipped."""
    return self._processor.decode(ids[~np.isin(ids, (_PAD, _BOS, _EOS))].tolist())

  def _encode(self, texts: list[str]) -> list[list[int]]:
    threads = (os.cpu_count() or 1) if len(texts) >= _THREADED_BATCH else 1
    return self._processor.encode(texts, out_type=int, num_threads=threads)
