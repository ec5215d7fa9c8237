"""The report as one page that needs nothing else: the figures, and photos with their masks drawn on them."""

import base64
import hashlib
import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline import drawing, example, preprocess
from input_pipeline.instances import report_table
from input_pipeline.instances.ceiling import CEILING, size_of
from input_pipeline.instances.gallery import Picture

_SIDE = 480
"""Of a drawn photo, in pixels."""
_TITLE = "How well instance masks cover what is meant"
_STYLE = """
:root { color-scheme: light dark; font: 100%/1.45 system-ui, sans-serif }
body { margin: 0 auto; max-width: 90rem; padding: 1rem }
h1, h2 { line-height: 1.2; text-wrap: balance }
p { max-width: 44rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #8885; padding: .25rem .6rem; text-align: right; white-space: nowrap }
th:first-child { text-align: left }
th.size { font-weight: normal; padding-left: 1.8rem }
.small { font-size: .85rem }
.pictures { align-items: start; display: grid; gap: 1.2rem }
.pictures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)) }
figure { border: 1px solid #8885; border-radius: .4rem; margin: 0; overflow: hidden }
figure img { display: block; height: auto; width: 100% }
figcaption { padding: .5rem .8rem .8rem }
figcaption p { margin: 0 }
ul { margin: .4rem 0 0; padding-left: 1.2rem }
li { overflow-wrap: anywhere }
.mark { border: 2px solid #000; display: inline-block; height: .7em; outline: 1px solid #888; width: .7em }
.target { background: #fff }
.best { background: #ffc800 }
"""
# The style is allowed by its hash, pictures as part of the page, and nothing else: no program, no other address.
_POLICY = "; ".join(
  [
    "default-src 'none'",
    "img-src data:",
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
    "base-uri 'none'",
    "form-action 'none'",
  ]
)


def page(
  results: Mapping[str, Mapping[str, Any]], worst: Sequence[Picture], random: Sequence[Picture]
) -> str:
  """Writes the page; the same arguments give the same text.

  Args:
    results: what `Ceiling.figures` gave, by data set and split.
    worst: to be drawn, in this order.
    random: likewise.

  Raises:
    InputError: a photo cannot be decoded.
  """
  return "\n".join(
    [*_head(results), *_section("worst", worst), *_section("random", random), "</html>\n"]
  )


def _head(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
  yield '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">'
  yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
  yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
  yield f"<title>{_TITLE}</title>\n<style>{_STYLE}</style>\n<h1>{_TITLE}</h1>\n<p>{html.escape(CEILING)}</p>"
  for line in report_table.origins(results):
    yield f"<p>{html.escape(line)}.</p>"
  yield '<div class="scroll"><table>'
  yield "<tr>" + "".join(
    f'<th scope="col">{html.escape(cell)}</th>' for cell in report_table.HEADER
  )
  for name, *cells in report_table.rows(results):
    size = ' class="size"' if name.startswith(" ") else ""
    yield f'<tr><th scope="row"{size}>{html.escape(name)}</th>' + "".join(
      f"<td>{html.escape(cell)}</td>" for cell in cells
    )
  yield f'</table></div>\n<p class="small">{html.escape(report_table.LEGEND)}.</p>'


def _section(kind: str, pictures: Sequence[Picture]) -> Iterator[str]:
  why = {
    "worst": "those with the lowest IoU of the best mask, lowest first; of each image its worst ref",
    "random": "any image as likely as another, and any of its refs; the same on every run",
  }[kind]
  yield f"<h2>{len(pictures)} {kind} images</h2>\n<p>{why[0].upper()}{why[1:]}. Every mask has a colour of its own."
  yield '<br><span class="mark target"></span> outline of the target'
  yield '<br><span class="mark best"></span> outline of the mask that fits best</p>\n<div class="pictures">'
  for picture in pictures:
    yield _figure(picture)
  yield "</div>"


def _figure(picture: Picture) -> str:
  record = example.decode_record(picture.fields)
  ref, match = record.refs[picture.ref], picture.match
  drawn = draw(picture)
  sentences = "".join(f'<li dir="auto">{html.escape(sentence)}</li>' for sentence in ref.sentences)
  data = base64.b64encode(drawing.encode_jpeg(drawn)).decode()
  return (
    f'<figure><img src="data:image/jpeg;base64,{data}" width="{drawn.shape[1]}" height="{drawn.shape[0]}" '
    f'alt="{html.escape(record.file_name)} with its instance masks">'
    f"<figcaption><p><strong>IoU {match.iou:.2f}</strong>, {_which(match.instance, len(record.instances.masks))}</p>"
    f'<p class="small">{html.escape(picture.name)}, image {record.image_id}, ref {ref.ref_id}; target of '
    f"{match.area:,} pixels ({size_of(match.area)})</p><ul>{sentences}</ul></figcaption></figure>"
  )


def _which(instance: int | None, count: int) -> str:
  if not count:
    return "the image has no mask"
  if instance is None:
    return f"no mask of {count} overlaps the target"
  return f"the best of {count} masks is number {instance + 1}"


def draw(picture: Picture) -> np.ndarray:
  """Returns the photo with its masks as uint8 [h, w, 3], 480 pixels on its longer side.

  Raises:
    InputError: the photo cannot be decoded.
  """
  record = example.decode_record(picture.fields)
  size = drawing.fitting_size(record.height, record.width, _SIDE)
  photo = Image.fromarray(preprocess.decode_image(record.image, record.file_name)).resize(size)
  shape = (len(record.instances.masks), size[1], size[0])
  masks = [drawing.stretch(mask, size) for mask in record.instances.masks]
  return drawing.instance_overlay(
    np.array(photo),
    np.array(masks, bool).reshape(shape),
    drawing.stretch(record.refs[picture.ref].target, size),
    picture.match.instance,
  )
