r"""Writes COCO annotations without evaluation images, to train a detector that has not seen them:

python -m input_pipeline.proposals clean-split --annotations FILE --refer_root refer \
    --out clean.json

With `--folds 5 --out clean_{fold}.json`, it writes a file for each fold, for masks of training
images from a detector that has not seen them (`prepare --folds`).

An image is removed if any data set of the RefCOCO family has it in a split other than train,
identified by COCO's number in its file name or URL, or else by its id. Everything else is copied
unchanged.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any, BinaryIO

from input_pipeline.common import (
  atomic_files,
  image_names,
  json_rows,
  untrusted_files,
  untrusted_json,
  untrusted_pickle,
)
from input_pipeline.common.command_line import add_subparser
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import announce, counted
from input_pipeline.proposers import folds, image_lists
from input_pipeline.sources import refer

_REQUIRED = {
  name: refer.LAYOUTS[name]
  for name in ("refcoco_unc", "refcoco+_unc", "refcocog_umd", "refcocog_google")
}
_SECTIONS: tuple[str, ...] = ("images", "annotations")
_OPTIONAL = {
  "refcoco_google": dataclasses.replace(
    refer.LAYOUTS["refcoco_unc"], refs_file="refs(google).p", splits={}
  ),
  "grefcoco_unc": refer.LAYOUTS["grefcoco_unc"],
}


def add_parser(subparsers: Any) -> None:
  """Adds `clean-split`."""
  parser = add_subparser(
    subparsers,
    "clean-split",
    "write COCO annotations without evaluation images, to train a detector on",
    __doc__,
  )
  parser.add_argument("--annotations", required=True, help="COCO file, such as train2014's")
  parser.add_argument("--refer_root", required=True, help="folder with refcoco/, refcoco+/ ...")
  parser.add_argument("--out", required=True, metavar="CLEAN.json", help="output file")
  parser.add_argument(
    "--exclude",
    action="append",
    default=[],
    metavar="FILE",
    help="list of further images to remove; can be repeated",
  )
  parser.add_argument(
    "--folds",
    type=int,
    metavar="N",
    help="write N + 1 files for `prepare --folds`: with {fold} in --out, 1 to N, each also without "
    "the images of that fold, and all",
  )
  parser.add_argument(
    "--allow_missing", action="store_true", help="continue if the refs of a data set are missing"
  )
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command.

  Raises:
    InputError: a file is missing, malformed, or would be overwritten; nothing is written.
  """
  folds.check_number(args.folds, args.out, "--out")
  outs = {name: folds.fill(args.out, name) for name in folds.names(args.folds)}
  for out in outs.values():
    _check_out(args, out)
  excluded = evaluation_images(args.refer_root, args.allow_missing)
  excluded |= {path: image_lists.read_ids(path) for path in args.exclude}
  with announce(f"reading {args.annotations}"):
    annotations = Annotations(args.annotations)
  images = frozenset(annotations.coco_ids.values())
  evaluated = frozenset[int]().union(*excluded.values())
  for fold, out in outs.items():
    own = {i for i in images if i is not None and folds.name_of(i, args.folds) == fold}
    with announce(f"writing {out}"):
      counts = annotations.write_without(evaluated | (own if args.folds else set()), out)
    if fold in (folds.ALL, ""):
      _print_table(excluded, images, counts)
    print(f"wrote {out}")


def evaluation_images(refer_root: str, allow_missing: bool = False) -> dict[str, frozenset[int]]:
  """Returns the COCO ids of the evaluation images of each data set.

  Args:
    refer_root: the folder with `refcoco/`, `refcoco+/` and `refcocog/`; `grefcoco/` and RefCOCO's
      google split are used if they exist.
    allow_missing: whether missing refs only cause a warning.

  Raises:
    InputError: refs are missing or damaged.
  """
  images: dict[str, frozenset[int]] = {}
  for name, layout in (_REQUIRED | _OPTIONAL).items():
    folder = os.path.join(refer_root, layout.folder)
    # If there are both a pickle and a JSON file, the images of both count.
    for path in refer.find_refs(layout, folder):
      images[name] = images.get(name, frozenset()) | _read_refs(name, path)
    if name in _REQUIRED and name not in images:
      _report_missing(os.path.join(folder, layout.refs_file), allow_missing)
  return images


def _report_missing(path: str, allowed: bool) -> None:
  if not allowed:
    raise InputError(
      f"{path}: no such file; without it, the result would contain evaluation images. "
      "docs/guides/datasets.md says where to get the refs; --allow_missing continues without them"
    )
  print(f"warning: {path}: no such file; its evaluation images are not removed", file=sys.stderr)


def _read_refs(name: str, path: str) -> frozenset[int]:
  """Returns the images of all refs that are not for training."""
  rows = _load_json(path) if path.endswith(".json") else untrusted_pickle.load(path)
  try:
    evaluated = [row for row in rows if row["split"] != "train"]
    ids = [image_lists.read_id(row["image_id"]) for row in evaluated]
    if None in ids:
      raise TypeError(f"image_id {evaluated[ids.index(None)]['image_id']!r} is not a whole number")
  except (KeyError, TypeError) as error:
    raise InputError(
      f"{path}: not a list of refs with split and image_id ({type(error).__name__}: {error}); is "
      "it another file, renamed?"
    ) from error
  _warn_if_incomplete(name, path, [row["split"] for row in evaluated])
  return frozenset(i for i in ids if i is not None)


def _warn_if_incomplete(name: str, path: str, splits: list[str]) -> None:
  if name not in _REQUIRED:
    return
  incomplete = [
    f"{split} has {splits.count(split):,} of {published.refs:,} refs"
    for split, published in (_REQUIRED[name].splits or {}).items()
    if published and split != "train" and splits.count(split) < published.refs
  ]
  if incomplete:
    print(
      f"warning: {path} is not complete ({', '.join(incomplete)}); to remove the images of the "
      "missing refs, list them with --exclude",
      file=sys.stderr,
    )


class Annotations:
  """COCO annotations of any size; memory only grows with the number of images.

  Attributes:
    coco_ids: the COCO id of each image by its id in the file; None if not a COCO image.
  """

  def __init__(self, path: str):
    """Reads the list of images.

    Raises:
      InputError: not a COCO file, or two images share an id.
    """
    self._path = path
    images, around = image_lists.CocoImages(path), bytearray()
    try:
      for part in self._parts():
        if isinstance(part, bytes):
          around += part
        elif part.section == "images":
          row = part.loads(path)
          images.add(row["id"], image_names.name_of_row(row))
      content = untrusted_json.loads(bytes(around), path, nan_as_none=True)
      for section in _SECTIONS:
        if not isinstance(content[section], list):
          raise TypeError(f"{section} is not a list")
    except InputError:
      raise
    except (KeyError, TypeError, ValueError) as error:
      raise self._refusal(error) from error
    self.coco_ids = images.by_id()
    self._notes = list(images.notes())

  def write_without(self, coco_ids: Collection[int], out: str) -> dict[str, tuple[int, int]]:
    """Writes the file atomically without some images and their annotations.

    Warns if the file has none of them, or if its ids are not COCO's.

    Args:
      coco_ids: of the images to remove.
      out: the output file; the remaining rows are copied byte for byte.

    Returns:
      For `images` and `annotations`, how many are kept, and of how many.

    Raises:
      InputError: all images would be removed, an annotation's image is not in the file, or the
        output cannot be written.
    """
    removed = {own for own, number in self.coco_ids.items() if number in coco_ids}
    if len(removed) == len(self.coco_ids):
      raise InputError(
        f"--annotations {self._path}: all images would be removed; is this the right file?"
      )
    with atomic_files.whole_file(out) as temporary, open(temporary, "wb") as file:
      counts = self._copy(removed, file)
    for note in self._notes:
      print(f"warning: {note}", file=sys.stderr)
    if not removed:
      print(
        f"warning: --annotations {self._path}: none of its {len(self.coco_ids):,} images is in an "
        "evaluation split, judging by names and ids; were the images renamed?",
        file=sys.stderr,
      )
    return counts

  def _copy(self, removed: Collection[int], file: BinaryIO) -> dict[str, tuple[int, int]]:
    kept, total, strays = dict.fromkeys(_SECTIONS, 0), dict.fromkeys(_SECTIONS, 0), []
    for part in self._parts():
      if isinstance(part, bytes):
        file.write(part)
        continue
      row, section = part.loads(self._path), part.section
      image_id = self._image_id(row, "id" if section == "images" else "image_id")
      total[section] += 1
      if image_id not in self.coco_ids:
        strays.append((row.get("id"), image_id))
      elif image_id not in removed:
        file.write(b", " * (kept[section] > 0) + part.text)
        kept[section] += 1
    if strays:
      raise InputError(
        f"--annotations {self._path}: annotation {strays[0][0]} belongs to image {strays[0][1]}, "
        f"which is not in the file (as in {counted(len(strays), 'annotation')}); is the file "
        "complete?"
      )
    return {section: (kept[section], total[section]) for section in _SECTIONS}

  def _parts(self) -> Iterator[json_rows.Row | bytes]:
    with untrusted_files.open_text(self._path, f"--annotations {self._path}") as file:
      yield from json_rows.split(json_rows.chunks(file), self._path, _SECTIONS)

  def _image_id(self, row: Mapping[str, Any], key: str) -> int:
    image_id = image_lists.read_id(row.get(key))
    if image_id is None:
      raise self._refusal(ValueError(f"{row.get(key)!r} is not an image id"))
    return image_id

  def _refusal(self, error: Exception) -> InputError:
    return InputError(
      f"--annotations {self._path}: not a COCO instances file ({type(error).__name__}: {error}); "
      "it needs `images` with `id` and `annotations` with `image_id`, both integers"
    )


def _load_json(path: str) -> Any:
  try:
    return untrusted_json.load_file(path)
  except InputError as error:
    raise InputError(f"{error}; docs/guides/datasets.md says where to get it") from error


def _check_out(args: argparse.Namespace, out: str) -> None:
  refs = [
    path
    for layout in (_REQUIRED | _OPTIONAL).values()
    for path in refer.find_refs(layout, os.path.join(args.refer_root, layout.folder))
  ]
  for path in (args.annotations, *args.exclude, *refs):
    if os.path.realpath(path) == os.path.realpath(out):
      raise InputError(f"--out {out}: this is an input file; name another one")
  if os.path.isdir(out):
    raise InputError(f"--out {out}: this is a folder; name a file in it")


def _print_table(
  excluded: Mapping[str, frozenset[int]],
  images: frozenset[int | None],
  counts: Mapping[str, tuple[int, int]],
) -> None:
  width = max((len(name) for name in excluded), default=0)
  print("evaluation images, and images of excluded lists; they overlap")
  for name, ids in excluded.items():
    print(f"{name:{width}}{len(ids):10,}, of which {len(ids & images):8,} removed")
  for section, (kept, total) in counts.items():
    print(f"{section}: {total - kept:,} of {total:,} removed, {kept:,} kept")
