"""Drawings for documents: standalone SVG, light and dark."""

_STYLE = """<style>
svg { --ink: #57606a; --line: #d8dbdf; --c0: #1f5fd0; --c1: #c4560b }
svg { font-family: system-ui, sans-serif }
@media (prefers-color-scheme: dark) {
  svg { --ink: #a3abb4; --line: #363c43; --c0: #7fb0ff; --c1: #f7a35c }
}
text { fill: var(--ink); font-size: 11.5px }
.middle { text-anchor: middle } .end { text-anchor: end }
.grid, .axis { fill: none; stroke: var(--line) }
.mark-line { fill: none; stroke: var(--ink); stroke-dasharray: 4 3 }
.line { fill: none; stroke-width: 1.5 }
.line.c0 { stroke: var(--c0) } .line.c1 { stroke: var(--c1) }
.hit { fill: transparent } .name.c0 { fill: var(--c0) } .name.c1 { fill: var(--c1) }
.bar { fill: var(--c0); opacity: 0.35 } .bar.c1 { fill: var(--c1) } .dot { fill: var(--ink) }
</style>"""


def standalone(drawing: str, width: int, height: int, more: str = "") -> str:
  """Makes a standalone file of a drawing that needs the styles of a page.

  Args:
    drawing: an SVG element (`mail_jax.report`).
    width, height: in pixels.
    more: elements to draw last.
  """
  head, _, rest = drawing.partition(">")
  head = head.replace(
    "<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" ', 1
  )
  return f"{head}>{_STYLE}{rest.removesuffix('</svg>')}{more}</svg>\n"
