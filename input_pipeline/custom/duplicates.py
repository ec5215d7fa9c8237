"""Finds images that are copies of images in another split: the same file, or the same origin."""

import concurrent.futures
import os
import re
from collections.abc import Iterator, Sequence

import numpy as np

from input_pipeline import image_hashes, preprocess
from input_pipeline.common import parallel, untrusted_files
from input_pipeline.common.terminal import with_progress
from input_pipeline.custom.check import LineSummary
from input_pipeline.custom.masks import PathResolver
from input_pipeline.custom.schema import Problem
from input_pipeline.image_hashes import ImageHash

SAME_PATH = "image in two splits"
_SAME_FILE = "same image in two splits"
_SAME_ORIGIN = "copies of an image in two splits"
_SIMILAR = "similar images in two splits"
KINDS = (SAME_PATH, _SAME_FILE, _SAME_ORIGIN, _SIMILAR)
"""Kinds of problems reported here."""
_VERBS = {
  _SAME_FILE: "is the same file as",
  _SAME_ORIGIN: "is, judging by its name, a copy of",
  _SIMILAR: "looks the same as",
}
_WAY_OUT = "leakage; keep one of them or move both to one split"
# Roboflow's names of the copies and augmentations of an image: photo_jpg.rf.HASH.jpg.
_ROBOFLOW = re.compile(r"(.+)\.rf\.[0-9A-Za-z]{8,}\.[A-Za-z0-9]+")


def find(
  splits: Sequence[Sequence[LineSummary]], paths: PathResolver, workers: int | None = None
) -> Iterator[Problem]:
  """Yields a warning for each copy of an image in an earlier split.

  Args:
    splits: the first line of each image in each split.
    paths: of the images.
    workers: number of threads; by default one per core.
  """
  if len(splits) < 2:
    return
  names = sorted({line.image for lines in splits for line in lines})
  hashes = _hash_files(names, paths, workers)
  earlier: list[LineSummary] = []
  for lines in splits:
    before = {line.image for line in earlier}
    known = [line for line in lines if line.image in hashes and line.image not in before]
    for line, other, kind in _match(known, earlier, hashes):
      copy = f"{other.image} ({other.split}, line {other.number})"
      message = f"{line.image} ({line.split}) {_VERBS[kind]} {copy}: {_WAY_OUT}"
      yield Problem(line.number, kind, message, warning=True)
    earlier += known


def _hash_files(
  names: Sequence[str], paths: PathResolver, workers: int | None
) -> dict[str, ImageHash]:
  """Returns the hashes of all readable files; unreadable ones are reported by the line check."""

  def hash_file(name: str) -> ImageHash | None:
    try:
      data = untrusted_files.read(paths.resolve(name), name, preprocess.MAX_FILE_BYTES)
      return image_hashes.hash_image(0, data)
    except ImportError:
      raise
    except Exception:  # Pillow raises almost any exception on damaged files.
      return None

  # Decoding dominates and releases the GIL.
  with concurrent.futures.ThreadPoolExecutor(workers or parallel.available_cores()) as pool:
    found = with_progress(pool.map(hash_file, names), "comparing", len(names), "images")
    hashes = zip(names, found, strict=True)
    return {name: value for name, value in hashes if value is not None}


def _match(
  lines: Sequence[LineSummary],
  earlier: Sequence[LineSummary],
  hashes: dict[str, ImageHash],
) -> Iterator[tuple[LineSummary, LineSummary, str]]:
  """Yields each copy with the earlier line and the kind of problem."""
  contents = {hashes[line.image].content: line for line in reversed(earlier)}
  origins = {_origin(line.image): line for line in reversed(earlier)}
  looks = [
    image_hashes.as_words([hashes[line.image].looks for line in part]) for part in (lines, earlier)
  ]
  nearest, distances = image_hashes.nearest(*looks)
  similar = np.where(distances <= image_hashes.MAX_DISTANCE, nearest, -1)
  for line, index in zip(lines, similar.tolist(), strict=True):
    if (same := contents.get(hashes[line.image].content)) is not None:
      yield line, same, _SAME_FILE
    elif (copy := origins.get(_origin(line.image))) is not None and _is_made(line, copy):
      yield line, copy, _SAME_ORIGIN
    elif index >= 0:
      yield line, earlier[index], _SIMILAR


def _origin(name: str) -> str:
  """Returns the name of the original image of a file, in Roboflow's spelling."""
  match = _ROBOFLOW.fullmatch(os.path.basename(name))
  return match[1] if match else os.path.basename(name).replace(".", "_")


def _is_made(*lines: LineSummary) -> bool:
  return any(_ROBOFLOW.fullmatch(os.path.basename(line.image)) for line in lines)
