"""A chart with its heading, its key and its numbers: the piece that the page is made of."""

from collections.abc import Iterable, Iterator, Sequence

from input_pipeline.common import html
from input_pipeline.common.html import escape


def panel(
  title: str,
  chart: str,
  key: str = "",
  text: str = "",
  numbers: tuple[Sequence[str], Iterable[Sequence[str]]] | None = None,
) -> str:
  """Returns a chart with what belongs to it.

  Args:
    title: plain text.
    chart: SVG.
    key: HTML; what its colours mean.
    text: plain text; how it is to be read.
    numbers: header and rows of the table of what it shows.
  """
  parts = [f'<div class="chart"><h3>{escape(title)}</h3>', key, chart]
  parts += [f"<p>{escape(text)}</p>"] if text else []
  parts += [*_fold(title, *numbers)] if numbers else []
  return "".join([*parts, "</div>"])


def _fold(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
  yield "<details><summary>Numbers</summary>"
  yield from html.table(f"{title}: numbers", header, rows)
  yield "</details>"


def section(name: str, title: str, body: Iterable[str]) -> Iterator[str]:
  """Yields a part of the page.

  Args:
    name: of the place that links lead to.
    title: plain text.
    body: HTML.
  """
  yield f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>'
  yield from body
  yield "</section>"


def grid(panels: Iterable[str]) -> Iterator[str]:
  """Yields panels side by side, as many as there is room for."""
  yield '<div class="charts">'
  yield from panels
  yield "</div>"
