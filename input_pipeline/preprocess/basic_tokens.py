"""Text to words as BERT does it, before words are cut into pieces (Devlin et al., arXiv 1810.04805, released code)."""

import unicodedata
from collections.abc import Iterator

_CHINESE = (
  (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
  (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def basic_tokens(text: str) -> list[str]:
  """Splits text into lower-case words without accents; punctuation and Chinese characters are words of their own.

  The compiled tokenizers do so too, with tables of another version of Unicode than Python's.
  """
  cleaned = unicodedata.normalize("NFC", "".join(map(_clean, text)))
  words = []
  for word in cleaned.split():
    plain = unicodedata.normalize("NFD", word.lower())
    words += "".join(_apart(plain)).split()
  return words


def _clean(char: str) -> str:
  """Without what cannot be seen; spaces are spaces, and Chinese characters stand alone."""
  if char in "\t\n\r" or unicodedata.category(char) == "Zs":
    return " "
  if char == "\ufffd" or unicodedata.category(char).startswith("C"):
    return ""
  return f" {char} " if any(low <= ord(char) <= high for low, high in _CHINESE) else char


def _apart(word: str) -> Iterator[str]:
  for char in word:
    kind = unicodedata.category(char)
    # BERT counts every ASCII sign that is no letter and no digit as punctuation.
    if kind.startswith("P") or (char.isascii() and not char.isalnum()):
      yield f" {char} "
    elif kind != "Mn":
      yield char
