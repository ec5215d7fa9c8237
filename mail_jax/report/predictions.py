"""Chooses the predictions that a report shows, and draws them on their images."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from input_pipeline import preprocess, records
from input_pipeline.common import drawing, html
from input_pipeline.common.errors import InputError
from input_pipeline.common.html import escape
from input_pipeline.records import object_size
from mail_jax.evaluate.per_expression import Row
from mail_jax.predict.explanation import Explanation
from mail_jax.predict.segmenter import Segmentation, Segmenter
from mail_jax.report.quality import outcome_of

HEADINGS = {
  "best": "highest IoU first, one expression per image; ties in a fixed random order",
  "worst": "lowest IoU first, one expression per image; ties in a fixed random order. Next to each "
  "word: the points that the probability of what is chosen falls without it",
  "random": "images drawn uniformly with a fixed seed, each with one of its expressions",
}
# The heading under which the choice of the instance is explained.
EXPLAINED = "worst"
# The longer side of a drawn image, in pixels; the first is sharp at the width of a phone.
_SIDES = (560, 420, 315, 236, 177)
_QUALITIES = (82, 70, 58, 46, 34)
_SEED = 0
_KEY = (
  ("the predicted mask", "mark prediction"),
  ("outline of the target", "mark target"),
  ("outline of the selected instance", "mark selected"),
)


@dataclasses.dataclass(frozen=True)
class DrawnPrediction:
  """The prediction for an expression as a picture.

  Attributes:
    row: of the expression.
    jpeg: the image with the mask, the target and the selected instance.
    width, height: of the picture, in pixels.
    instances: number of instances that the model selected from.
    iou: of the mask that is drawn; equal to the row's if the row is of this model.
    explanation: of the choice of the instance, where it is shown.
  """

  row: Row
  jpeg: bytes
  width: int
  height: int
  instances: int
  iou: float
  explanation: Explanation | None = None


def choose(rows: Sequence[Row], count: int) -> dict[str, list[Row]]:
  """Returns the rows to draw by heading, at most `count` each, without duplicate images in one.

  Equal rows in the same order give the same choice.
  """
  chance = np.random.default_rng(_SEED).random((2, len(rows)))
  order = range(len(rows))
  keys = {
    "best": lambda i: (not rows[i]["area"], -rows[i]["iou"], chance[0, i]),
    "worst": lambda i: (rows[i]["iou"], chance[0, i]),
  }
  extreme = {
    heading: _one_per_image(rows, sorted(order, key=key), count) for heading, key in keys.items()
  }
  return extreme | {"random": _at_random(rows, chance, count)}


def _one_per_image(rows: Sequence[Row], order: Sequence[int], count: int) -> list[Row]:
  by_image: dict[int, Row] = {}
  for i in order:
    if len(by_image) == count:
      break
    by_image.setdefault(rows[i]["image_id"], rows[i])
  return [*by_image.values()]


def _at_random(rows: Sequence[Row], chance: np.ndarray, count: int) -> list[Row]:
  """Draws images by the number of their first row, and from each the row with the smallest."""
  images: dict[int, list[int]] = {}
  for i, row in enumerate(rows):
    images.setdefault(row["image_id"], []).append(i)
  drawn = sorted(images.values(), key=lambda of_image: chance[0, of_image[0]])[:count]
  return [rows[min(of_image, key=lambda i: chance[1, i])] for of_image in drawn]


def draw(
  segmenter: Segmenter,
  data_dir: str,
  name: str,
  rows: Sequence[Row],
  limit: int,
  explained: Sequence[bool] = (),
) -> list[DrawnPrediction]:
  """Runs the model on these expressions, and draws the predictions.

  Args:
    segmenter: the model.
    data_dir: the folder that `prepare` wrote to.
    name: DATASET/SPLIT.
    rows: of the expressions.
    limit: of the bytes of a picture, unless the smallest one is larger.
    explained: rows whose choice of an instance is explained; empty for none.

  Returns:
    One per row, in their order.

  Raises:
    InputError: the data does not exist, or has no such expression.
  """
  drawn: dict[int, DrawnPrediction] = {}
  by_image: dict[int, list[int]] = {}
  for i, row in enumerate(rows):
    by_image.setdefault(row["image_id"], []).append(i)
  for record in _read_records(data_dir, name, by_image):
    for i in by_image[record.image_id]:
      drawn[i] = _draw(segmenter, record, rows[i], limit, bool(explained) and explained[i])
  for i, row in enumerate(rows):
    if i not in drawn:
      raise _unknown(row)
  return [drawn[i] for i in range(len(rows))]


def _read_records(
  data_dir: str, name: str, image_ids: Iterable[int]
) -> Iterator[records.ImageRecord]:
  """Yields the records of these images, each once."""
  # Imports TensorFlow, which takes seconds.
  from input_pipeline.tf import record_reader

  dataset, _, split = name.rpartition("/")
  left = set(image_ids)
  for fields in record_reader.read_records(record_reader.Split(data_dir, dataset, split)):
    if not left:
      break
    if fields["image_id"] in left:
      left.remove(fields["image_id"])
      yield records.decode_record(fields)


def _draw(
  segmenter: Segmenter, record: records.ImageRecord, row: Row, limit: int, explained: bool
) -> DrawnPrediction:
  ref = next((ref for ref in record.refs if ref.ref_id == row["ref_id"]), None)
  if ref is None or row["expression"] not in ref.sentences:
    raise _unknown(row)
  pixels = preprocess.decode_image(record.image, record.file_name, upright=False)
  result = segmenter(pixels, row["expression"], record.instances.masks)
  union = int((ref.target | result.mask).sum())
  iou = int((ref.target & result.mask).sum()) / union if union else 1.0
  jpeg, width, height = encode(result, ref.target, limit)
  count = len(result.instances)
  why = result.explain() if explained and count else None
  return DrawnPrediction(row, jpeg, width, height, count, iou, why)


def _unknown(row: Row) -> InputError:
  return InputError(
    f"{row['data']}: the data has no expression {row['expression']!r} of ref {row['ref_id']}, "
    f"image {row['image_id']}; were the rows written from other data?"
  )


def overlay(result: Segmentation, target: np.ndarray, side: int) -> UInt8[np.ndarray, "h w 3"]:
  """Draws the mask in blue, and outlines the target in white and the selected instance in yellow.

  Args:
    result: of the model, at the image's size.
    target: bool, of the image's size.
    side: the longer side of the picture, in pixels.
  """
  size = drawing.fitting_size(target.shape[0], target.shape[1], side)
  image = np.asarray(Image.fromarray(result.image).resize(size, Image.Resampling.LANCZOS))
  instance = None if result.selected is None else result.instances[result.selected]
  return drawing.overlay(
    image,
    drawing.stretch(result.mask, size),
    drawing.stretch(target, size),
    None if instance is None else drawing.stretch(instance, size),
  )


def encode(result: Segmentation, target: np.ndarray, limit: int) -> tuple[bytes, int, int]:
  """Encodes the overlay as a JPEG of the largest size, then the best quality, within the limit.

  Args:
    result, target: see `overlay`.
    limit: in bytes; the smallest and coarsest picture may exceed it.

  Returns:
    The bytes of the file, and the width and height of the picture in pixels.
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


def gallery(drawn: Mapping[str, Sequence[DrawnPrediction]], with_split: bool) -> Iterator[str]:
  """Yields the section of predictions.

  Args:
    drawn: by the headings of HEADINGS.
    with_split: whether captions name the split.
  """
  items = "".join(
    f'<li><span class="{css_class}"></span> {meaning}</li>' for meaning, css_class in _KEY
  )
  yield f'<ul class="key">{items}</ul>'
  for heading, predictions in drawn.items():
    yield f'<h3 id="{heading}">{heading.capitalize()}</h3>'
    yield f'<p class="small">{len(predictions)} predictions: {HEADINGS[heading]}.</p>'
    yield '<div class="pictures">'
    for prediction in predictions:
      yield _figure(prediction, with_split)
    yield "</div>"


def _figure(drawn: DrawnPrediction, with_split: bool) -> str:
  row = drawn.row
  alt_text = f"{row['file_name']} with the prediction for: {row['expression']}"
  facts = [
    *([row["data"]] if with_split else []),
    row["file_name"],
    f"ref {row['ref_id']}",
    f"target of {row['area']:,} pixels ({object_size(row['area'])})"
    if row["area"]
    else "no target",
  ]
  if "no_target_probability" in row:
    facts.append(f"probability of no target {row['no_target_probability']:.0%}")
  return (
    f"<figure>{html.embed(drawn.jpeg, drawn.width, drawn.height, alt_text)}<figcaption>"
    f'<p class="expression" dir="auto">{escape(row["expression"])}</p>'
    f'<p class="score"><strong>IoU {row["iou"]:.2f}</strong>, {_selection(drawn)}</p>'
    f"{_why(row, drawn.explanation)}"
    f'<p class="small">{escape(", ".join(facts))}</p></figcaption></figure>'
  )


def _why(row: Row, why: Explanation | None) -> str:
  """Says what is wrong, what would be chosen instead, and what each word adds."""
  if why is None:
    return ""
  text = f"{why.name(why.chosen)} has {why.probability[why.chosen]:.0%}"
  if row["area"]:
    text = f"{outcome_of(row).name}: {text}"
  if why.chosen < len(why.rivals):
    rival = why.rivals[why.chosen]
    text += f"; without it {why.name(rival)} {why.without_instance[why.chosen][rival]:.0%}"
  words = " ".join(
    f'<span class="word adds{round(4 * max(0.0, effect))}">{escape(word)} '
    f"{100 * effect:+.0f}</span>"
    for word, effect in zip(why.words, why.word_effects.tolist(), strict=True)
  )
  return f'<p class="small">{text}</p><p class="small" dir="auto">{words}</p>'


def _selection(drawn: DrawnPrediction) -> str:
  row, count = drawn.row, drawn.instances
  if "oracle_iou" not in row:
    return "of a given mask"
  best = f"the best has {row['oracle_iou']:.2f}"
  if not count:
    return "no instance masks"
  if row["selected"] is None:
    return f"none of {count} instances selected; {best}"
  selected = f"instance {row['selected'] + 1} of {count} selected"
  return f"{selected}, with IoU {row['selected_iou']:.2f}; {best}"
