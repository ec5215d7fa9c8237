r"""Writes COCO annotations without evaluation images, to train a detector that has not seen them:

python -m input_pipeline.proposals clean-split --annotations FILE --refer_root refer \
    --out clean.json

An image is removed if any data set of the RefCOCO family has it in a split other than train. This
takes seven times the size of the annotations in memory: 3.9 GB for 560 MB.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from input_pipeline.common import atomic_files, untrusted_json, untrusted_pickle
from input_pipeline.common.command_line import add_subparser
from input_pipeline.common.errors import InputError
from input_pipeline.proposers import leakage
from input_pipeline.sources import refer

_REQUIRED = {
  name: os.path.join(refer.LAYOUTS[name].folder, refer.LAYOUTS[name].refs_file)
  for name in ("refcoco_unc", "refcoco+_unc", "refcocog_umd", "refcocog_google")
}
_OPTIONAL = {
  "refcoco_google": os.path.join("refcoco", "refs(google).p"),
  "grefcoco_unc": os.path.join("grefcoco", "grefs(unc).json"),
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
    "--allow_missing", action="store_true", help="continue if the refs of a data set are missing"
  )
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command.

  Raises:
    InputError: a file is missing, malformed, or would be overwritten; nothing is written.
  """
  _check_out(args)
  excluded = evaluation_images(args.refer_root, args.allow_missing)
  excluded |= {path: leakage.read_ids(path) for path in args.exclude}
  content = _load(args.annotations)
  cleaned = without_images(content, frozenset[int]().union(*excluded.values()))
  if not cleaned["images"]:
    raise InputError(
      f"--annotations {args.annotations}: every image would be removed; is this the right file?"
    )
  atomic_files.write_whole(args.out, json.dumps(cleaned))
  _print_table(excluded, content, cleaned)
  print(f"wrote {args.out}")


def evaluation_images(refer_root: str, allow_missing: bool = False) -> dict[str, frozenset[int]]:
  """Returns the COCO ids of the evaluation images of each data set.

  Args:
    refer_root: the folder with `refcoco/`, `refcoco+/` and `refcocog/`; `grefcoco/` and RefCOCO's
      google split are used if they exist.
    allow_missing: whether missing refs only cause a warning.

  Raises:
    InputError: refs are missing or damaged.
  """
  images = {}
  for name, path in (_REQUIRED | _OPTIONAL).items():
    path = os.path.join(refer_root, path)
    if os.path.isfile(path):
      images[name] = _read_refs(name, path)
    elif name in _REQUIRED:
      _report_missing(path, allow_missing)
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
    ids = frozenset(row["image_id"] for row in evaluated)
    if any(type(image_id) is not int for image_id in ids):
      raise TypeError("image_id is not an integer")
  except (KeyError, TypeError) as error:
    raise InputError(
      f"{path}: not a list of refs with split and image_id ({type(error).__name__}: {error}); is "
      "it another file, renamed?"
    ) from error
  _warn_if_incomplete(name, path, [row["split"] for row in evaluated])
  return ids


def _warn_if_incomplete(name: str, path: str, splits: list[str]) -> None:
  if name not in _REQUIRED:
    return
  incomplete = [
    f"{split} has {splits.count(split):,} of {published.refs:,} refs"
    for split, published in refer.LAYOUTS[name].splits.items()
    if published and split != "train" and splits.count(split) < published.refs
  ]
  if incomplete:
    print(
      f"warning: {path} is not complete ({', '.join(incomplete)}); to remove the images of the "
      "missing refs, list them with --exclude",
      file=sys.stderr,
    )


def without_images(content: Mapping[str, Any], image_ids: Iterable[int]) -> dict[str, Any]:
  """Returns COCO annotations without some images and their annotations; the rest is unchanged."""
  removed = frozenset(image_ids)
  return {
    **content,
    "images": [row for row in content["images"] if row["id"] not in removed],
    "annotations": [row for row in content["annotations"] if row["image_id"] not in removed],
  }


def _load(path: str) -> dict[str, Any]:
  content = _load_json(path)
  try:
    known = {row["id"] for row in content["images"]}
    strays = [row for row in content["annotations"] if row["image_id"] not in known]
  except (KeyError, TypeError) as error:
    raise InputError(
      f"--annotations {path}: not a COCO instances file ({type(error).__name__}: {error}); it "
      "needs `images` with their id and `annotations` with their image_id"
    ) from error
  if strays:
    raise InputError(
      f"--annotations {path}: annotation {strays[0].get('id')} belongs to image "
      f"{strays[0]['image_id']}, which is not in the file (as in {len(strays):,} annotations); is "
      "the file complete?"
    )
  return content


def _load_json(path: str) -> Any:
  try:
    return untrusted_json.load_file(path)
  except InputError as error:
    raise InputError(f"{error}; docs/guides/datasets.md says where to get it") from error


def _check_out(args: argparse.Namespace) -> None:
  refs = [os.path.join(args.refer_root, path) for path in (_REQUIRED | _OPTIONAL).values()]
  for path in (args.annotations, *args.exclude, *refs):
    if os.path.realpath(path) == os.path.realpath(args.out):
      raise InputError(f"--out {args.out}: this is an input file; name another one")
  if os.path.isdir(args.out):
    raise InputError(f"--out {args.out}: this is a folder; name a file in it")


def _print_table(
  excluded: Mapping[str, frozenset[int]], before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
  images = {row["id"] for row in before["images"]}
  width = max((len(name) for name in excluded), default=0)
  print("evaluation images, and images of excluded lists; they overlap")
  for name, ids in excluded.items():
    print(f"{name:{width}}{len(ids):10,}, of which {len(ids & images):8,} removed")
  for section in ("images", "annotations"):
    kept, total = len(after[section]), len(before[section])
    print(f"{section}: {total - kept:,} of {total:,} removed, {kept:,} kept")
