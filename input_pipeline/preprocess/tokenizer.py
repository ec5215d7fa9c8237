"""Text to token ids: BERT's WordPiece, BEiT-3's SentencePiece, or one trained on expressions.

The libraries are imported where they are used: an exported model needs only that of its
tokenizer.
"""

import abc
import collections
import io
import os
import pathlib
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..common.errors import InputError
from .array_types import Bool, Int32
from .text import empty_text, normalise_text

# Below this many texts, starting threads costs more than they save (measured on 2 cores).
_THREADED_BATCH = 4096
# In characters; BERT's limit, above which a word is unknown.
_MAX_WORD = 100
_CHINESE = (
  (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
  (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F),
)  # fmt: skip
_PAD, _UNK, _BOS, _EOS = range(4)
_WORD_START = "\u2581"
_MAX_PIECE = 16
_MAX_SEEDS = 1_000_000
# SentencePiece leaves longer sentences out of the training; its default is 4192 bytes.
_MAX_SENTENCE_BYTES = 1 << 16


class Tokenizer(abc.ABC):
  """Text to rows of `begin pieces end`, padded with `pad_id`.

  Special tokens written out in a text are plain text.

  Attributes:
    kind: `wordpiece`, `sentencepiece` or `beit3`.
    pad_id: fills rows up to `max_tokens`.
    unk_id: the unknown token.
    bos_id: begins a row.
    eos_id: ends a row.
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
      Ids padded with `pad_id`; the number of ids of each row; whether a text was truncated. A
      truncated row still has its end token.

    Raises:
      InputError: a text is empty, or `max_tokens` leaves no room for text.
    """
    if max_tokens < 3:
      raise InputError(
        f"max_tokens is {max_tokens}; it must be at least 3: begin, end and room for text"
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

  def pieces(self) -> list[str]:
    """Returns the text of every id, by which tokenizers of any kind can be compared.

    `\u2581` begins a word, and the special tokens are `<pad>`, `<unk>`, `<s>` and `</s>`.
    """
    texts = self._texts()
    special = (self.pad_id, self.unk_id, self.bos_id, self.eos_id)
    for token, text in zip(special, ("<pad>", "<unk>", "<s>", "</s>"), strict=True):
      texts[token] = text
    return texts

  @abc.abstractmethod
  def _texts(self) -> list[str]:
    """Returns the texts for `pieces`, with any texts for the special tokens."""

  @abc.abstractmethod
  def decode(self, ids: Int32[np.ndarray, "l"]) -> str:
    """Returns the text of ids, without special tokens and padding."""

  @abc.abstractmethod
  def to_bytes(self) -> bytes:
    """Serialises the whole tokenizer for the checkpoint; `from_bytes` restores it."""

  @abc.abstractmethod
  def file_bytes(self) -> bytes:
    """Returns the file that the tokenizer was made from; `from_file_bytes` restores it."""

  @abc.abstractmethod
  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each text, without begin, end and truncation.

    Raises:
      InputError: a text is empty.
    """


class WordPieceTokenizer(Tokenizer):
  """BERT's uncased WordPiece: the ids of `transformers.BertTokenizer`, as ViLT's weights expect.

  A text becomes `[CLS] pieces [SEP]`. Cleaning, lower-casing and splitting follow BERT, and so does
  what becomes `[UNK]`: a word of more than 100 characters, or with a character that the vocabulary
  lacks.
  """

  kind = "wordpiece"

  def __init__(self, vocab: bytes, name: str = "vocab.txt"):
    """Loads a BERT vocabulary.

    Args:
      vocab: UTF-8 text, one piece per line; the line number, from 0, is the id.
      name: of the file, for error messages.

    Raises:
      InputError: the bytes are not such a vocabulary.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    self._vocab = bytes(vocab)
    try:
      lines = self._vocab.decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
      raise InputError(f"tokenizer: {name} is not UTF-8 text, one word piece per line") from error
    self._lines = lines
    ids = {piece: number for number, piece in enumerate(lines)}
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    missing = [token for token in special if token not in ids]
    if missing:
      raise InputError(
        f"tokenizer: {name} lacks {', '.join(missing)}; it should be the vocab.txt of a BERT or "
        "ViLT folder"
      )
    self.pad_id, self.unk_id, self.bos_id, self.eos_id = (ids[token] for token in special)
    self.vocab_size = len(lines)
    model = models.WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=_MAX_WORD)
    # Compiled code cleans and splits ASCII, which is nearly all text; `basic_tokens` does the rest.
    self._ascii_tokenizer = tokenizers.Tokenizer(model)
    self._word_tokenizer = tokenizers.Tokenizer(model)
    self._ascii_tokenizer.normalizer = normalizers.BertNormalizer()
    self._ascii_tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    self._word_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    self._word_tokenizer.decoder = decoders.WordPiece(cleanup=False)

  def _texts(self) -> list[str]:
    marks = ((line.startswith("##"), line) for line in self._lines)
    return [line[2:] if inside else _WORD_START + line for inside, line in marks]

  def decode(self, ids: Int32[np.ndarray, "l"]) -> str:
    """Returns the text of ids, pieces joined to words, without special tokens and padding."""
    special = (self.pad_id, self.bos_id, self.eos_id)
    return self._word_tokenizer.decode(ids[~np.isin(ids, special)])

  def to_bytes(self) -> bytes:
    """Returns the vocabulary after a line with the tokenizer's kind."""
    return _with_kind(self.kind, self._vocab)

  def file_bytes(self) -> bytes:
    """Returns the vocabulary, one piece per line."""
    return self._vocab

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each text, without begin, end and truncation.

    Raises:
      InputError: a text is empty.
    """
    pieces: list[list[int]] = [[]] * len(texts)
    for is_ascii, tokenizer in ((True, self._ascii_tokenizer), (False, self._word_tokenizer)):
      rows = [row for row, text in enumerate(texts) if text.isascii() == is_ascii]
      some = [texts[row] if is_ascii else " ".join(basic_tokens(texts[row])) for row in rows]
      encodings = tokenizer.encode_batch_fast(some, add_special_tokens=False)
      for row, encoding in zip(rows, encodings, strict=True):
        pieces[row] = encoding.ids
        if not pieces[row]:
          raise empty_text(texts[row])
    return pieces


def basic_tokens(text: str) -> list[str]:
  """Splits text into words as BERT does before WordPiece.

  From the released code of Devlin et al., arXiv 1810.04805.

  Words are lower-case and without accents; punctuation and Chinese characters are words by
  themselves. The compiled tokenizers do the same with the tables of another Unicode version than
  Python's.
  """
  cleaned = unicodedata.normalize("NFC", "".join(map(_clean, text)))
  words = []
  for word in cleaned.split():
    plain = unicodedata.normalize("NFD", word.lower())
    words += "".join(_separate_punctuation(plain)).split()
  return words


def _clean(char: str) -> str:
  """Drops what is invisible, unifies spaces, and separates Chinese characters by spaces."""
  if char in "\t\n\r" or unicodedata.category(char) == "Zs":
    return " "
  if char == "\ufffd" or unicodedata.category(char).startswith("C"):
    return ""
  return f" {char} " if any(low <= ord(char) <= high for low, high in _CHINESE) else char


def _separate_punctuation(word: str) -> Iterator[str]:
  for char in word:
    category = unicodedata.category(char)
    # BERT counts every ASCII character that is neither letter nor digit as punctuation.
    if category.startswith("P") or (char.isascii() and not char.isalnum()):
      yield f" {char} "
    elif category != "Mn":
      yield char


class SentencePieceTokenizer(Tokenizer):
  """A unigram SentencePiece model with byte fallback: every text has tokens, none is unknown.

  A text becomes `<s> pieces </s>`. Only `normalise_text` normalises text; the model's own
  normalisation is off, so that decoding returns the normalised text.
  """

  kind = "sentencepiece"

  def __init__(self, model: bytes, name: str = "the model"):
    """Loads a serialised SentencePiece model.

    Args:
      model: bytes of a `.model` file.
      name: of the file, for error messages.

    Raises:
      InputError: the bytes are not such a model, or its special tokens have other ids.
    """
    self._model = bytes(model)
    self._processor = processor = _open_model(self._model, name)
    self.pad_id, self.unk_id = processor.pad_id(), processor.unk_id()
    self.bos_id, self.eos_id = processor.bos_id(), processor.eos_id()
    if (self.pad_id, self.unk_id, self.bos_id, self.eos_id) != (_PAD, _UNK, _BOS, _EOS):
      raise InputError(
        f"tokenizer: {name} must have pad, unk, bos, eos with the ids 0, 1, 2, 3; train it with "
        "python -m input_pipeline.tokenizer"
      )
    self.vocab_size = processor.vocab_size()

  @classmethod
  def train(cls, sentences: Iterable[str], vocab_size: int) -> "SentencePieceTokenizer":
    """Trains on expressions; the result depends on the set of expressions, not on their order.

    Args:
      sentences: expressions, raw or normalised; none may be empty.
      vocab_size: number of ids wanted, including 256 bytes and 4 special tokens. Reduced to what
        the text allows.

    Raises:
      InputError: no expression, an empty one, or a vocabulary too small for the bytes, the special
        tokens and the characters.
    """
    return cls(_train_model(sentences, vocab_size))

  def _texts(self) -> list[str]:
    return [self._processor.id_to_piece(i) for i in range(self.vocab_size)]

  def decode(self, ids: Int32[np.ndarray, "l"]) -> str:
    """Returns the normalised text of ids, without special tokens and padding."""
    special = (self.pad_id, self.bos_id, self.eos_id)
    return self._processor.decode(ids[~np.isin(ids, special)].tolist())

  def to_bytes(self) -> bytes:
    """Returns the model after a line with the tokenizer's kind."""
    return _with_kind(self.kind, self._model)

  def file_bytes(self) -> bytes:
    """Returns the bytes of a `.model` file, as SentencePiece's own tools read it."""
    return self._model

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each text, without begin, end and truncation.

    Raises:
      InputError: a text is empty.
    """
    return _encode(self._processor, texts)


class Beit3Tokenizer(Tokenizer):
  """The tokenizer of BEiT-3's weights: its SentencePiece model, `beit3.spm`, with fairseq's ids.

  A text becomes `<s> pieces </s>`, after `normalise_text` and the model's own normalisation, with
  the ids of `transformers.XLMRobertaTokenizer` before 5.0.
  """

  kind = "beit3"
  # Of fairseq, whose dictionary begins with them; other pieces are one after their own number.
  bos_id, pad_id, eos_id, unk_id = range(4)
  # BEiT-3's table has 64,010 words for 64,000 pieces: one more for padding, one for masked words,
  # and eight that nothing uses.
  _MORE_IDS = 10

  def __init__(self, model: bytes, name: str = "beit3.spm"):
    """Loads a serialised SentencePiece model.

    Args:
      model: bytes of `beit3.spm`.
      name: of the file, for error messages.

    Raises:
      InputError: the bytes are not such a model, or its special tokens have other ids.
    """
    self._model = bytes(model)
    self._processor = processor = _open_model(self._model, name)
    special = (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id())
    if special != (0, 1, 2, -1):
      raise InputError(
        f"tokenizer: {name} must have unk, bos, eos with the ids 0, 1, 2 and no pad, as the "
        "beit3.spm of BEiT-3's weights; a model of your own is sentencepiece:FILE.model"
      )
    self._pieces = processor.vocab_size()
    self.vocab_size = self._pieces + self._MORE_IDS

  def decode(self, ids: Int32[np.ndarray, "l"]) -> str:
    """Returns the normalised text of ids, without special tokens and padding."""
    pieces = ids[(ids >= self.unk_id) & (ids <= self._pieces)]
    return self._processor.decode(np.where(pieces == self.unk_id, 0, pieces - 1).tolist())

  def _texts(self) -> list[str]:
    known = [self._processor.id_to_piece(i) for i in range(self._pieces)]
    more = [f"<beit3 {i}>" for i in range(1, self._MORE_IDS)]
    # The first piece stands for what is unknown, and has another id.
    return [known[0], *known, *more]

  def to_bytes(self) -> bytes:
    """Returns the model after a line with the tokenizer's kind."""
    return _with_kind(self.kind, self._model)

  def file_bytes(self) -> bytes:
    """Returns the bytes of `beit3.spm`."""
    return self._model

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each text, without begin, end and truncation.

    Raises:
      InputError: a text is empty.
    """
    rows = []
    for text, pieces in zip(texts, _encode(self._processor, texts), strict=True):
      if not pieces:
        raise empty_text(text)
      rows.append([piece + 1 if piece else self.unk_id for piece in pieces])
    return rows


def _open_model(model: bytes, name: str) -> Any:
  import sentencepiece

  if not model:
    raise InputError(f"tokenizer: {name} is not a SentencePiece model but empty")
  try:
    return sentencepiece.SentencePieceProcessor(model_proto=model)
  except (RuntimeError, OSError) as error:
    raise InputError(f"tokenizer: {name} is not a SentencePiece model") from error


def _encode(processor: Any, texts: Sequence[str]) -> list[list[int]]:
  """Returns the numbers of the pieces of each text, after `normalise_text`."""
  normal = [normalise_text(text) for text in texts]
  threads = (os.cpu_count() or 1) if len(texts) >= _THREADED_BATCH else 1
  return processor.encode(normal, out_type=int, num_threads=threads)


def _train_model(sentences: Iterable[str], vocab_size: int) -> bytes:
  import sentencepiece

  normal = sorted(map(normalise_text, sentences))
  if not normal:
    raise InputError("tokenizer: no expressions to train on; is the train split empty?")
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
      f"characters of these expressions; {characters + 260} is enough"
    ) from error
  return _without_seeds_path(model.getvalue())


def _seed_pieces(sentences: Iterable[str]) -> list[tuple[str, int]]:
  """Returns candidate pieces, all substrings of words, those that cover most characters first.

  SentencePiece's own candidates are substrings that two different words share, which splits the
  words of a small vocabulary into letters: "green" became five pieces with the forty words of the
  generated scenes.
  """
  counts: collections.Counter[str] = collections.Counter()
  for word, count in collections.Counter(w for s in sentences for w in s.split()).items():
    marked = _WORD_START + word
    for start in range(len(marked)):
      for end in range(start + 2, min(len(marked), start + _MAX_PIECE) + 1):
        counts[marked[start:end]] += count
  scored = [(piece, count * len(piece)) for piece, count in counts.items()]
  return sorted(scored, key=lambda row: (-row[1], row[0]))[:_MAX_SEEDS]


def _without_seeds_path(model: bytes) -> bytes:
  """Removes the name of the temporary file from the model, so that its bytes are reproducible."""
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # pyright: ignore
  proto.trainer_spec.ClearField("seed_sentencepieces_file")
  return proto.SerializeToString(deterministic=True)


_CLASSES = {
  tokenizer.kind: tokenizer
  for tokenizer in (WordPieceTokenizer, SentencePieceTokenizer, Beit3Tokenizer)
}


def _with_kind(kind: str, data: bytes) -> bytes:
  return kind.encode() + b"\n" + data


def from_bytes(data: bytes) -> Tokenizer:
  """Restores the tokenizer that `to_bytes` serialised.

  Raises:
    InputError: the bytes are not a serialised tokenizer.
  """
  kind, _, content = data.partition(b"\n")
  name = kind[:32].decode("ascii", "replace")
  if name not in _CLASSES:
    raise InputError(
      f"tokenizer: not a serialised tokenizer; its kind must be one of {', '.join(_CLASSES)}"
    )
  return _CLASSES[name](content, f"the {name} tokenizer")


def from_file_bytes(kind: str, data: bytes, name: str) -> Tokenizer:
  """Makes a tokenizer from the bytes of a vocabulary or of a SentencePiece model.

  Raises:
    InputError: unknown kind, or the bytes are not such a file.
  """
  if kind not in _CLASSES:
    raise InputError(f"tokenizer: {name} is of the kind {kind!r}, not one of {', '.join(_CLASSES)}")
  return _CLASSES[kind](data, name)


def open_tokenizer(spec: str) -> Tokenizer:
  """Opens a tokenizer from a file.

  Args:
    spec: `wordpiece:VOCAB.txt`, `sentencepiece:FILE.model` or `beit3:beit3.spm`.

  Raises:
    InputError: unknown kind, no such file, or the file is not of this kind.
  """
  kind, _, path = spec.partition(":")
  if kind not in _CLASSES:
    raise InputError(
      f"config.tokenizer {spec!r} is not wordpiece:VOCAB.txt, sentencepiece:FILE.model or "
      "beit3:beit3.spm"
    )
  try:
    data = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise InputError(f"config.tokenizer: {path}: {error.strerror}") from error
  return _CLASSES[kind](data, path)
