"""Explains a choice of instance: what it becomes without each word and without each instance."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float32

from input_pipeline.preprocess import bit_planes, model_inputs
from input_pipeline.preprocess.tokenizer import Tokenizer

# Rows of a call of the model: one size is compiled, and memory stays that of a small batch.
_ROWS = 8

Choose = Callable[[Mapping[str, Any]], Float32[np.ndarray, "b j"]]
"""Returns the probabilities of the instances of a batch, with that of "none" last."""


@dataclasses.dataclass(frozen=True)
class Explanation:
  """What the choice of an instance depends on, by leaving out one part of the input at a time.

  Every number is a probability that the model gives, not an estimate.

  Attributes:
    words: of the expression, as white space separates them.
    probability: of each instance, and of "none" last.
    without_word: the same without each word; all zero where an expression has no other.
    without_instance: the same without each instance, whose own probability is 0 then.
    chosen: index of the most probable instance; their number for "none".
  """

  words: tuple[str, ...]
  probability: Float32[np.ndarray, "j"]
  without_word: Float32[np.ndarray, "w j"]
  without_instance: Float32[np.ndarray, "k j"]
  chosen: int

  @property
  def word_effects(self) -> Float[np.ndarray, "w"]:
    """By how much the probability of what is chosen falls without each word, in [-1, 1]."""
    return self.probability[self.chosen] - self.without_word[:, self.chosen]

  @property
  def deciding_word(self) -> int:
    """Index of the word without which what is chosen is the least probable."""
    return int(np.argmax(self.word_effects))

  @property
  def rivals(self) -> list[int]:
    """What is chosen without each instance: an index, or their number for "none"."""
    return [int(np.argmax(row)) for row in self.without_instance]

  def name(self, index: int) -> str:
    """Names what is chosen by an index: `instance 1` for 0, or `none`."""
    return "none" if index == len(self.without_instance) else f"instance {index + 1}"

  def lines(self) -> list[str]:
    """Writes the explanation for a terminal: the choice, the effect of each word, the rival."""
    width = max(len(word) for word in self.words)
    text = [f"{self.name(self.chosen)} has {self.probability[self.chosen]:.0%}; without"]
    for word, row in zip(self.words, self.without_word, strict=True):
      best = int(np.argmax(row))
      instead = "" if best == self.chosen else f", and {self.name(best)} {row[best]:.0%}"
      text.append(f"  {word:{width}}  {row[self.chosen]:4.0%}{instead}")
    if self.chosen < len(self.rivals):
      rival = self.rivals[self.chosen]
      share = self.without_instance[self.chosen][rival]
      text.append(f"  {self.name(self.chosen)} itself: {self.name(rival)} {share:.0%}")
    return text

  def to_json(self) -> dict[str, Any]:
    """Returns all fields as lists and numbers."""
    fields = dataclasses.asdict(self)
    return {
      name: value.tolist() if isinstance(value, np.ndarray) else value
      for name, value in fields.items()
    }


def explain(
  choose: Choose,
  image: dict[str, np.ndarray],
  expression: str,
  count: int,
  tokenizer: Tokenizer,
  max_tokens: int,
) -> Explanation:
  """Explains the choice of an instance for one expression.

  A word is left out, not replaced: what remains is an expression that people might say, while no
  token stands for a word that is unknown to the reader.

  Args:
    choose: runs the model on a batch, without its decoder where that is possible.
    image: the image's part of a batch of one, on the host.
    expression: as it was given.
    count: instances in `image`.
    tokenizer: of the model.
    max_tokens: of the model's config.
  """
  words = tuple(expression.split())
  whole = _text([expression], tokenizer, max_tokens)
  rows = [image | whole]
  others = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
  if len(words) > 1:
    rows += [image | _text([text], tokenizer, max_tokens) for text in others]
  rows += [_without_instance(image, count, k) | whole for k in range(count)]
  found = np.concatenate([choose(batch)[:n] for batch, n in _batches(rows)])
  # Slots without an instance have no probability.
  found = np.concatenate([found[:, :count], found[:, -1:]], 1)
  first = len(rows) - count
  without = np.zeros((count, count + 1), np.float32)
  for k in range(count):
    # The others have moved up by one slot.
    without[k, np.arange(count + 1) != k] = np.delete(found[first + k], count - 1)
  words_found = found[1:first] if len(words) > 1 else np.zeros((1, count + 1), np.float32)
  return Explanation(words, found[0], words_found, without, int(np.argmax(found[0])))


def _text(texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> dict[str, np.ndarray]:
  return model_inputs.prepare_text(texts, tokenizer, max_tokens=max_tokens)[0]


def _without_instance(
  image: dict[str, np.ndarray], count: int, left_out: int
) -> dict[str, np.ndarray]:
  """Returns the image's part of a batch without one of its instances."""
  planes = image["instances"][0]
  masks = np.delete(bit_planes.unpackbits(planes, count), left_out, 0)
  fewer = bit_planes.packbits(masks)
  fewer = np.pad(fewer, ((0, len(planes) - len(fewer)), (0, 0), (0, 0)))
  return {**image, "instances": fewer[None], "num_instances": image["num_instances"] - 1}


def _batches(rows: Sequence[Mapping[str, np.ndarray]]) -> Iterator[tuple[dict[str, Any], int]]:
  """Yields batches of one size, the last of which repeats a row, with the rows that count."""
  for start in range(0, len(rows), _ROWS):
    some = [*rows[start : start + _ROWS]]
    padded = [*some, *[some[-1]] * (_ROWS - len(some))]
    yield jax.tree.map(lambda *values: np.concatenate(values), *padded), len(some)
