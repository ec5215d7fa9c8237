"""Label Studio's exports: its JSON, which has all that was written, and its COCO, which has no text.

In the JSON a region is a row of `result`; its coordinates are percent of the photo's sides, and what was typed into a
`TextArea` with `perRegion` is another row with the same `id` (labelstud.io/guide/task_format). The COCO export keeps
the category alone.
"""

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline import preprocess
from input_pipeline.common import untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters import (
  CATEGORY,
  Export,
  Options,
  Region,
  coco,
  id_in,
  rows_in,
  texts_in,
)
from input_pipeline.custom.converters.brush import decode_brush
from input_pipeline.custom.schema import Mask

_TEXT = "textarea"
_ELLIPSE_POINTS = 64
_MAX_PIXELS = 1 << 28


def read(path: str, options: Options) -> Export:
  """Reads an export.

  Args:
    path: the file of "JSON", or of "COCO".
    options: how.

  Raises:
    InputError: it is neither, or nothing in it has an expression.
  """
  content = untrusted_json.load_file(path)
  if coco.is_coco(content):
    if CATEGORY not in options.text_keys:
      raise InputError(
        f"{path}: Label Studio's COCO export holds no text that was written beside a region; export as JSON, or take "
        f"the names of categories for expressions with --text {CATEGORY}"
      )
    return coco.read_content(content, path, options)
  if not isinstance(content, list) or not all(isinstance(task, dict) for task in content):
    raise InputError(f"{path}: neither Label Studio's JSON export, a list of tasks, nor its COCO")
  if content and not any("annotations" in task for task in content):
    raise InputError(
      f"{path}: no task has `annotations`; JSON-MIN leaves out which text is of which region: export as JSON"
    )
  export = Export([], collections.Counter())
  for task in content:
    _read_task(task, options, export)
  if not any(region.texts for region in export.regions):
    raise InputError(
      f'{path}: no region has a text; give the TextArea of the labelling config perRegion="true", or take labels for '
      f"expressions with --text {CATEGORY}"
    )
  return export


def _read_task(task: Mapping[str, Any], options: Options, export: Export) -> None:
  annotations = [row for row in rows_in(task.get("annotations")) if not row.get("was_cancelled")]
  image = _image_of(task)
  if not annotations or image is None:
    export.left_out["a task without an annotation" if image else "a task without an image"] += 1
    return
  # Of several people's the one that was declared true, else the first.
  annotation = next((row for row in annotations if row.get("ground_truth")), annotations[0])
  if len(annotations) > 1:
    export.left_out["an annotation of a task that has another"] += len(annotations) - 1
  regions: dict[int | str | None, list[Mapping[str, Any]]] = {}
  for row in rows_in(annotation.get("result")):
    regions.setdefault(id_in(row, "id"), []).append(row)
  for parts in regions.values():
    _read_region(parts, image, options, export)


def _read_region(
  parts: Sequence[Mapping[str, Any]], image: str, options: Options, export: Export
) -> None:
  texts = tuple(text for row in parts for text in _texts(row, options))
  shapes = [row for row in parts if _shape(row) in _SHAPES]
  if not shapes:
    _read_unattached(parts, texts, image, options, export)
    return
  try:
    mask = _SHAPES[_shape(shapes[0])](shapes[0], options)
  except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
    export.left_out[f"a region that cannot be read ({error})"] += 1
    return
  if mask is None:
    export.left_out["a box without a mask (--boxes takes it as one)"] += 1
    return
  export.regions.append(Region(image, mask, texts))


def _read_unattached(
  parts: Sequence[Mapping[str, Any]],
  texts: tuple[str, ...],
  image: str,
  options: Options,
  export: Export,
) -> None:
  """A text that belongs to no region means nothing where the user says so; what else is no region is left out."""
  if options.no_target and any(row.get("from_name") == options.no_target for row in parts):
    export.regions.append(Region(image, None, texts))
  else:
    export.left_out["a text without a region" if texts else f"a {parts[0].get('type')}"] += 1


def _texts(row: Mapping[str, Any], options: Options) -> Iterator[str]:
  value = row.get("value")
  value = value if isinstance(value, dict) else {}
  if CATEGORY in options.text_keys:
    labels = [v for key, v in value.items() if key.endswith("labels") or key == "choices"]
    yield from texts_in(labels, options.separator)
    return
  if row.get("type") == _TEXT:
    yield from texts_in(value.get("text"), options.separator)
  meta = row.get("meta")
  if isinstance(meta, dict):  # the note of a region
    yield from texts_in(meta.get("text"), options.separator)


def _image_of(task: Mapping[str, Any]) -> str | None:
  """The path of a task's photo, however it was brought in: uploaded, local files, a bucket or a page."""
  data = task.get("data")
  texts = [v for v in data.values() if isinstance(v, str)] if isinstance(data, dict) else []
  for text in texts:
    url = urlsplit(text)
    local = parse_qs(url.query).get("d", [""])[0]  # /data/local-files/?d=folder/photo.jpg
    path = local or unquote(url.path)
    if path.lower().endswith(preprocess.ENDINGS):
      return path.lstrip("/")
  return None


def _shape(row: Mapping[str, Any]) -> str:
  return str(row.get("type", "")).removesuffix("labels")


def _size(row: Mapping[str, Any]) -> tuple[int, int]:
  """Height and width of the photo, as it was shown."""
  if row.get("image_rotation"):
    raise ValueError(f"the photo was turned by {row['image_rotation']} degrees in the tool")
  height, width = row["original_height"], row["original_width"]
  whole = type(height) is int and type(width) is int and min(height, width) > 0
  if not whole or height * width > _MAX_PIXELS:
    raise ValueError(f"the photo is said to be {width} x {height}")
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
  return _turned([(0.0, 0.0), (w, 0.0), (w, h), (0.0, h)], value, height, width)


def _ellipse(row: Mapping[str, Any], options: Options) -> Mask:
  height, width = _size(row)
  value = row["value"]
  a, b = value["radiusX"] * width / 100, value["radiusY"] * height / 100
  angles = [2 * math.pi * k / _ELLIPSE_POINTS for k in range(_ELLIPSE_POINTS)]
  return _turned([(a * math.cos(t), b * math.sin(t)) for t in angles], value, height, width)


def _turned(
  points: Sequence[tuple[float, float]], value: Mapping[str, Any], height: int, width: int
) -> Mask:
  """Points around (x, y) of the value, turned around it clockwise as seen."""
  angle = math.radians(value.get("rotation", 0))
  x0, y0 = value["x"] * width / 100, value["y"] * height / 100
  cos, sin = math.cos(angle), math.sin(angle)
  turned = [(x0 + x * cos - y * sin, y0 + x * sin + y * cos) for x, y in points]
  clipped = [(min(max(x, 0), width), min(max(y, 0), height)) for x, y in turned]
  return {"polygons": [[coordinate for point in clipped for coordinate in point]]}


def _brush(row: Mapping[str, Any], options: Options) -> Mask:
  height, width = _size(row)
  if row["value"].get("format") != "rle":
    raise ValueError("a brush of another format than rle")
  mask = decode_brush(row["value"]["rle"], height, width)
  runs: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {"rle": {"size": [height, width], "counts": runs["counts"].decode()}}


_SHAPES = {"polygon": _polygon, "rectangle": _rectangle, "ellipse": _ellipse, "brush": _brush}
