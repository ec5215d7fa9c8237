"""Formats the metrics of an evaluation as text tables, in percent."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.common.terminal import text_table

COUNTS = ("expressions", "refs", "no_targets")
# The metrics in the table of groups; the JSON has all of them.
_GROUP_COLUMNS = (
  "expressions",
  "oIoU",
  "gIoU",
  "cIoU",
  "mIoU",
  "boundary_mIoU",
  "P@0.5",
  "P@0.7",
  "P@0.9",
  "N-acc",
  "T-acc",
  "selection_accuracy",
  "oracle_mIoU",
)
_INDENT = "  "
_GROUPS = {
  "by_size": "by size of the target in pixels (small: below 32 x 32, medium: below 96 x 96)",
  "by_words": "by number of words",
}


def metrics(results: Mapping[str, Mapping[str, Any]]) -> str:
  """Formats the metrics of all splits, one row per split; a dash stands for a missing metric."""
  columns = list(
    dict.fromkeys(
      name for values in results.values() for name, value in values.items() if _is_metric(value)
    )
  )
  rows = [["", *columns], *([name, *_cells(values, columns)] for name, values in results.items())]
  return text_table(rows)


def groups(results: Mapping[str, Mapping[str, Any]]) -> str:
  """Formats the metrics of groups of expressions, one row per group and split."""
  columns = [
    column for column in _GROUP_COLUMNS if any(column in values for values in results.values())
  ]
  return text_table([["", *columns], *_group_rows(results, columns)])


def _group_rows(
  results: Mapping[str, Mapping[str, Any]], columns: Sequence[str]
) -> Iterator[list[str]]:
  for breakdown, title in _GROUPS.items():
    yield [title]
    for name, values in results.items():
      for group, of_group in values[breakdown].items():
        yield [f"{_INDENT}{name} {group}", *_cells(of_group, columns)]


def _is_metric(value: Any) -> bool:
  return isinstance(value, (int, float))


def _cells(values: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
  return [_cell(column, values.get(column)) for column in columns]


def _cell(column: str, value: Any) -> str:
  if not _is_metric(value):
    return "-"
  return f"{value:.0f}" if column in COUNTS else f"{100 * value:.2f}"
