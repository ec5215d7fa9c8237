"""Short fingerprints: the first 64 bits of a SHA-256, as 16 hexadecimal digits."""

import hashlib
import os
from typing import Any

from input_pipeline.common import places
from input_pipeline.common.errors import InputError

DIGITS = 16


def of_bytes(data: bytes) -> str:
  """Returns the fingerprint of bytes."""
  return of_digest(hashlib.sha256(data))


def of_digest(digest: Any) -> str:
  """Returns the fingerprint of all that was fed to a `hashlib.sha256` object."""
  return digest.hexdigest()[:DIGITS]


def of_file(path: str | os.PathLike) -> str:
  """Returns the fingerprint of a file's content, given its path or address.

  Raises:
    InputError: there is no such file, or it cannot be read.
  """
  try:
    with open(places.local_copy(os.fspath(path)), "rb") as file:
      return of_digest(hashlib.file_digest(file, "sha256"))
  except OSError as error:
    raise InputError(f"{path}: {error.strerror or error}") from error
