"""Reads Label Studio's exports: JSON, which is complete, and COCO, which has no texts.

In the JSON a region is a row of `result`; the text of a `TextArea` with `perRegion` and the labels
of `Labels` are other rows with the same `id` (labelstud.io/guide/task_format). The COCO export only
keeps the category.
"""

import base64
import binascii
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters import coco, export_files, geometry
from input_pipeline.custom.converters.collect import (
  CATEGORY,
  NEEDS_BOXES,
  TEXT_KEYS,
  Export,
  LeftOut,
  Options,
  Region,
  plain_key,
  read_mask,
  rows_in,
  texts_in,
  texts_under,
)
from input_pipeline.custom.converters.label_studio_shapes import (
  CONVEX,
  SHAPES,
  kind_of,
  read_shape,
  size_of,
)
from input_pipeline.custom.schema import Mask
from input_pipeline.masks.segmentation import CLIPPED

# Before version 1.0, annotations were called completions.
_KEYS = {"annotations", "completions"}
_TEXT = "textarea"
_META = "meta"
"""The field of notes on regions."""
# Types of rows that describe a region or an image, without a shape.
_NO_SHAPES = (
  *(_TEXT, "labels", "choices", "taxonomy", "rating", "number", "datetime", "pairwise", "relation"),
)
_THUMBNAIL = re.compile("thumb|preview", re.IGNORECASE)
_UNREADABLE = (".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".psd")


def read(path: str, options: Options) -> Export:
  """Reads an export.

  Args:
    path: file of the "JSON" or the "COCO" export.
    options: how it is read.

  Raises:
    InputError: the file is neither, is ambiguous, or no region has an expression.
  """
  export = Export()
  return read_content(export_files.load_json(path, export), path, options, export)


def read_content(content: Any, path: str, options: Options, export: Export) -> Export:
  """Reads an export from parsed JSON into `export`; see `read`."""
  if coco.is_coco(content):
    if CATEGORY not in options.text_keys:
      raise InputError(
        f"{path}: Label Studio's COCO export does not contain the texts of regions; export as "
        f"JSON, or use category names as expressions with --text {CATEGORY}"
      )
    # Percentages refer to the image as shown in a browser, upright.
    return coco.read_content(content, path, options, export, upright=True)
  if not isinstance(content, list) or not all(isinstance(task, dict) for task in content):
    raise InputError(
      f"{path}: neither Label Studio's JSON export (a list of tasks) nor its COCO export"
    )
  if content and not any(_KEYS & task.keys() for task in content):
    raise InputError(
      f"{path}: no task has `annotations`; JSON-MIN does not link texts to regions, so export as "
      "JSON"
    )
  groups = [group for task in content for group in _groups_in(task, export)]
  keys = _text_keys(groups, options, path)
  for group in groups:
    _read_group(group, dataclasses.replace(options, text_keys=keys), path, export)
  _check_no_target(export)
  if not any(region.texts for region in export.regions):
    reason = _no_text(groups, options) if export.regions else "no usable region"
    raise InputError("; ".join([f"{path}: {reason}", *export.report()]))
  return export


def _no_text(groups: Sequence["_Group"], options: Options) -> str:
  fields = {field: None for group in groups if group.shapes for field in group.fields("\n")}
  named = options.text_keys != TEXT_KEYS
  return (
    f"no region has a text{' under ' + ', '.join(options.text_keys) if named else ''}; "
    f"{'regions have ' + ', '.join(fields) + '; ' if fields else ''}"
    'set perRegion="true" on the TextArea in the labelling config, or use labels as expressions '
    f"with --text {CATEGORY}"
  )


def _check_no_target(export: Export) -> None:
  """Removes expressions without a target that a region of the same image has as well."""
  regions = {
    (region.image, plain_key(text))
    for region in export.regions
    if region.mask is not None
    for text in region.texts
  }
  for number, region in enumerate(export.regions):
    if region.mask is None:
      texts = tuple(t for t in region.texts if (region.image, plain_key(t)) not in regions)
      for text in set(region.texts) - set(texts):
        export.skip("text without a target that also describes a region", f"{text:.40}")
      export.regions[number] = dataclasses.replace(region, texts=texts)


@dataclasses.dataclass
class _Group:
  """Rows of `result` with the same id: a region, or a description of the whole image."""

  rows: list[Mapping[str, Any]]
  task: Mapping[str, Any]
  place: str

  @property
  def shapes(self) -> list[Mapping[str, Any]]:
    """The rows that are shapes."""
    return [row for row in self.rows if kind_of(row) in SHAPES]

  def fields(self, separator: str) -> dict[str, list[str]]:
    """Returns the texts by field name."""
    fields: dict[str, list[str]] = {}
    for row in self.rows:
      value = row.get("value")
      value = value if isinstance(value, dict) else {}
      labels = [value[key] for key in value if key.endswith("labels") or key == "labels"]
      meta = row.get("meta")
      name = str(row.get("from_name", ""))
      for field, content in (
        (name, value.get("text") if row.get("type") == _TEXT else None),
        (name, value.get("choices")),
        (CATEGORY, labels),
        (_META, meta.get("text") if isinstance(meta, dict) else None),
      ):
        if texts := texts_in(content, separator):
          fields[field] = list(dict.fromkeys((*fields.get(field, ()), *texts)))
    return fields


def _groups_in(task: Mapping[str, Any], export: Export) -> Iterator[_Group]:
  """Yields the regions of the annotation that is used for a task."""
  place = f"task {task.get('id', 'without id')!s:.40}"
  rows = [row for key in sorted(_KEYS) for row in rows_in(task.get(key))]
  annotations = [row for row in rows if not row.get("was_cancelled")]
  for _ in range(len(rows) - len(annotations)):
    export.skip("cancelled annotation", place)
  if not annotations:
    others = [key for key in ("drafts", "predictions") if task.get(key)]
    what = f"task with {' and '.join(others)} only" if others else "task without an annotation"
    export.skip(what, place)
    return
  # With several annotators, the annotation that is marked as ground truth; else the first.
  annotation = next((row for row in annotations if row.get("ground_truth")), annotations[0])
  for _ in annotations[1:]:
    export.skip("additional annotation of the same task", place)
  groups: dict[Any, list[Mapping[str, Any]]] = {}
  for number, row in enumerate(rows_in(annotation.get("result"))):
    row_id = row.get("id")
    groups.setdefault(row_id if isinstance(row_id, str) else number, []).append(row)
  if not groups:
    export.skip("annotation without regions", place)
  for row_id, group in groups.items():
    named = isinstance(row_id, str)
    yield _Group(group, task, f"{place}, region {row_id:.40}" if named else place)


def _text_keys(groups: Sequence[_Group], options: Options, path: str) -> Sequence[str]:
  """Returns the fields whose texts are expressions.

  Raises:
    InputError: there are several, none of them named as in `TEXT_KEYS`.
  """
  if options.text_keys != TEXT_KEYS:
    return options.text_keys
  areas = {
    str(row.get("from_name", "")): None
    for group in groups
    if group.shapes
    for row in group.rows
    if row.get("type") == _TEXT
  }
  if len(areas) < 2:
    return (*areas,) or (_META,)
  for key in TEXT_KEYS:
    if matching := [area for area in areas if plain_key(area) == plain_key(key)]:
      return matching
  raise InputError(
    f"{path}: regions have texts in {' and '.join(areas)}; choose those with expressions by "
    f"{' '.join(f'--text {area}' for area in areas)}"
  )


def _read_group(group: _Group, options: Options, path: str, export: Export) -> None:
  fields = group.fields(options.separator)
  image, mask, size = "", None, None
  try:
    if not group.shapes:
      _read_unattached(group, fields, options, path, export)
      return
    image = _image_of(group, group.shapes[0], path)
    mask, size = _read_mask(group, options, export)
  except InputError:
    raise
  except (LeftOut, ValueError) as error:
    export.skip(str(error), group.place)
  texts = texts_under([fields], options, export, group.place)
  if mask is None:
    if image and CATEGORY not in options.text_keys:
      export.lose(image, texts)
    return
  for field in fields.keys() - {CATEGORY}:
    if not any(plain_key(field) == plain_key(key) for key in options.text_keys):
      export.note(f"text under {field} not read; --text {field} reads it", group.place)
  # Browsers show images upright.
  export.regions.append(Region(image, mask, texts, size=size, upright=True))


def _read_mask(
  group: _Group, options: Options, export: Export
) -> tuple[Mask | None, tuple[int, int]]:
  """Returns the mask of a region (None if it is left out) and the image's height and width."""
  masks = [read_shape(row) for row in group.shapes]
  if any(other != masks[0] for other in masks):
    raise LeftOut("different shapes with the same id")
  kind, size = kind_of(group.shapes[0]), size_of(group.shapes[0])
  if kind == "rectangle" and not options.boxes:
    raise LeftOut(NEEDS_BOXES)
  shape = geometry.clip(masks[0], size) if kind in CONVEX else masks[0]
  if shape != masks[0]:
    export.note(CLIPPED, group.place)
  return read_mask(shape.get("polygons", shape.get("rle")), size, export, group.place), size


def _read_unattached(
  group: _Group,
  fields: Mapping[str, list[str]],
  options: Options,
  path: str,
  export: Export,
) -> None:
  """Reads rows without a shape: expressions without a target if `no_target` names their field."""
  if options.no_target and (texts := fields.get(options.no_target)):
    image = _image_of(group, group.rows[0], path)
    export.regions.append(Region(image, None, tuple(texts)))
    return
  kinds = [str(row.get("type")) for row in group.rows]
  other = next((kind for kind in kinds if kind not in _NO_SHAPES), None)
  if other is not None:
    raise LeftOut(f"{other} not supported")
  raise LeftOut("text without a region" if _TEXT in kinds else f"{kinds[0]} without a region")


def _image_of(group: _Group, row: Mapping[str, Any], path: str) -> str:
  """Returns the image of a row: an upload, a local file, a bucket or a URL.

  The row names an Image tag, whose `value` is a key of `data`. Exports lack the labelling config,
  but the tag nearly always has the name of the key.

  Raises:
    LeftOut: there is no image, or its format is not supported.
    InputError: the image is ambiguous.
  """
  data = group.task.get("data")
  images = {} if not isinstance(data, dict) else {key: data[key] for key in data if data[key]}
  tag = row.get("to_name")
  same = [key for key in images if plain_key(key) == plain_key(str(tag))]
  if len(same) == 1 and isinstance(images[same[0]], str | list):
    return _item(images[same[0]], row)
  images = {key: value for key, value in images.items() if _is_image(value)}
  photos = {key: images[key] for key in images if not _is_thumbnail(key, images[key])}
  if images and not photos:
    raise LeftOut("task with only a thumbnail")
  if not photos:
    raise LeftOut("task without an image")
  if len(photos) > 1:
    keys = " or ".join(f"{key} ({_first(value):.60})" for key, value in list(photos.items())[:2])
    raise InputError(
      f"{path}: {group.place}: the image may be {keys}, since no key is named like the Image tag "
      f"{tag}; rename the key of the annotated image to {tag} in the file"
    )
  return _item(next(iter(photos.values())), row)


def _item(value: str | list[Any], row: Mapping[str, Any]) -> str:
  """Returns a row's image from the value of a key, which may be a list of images."""
  if isinstance(value, list):
    index = row.get("item_index", 0 if len(value) == 1 else None)
    if type(index) is not int or not 0 <= index < len(value):
      raise LeftOut("region of a list of images without its `item_index`")
    value = value[index]
  if not isinstance(value, str):
    raise LeftOut("task without an image")
  if value.startswith("data:"):
    raise LeftOut("image inside the JSON; save it as a file")
  name = _stored(value)
  suffix = _suffix(name)
  if suffix in _UNREADABLE:
    raise LeftOut(f"unsupported image format ({suffix}); save the image as JPEG or PNG")
  return name


def _first(value: Any) -> str:
  return str(value[0] if isinstance(value, list) else value)


def _is_image(value: Any) -> bool:
  if isinstance(value, list):
    return bool(value) and all(isinstance(item, str) and _is_image(item) for item in value)
  if not isinstance(value, str):
    return False
  kinds = (*preprocess.EXTENSIONS, *_UNREADABLE)
  return value.startswith("data:image/") or _suffix(_stored(value)) in kinds


def _is_thumbnail(key: str, value: Any) -> bool:
  return bool(_THUMBNAIL.search(key) or "thumb" in _first(value).lower())


def _stored(value: str) -> str:
  """Returns the storage URL inside a link of Label Studio's server."""
  url = _split(value)
  if "fileuri" not in url.query:
    return value
  encoded = parse_qs(url.query).get("fileuri", [""])[0]
  try:
    padded = encoded + "=" * (-len(encoded) % 4)
    return base64.b64decode(padded, altchars=b"-_", validate=True).decode()
  except (binascii.Error, ValueError):
    return encoded or value


def _suffix(name: str) -> str:
  """Returns the lower-case extension of an image path or URL."""
  local = name.partition("/local-files/?d=")[2]
  path = unquote(local or _split(name).path)
  return "." + path.rpartition(".")[2].lower() if "." in path else ""


def _split(value: str) -> Any:
  try:
    return urlsplit(value)
  except ValueError:  # brackets that look like an IPv6 address
    return urlsplit("")
