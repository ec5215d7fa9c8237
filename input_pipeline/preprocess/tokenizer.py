"""Text to token ids: WordPiece with BERT's vocabulary, or SentencePiece trained on a data set's own sentences."""

import abc
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers import decoders, models, normalizers, pre_tokenizers

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import empty_text, normalise_text
from input_pipeline.preprocess.basic_tokens import basic_tokens
from input_pipeline.preprocess.sentencepiece_training import BOS, EOS, PAD, UNK, train_model

# Below this many texts, starting threads costs more than they save (measured on 2 cores).
_THREADED_BATCH = 4096
_LONGEST_WORD = 100  # characters; BERT calls longer words unknown


class Tokenizer(abc.ABC):
  """A text becomes `begin pieces end`, padded with `pad_id`.

  Special tokens that are written out in a text are only text.

  Attributes:
    kind: `wordpiece` or `sentencepiece`.
    pad_id: the id that fills rows up to `max_tokens`.
    unk_id, bos_id, eos_id: the other special tokens.
    vocab_size: number of ids.
  """

  kind: str
  pad_id: int
  unk_id: int
  bos_id: int
  eos_id: int
  vocab_size: int

  def __call__(
    self, texts: Sequence[str], max_tokens: int
  ) -> tuple[Int32[np.ndarray, "b {max_tokens}"], Int32[np.ndarray, "b"], Bool[np.ndarray, "b"]]:
    """Tokenizes a batch.

    Args:
      texts: expressions, raw or normalised.
      max_tokens: length of a row, begin and end included; at least 3.

    Returns:
      Ids padded with `pad_id`; the number of ids of each row; whether a text was cut. A cut row still has its end.

    Raises:
      InputError: a text is empty, or `max_tokens` leaves no room for text.
    """
    if max_tokens < 3:
      raise InputError(
        f"max_tokens is {max_tokens}; it must be at least 3, two of them are the marks of begin and end"
      )
    ids = np.full((len(texts), max_tokens), self.pad_id, np.int32)
    lengths = np.zeros(len(texts), np.int32)
    was_cut = np.zeros(len(texts), bool)
    for row, pieces in enumerate(self.encode(texts)):
      kept = pieces[: max_tokens - 2]
      ids[row, : len(kept) + 2] = [self.bos_id, *kept, self.eos_id]
      lengths[row] = len(kept) + 2
      was_cut[row] = len(pieces) > len(kept)
    return ids, lengths, was_cut

  @abc.abstractmethod
  def decode(self, ids: Int32[np.ndarray, "l"]) -> str:
    """The text of ids; special tokens and padding are skipped."""

  @abc.abstractmethod
  def to_bytes(self) -> bytes:
    """The whole tokenizer, for the checkpoint; `from_bytes` undoes it."""

  @abc.abstractmethod
  def file_bytes(self) -> bytes:
    """The file that the tokenizer was made of; `of_kind` undoes it."""

  @abc.abstractmethod
  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, whole and without marks; an `InputError` for an empty one."""


class WordPieceTokenizer(Tokenizer):
  """BERT's uncased WordPiece: the ids of `transformers.BertTokenizer`, which ViLT's weights go with.

  A text becomes `[CLS] pieces [SEP]`. Cleaning, lower-casing and splitting are BERT's own, and so is what becomes
  `[UNK]`: a word of more than 100 characters, or with a character that the vocabulary lacks.
  """

  kind = "wordpiece"

  def __init__(self, vocab: bytes, name: str = "vocab.txt"):
    """Takes a vocabulary as BERT has it.

    Args:
      vocab: UTF-8 text, one piece a line; the number of the line, from 0, is the id.
      name: what to call it in errors.

    Raises:
      InputError: the bytes are not such a vocabulary.
    """
    self._vocab = bytes(vocab)
    try:
      lines = self._vocab.decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
      raise InputError(f"tokenizer: {name} is not UTF-8 text, one word piece a line") from error
    ids = {piece: number for number, piece in enumerate(lines)}
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    missing = [mark for mark in special if mark not in ids]
    if missing:
      raise InputError(
        f"tokenizer: {name} lacks {', '.join(missing)}; it should be the vocab.txt of a BERT or ViLT folder"
      )
    self.pad_id, self.unk_id, self.bos_id, self.eos_id = (ids[mark] for mark in special)
    self.vocab_size = len(lines)
    model = models.WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD)
    # ASCII, which is nearly all there is, is cleaned and split by compiled code; other text by `basic_tokens`.
    self._of_ascii, self._of_words = tokenizers.Tokenizer(model), tokenizers.Tokenizer(model)
    self._of_ascii.normalizer = normalizers.BertNormalizer()
    self._of_ascii.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    self._of_words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    self._of_words.decoder = decoders.WordPiece(cleanup=False)

  def decode(self, ids: Int32[np.ndarray, "l"]) -> str:
    """The text of ids, pieces joined to words; special tokens and padding are skipped."""
    return self._of_words.decode(ids[~np.isin(ids, (self.pad_id, self.bos_id, self.eos_id))])

  def to_bytes(self) -> bytes:
    """The vocabulary, marked as one."""
    return _mark(self.kind, self._vocab)

  def file_bytes(self) -> bytes:
    """The vocabulary, one piece a line."""
    return self._vocab

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, whole and without marks; an `InputError` for an empty one."""
    pieces: list[list[int]] = [[]] * len(texts)
    for is_ascii, tokenizer in ((True, self._of_ascii), (False, self._of_words)):
      rows = [row for row, text in enumerate(texts) if text.isascii() == is_ascii]
      some = [texts[row] if is_ascii else " ".join(basic_tokens(texts[row])) for row in rows]
      encoded = tokenizer.encode_batch_fast(some, add_special_tokens=False)
      for row, found in zip(rows, encoded, strict=True):
        pieces[row] = found.ids
        if not pieces[row]:
          raise empty_text(texts[row])
    return pieces


class SentencePieceTokenizer(Tokenizer):
  """A unigram SentencePiece model with byte fallback: every text has tokens, none is unknown.

  A text becomes `<s> pieces </s>`. Text is normalised by `normalise_text` alone; the model's own normalisation is
  off, so that decoding gives the normalised text back.
  """

  kind = "sentencepiece"

  def __init__(self, model: bytes, name: str = "the model"):
    """Takes a serialised SentencePiece model.

    Args:
      model: bytes of a `.model` file.
      name: what to call it in errors.

    Raises:
      InputError: the bytes are not such a model, or it has other special tokens.
    """
    self._model = bytes(model)
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
    except (RuntimeError, OSError) as error:
      raise InputError(f"tokenizer: {name} is not a SentencePiece model") from error
    if not self._model:
      raise InputError(f"tokenizer: {name} is not a SentencePiece model, it is empty")
    of = self._processor
    self.pad_id, self.unk_id = of.pad_id(), of.unk_id()
    self.bos_id, self.eos_id = of.bos_id(), of.eos_id()
    expected = (PAD, UNK, BOS, EOS)
    if (self.pad_id, self.unk_id, self.bos_id, self.eos_id) != expected:
      raise InputError(
        f"tokenizer: {name} needs pad, unk, bos, eos with the ids 0, 1, 2, 3; train it with "
        "python -m input_pipeline.tokenizer"
      )
    self.vocab_size = of.vocab_size()

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
    return cls(train_model(sentences, vocab_size))

  def decode(self, ids: Int32[np.ndarray, "l"]) -> str:
    """The normalised text of ids; special tokens and padding are skipped."""
    special = (self.pad_id, self.bos_id, self.eos_id)
    return self._processor.decode(ids[~np.isin(ids, special)].tolist())

  def to_bytes(self) -> bytes:
    """The model, marked as one."""
    return _mark(self.kind, self._model)

  def file_bytes(self) -> bytes:
    """The bytes of a `.model` file, as SentencePiece's own tools read it."""
    return self._model

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, whole and without marks; an `InputError` for an empty one."""
    normal = [normalise_text(text) for text in texts]
    threads = (os.cpu_count() or 1) if len(texts) >= _THREADED_BATCH else 1
    return self._processor.encode(normal, out_type=int, num_threads=threads)


_KINDS = {kind.kind: kind for kind in (WordPieceTokenizer, SentencePieceTokenizer)}


def _mark(kind: str, data: bytes) -> bytes:
  return kind.encode() + b"\n" + data


def from_bytes(data: bytes) -> Tokenizer:
  """The tokenizer that `to_bytes` wrote.

  Raises:
    InputError: the bytes are something else.
  """
  kind, _, content = data.partition(b"\n")
  name = kind[:32].decode("ascii", "replace")
  if name not in _KINDS:
    raise InputError(f"tokenizer: these bytes are none of {', '.join(_KINDS)}")
  return _KINDS[name](content, f"the {name} tokenizer")


def of_kind(kind: str, data: bytes, name: str) -> Tokenizer:
  """A tokenizer from the bytes of the file that a user would have of it, a vocabulary or a SentencePiece model.

  Raises:
    InputError: an unknown kind, or bytes of something else.
  """
  if kind not in _KINDS:
    raise InputError(f"tokenizer: {name} is of the kind {kind!r}, none of {', '.join(_KINDS)}")
  return _KINDS[kind](data, name)


def open_tokenizer(spec: str) -> Tokenizer:
  """Opens a tokenizer from a file.

  Args:
    spec: `wordpiece:VOCAB.txt` or `sentencepiece:FILE.model`.

  Raises:
    InputError: another kind, no such file, or a file of another kind.
  """
  kind, _, path = spec.partition(":")
  if kind not in _KINDS:
    raise InputError(
      f"config.tokenizer {spec!r} is not wordpiece:VOCAB.txt or sentencepiece:FILE.model"
    )
  try:
    data = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise InputError(f"config.tokenizer: {path}: {error.strerror}") from error
  return _KINDS[kind](data, path)
