r"""Converts the export of an annotation tool to custom data; validate the result afterwards.

python -m input_pipeline.custom convert --from cvat instances_default.json --out mine.jsonl
python -m input_pipeline.custom convert --from label-studio export.json --images images \
    --split train=0.9 --split val=0.1 --out mine.jsonl
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from input_pipeline.common import atomic_files
from input_pipeline.common.command_line import add_subparser
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted
from input_pipeline.custom.converters import (
  coco,
  collect,
  cvat,
  datumaro,
  embedded,
  label_studio,
  labelme,
  mdetr,
  parquet,
  recognise,
  supervisely,
  via,
  yolo,
)

READERS = {
  "coco": coco.read,
  "label-studio": label_studio.read,
  "cvat": cvat.read,
  "labelme": labelme.read,
  "via": via.read,
  "yolo": yolo.read,
  "supervisely": supervisely.read,
  "datumaro": datumaro.read,
  "mdetr": mdetr.read,
  "parquet": parquet.read,
}
# Missing images that the warning names.
_SHOWN = 3


def add_parser(subparsers: argparse._SubParsersAction) -> None:
  """Adds `convert`."""
  parser = add_subparser(
    subparsers, "convert", "convert a COCO, Label Studio or CVAT export to custom data", __doc__
  )
  parser.add_argument(
    "file", metavar="EXPORT", help="what the tool exported: a file, a folder of files or a zip"
  )
  parser.add_argument(
    "--from",
    dest="format",
    required=True,
    choices=list(READERS),
    help="format of the export",
  )
  parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="output file")
  parser.add_argument(
    "--images", help="folder with the images, at any depth (default: that of --out)"
  )
  parser.add_argument(
    "--text",
    action="append",
    metavar="KEY",
    help="key of the expressions, at the top level or under attributes; can be repeated; category "
    f"means the category's name (default: {', '.join(collect.TEXT_KEYS)})",
  )
  parser.add_argument(
    "--separator",
    default="\n",
    help="separates several expressions in one text (default: a newline)",
  )
  parser.add_argument(
    "--split",
    action="append",
    metavar="NAME[=SHARE]",
    help="split of all images or of a share, such as val=0.1; can be repeated (default: train)",
  )
  parser.add_argument(
    "--boxes", action="store_true", help="use a box as a mask where there is none"
  )
  parser.add_argument(
    "--with_instances",
    action="store_true",
    help="add all regions of an image as its instances; this is an oracle, so use "
    "`prepare --trained_on ground-truth`",
  )
  parser.add_argument(
    "--no_target",
    metavar="NAME",
    help="Label Studio: the TextArea whose expressions refer to nothing",
  )
  parser.add_argument(
    "--annotations",
    metavar="INSTANCES.json",
    help="MDETR: COCO's file with the masks, which an export with their ids and boxes leaves out",
  )
  parser.add_argument("--overwrite", action="store_true", help="replace FILE.jsonl")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  if args.no_target and args.format != "label-studio":
    raise InputError(f"--no_target only works with --from label-studio, not with {args.format}")
  atomic_files.check_folder(args.out)
  if os.path.exists(args.out) and not args.overwrite:
    raise InputError(f"{args.out} already exists; add --overwrite to replace it")
  home = os.path.dirname(args.out) or "."
  folder = args.images or home
  if not os.path.isdir(folder):
    raise InputError(f"--images {folder}: no such folder")
  splits = collect.parse_splits(args.split or ())
  contained = os.path.splitext(args.out)[0] + "_images"
  with embedded.written_to(contained, args.overwrite) as images:
    options = collect.Options(
      tuple(args.text or collect.TEXT_KEYS),
      args.separator or "\n",
      args.boxes,
      args.no_target or "",
      images,
      args.annotations or "",
      folder,
    )
    try:
      exported = READERS[args.format](args.file, options)
    except InputError as error:
      raise _with_format(error, args.file, args.format) from error
    if exported.embedded and args.images:
      raise InputError(
        f"--images {args.images}: {args.file} contains its images, which are written to "
        f"{contained}; leave out --images"
      )
  regions = [region for region in exported.regions if region.texts or args.with_instances]
  names = [region.image for region in regions if region.image not in exported.embedded]
  paths, missing = collect.find_images(names, folder)
  # Paths in the file are relative to its own folder, so that --images is not needed later on.
  prefix = os.path.relpath(os.path.realpath(folder), os.path.realpath(home))
  inside = prefix != ".." and not prefix.startswith(".." + os.sep)
  if inside and prefix != ".":
    paths = {name: f"{prefix}/{path}".replace(os.sep, "/") for name, path in paths.items()}
  paths |= {name: name for name in exported.embedded}
  lines = list(collect.make_lines(regions, paths, splits, args.with_instances))
  text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
  atomic_files.write_whole(args.out, text)
  _report(args, exported, lines, missing)
  option = "" if inside else f" --images {folder}"
  print(f"next: python -m input_pipeline.custom validate {args.out}{option}")


def _with_format(error: InputError, path: str, format_name: str) -> InputError:
  """Adds the right `--from` to an error about a file of another format."""
  actual = recognise.recognise(path) if os.path.exists(path) else None
  # Several tools write COCO files, whose readers say best what is wrong with them.
  if actual in (None, format_name) or (actual == "coco" and format_name not in recognise.OWN):
    return error
  return InputError(f"{path}: this looks like {actual}; use --from {actual}")


def _report(
  args: argparse.Namespace,
  exported: collect.Export,
  lines: Sequence[dict[str, Any]],
  missing: Sequence[str],
) -> None:
  counts = {
    "line": len(lines),
    "expression": sum(len(line["sentences"]) for line in lines),
    "image": len({line["image"] for line in lines}),
  }
  print(f"wrote {args.out}: {', '.join(counted(number, noun) for noun, number in counts.items())}")
  if silent := sum(not region.texts for region in exported.regions):
    exported.skipped["region without an expression"] = silent
  for row in exported.report():
    print(row)
  if missing:
    few = ", ".join(missing[:_SHOWN]) + ", ..." * (len(missing) > _SHOWN)
    where = args.images or "the folder of --out"
    images = counted(len(missing), "image")
    print(f"warning: {images} not found in {where}: {few}", file=sys.stderr)
