"""Regions with their expressions to lines: which photo is meant, which regions belong together, which split."""

import collections
import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters import Region
from input_pipeline.custom.schema import DEFAULT_SPLIT

_UPLOADED = re.compile(
  r"[0-9a-f]{8}-"
)  # what Label Studio puts before the name of an uploaded file


def make_lines(
  regions: Sequence[Region], paths: Mapping[str, str], splits: Mapping[str, float], instances: bool
) -> Iterator[dict[str, Any]]:
  """Yields the lines of an export, image by image.

  Regions of an image that have the same expression are one target together; expressions for the same regions are the
  sentences of one line.

  Args:
    regions: in any order.
    paths: of the images, by the names that the export has for them.
    splits: see `split_of`.
    instances: whether all regions of an image that are no crowd are its instances.
  """
  by_image: dict[str, list[Region]] = {}
  for region in regions:
    by_image.setdefault(region.image, []).append(region)
  for image, found in by_image.items():
    path = paths[image]
    shared: dict[str, Any] = {"image": path, "split": split_of(path, splits)}
    if found[0].image_id is not None:
      shared["image_id"] = found[0].image_id
    if instances:
      things = [region for region in found if region.mask is not None and not region.crowd]
      shared["instances"] = [(r.mask or {}) | {"category": r.category} for r in things]
    for numbers, sentences in _sentences(found).items():
      masks = [mask for n in numbers if (mask := found[n].mask) is not None]
      target = None if not masks else masks[0] if len(masks) == 1 else masks
      yield shared | {"sentences": sentences, "target": target}


def _sentences(regions: Sequence[Region]) -> dict[tuple[int, ...], list[str]]:
  """The expressions of each group of regions, by the numbers of these."""
  meant: dict[str, list[int]] = {}
  written: dict[str, str] = {}
  for number, region in enumerate(regions):
    for text in region.texts:
      try:
        normal = preprocess.normalise_text(text)
      except InputError:
        continue
      written.setdefault(normal, text)
      if number not in meant.setdefault(normal, []):
        meant[normal].append(number)
  found: dict[tuple[int, ...], list[str]] = {}
  for normal, numbers in meant.items():
    found.setdefault(tuple(numbers), []).append(written[normal])
  return found


def split_of(path: str, splits: Mapping[str, float]) -> str:
  """Returns the split of an image, which depends on nothing but its path.

  Args:
    path: of the image.
    splits: shares that sum to at most 1, by name; what is left is `train`.
  """
  digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).digest()
  drawn = int.from_bytes(digest[:6]) / 2**48
  for split, share in splits.items():
    if drawn < share:
      return split
    drawn -= share
  return DEFAULT_SPLIT


def parse_splits(texts: Sequence[str]) -> dict[str, float]:
  """Reads what stands behind `--split`: `NAME`, all of it, or `NAME=SHARE`.

  Raises:
    InputError: a share is none, or they are more than 1 together.
  """
  found: dict[str, float] = {}
  for text in texts:
    name, equals, share = text.partition("=")
    try:
      found[name] = float(share) if equals else 1.0
    except ValueError as error:
      raise InputError(f"--split {text}: write NAME, or NAME=SHARE such as val=0.1") from error
    if not name or not 0 < found[name] <= 1:
      raise InputError(f"--split {text}: write NAME, or NAME=SHARE such as val=0.1")
  if sum(found.values()) > 1 + 1e-9:
    raise InputError(f"--split {' '.join(texts)}: the shares are more than 1 together")
  return found


def find_images(names: Sequence[str], folder: str) -> tuple[dict[str, str], list[str]]:
  """Finds the photos that an export names, by as much of their path as is the same.

  Args:
    names: as the export has them: relative to somewhere, or with Label Studio's prefix of uploads.
    folder: in which they lie, or in folders of it.

  Returns:
    Their paths below the folder, by their names; and the names that were not found, whose path is the name itself.
  """
  there: dict[str, list[str]] = collections.defaultdict(list)
  for base, _, files in os.walk(folder):
    for file in files:
      path = os.path.relpath(os.path.join(base, file), folder).replace(os.sep, "/")
      there[file].append(path)
  found, missing = {}, []
  for name in dict.fromkeys(names):
    plain = name.replace("\\", "/")
    last = plain.rpartition("/")[2]
    paths = there.get(last) or there.get(_UPLOADED.sub("", last, count=1), [])
    best = max(paths, key=lambda path: _shared_end(path, plain), default="")
    if not best:
      missing.append(name)
    found[name] = best or plain.lstrip("/")
  return found, missing


def _shared_end(a: str, b: str) -> int:
  """How many folders and file names two paths have in common, from their ends."""
  pairs = zip(reversed(a.split("/")), reversed(b.split("/")), strict=False)
  return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
