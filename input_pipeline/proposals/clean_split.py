"""COCO annotations without any photo of an evaluation split, to train a detector that has not seen the answers:

python -m input_pipeline.proposals clean-split --annotations FILE --refer_root refer --out clean.json

A photo goes if any data set of the RefCOCO family has it in any split but train. It takes seven times the annotations'
size in memory: 3.9 GB for 560 MB.
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
_WHERE_PRESENT = {
  "refcoco_google": os.path.join("refcoco", "refs(google).p"),
  "grefcoco_unc": os.path.join("grefcoco", "grefs(unc).json"),
}


def add_parser(subparsers: Any) -> None:
  """Adds the command's arguments."""
  parser = add_subparser(
    subparsers,
    "clean-split",
    "COCO annotations without the photos of evaluation splits, to train a detector on",
    __doc__,
  )
  parser.add_argument("--annotations", required=True, help="COCO file, such as that of train2014")
  parser.add_argument("--refer_root", required=True, help="folder with refcoco/, refcoco+/ ...")
  parser.add_argument("--out", required=True, metavar="CLEAN.json", help="what is written")
  parser.add_argument(
    "--exclude", action="append", default=[], metavar="FILE",
    help="list of more photos to take out; may be given again",
  )  # fmt: skip
  parser.add_argument(
    "--allow_missing", action="store_true", help="go on without the refs of a data set"
  )
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command.

  Raises:
    InputError: a file is missing, is of another form, or would be overwritten; nothing is written then.
  """
  _check_out(args)
  sources = evaluation_images(args.refer_root, args.allow_missing)
  sources |= {path: leakage.read_ids(path) for path in args.exclude}
  content = _load(args.annotations)
  cleaned = without_images(content, frozenset[int]().union(*sources.values()))
  if not cleaned["images"]:
    raise InputError(
      f"--annotations {args.annotations}: every photo would go; is it the right file?"
    )
  atomic_files.write_whole(args.out, json.dumps(cleaned))
  _print_table(sources, content, cleaned)
  print(f"wrote {args.out}")


def evaluation_images(refer_root: str, allow_missing: bool = False) -> dict[str, frozenset[int]]:
  """Returns the COCO ids of the photos that each data set of the family evaluates on.

  Args:
    refer_root: the folder with `refcoco/`, `refcoco+/` and `refcocog/`; `grefcoco/` and RefCOCO's split of Google
      are taken where they are.
    allow_missing: whether to warn only, where the refs of a data set are not there.

  Raises:
    InputError: refs are missing or damaged.
  """
  found = {}
  for name, path in (_REQUIRED | _WHERE_PRESENT).items():
    path = os.path.join(refer_root, path)
    if os.path.isfile(path):
      found[name] = _read_refs(name, path)
    elif name in _REQUIRED:
      _miss(f"{path}: no such file", allow_missing)
  return found


def _miss(what: str, allowed: bool) -> None:
  if not allowed:
    raise InputError(
      f"{what}, and a list that lacks a data set's photos would not be clean; docs/guides/datasets.md says where "
      "to get them all, --allow_missing goes on without"
    )
  print(f"warning: {what}; the photos it evaluates on are not taken out", file=sys.stderr)


def _read_refs(name: str, path: str) -> frozenset[int]:
  """The images of every ref that is not for training."""
  rows = _load_json(path) if path.endswith(".json") else untrusted_pickle.load(path)
  try:
    evaluated = [row for row in rows if row["split"] != "train"]
    ids = frozenset(row["image_id"] for row in evaluated)
    if any(type(image_id) is not int for image_id in ids):
      raise TypeError("image_id is no whole number")
  except (KeyError, TypeError) as error:
    raise InputError(
      f"{path}: not a list of refs with split and image_id ({type(error).__name__}: {error}); is it "
      "another file, renamed?"
    ) from error
  _warn_of_excerpt(name, path, [row["split"] for row in evaluated])
  return ids


def _warn_of_excerpt(name: str, path: str, splits: list[str]) -> None:
  if name not in _REQUIRED:
    return
  lacking = [
    f"{split} has {splits.count(split):,} of {published.refs:,} refs"
    for split, published in refer.LAYOUTS[name].splits.items()
    if published and split != "train" and splits.count(split) < published.refs
  ]
  if lacking:
    print(
      f"warning: {path} is not complete ({', '.join(lacking)}): only --exclude takes "
      "out the photos of the rest",
      file=sys.stderr,
    )


def without_images(content: Mapping[str, Any], image_ids: Iterable[int]) -> dict[str, Any]:
  """Returns COCO annotations without some images and what is annotated in them; all else is as it was."""
  out = frozenset(image_ids)
  return {
    **content,
    "images": [row for row in content["images"] if row["id"] not in out],
    "annotations": [row for row in content["annotations"] if row["image_id"] not in out],
  }


def _load(path: str) -> dict[str, Any]:
  content = _load_json(path)
  try:
    known = {row["id"] for row in content["images"]}
    strays = [row for row in content["annotations"] if row["image_id"] not in known]
  except (KeyError, TypeError) as error:
    raise InputError(
      f"--annotations {path}: not a COCO instances file ({type(error).__name__}: {error}); it needs "
      "`images` with their id and `annotations` with their image_id"
    ) from error
  if strays:
    raise InputError(
      f"--annotations {path}: annotation {strays[0].get('id')} is of image {strays[0]['image_id']}, "
      f"which is not among its images ({len(strays):,} are so); is the file complete?"
    )
  return content


def _load_json(path: str) -> Any:
  try:
    return untrusted_json.load_file(path)
  except InputError as error:
    raise InputError(f"{error}; docs/guides/datasets.md says where to get it") from error


def _check_out(args: argparse.Namespace) -> None:
  refs = [os.path.join(args.refer_root, path) for path in (_REQUIRED | _WHERE_PRESENT).values()]
  for path in (args.annotations, *args.exclude, *refs):
    if os.path.realpath(path) == os.path.realpath(args.out):
      raise InputError(f"--out {args.out}: that is an input; name another file")
  if os.path.isdir(args.out):
    raise InputError(f"--out {args.out}: that is a folder; name a file in it")


def _print_table(
  sources: Mapping[str, frozenset[int]], before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
  there = {row["id"] for row in before["images"]}
  width = max((len(name) for name in sources), default=0)
  print("photos of evaluation splits and of excluded lists, many of them in several")
  for name, ids in sources.items():
    print(f"{name:{width}}{len(ids):10,}, of which taken out {len(ids & there):8,}")
  for kind in ("images", "annotations"):
    kept, total = len(after[kind]), len(before[kind])
    print(f"{kind}: {total - kept:,} of {total:,} removed, {kept:,} kept")
