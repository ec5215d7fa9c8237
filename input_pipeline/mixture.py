"""Mixtures of data sets, written as text: `refcoco_unc:2,refcoco+_unc:1,grefcoco_unc:1:multi`.

A single name is a mixture of one. Without weights the data sets come by size.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence
from fractions import Fraction

from input_pipeline.common.errors import InputError

OPTIONS = ("multi", "no_target")
"""What a data set of a mixture may say of its expressions: they may have several targets, or none.
Without `multi`, a model that selects any number of instances learns exactly one; without
`no_target`, the expressions do not teach the output for expressions without a target."""
MEAN = "mean"
"""What the mean over several evaluated splits is called in the log."""

_WAY_OUT = "write NAME,NAME or NAME:WEIGHT,NAME:WEIGHT, such as refcoco_unc:2,refcoco+_unc:1"
# Weights by size with a temperature are multiples of 1 / _STEPS.
_STEPS = 2**20


@dataclasses.dataclass(frozen=True)
class Part:
  """A data set of a mixture.

  Attributes:
    name: of the data set.
    weight: how often its samples come, relative to the other data sets; None for by size.
    options: of OPTIONS.
  """

  name: str
  weight: Fraction | None = None
  options: frozenset[str] = frozenset()


def parse(text: str) -> tuple[Part, ...]:
  """Parses `config.dataset`.

  Raises:
    InputError: it is not a name or a mixture.
  """
  parts = tuple(_part(text, entry.strip()) for entry in text.split(","))
  names = [part.name for part in parts]
  if len({*names}) < len(names):
    name = next(name for name in names if names.count(name) > 1)
    raise InputError(f"config.dataset {text!r}: {name} comes twice; name it once, with a weight")
  if len({part.weight is None for part in parts}) > 1:
    raise InputError(f"config.dataset {text!r}: give all data sets a weight, or none")
  return parts


def _part(text: str, entry: str) -> Part:
  name, *rest = (word.strip() for word in entry.split(":"))
  if not name:
    raise InputError(f"config.dataset {text!r}: a name is missing; {_WAY_OUT}")
  weight = None
  if rest and rest[0] not in OPTIONS:
    try:
      weight = Fraction(rest.pop(0))
    except (ValueError, ZeroDivisionError):
      weight = Fraction(0)
    if weight <= 0:
      raise InputError(
        f"config.dataset {text!r}: the weight of {name} is not a number above 0; {_WAY_OUT}"
      )
  unknown = [word for word in rest if word not in OPTIONS]
  if unknown:
    raise InputError(
      f"config.dataset {text!r}: {unknown[0]!r} of {name} is not one of {', '.join(OPTIONS)}"
    )
  return Part(name, weight, frozenset(rest))


def several(text: str) -> tuple[Part, ...]:
  """Returns the data sets of a mixture; none for a single name."""
  parts = parse(text)
  return parts if len(parts) > 1 else ()


def weights(parts: Sequence[Part], sizes: Sequence[int], temperature: float) -> tuple[int, ...]:
  """Returns how often the samples of each data set come, as integers.

  Args:
    parts: of a mixture.
    sizes: refs of each.
    temperature: without weights, each comes in proportion to the size to the power of
      1 / temperature: 1 takes every ref equally often, infinity every data set.

  Raises:
    InputError: the temperature is not positive, or is set although there are weights.
  """
  if not temperature > 0:
    raise InputError(f"config.mixture_temperature is {temperature}; it must be above 0")
  given = [part.weight for part in parts if part.weight is not None]
  if given and temperature != 1:
    raise InputError(
      f"config.mixture_temperature is {temperature}, but config.dataset has weights; set it to "
      "1.0, or leave them out"
    )
  if given:
    multiple = math.lcm(*(weight.denominator for weight in given))
    whole = [int(weight * multiple) for weight in given]
    common = math.gcd(*whole)
    return tuple(weight // common for weight in whole)
  if temperature == 1:
    return tuple(sizes)
  powers = [size ** (1 / temperature) for size in sizes]
  return tuple(max(1, round(_STEPS * power / sum(powers))) for power in powers)


def evaluated(dataset: str, eval_split: str) -> dict[str, str]:
  """Returns the splits that training evaluates on, DATASET/SPLIT, by their names in the log.

  Args:
    dataset: `config.dataset`.
    eval_split: `config.eval_split`: SPLIT or DATASET/SPLIT, several separated by commas. Of a
      mixture, SPLIT is that of every data set.

  Raises:
    InputError: a name is incomplete.
  """
  names = [part.name for part in parse(dataset)]
  found: dict[str, str] = {}
  for word in filter(None, (word.strip() for word in eval_split.split(","))):
    if word.startswith("/") or word.endswith("/"):
      raise InputError(f"config.eval_split {word!r}: write SPLIT or DATASET/SPLIT")
    if "/" in word:
      found[word] = word
    elif len(names) == 1:
      found[word] = f"{names[0]}/{word}"
    else:
      found |= {f"{name}/{word}": f"{name}/{word}" for name in names}
  return found


def judged(labels: Collection[str]) -> str:
  """Returns the name in the log of the metrics that decide which checkpoint is the best.

  Args:
    labels: the keys of `evaluated`.
  """
  return MEAN if len(labels) > 1 else next(iter(labels), "")
