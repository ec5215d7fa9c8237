"""Reads Label Studio's exports: JSON, which is complete, and COCO, which has no texts.

In the JSON a region is a row of `result`, with coordinates in percent of the image's sides. The
text of a `TextArea` with `perRegion` is another row with the same `id`
(labelstud.io/guide/task_format). The COCO export only keeps the category.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from jaxtyping import Bool

from input_pipeline import preprocess
from input_pipeline.common import untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters import coco
from input_pipeline.custom.converters.collect import (
  CATEGORY,
  Export,
  Options,
  Region,
  id_in,
  rows_in,
  texts_in,
)
from input_pipeline.custom.schema import Mask
from input_pipeline.masks.segmentation import encode_segmentation

_TEXT = "textarea"
_ELLIPSE_POINTS = 64
_MAX_PIXELS = 1 << 28
# Red, green, blue and alpha.
_BRUSH_CHANNELS = 4


def read(path: str, options: Options) -> Export:
  """Reads an export.

  Args:
    path: file of the "JSON" or the "COCO" export.
    options: how it is read.

  Raises:
    InputError: it is neither, or no region has an expression.
  """
  content = untrusted_json.load_file(path)
  if coco.is_coco(content):
    if CATEGORY not in options.text_keys:
      raise InputError(
        f"{path}: Label Studio's COCO export does not contain the texts of regions; export as "
        f"JSON, or use category names as expressions with --text {CATEGORY}"
      )
    return coco.read_content(content, path, options)
  if not isinstance(content, list) or not all(isinstance(task, dict) for task in content):
    raise InputError(
      f"{path}: neither Label Studio's JSON export (a list of tasks) nor its COCO export"
    )
  if content and not any("annotations" in task for task in content):
    raise InputError(
      f"{path}: no task has `annotations`; JSON-MIN does not say which text belongs to which "
      "region: export as JSON"
    )
  export = Export()
  for task in content:
    _read_task(task, options, export)
  if not any(region.texts for region in export.regions):
    raise InputError(
      f'{path}: no region has a text; set perRegion="true" on the TextArea in the labelling '
      f"config, or use labels as expressions with --text {CATEGORY}"
    )
  return export


def _read_task(task: Mapping[str, Any], options: Options, export: Export) -> None:
  annotations = [row for row in rows_in(task.get("annotations")) if not row.get("was_cancelled")]
  image = _image_of(task)
  if not annotations or image is None:
    export.skipped["task without an annotation" if image else "task without an image"] += 1
    return
  # With several annotators, the annotation that is marked as ground truth; else the first.
  annotation = next((row for row in annotations if row.get("ground_truth")), annotations[0])
  if len(annotations) > 1:
    export.skipped["further annotation of the same task"] += len(annotations) - 1
  regions: dict[int | str | None, list[Mapping[str, Any]]] = {}
  for row in rows_in(annotation.get("result")):
    regions.setdefault(id_in(row, "id"), []).append(row)
  for rows in regions.values():
    _read_region(rows, image, options, export)


def _read_region(
  rows: Sequence[Mapping[str, Any]], image: str, options: Options, export: Export
) -> None:
  texts = tuple(text for row in rows for text in _texts(row, options))
  shapes = [row for row in rows if _shape(row) in _SHAPES]
  if not shapes:
    _read_unattached(rows, texts, image, options, export)
    return
  try:
    mask = _SHAPES[_shape(shapes[0])](shapes[0], options)
  except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
    export.skipped[f"invalid region ({error})"] += 1
    return
  if mask is None:
    export.skipped["box without a mask (use --boxes to convert it)"] += 1
    return
  # The browser that the tool runs in shows images upright.
  export.regions.append(Region(image, mask, texts, size=_size(shapes[0]), upright=True))


def _read_unattached(
  rows: Sequence[Mapping[str, Any]],
  texts: tuple[str, ...],
  image: str,
  options: Options,
  export: Export,
) -> None:
  """Reads rows without a shape: expressions that refer to nothing if `no_target` names them."""
  if options.no_target and any(row.get("from_name") == options.no_target for row in rows):
    export.regions.append(Region(image, None, texts))
  else:
    export.skipped["text without a region" if texts else str(rows[0].get("type"))] += 1


def _texts(row: Mapping[str, Any], options: Options) -> Iterator[str]:
  value = row.get("value")
  value = value if isinstance(value, dict) else {}
  if CATEGORY in options.text_keys:
    labels = [v for key, v in value.items() if key.endswith("labels") or key == "choices"]
    yield from texts_in(labels, options.separator)
    return
  if row.get("type") == _TEXT:
    yield from texts_in(value.get("text"), options.separator)
  # The note on a region.
  meta = row.get("meta")
  if isinstance(meta, dict):
    yield from texts_in(meta.get("text"), options.separator)


def _image_of(task: Mapping[str, Any]) -> str | None:
  """Returns the path of a task's image: uploaded, from local files, a bucket or a URL."""
  data = task.get("data")
  texts = [v for v in data.values() if isinstance(v, str)] if isinstance(data, dict) else []
  for text in texts:
    url = urlsplit(text)
    # /data/local-files/?d=folder/photo.jpg
    local = parse_qs(url.query).get("d", [""])[0]
    path = local or unquote(url.path)
    if path.lower().endswith(preprocess.EXTENSIONS):
      return path.lstrip("/")
  return None


def _shape(row: Mapping[str, Any]) -> str:
  return str(row.get("type", "")).removesuffix("labels")


def _size(row: Mapping[str, Any]) -> tuple[int, int]:
  """Returns height and width of the image as it was shown."""
  if row.get("image_rotation"):
    raise ValueError(f"the image was rotated by {row['image_rotation']} degrees in the tool")
  height, width = row["original_height"], row["original_width"]
  valid = type(height) is int and type(width) is int and min(height, width) > 0
  if not valid or height * width > _MAX_PIXELS:
    raise ValueError(f"invalid image size {width} x {height}")
  return height, width


def _polygon(row: Mapping[str, Any], options: Options) -> Mask:
  height, width = _size(row)
  points = [[x * width / 100, y * height / 100] for x, y in row["value"]["points"]]
  return {"polygons": [[coordinate for point in points for coordinate in point]]}


def _rectangle(row: Mapping[str, Any], options: Options) -> Mask | None:
  if not options.boxes:
    return None
  height, width = _size(row)
  value = row["value"]
  w, h = value["width"] * width / 100, value["height"] * height / 100
  return _rotate([(0.0, 0.0), (w, 0.0), (w, h), (0.0, h)], value, height, width)


def _ellipse(row: Mapping[str, Any], options: Options) -> Mask:
  height, width = _size(row)
  value = row["value"]
  a, b = value["radiusX"] * width / 100, value["radiusY"] * height / 100
  angles = [2 * math.pi * k / _ELLIPSE_POINTS for k in range(_ELLIPSE_POINTS)]
  return _rotate([(a * math.cos(t), b * math.sin(t)) for t in angles], value, height, width)


def _rotate(
  points: Sequence[tuple[float, float]], value: Mapping[str, Any], height: int, width: int
) -> Mask:
  """Moves points to (x, y) of the value and rotates them clockwise around it."""
  angle = math.radians(value.get("rotation", 0))
  x0, y0 = value["x"] * width / 100, value["y"] * height / 100
  cos, sin = math.cos(angle), math.sin(angle)
  rotated = [(x0 + x * cos - y * sin, y0 + x * sin + y * cos) for x, y in points]
  clipped = [(min(max(x, 0), width), min(max(y, 0), height)) for x, y in rotated]
  return {"polygons": [[coordinate for point in clipped for coordinate in point]]}


def _brush(row: Mapping[str, Any], options: Options) -> Mask:
  height, width = _size(row)
  if row["value"].get("format") != "rle":
    raise ValueError("brush format is not rle")
  mask = decode_brush(row["value"]["rle"], height, width)
  return {"rle": encode_segmentation(mask)}


_SHAPES = {"polygon": _polygon, "rectangle": _rectangle, "ellipse": _ellipse, "brush": _brush}


def decode_brush(
  data: Sequence[int], height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
  """Decodes a brush mask, a bit stream by rle-pack of github.com/thi-ng/umbrella.

  Args:
    data: bytes: the number of values (32 bits), the size of a value less 1 (5 bits), four sizes of
      lengths less 1 (4 bits each); then runs: whether one value is repeated or each is written (1
      bit), which size the length has (2 bits), the length less 1, and the values.
    height: of the image, in pixels.
    width: of the image, in pixels.

  Raises:
    ValueError: the data is malformed or has another size.
  """
  raw = bytes(data)
  total = 8 * len(raw)
  position = 0

  def take(count: int) -> int:
    nonlocal position
    position += count
    if position > total:
      raise ValueError("truncated brush")
    first = (position - count) >> 3
    last = -(-position // 8)
    window = int.from_bytes(raw[first:last])
    return (window >> (8 * last - position)) & ((1 << count) - 1)

  count = take(32)
  if count != height * width * _BRUSH_CHANNELS:
    raise ValueError(f"brush of {count} values for {width} x {height} pixels")
  value_bits = take(5) + 1
  length_bits = [take(4) + 1 for _ in range(4)]
  values = np.zeros(count, np.uint32)
  start = 0
  while start < count:
    repeated = take(1)
    end = start + 1 + take(length_bits[take(2)])
    if end > count:
      raise ValueError("brush with runs that are too long")
    if repeated:
      values[start:end] = take(value_bits)
    else:
      values[start:end] = [take(value_bits) for _ in range(end - start)]
    start = end
  return values.reshape(height, width, _BRUSH_CHANNELS)[..., 3] != 0
