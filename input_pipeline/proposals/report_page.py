"""The report as one page that needs nothing else: the figures, and photos with their masks drawn on them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline import preprocess, records
from input_pipeline.common import drawing, html
from input_pipeline.common.html import escape
from input_pipeline.proposals import report_table
from input_pipeline.proposals.gallery import Picture
from input_pipeline.proposals.oracle import CEILING, size_of

_SIDE = 480
"""Of a drawn photo, in pixels."""
_TITLE = "How well instance masks cover what is meant"


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
  body = [*_head(results), *_section("worst", worst), *_section("random", random)]
  return html.document(_TITLE, "", ["<main>", *body, "</main>"])


def _head(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
  yield f"<h1>{_TITLE}</h1>\n<p>{escape(CEILING)}</p>"
  for line in report_table.origins(results):
    yield f"<p>{escape(line)}.</p>"
  yield from html.table("figures", report_table.HEADER, report_table.rows(results))
  yield f'<p class="small">{escape(report_table.LEGEND)}.</p>'


def _section(kind: str, pictures: Sequence[Picture]) -> Iterator[str]:
  why = {
    "worst": "those with the lowest IoU of the best mask, lowest first; of each image its worst ref",
    "random": "any image as likely as another, and any of its refs; the same on every run",
  }[kind]
  yield f"<h2>{len(pictures)} {kind} images</h2>\n<p>{why[0].upper()}{why[1:]}. Every mask has a colour of its own."
  yield '<br><span class="mark target"></span> outline of the target'
  yield '<br><span class="mark chosen"></span> outline of the mask that fits best</p>\n<div class="pictures">'
  for picture in pictures:
    yield _figure(picture)
  yield "</div>"


def _figure(picture: Picture) -> str:
  record = records.decode_record(picture.fields)
  ref, match = record.refs[picture.ref], picture.match
  drawn = draw(picture)
  sentences = "".join(f'<li dir="auto">{escape(sentence)}</li>' for sentence in ref.sentences)
  return (
    f"<figure>{html.picture(drawn, f'{record.file_name} with its instance masks')}"
    f"<figcaption><p><strong>IoU {match.iou:.2f}</strong>, {_which(match.instance, len(record.instances.masks))}</p>"
    f'<p class="small">{escape(picture.name)}, image {record.image_id}, ref {ref.ref_id}; target of '
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
  record = records.decode_record(picture.fields)
  size = drawing.fitting_size(record.height, record.width, _SIDE)
  photo = Image.fromarray(
    preprocess.decode_image(record.image, record.file_name, upright=False)
  ).resize(size)
  shape = (len(record.instances.masks), size[1], size[0])
  masks = [drawing.stretch(mask, size) for mask in record.instances.masks]
  return drawing.instance_overlay(
    np.array(photo),
    np.array(masks, bool).reshape(shape),
    drawing.stretch(record.refs[picture.ref].target, size),
    picture.match.instance,
  )
