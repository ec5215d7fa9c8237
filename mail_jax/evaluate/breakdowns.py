"""The metrics of kinds of sentences: by the size of what is meant, and by how many words say it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from input_pipeline.proposals.oracle import SIZES

Columns = Mapping[str, np.ndarray]
Summary = Callable[[Columns], Iterable[tuple[str, Any]]]
# 36, 49, 14 and 1 % of the sentences of RefCOCO's val; 2, 21, 51 and 26 % of those of RefCOCOg's (umd).
LENGTHS = {"1-2": (1, 2), "3-5": (3, 5), "6-10": (6, 10), "11+": (11, np.inf)}
"""Numbers of words, the least and the most."""


def breakdowns(columns: Columns, summary: Summary) -> dict[str, dict[str, dict[str, Any]]]:
  """Summarises the sentences of each kind; a kind without sentences is left out.

  Args:
    columns: a value a sentence; `area` is that of the target in pixels of the photo, `words` how many the sentence has.
    summary: of sentences, given their columns.

  Returns:
    `by_size` (COCO's sizes, and `none` where nothing is meant) and `by_words`, each from a kind to its metrics.
  """
  groups = {"by_size": _by_size(columns["area"]), "by_words": _by_words(columns["words"])}
  return {
    name: {
      kind: dict(summary({key: values[chosen] for key, values in columns.items()}))
      for kind, chosen in kinds
      if chosen.any()
    }
    for name, kinds in groups.items()
  }


def _by_size(area: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
  yield "none", area == 0
  least = 1.0
  for name, limit in SIZES.items():
    yield name, (area >= least) & (area < limit)
    least = limit


def _by_words(words: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
  for name, (least, most) in LENGTHS.items():
    yield name, (words >= least) & (words <= most)
