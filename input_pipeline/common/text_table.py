"""Tables of plain text for the terminal."""

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]]) -> str:
  """Aligns rows in columns: the first to the left, the others to the right.

  Args:
    rows: of equally many cells each; a row of one cell is a title.
  """
  full = [row for row in rows if len(row) > 1]
  widths = [max(map(len, column)) for column in zip(*full, strict=True)]
  return "\n".join(_line(row, widths) if len(row) > 1 else row[0] for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
  cells = [
    cell.rjust(width) if column else cell.ljust(width)
    for column, (cell, width) in enumerate(zip(row, widths, strict=True))
  ]
  return "  ".join(cells).rstrip()
