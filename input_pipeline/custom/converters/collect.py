"""Turns the regions of an export into lines: groups regions, assigns splits."""

import collections
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters.embedded import EmbeddedImages
from input_pipeline.custom.schema import DEFAULT_SPLIT, Mask
from input_pipeline.masks.row_index import whole_number
from input_pipeline.masks.segmentation import (
  MAX_COORDINATE,
  encode_segmentation,
  read_segmentation,
)

TEXT_KEYS = (
  "sentences",
  "sentence",
  "captions",
  "caption",
  "expressions",
  "expression",
  "referring_expression",
  "referring expression",
  "phrase",
  "description",
  "text",
)
"""Keys that are searched for expressions by default."""
CATEGORY = "category"
"""A value of `--text`: the name of the category is the expression."""
NEEDS_BOXES = "box without a mask (use --boxes to convert it)"
"""The reason for skipping a box."""
# Number of reasons printed, and of places listed for each.
_REASONS = 20
_PLACES = 3
_SPLIT_NAMES = {name.lower(): name for name in ("train", "val", "test", "testA", "testB", "testC")}
_SPLIT_NAMES |= {"training": "train", "validation": "val", "valid": "val", "dev": "val"}


class LeftOut(Exception):
  """The reason why an expression, an object or a region is left out."""


@dataclasses.dataclass(frozen=True)
class Region:
  """An annotated region of an image."""

  image: str
  """File name as in the export."""
  mask: Mask | None
  """None if the expressions refer to nothing."""
  texts: tuple[str, ...]
  category: int = 0
  crowd: bool = False
  image_id: int | None = None
  size: tuple[int, int] | None = None
  """Declared height and width of the image that the mask is for."""
  upright: bool | None = None
  """Whether the mask is for the image as rotated by EXIF; None if the tool does not tell."""
  ref: str | None = None
  """Regions of an image with the same ref form one target and have the same texts. None: regions
  with the same expression form one target."""
  split: str | None = None
  """As given by the export; None if it is not."""


@dataclasses.dataclass
class Export:
  """The content of an export."""

  regions: list[Region] = dataclasses.field(default_factory=list)
  skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  """How many items could not be converted, by reason."""
  noted: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  """Counts of what was changed, chosen or not read."""
  places: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  """The first places of each reason or note."""
  embedded: set[str] = dataclasses.field(default_factory=set)
  """Values of `Region.image` that are paths of images from the export itself, relative to the
  folder of the lines; their sizes have been checked."""

  lost: dict[str, set[str]] = dataclasses.field(default_factory=dict)
  """Normalised expressions of regions that were left out, by image."""

  def lose(self, image: str, texts: Iterable[str]) -> None:
    """Remembers the expressions of a region that is left out; see `drop_incomplete`."""
    normalised = map(preprocess.normalise_text, filter(preprocess.is_expression, texts))
    self.lost.setdefault(image, set()).update(normalised)

  def drop_incomplete(self) -> None:
    """Removes expressions that a region that was left out has as well.

    Regions with the same expression form one target, of which a part would be missing.
    """
    for number, region in enumerate(self.regions):
      lost = self.lost.get(region.image, ()) if region.ref is None else ()
      kept = [
        text
        for text in region.texts
        if not preprocess.is_expression(text) or preprocess.normalise_text(text) not in lost
      ]
      if len(kept) < len(region.texts):
        self.skip("expression of an incomplete target (a region was left out)", region.image)
        self.regions[number] = dataclasses.replace(region, texts=tuple(kept))

  def skip(self, reason: str, place: str = "") -> None:
    """Counts an item that is left out, such as `annotation 7`."""
    self._count(self.skipped, reason, place)

  def note(self, what: str, place: str = "") -> None:
    """Counts an item that is read differently than written."""
    self._count(self.noted, what, place)

  def _count(self, counter: collections.Counter[str], text: str, place: str) -> None:
    counter[text] += 1
    places = self.places.setdefault(text, [])
    if place and len(places) < _PLACES:
      places.append(place)

  def report(self) -> Iterator[str]:
    """Yields one line per reason and per note, most frequent first."""
    for title, counter in (("skipped", self.skipped), ("note", self.noted)):
      ordered = counter.most_common()
      for text, count in ordered[:_REASONS]:
        places = ", ".join(self.places.get(text, ()))
        more = ", ..." if places and count > len(self.places[text]) else ""
        yield f"{title}: {text} ({count:,}{': ' * bool(places)}{places}{more})"
      if rest := sum(count for _, count in ordered[_REASONS:]):
        yield f"{title}: for {len(ordered) - _REASONS:,} other reasons ({rest:,})"


@dataclasses.dataclass(frozen=True)
class Options:
  """How an export is read."""

  text_keys: Sequence[str] = TEXT_KEYS
  """Keys of the expressions: all of them if the user named them, else the first with a text."""
  separator: str = "\n"
  """Separates several expressions in one text."""
  boxes: bool = False
  """Whether a box without a mask is used as one."""
  no_target: str = ""
  """Label Studio: the `name` of the text field whose expressions refer to nothing."""
  images: EmbeddedImages | None = None
  """Stores images from the export itself."""
  annotations: str = ""
  """COCO file with the masks of an export that only has their ids."""
  folder: str = "."
  """Folder of the images, for formats without file extensions or image sizes."""


def texts_in(value: Any, separator: str) -> tuple[str, ...]:
  """Returns the expressions in a field: a string, a list, or objects like those in refs files."""
  if isinstance(value, str):
    return tuple(part.strip() for part in value.split(separator) if part.strip())
  if isinstance(value, list):
    return tuple(text for item in value for text in texts_in(item, separator))
  if isinstance(value, dict):
    text = next((value[key] for key in ("raw", "sent", *TEXT_KEYS) if value.get(key)), None)
    return texts_in(text, separator) if isinstance(text, str) else ()
  return ()


def texts_under(
  levels: Sequence[Mapping[str, Any]], options: Options, export: Export, place: str
) -> tuple[str, ...]:
  """Returns the expressions of a region, found under one of the keys of `options`.

  Args:
    levels: objects of the region that may have the keys, ignoring case, `_` and `-`.
    options: the keys.
    export: notes texts that are not read.
    place: of the region.
  """
  values: dict[str, list[Any]] = {}
  for level in levels:
    for name, value in level.items():
      values.setdefault(plain_key(name), []).append(value)
  found: dict[str, tuple[str, ...]] = {}
  for key in options.text_keys:
    # A key is read once.
    texts = texts_in(values.pop(plain_key(key), []), options.separator)
    if texts:
      found[key] = texts
  if options.text_keys != TEXT_KEYS:
    return tuple(text for texts in found.values() for text in texts)
  for key in list(found)[1:]:
    read = next(iter(found))
    if set(found[key]) - set(found[read]):
      export.note(f"text under {key} not read; --text {read} --text {key} reads both", place)
  return next(iter(found.values()), ())


@functools.lru_cache(maxsize=1 << 12)
def plain_key(key: str) -> str:
  """Returns a key in the normalised spelling used to compare keys."""
  return key.casefold().replace("_", " ").replace("-", " ").strip()


def read_mask(segmentation: Any, size: tuple[int, int], export: Export, place: str) -> Mask | None:
  """Returns a segmentation as a mask, or None if it is left out (and counted).

  Args:
    segmentation: in any form that `read_segmentation` accepts.
    size: height and width of the image in pixels.
    export: counts what is left out or changed.
    place: of the segmentation, such as `annotation 7`.
  """
  try:
    read = read_segmentation(segmentation, *size)
  except ValueError as error:
    export.skip(str(error), place)
    return None
  for note in read.notes:
    export.note(note, place)
  if not read.area():
    export.skip("mask covers no pixel", place)
    return None
  if len(read.parts) == 1:
    return read.parts[0]
  if all("polygons" in part for part in read.parts):
    return {"polygons": [polygon for part in read.parts for polygon in part["polygons"]]}
  return {"rle": encode_segmentation(read.mask())}


def box(x: float, y: float, width: float, height: float) -> Mask:
  """Returns a box as a mask."""
  right, bottom = x + width, y + height
  return {"polygons": [[x, y, right, y, right, bottom, x, bottom]]}


def box_in(value: Any) -> tuple[float, float, float, float] | None:
  """Returns x, y, width and height of a box; None unless these are numbers with an area."""
  if not isinstance(value, list) or len(value) != 4:
    return None
  if not all(type(x) in (int, float) and abs(x) <= MAX_COORDINATE for x in value):
    return None
  x, y, width, height = map(float, value)
  return (x, y, width, height) if width > 0 and height > 0 else None


def size_of_runs(segmentation: Any) -> tuple[int, int] | None:
  """Returns the height and width declared by run lengths; None without run lengths."""
  parts = segmentation if isinstance(segmentation, list) else [segmentation]
  for part in parts:
    size = part.get("size") if isinstance(part, dict) else None
    if isinstance(size, list) and len(size) == 2 and all(type(x) is int and x > 0 for x in size):
      return size[0], size[1]
  return None


def masks_in(value: Any, height: int, width: int) -> tuple[list[Mask], tuple[str, ...]]:
  """Reads a COCO segmentation.

  Args:
    value: see `read_segmentation`.
    height: of the image, in pixels.
    width: of the image, in pixels.

  Returns:
    Masks whose union is the segmentation, all polygons in one; and what was left out or changed.

  Raises:
    ValueError: see `read_segmentation`.
  """
  segmentation = read_segmentation(value, height, width)
  polygons = [polygon for part in segmentation.parts for polygon in part.get("polygons", ())]
  runs = [part for part in segmentation.parts if "rle" in part]
  return [{"polygons": polygons}] * bool(polygons) + runs, segmentation.notes


def rows_in(value: Any) -> list[dict[str, Any]]:
  """Returns the objects in a list; empty if the value is not a list."""
  return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def id_in(row: Mapping[str, Any], key: str) -> int | str | None:
  """Returns an id, or None if it is missing or of another type.

  Some tools write the id 7 as 7.0 or "7".
  """
  value = row.get(key)
  number = whole_number(value)
  return number if number is not None else value if isinstance(value, str) else None


def make_lines(
  regions: Sequence[Region], paths: Mapping[str, str], splits: Mapping[str, float], instances: bool
) -> Iterator[dict[str, Any]]:
  """Yields the lines of an export, image by image.

  Regions of an image with the same `ref` form one target; without a `ref`, regions with the same
  expression do. Expressions for the same regions are the `sentences` of one line.

  Args:
    regions: in any order.
    paths: of the images, by their names in the export.
    splits: see `split_of`; take precedence over the splits of the regions.
    instances: whether all regions of an image, except crowds, are its instances; a region of
      several refs counts once.
  """
  objects: dict[str, dict[str, Mask]] = {}
  if instances:
    for region in regions:
      of_image = objects.setdefault(region.image, {})
      if region.mask is not None and not region.crowd:
        key = f"{len(of_image)}" if region.ref is None else json.dumps(region.mask)
        of_image.setdefault(key, region.mask | {"category": region.category})
  groups: dict[tuple[str, str | None], list[Region]] = {}
  for region in regions:
    groups.setdefault((region.image, None if splits else region.split), []).append(region)
  for (image, split), group in groups.items():
    path = paths[image]
    shared: dict[str, Any] = {"image": path, "split": split or split_of(path, splits)}
    if group[0].image_id is not None:
      shared["image_id"] = group[0].image_id
    if instances:
      shared["instances"] = list(objects[image].values())
    for numbers, expressions in _group_expressions(group):
      masks = [mask for n in numbers if (mask := group[n].mask) is not None]
      target = None if not masks else masks[0] if len(masks) == 1 else masks
      yield shared | {"sentences": expressions, "target": target}


def _group_expressions(regions: Sequence[Region]) -> Iterator[tuple[tuple[int, ...], list[str]]]:
  """Yields, for each target, the indices of its regions and its expressions."""
  refs: dict[str | None, list[int]] = {}
  for number, region in enumerate(regions):
    refs.setdefault(region.ref, []).append(number)
  without_ref = refs.pop(None, [])
  for members in refs.values():
    # Duplicates are kept, as in the data set.
    if texts := [text for text in regions[members[0]].texts if preprocess.is_expression(text)]:
      yield tuple(members), texts
  referents: dict[str, list[int]] = {}
  spelling: dict[str, str] = {}
  for number in without_ref:
    for text in filter(preprocess.is_expression, regions[number].texts):
      normalised = preprocess.normalise_text(text)
      spelling.setdefault(normalised, text)
      if number not in referents.setdefault(normalised, []):
        referents[normalised].append(number)
  groups: dict[tuple[int, ...], list[str]] = {}
  for normalised, numbers in referents.items():
    groups.setdefault(tuple(numbers), []).append(spelling[normalised])
  yield from groups.items()


def split_of(path: str, splits: Mapping[str, float]) -> str:
  """Returns the split of an image, which depends only on its path.

  Args:
    path: of the image.
    splits: shares by name, at most 1 in total; the rest is `train`.
  """
  digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).digest()
  position = int.from_bytes(digest[:6]) / 2**48
  for split, share in splits.items():
    if position < share:
      return split
    position -= share
  return DEFAULT_SPLIT


def split_in(text: str) -> str | None:
  """Returns the split in the name of a file or column.

  Args:
    text: such as `validation-00000-of-00002`, `finetune_refcoco_val` or `testA`.

  Returns:
    The split's standard name; None if there is none, or several.
  """
  words = re.split(r"[^A-Za-z0-9]+", text)
  splits = {_SPLIT_NAMES[word.lower()] for word in words if word.lower() in _SPLIT_NAMES}
  return splits.pop() if len(splits) == 1 else None


def parse_splits(texts: Sequence[str]) -> dict[str, float]:
  """Parses the values of `--split`: `NAME`, for all images, or `NAME=SHARE`.

  Raises:
    InputError: a share is invalid, or the shares exceed 1 in total.
  """
  shares: dict[str, float] = {}
  for text in texts:
    name, equals, share = text.partition("=")
    try:
      shares[name] = float(share) if equals else 1.0
    except ValueError as error:
      raise InputError(f"--split {text}: use NAME, or NAME=SHARE such as val=0.1") from error
    if not name or not 0 < shares[name] <= 1:
      raise InputError(f"--split {text}: use NAME, or NAME=SHARE such as val=0.1")
  if sum(shares.values()) > 1 + 1e-9:
    raise InputError(f"--split {' '.join(texts)}: the shares exceed 1 in total")
  return shares
