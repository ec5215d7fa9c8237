"""Expressions: their normal form, and what mirroring an image does to them."""

import re
import unicodedata

from ..common.errors import InputError

_FORMAT_CATEGORIES = ("Cc", "Cf", "Co", "Cs")
_OTHER_SIDE = {
  "left": "right",
  "Left": "Right",
  "LEFT": "RIGHT",
  "right": "left",
  "Right": "Left",
  "RIGHT": "LEFT",
}
# What people attach to left and right in RefCOCO expressions. "up" is not among the prefixes
# (upright), nor "over" among the suffixes (leftover): a compound that is not listed stays as it is.
_SIDE = re.compile(
  r"\b((?i:on|the|far|top|bottom|upper|lower|front|back|middle|mid|center|centre)?)"
  r"(left|right|Left|Right|LEFT|RIGHT)"
  r"(?=(?i:most|est|iest|yest|ier|y|ish|side|hand|handed|facing|wards?"
  r"|top|bottom|upper|lower|front|back|middle|center|centre|corner)?\b)"
)


def normalise_text(text: str) -> str:
  """Normalises an expression: NFKC, no control characters, lower case, single spaces.

  Applying it twice changes nothing.

  Args:
    text: an expression as a person typed it.

  Returns:
    The expression as tokenizers see it; never empty.

  Raises:
    InputError: nothing is left of the text.
  """
  if text.isascii() and text.isprintable():
    normal = text.lower()
  else:
    normal = unicodedata.normalize("NFKC", "".join(map(_without_control, text)))
    # Lower-casing can leave characters that compose, and composing can leave capitals.
    normal = unicodedata.normalize("NFKC", normal.lower()).lower()
  normal = " ".join(normal.split())
  if not normal:
    raise empty_text(text)
  return normal


def is_expression(text: str) -> bool:
  """Returns whether a text is not empty after normalisation."""
  try:
    normalise_text(text)
  except InputError:
    return False
  return True


def empty_text(text: str) -> InputError:
  """Returns the error for an expression without a visible character."""
  return InputError(
    f"expression {text[:40]!r} is empty; write what to look for, such as 'the leftmost cup'"
  )


def _without_control(char: str) -> str:
  if char.isspace():
    return " "
  return "" if unicodedata.category(char) in _FORMAT_CATEGORIES else char


def exchange_left_right(text: str) -> str:
  """Exchanges left and right in an expression, as mirroring the image requires.

  Covers compounds (leftmost, right-hand, topleft, lefty, rightside); never touches words that only
  contain the letters (bright, upright, leftover, copyright). Applying it twice gives the text back.
  """
  return _SIDE.sub(lambda match: match.group(1) + _OTHER_SIDE[match.group(2)], text)
