"""The runs of a sweep: every combination of the values of some keys of a config."""

import dataclasses
import itertools
import urllib.parse
from collections.abc import Sequence

from input_pipeline.common.errors import InputError

SEED = "seed"
_OPEN, _CLOSE = "([{", ")]}"


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run.

  Attributes:
    values: of each key that the sweep changes, as they were written.
  """

  values: tuple[tuple[str, str], ...]

  @property
  def name(self) -> str:
    """The name of its folder, such as `optimizer.lr=1e-4,seed=0`."""
    return _join(self.values)

  @property
  def setting(self) -> str:
    """The same without the seed: runs of one setting differ by chance alone."""
    return _join([pair for pair in self.values if pair[0] != SEED]) or "all"

  @property
  def overrides(self) -> list[str]:
    """Arguments for `train`."""
    return [f"--config.{key}={value}" for key, value in self.values]


def _join(values: Sequence[tuple[str, str]]) -> str:
  text = ",".join(f"{key}={value}" for key, value in values)
  return urllib.parse.quote(text, safe="=,.+-()[] '")


def make(words: Sequence[str]) -> list[Trial]:
  """Returns the combinations; the values of the last key change first.

  Args:
    words: `KEY=VALUE,VALUE,...` each; values may be tuples, such as `(16,8,8)`.

  Raises:
    InputError: a word has another form, or a key or a value occurs twice.
  """
  axes: dict[str, list[str]] = {}
  for word in words:
    key, _, text = word.removeprefix("config.").partition("=")
    values = _split(text)
    if not key or not all(values):
      raise InputError(f"--set {word}: write KEY=VALUE,VALUE, such as optimizer.lr=1e-4,5e-5")
    if key in axes or len(set(values)) < len(values):
      raise InputError(f"--set {word}: has a key or a value a second time; name each once")
    axes[key] = values
  combined = itertools.product(*([(key, value) for value in axes[key]] for key in axes))
  return [Trial(tuple(values)) for values in combined]


def _split(text: str) -> list[str]:
  """Splits at the commas outside of brackets."""
  parts, depth = [""], 0
  for letter in text:
    depth += (letter in _OPEN) - (letter in _CLOSE)
    if letter == "," and not depth:
      parts.append("")
    else:
      parts[-1] += letter
  return [part.strip() for part in parts]
