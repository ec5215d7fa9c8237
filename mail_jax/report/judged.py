"""A split and what a model made of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mail_jax.evaluate.per_expression import Row


@dataclasses.dataclass(frozen=True)
class Judged:
  """The results of a split.

  Attributes:
    name: DATASET/SPLIT.
    metrics: fractions and counts by their name.
    rows: a sentence each, in the order of the data; at least one.
    groups: metrics of a part of the sentences, by what parts them (`by_size`, `by_words`) and the name of the part.
    instances: who made its instance masks, as `leakage.recall` says.
  """

  name: str
  metrics: Mapping[str, int | float]
  rows: Sequence[Row]
  groups: Mapping[str, Mapping[str, Mapping[str, int | float]]]
  instances: Mapping[str, Any]
