"""The metrics of an evaluation as tables in percent, for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.common.text_table import text_table

COUNTS = ("expressions", "refs", "no_targets")
# What a table of kinds of sentences shows; the rest is in the JSON.
_GROUP_COLUMNS = (
  "expressions", "oIoU", "gIoU", "cIoU", "mIoU", "boundary_mIoU", "P@0.5", "P@0.7", "P@0.9", "N-acc", "T-acc",
  "selection_accuracy", "oracle_mIoU",
)  # fmt: skip
_INDENT = "  "
_GROUPS = {
  "by_size": "target, pixels of the photo (small: below 32 x 32, medium: below 96 x 96)",
  "by_words": "words of the sentence",
}


def metrics(results: Mapping[str, Mapping[str, Any]]) -> str:
  """The metrics of every split, a row a split; a dash where it has no such metric."""
  columns = list(
    dict.fromkeys(c for found in results.values() for c in found if _is_metric(found[c]))
  )
  rows = [["", *columns], *([name, *_cells(found, columns)] for name, found in results.items())]
  return text_table(rows)


def groups(results: Mapping[str, Mapping[str, Any]]) -> str:
  """The metrics of kinds of sentences, a row a kind of each split."""
  columns = [c for c in _GROUP_COLUMNS if any(c in found for found in results.values())]
  return text_table([["", *columns], *_groups(results, columns)])


def _groups(
  results: Mapping[str, Mapping[str, Any]], columns: Sequence[str]
) -> Iterator[list[str]]:
  for breakdown, title in _GROUPS.items():
    yield [title]
    for name, found in results.items():
      for kind, metrics in found[breakdown].items():
        yield [f"{_INDENT}{name} {kind}", *_cells(metrics, columns)]


def _is_metric(value: Any) -> bool:
  return isinstance(value, (int, float))


def _cells(found: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
  return [_cell(column, found.get(column)) for column in columns]


def _cell(column: str, value: Any) -> str:
  if not _is_metric(value):
    return "-"
  return f"{value:.0f}" if column in COUNTS else f"{100 * value:.2f}"
