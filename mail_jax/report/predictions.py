"""Which sentences a report draws, and the drawing of them over their photos."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from input_pipeline import preprocess, records
from input_pipeline.common import drawing, html
from input_pipeline.common.errors import InputError
from input_pipeline.common.html import escape
from input_pipeline.records import object_size
from mail_jax.evaluate.per_expression import Row
from mail_jax.predict.segmenter import Segmentation, Segmenter

KINDS = {
  "best": "highest IoU first, one sentence a photo; where several have the same, chance decides, alike on every run",
  "worst": "lowest IoU first, one sentence a photo; where several have the same, chance decides, alike on every run",
  "random": "any photo as likely as another, and any of its sentences; alike on every run",
}
_SIDES = (560, 420, 315, 236, 177)
"""Of a drawn photo, in pixels; the first is sharp at the width of a phone and of a column."""
_QUALITIES = (82, 70, 58, 46, 34)
_SEED = 0
_KEY = (
  ("the predicted mask", "mark prediction"),
  ("outline of the target", "mark target"),
  ("outline of the selected instance", "mark selected"),
)


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A sentence and what the model made of it, as a picture.

  Attributes:
    row: the sentence's.
    jpeg: the photo, with the mask, the target and the chosen instance.
    width, height: of the picture, in pixels.
    instances: how many the model had to choose from.
    iou: of the mask that is drawn; the row's, where row and model belong together.
  """

  row: Row
  jpeg: bytes
  width: int
  height: int
  instances: int
  iou: float


def choose(rows: Sequence[Row], count: int) -> dict[str, list[Row]]:
  """Returns the rows to draw by their kind, `count` at most of each and an image once in each.

  The same rows in the same order give the same choice.
  """
  chance = np.random.default_rng(_SEED).random((2, len(rows)))
  order = range(len(rows))
  keys = {
    "best": lambda i: (not rows[i]["area"], -rows[i]["iou"], chance[0, i]),
    "worst": lambda i: (rows[i]["iou"], chance[0, i]),
  }
  chosen = {kind: _once_an_image(rows, sorted(order, key=key), count) for kind, key in keys.items()}
  return chosen | {"random": _at_random(rows, chance, count)}


def _once_an_image(rows: Sequence[Row], order: Sequence[int], count: int) -> list[Row]:
  found: dict[int, Row] = {}
  for i in order:
    if len(found) == count:
      break
    found.setdefault(rows[i]["image_id"], rows[i])
  return [*found.values()]


def _at_random(rows: Sequence[Row], chance: np.ndarray, count: int) -> list[Row]:
  """Images by the chance of their first sentence, and of each the sentence with the smallest chance of its own."""
  images: dict[int, list[int]] = {}
  for i, row in enumerate(rows):
    images.setdefault(row["image_id"], []).append(i)
  drawn = sorted(images.values(), key=lambda own: chance[0, own[0]])[:count]
  return [rows[min(own, key=lambda i: chance[1, i])] for own in drawn]


def draw(
  segmenter: Segmenter, data_dir: str, name: str, rows: Sequence[Row], limit: int
) -> list[Drawn]:
  """Runs the model on these sentences alone, and draws what it says.

  Args:
    segmenter: the model.
    data_dir: what `prepare` was given.
    name: of the data, DATASET/SPLIT.
    rows: of the sentences.
    limit: bytes that no picture is larger than, unless it would be smaller than a thumb.

  Returns:
    One for each row, in their order.

  Raises:
    InputError: the data is not there, or has no such sentence.
  """
  found: dict[int, Drawn] = {}
  wanted: dict[int, list[int]] = {}
  for i, row in enumerate(rows):
    wanted.setdefault(row["image_id"], []).append(i)
  for record in _records(data_dir, name, wanted):
    for i in wanted[record.image_id]:
      found[i] = _draw(segmenter, record, rows[i], limit)
  for i, row in enumerate(rows):
    if i not in found:
      raise _unknown(row)
  return [found[i] for i in range(len(rows))]


def _records(data_dir: str, name: str, wanted: Mapping[int, Any]) -> Iterator[records.ImageRecord]:
  """The records of the images that are wanted, each once; it ends when there is none left."""
  # The only import that needs more than this package's own requirements.
  from input_pipeline.tf import record_reader

  dataset, _, split = name.rpartition("/")
  left = set(wanted)
  for fields in record_reader.read_records(record_reader.Split(data_dir, dataset, split)):
    if not left:
      break
    if fields["image_id"] in left:
      left.remove(fields["image_id"])
      yield records.decode_record(fields)


def _draw(segmenter: Segmenter, record: records.ImageRecord, row: Row, limit: int) -> Drawn:
  ref = next((ref for ref in record.refs if ref.ref_id == row["ref_id"]), None)
  if ref is None or row["expression"] not in ref.sentences:
    raise _unknown(row)
  pixels = preprocess.decode_image(record.image, record.file_name, upright=False)
  result = segmenter(pixels, row["expression"], record.instances.masks)
  union = int((ref.target | result.mask).sum())
  iou = int((ref.target & result.mask).sum()) / union if union else 1.0
  jpeg, width, height = encode(result, ref.target, limit)
  return Drawn(row, jpeg, width, height, len(result.instances), iou)


def _unknown(row: Row) -> InputError:
  return InputError(
    f"{row['data']}: the data has no sentence {row['expression']!r} of ref {row['ref_id']}, image {row['image_id']}; "
    "were the rows written from other data?"
  )


def overlay(result: Segmentation, target: np.ndarray, side: int) -> UInt8[np.ndarray, "h w 3"]:
  """Returns the photo with the mask in blue, the outlines of the target in white and of the chosen instance in yellow.

  Args:
    result: what the model says, at the photo's size.
    target: bool, of the photo's size.
    side: the longer side of the picture, in pixels.
  """
  size = drawing.fitting_size(target.shape[0], target.shape[1], side)
  photo = np.asarray(Image.fromarray(result.image).resize(size, Image.Resampling.LANCZOS))
  chosen = None if result.selected is None else result.instances[result.selected]
  return drawing.overlay(
    photo,
    drawing.stretch(result.mask, size),
    drawing.stretch(target, size),
    None if chosen is None else drawing.stretch(chosen, size),
  )


def encode(result: Segmentation, target: np.ndarray, limit: int) -> tuple[bytes, int, int]:
  """Returns the picture as a JPEG of the best size, and of that the best quality, that the limit allows.

  Args:
    result, target: see `overlay`.
    limit: bytes; not kept by what is as small and coarse as pictures become.

  Returns:
    The file's bytes, and the picture's width and height in pixels.
  """
  jpeg, width, height = b"", 0, 0
  for side in _SIDES:
    pixels = overlay(result, target, side)
    height, width = pixels.shape[:2]
    for quality in _QUALITIES:
      jpeg = drawing.encode_jpeg(pixels, quality)
      if len(jpeg) <= limit:
        return jpeg, width, height
  return jpeg, width, height


def gallery(pictures: Mapping[str, Sequence[Drawn]], name_data: bool) -> Iterator[str]:
  """Yields the pictures of every kind of `KINDS`.

  Args:
    pictures: by their kind.
    name_data: whether each says which split it is of.
  """
  items = "".join(f'<li><span class="{look}"></span> {meaning}</li>' for meaning, look in _KEY)
  yield f'<ul class="key">{items}</ul>'
  for kind, drawn in pictures.items():
    why = KINDS[kind]
    yield f'<h3 id="{kind}">{kind.capitalize()}</h3><p class="small">{len(drawn)} predictions: {why}.</p>'
    yield '<div class="pictures">'
    for one in drawn:
      yield _figure(one, name_data)
    yield "</div>"


def _figure(one: Drawn, name_data: bool) -> str:
  row = one.row
  what = f"{row['file_name']} with the prediction for: {row['expression']}"
  facts = [
    *([row["data"]] if name_data else []),
    row["file_name"],
    f"ref {row['ref_id']}",
    f"target of {row['area']:,} pixels ({object_size(row['area'])})"
    if row["area"]
    else "no target",
  ]
  if "no_target_probability" in row:
    facts.append(f"nothing meant: {row['no_target_probability']:.0%} sure")
  return (
    f"<figure>{html.embed(one.jpeg, one.width, one.height, what)}<figcaption>"
    f'<p class="said" dir="auto">{escape(row["expression"])}</p>'
    f'<p class="score"><strong>IoU {row["iou"]:.2f}</strong>, {_which(one)}</p>'
    f'<p class="small">{escape(", ".join(facts))}</p></figcaption></figure>'
  )


def _which(one: Drawn) -> str:
  row, count = one.row, one.instances
  best = f"the best has {row['oracle_iou']:.2f}"
  if not count:
    return "the photo has no instance mask"
  if row["selected"] is None:
    return f"none of {count} instances chosen; {best}"
  return f"instance {row['selected'] + 1} of {count} chosen, with {row['selected_iou']:.2f}; {best}"
