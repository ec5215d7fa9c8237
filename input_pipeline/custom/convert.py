r"""Makes a file of lines of what an annotation tool exported; validate it afterwards.

python -m input_pipeline.custom convert --from cvat instances_default.json --images images --out mine.jsonl
python -m input_pipeline.custom convert --from label-studio export.json --images images \
    --split train=0.9 --split val=0.1 --out mine.jsonl
"""

import argparse
import json
import os
import sys

from input_pipeline.common import atomic_files
from input_pipeline.common.command_line import add_subparser
from input_pipeline.common.errors import InputError
from input_pipeline.custom import converters
from input_pipeline.custom.converters import coco, collect, label_studio

READERS = {"coco": coco.read, "label-studio": label_studio.read, "cvat": coco.read}
_SHOWN = 3


def add_parser(subparsers: argparse._SubParsersAction) -> None:
  """Adds `convert`."""
  parser = add_subparser(
    subparsers,
    "convert",
    "make a file of lines of an export of COCO's form, Label Studio or CVAT",
    __doc__,
  )
  parser.add_argument("file", metavar="EXPORT.json", help="what the tool wrote")
  parser.add_argument(
    "--from",
    dest="form",
    required=True,
    choices=list(READERS),
    help="whose form it has; CVAT's is that of COCO",
  )
  parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="what is written")
  parser.add_argument(
    "--images", help="folder with the photos, at any depth (default: that of --out)"
  )
  parser.add_argument(
    "--text",
    action="append",
    metavar="KEY",
    help="where expressions are, also under attributes; may be given again; category: its name "
    f"(default: {', '.join(converters.TEXT_KEYS)})",
  )
  parser.add_argument(
    "--separator",
    default="\n",
    help="stands between several expressions in a text (default: a new line)",
  )
  parser.add_argument(
    "--split",
    action="append",
    metavar="NAME[=SHARE]",
    help="of all images, or of a share of them, such as val=0.1; may be given again (default: train)",
  )
  parser.add_argument("--boxes", action="store_true", help="take a box without a mask for one")
  parser.add_argument(
    "--with_instances",
    action="store_true",
    help="let all regions of an image be its instances: an oracle, `prepare --trained_on ground-truth`",
  )
  parser.add_argument(
    "--no_target", metavar="NAME", help="Label Studio: the TextArea whose texts mean nothing"
  )
  parser.add_argument("--overwrite", action="store_true", help="replace FILE.jsonl")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  if args.no_target and args.form != "label-studio":
    raise InputError(f"--no_target is for --from label-studio, not for {args.form}")
  atomic_files.check_folder(args.out)
  if os.path.exists(args.out) and not args.overwrite:
    raise InputError(f"{args.out} is there already; add --overwrite to replace it")
  home = os.path.dirname(args.out) or "."
  folder = args.images or home
  if not os.path.isdir(folder):
    raise InputError(f"--images {folder}: no such folder")
  splits = collect.parse_splits(args.split or ())
  options = converters.Options(
    tuple(args.text or converters.TEXT_KEYS),
    args.separator or "\n",
    args.boxes,
    args.no_target or "",
  )
  export = READERS[args.form](args.file, options)
  said = [region for region in export.regions if region.texts or args.with_instances]
  paths, missing = collect.find_images([region.image for region in said], folder)
  # Below the file's own folder the paths start there, and nobody has to name it again.
  prefix = os.path.relpath(os.path.realpath(folder), os.path.realpath(home))
  below = prefix != ".." and not prefix.startswith(".." + os.sep)
  if below and prefix != ".":
    paths = {name: f"{prefix}/{path}".replace(os.sep, "/") for name, path in paths.items()}
  found = list(collect.make_lines(said, paths, splits, args.with_instances))
  text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found)
  atomic_files.write_whole(args.out, text)
  _report(args, export, found, missing)
  more = "" if below else f" --images {folder}"
  print(f"next: python -m input_pipeline.custom validate {args.out}{more}")


def _report(args: argparse.Namespace, export: converters.Export, found, missing: list[str]) -> None:
  images = len({line["image"] for line in found})
  sentences = sum(len(line["sentences"]) for line in found)
  print(f"wrote {args.out}: {len(found):,} lines, {sentences:,} sentences for {images:,} images")
  silent = sum(not region.texts for region in export.regions)
  counts = dict(export.left_out) | ({"a region without an expression": silent} if silent else {})
  for reason, count in sorted(counts.items(), key=lambda row: -row[1]):
    print(f"left out: {reason} ({count:,})")
  if missing:
    few = ", ".join(missing[:_SHOWN]) + ", ..." * (len(missing) > _SHOWN)
    where = args.images or "the folder of --out"
    print(f"warning: {len(missing):,} photos are not in {where}: {few}", file=sys.stderr)
