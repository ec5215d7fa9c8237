"""Self-contained HTML pages: one file without scripts, images embedded, for light and dark screens.

What the reports share: the page's frame and style, tables, images. Text from users goes through
`escape`.
"""

import base64
import hashlib
import html
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from input_pipeline.common import drawing

_STYLE = """
:root {
  color-scheme: light dark;
  font: 100%/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  --paper: #f7f7f5; --card: #fff; --ink: #1b1f24;
  --quiet: #57606a; --line: #d8dbdf; --accent: #1f5fd0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1d2125; --ink: #e8eaed;
    --quiet: #a3abb4; --line: #363c43; --accent: #82b1ff;
  }
}
* { box-sizing: border-box }
body { background: var(--paper); color: var(--ink) }
body { margin: 0 auto; max-width: 82rem; padding: 1.25rem }
h1, h2, h3 { line-height: 1.2; text-wrap: balance }
h1 { font-size: 1.75rem; margin: .5rem 0 }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem }
p { margin: .5rem 0; max-width: 46rem }
a { color: var(--accent) }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0 }
caption { color: var(--quiet); font-size: .85rem; padding: .2rem 0; text-align: left }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .5rem }
th, td { text-align: right; white-space: nowrap }
thead th { color: var(--quiet); font-size: .85rem; font-weight: 600; vertical-align: bottom }
tbody th { font-weight: 600 }
th:first-child { padding-left: .2rem; text-align: left }
th.inner { font-weight: 400; padding-left: 1.4rem }
.small { color: var(--quiet); font-size: .85rem }
.pictures { align-items: start; display: grid; gap: 1.1rem; margin: 1rem 0 }
.pictures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)) }
figure { background: var(--card); border: 1px solid var(--line) }
figure { border-radius: .5rem; margin: 0; overflow: hidden }
figure img { display: block; height: auto; width: 100% }
figure img { background: var(--line); max-height: 28rem; object-fit: contain }
figcaption { padding: .6rem .85rem .8rem }
figcaption p { margin: 0; overflow-wrap: anywhere }
ul { margin: .4rem 0 0; padding-left: 1.2rem }
li { overflow-wrap: anywhere }
.mark { border: 2px solid #000; display: inline-block; outline: 1px solid #888 }
.mark { height: .8em; width: .8em }
.target { background: #fff }
.selected { background: #ffc800 }
"""


def escape(text: str) -> str:
  """Escapes text for use anywhere in a page, also in quoted attributes."""
  return html.escape(text)


def document(title: str, style: str, body: Iterable[str]) -> str:
  """Returns a whole page.

  Args:
    title: plain text.
    style: CSS in addition to the shared style.
    body: HTML, piece by piece.
  """
  style = _STYLE + style
  return "\n".join(
    [
      '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
      f'<meta http-equiv="Content-Security-Policy" content="{_policy(style)}">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>",
      *body,
      "</body>\n</html>\n",
    ]
  )


def _policy(style: str) -> str:
  """Allows the style, by its hash, and embedded images: no scripts, no other addresses."""
  digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
  rules = ["default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'"]
  return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def table(name: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
  """Yields a table that scrolls where it is too wide.

  Args:
    name: what it shows, for screen readers.
    header: plain text, one cell per column.
    rows: plain text; the first cell names the row. A row whose name begins with a space belongs to
      the one above.
  """
  yield f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}"><table>'
  cells = "".join(
    f'<th scope="col">{escape(cell)}</th>' if cell else "<td></td>" for cell in header
  )
  yield f"<thead><tr>{cells}</tr></thead>\n<tbody>"
  for first, *others in rows:
    inner = ' class="inner"' if first.startswith(" ") else ""
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
    yield f'<tr><th scope="row"{inner}>{escape(first)}</th>{cells}</tr>'
  yield "</tbody></table></div>"


def picture(pixels: UInt8[np.ndarray, "h w 3"], alt: str) -> str:
  """Returns an embedded image; `alt` describes it for screen readers."""
  return embed(drawing.encode_jpeg(pixels), pixels.shape[1], pixels.shape[0], alt)


def embed(jpeg: bytes, width: int, height: int, alt: str) -> str:
  """Returns an embedded JPEG of that many pixels; `alt` describes it for screen readers."""
  data = base64.b64encode(jpeg).decode()
  return (
    f'<img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" '
    f'alt="{escape(alt)}">'
  )
