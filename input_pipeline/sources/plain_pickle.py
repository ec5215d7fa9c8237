"""Pickles of plain data, read without executing anything."""

import pickle
from typing import Any

from input_pipeline.errors import InputError


class _PlainUnpickler(pickle.Unpickler):
  """Builds numbers, text, lists and dicts; a pickle that names any class or function is refused.

  Nothing in a pickle runs but what `find_class` returns, so nothing runs.
  """

  def find_class(self, module_name: str, global_name: str, /) -> Any:
    raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def load(path: str) -> Any:
  """Returns the plain data of a pickle.

  Raises:
    InputError: the file is missing, is no pickle, or holds more than plain data.
  """
  try:
    # Python 2 wrote the official files: its byte strings are text to us.
    return _load(path, "utf-8")
  except UnicodeDecodeError:
    return _load(path, "latin-1")


def _load(path: str, encoding: str) -> Any:
  try:
    with open(path, "rb") as file:
      return _PlainUnpickler(file, encoding=encoding).load()
  except UnicodeDecodeError:
    raise
  except OSError as error:
    raise InputError(f"{path}: {error.strerror}") from error
  except Exception as error:  # Damaged pickles raise nearly anything.
    raise InputError(
      f"{path}: not a pickle of plain lists and dicts ({error}); nothing of it was executed. "
      "Download it again from a source that docs/data.md names"
    ) from error
