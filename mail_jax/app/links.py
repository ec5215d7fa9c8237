"""Links that restore an example: its photo, the expressions and the marks on the photo."""

import dataclasses
from urllib.parse import parse_qs, urlencode

from input_pipeline.common.errors import InputError
from mail_jax.app import marks as marks_of
from mail_jax.app.limits import Limits
from mail_jax.app.marks import Mark

# Longer addresses are cut or rejected by some proxies and chats.
MOST_CHARACTERS = 6000
# Characters of a photo's digest.
_DIGEST = 12


@dataclasses.dataclass(frozen=True)
class Shared:
  """What a link holds.

  Attributes:
    photo: the first characters of the SHA-256 of an example's file; empty for an uploaded photo,
      which no link can hold.
    expressions: to look for.
    marks: on the photo.
  """

  photo: str
  expressions: tuple[str, ...]
  marks: tuple[Mark, ...] = ()


def shorten_digest(digest: str) -> str:
  """Returns as much of a photo's digest as a link holds."""
  return digest[:_DIGEST]


def write(shared: Shared) -> str:
  """Returns the part of an address after the `?`; empty if it would be too long."""
  pairs = [("photo", shared.photo)] if shared.photo else []
  pairs += [("text", expression) for expression in shared.expressions]
  # Marks are fractions of the photo's sides: on another photo they would mean nothing.
  pairs += [("mark", str(mark)) for mark in shared.marks if shared.photo]
  query = urlencode(pairs)
  return query if len(query) <= MOST_CHARACTERS else ""


def read(query: str, limits: Limits) -> Shared | None:
  """Reads what `write` wrote, from an address that may hold anything.

  Args:
    query: the part of the address after the `?`, with or without it.
    limits: of the app.

  Returns:
    None if the address is that of the page alone.

  Raises:
    InputError: the address holds more than the page takes, or marks that cannot be read.
  """
  query = query.removeprefix("?")
  if len(query) > MOST_CHARACTERS:
    raise InputError("This link is too long to be one of this page's.")
  try:
    fields = parse_qs(query, max_num_fields=100, errors="strict")
  except (ValueError, UnicodeDecodeError) as error:
    raise InputError("This link is damaged: ask for it again, or start without it.") from error
  expressions = [" ".join(text.split()) for text in fields.get("text", [])]
  photo = fields.get("photo", [""])[0]
  if not photo and not expressions:
    return None
  if len(expressions) > limits.expressions:
    raise InputError(
      f"This link has {len(expressions)} expressions; the limit is {limits.expressions}."
    )
  marks = marks_of.read("\n".join(fields.get("mark", [])), limits)
  return Shared(photo, tuple(expressions), tuple(marks) if photo else ())
