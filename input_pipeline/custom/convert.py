r"""Converts the export of an annotation tool to custom data; validate the result afterwards.

python -m input_pipeline.custom convert --from cvat instances_default.json --out mine.jsonl
python -m input_pipeline.custom convert --from label-studio export.json --images images \
    --split train=0.9 --split val=0.1 --out mine.jsonl
"""

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from input_pipeline.common import atomic_files
from input_pipeline.common.command_line import add_subparser
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import announce, counted
from input_pipeline.custom import photos
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

_SURROGATE = re.compile("[\ud800-\udfff]")
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
# Number of missing images listed in the warning.
_SHOWN = 3


def add_parser(subparsers: argparse._SubParsersAction) -> None:
  """Adds `convert`."""
  parser = add_subparser(
    subparsers, "convert", "convert an annotation tool's export to custom data", __doc__
  )
  parser.add_argument(
    "files",
    metavar="EXPORT",
    nargs="+",
    help="the tool's export: a file, a folder or a zip; several exports, such as train/x.json "
    "valid/x.json, become one data set with the splits in their names",
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
    "--images",
    help="folder with the images, at any depth (default: the folder of --out; with several "
    "exports, each export's folder)",
  )
  parser.add_argument(
    "--exif",
    choices=[photos.UPRIGHT, photos.STORED],
    help="whether masks are for the upright or the stored pixels of an image that EXIF rotates, if "
    "the export does not tell",
  )
  parser.add_argument(
    "--rescale",
    action="store_true",
    help="scale masks if the images differ in size from the annotated ones",
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
    help="MDETR: the COCO file with the masks, of which the export only has ids and boxes",
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
  splits = collect.parse_splits(args.split or ())
  conversion = _Conversion(args, photos.Fit(args.exif, args.rescale), splits)
  contained = os.path.splitext(args.out)[0] + "_images"
  with embedded.written_to(contained, args.overwrite) as images:
    for file in args.files:
      with announce(f"converting {file}"):
        conversion.add(file, images)
  lines = conversion.lines
  if not lines:
    reasons = "; ".join(row for export in conversion.exports for row in export.report())
    raise InputError(f"{' '.join(args.files)}: no expression is left; {reasons}")
  if conversion.drop_repeated_ids():
    print("note: image_id left out, since the exports use the same id for different images")
  text = "".join(_to_json(line) + "\n" for line in lines)
  atomic_files.write_whole(args.out, text)
  _report(args.out, conversion)
  option = f" --images {conversion.root}" if conversion.root else ""
  print(f"next: python -m input_pipeline.custom validate {args.out}{option}")


def _to_json(line: Mapping[str, Any]) -> str:
  text = json.dumps(line, ensure_ascii=False)
  # JSON may contain unpaired surrogates, which UTF-8 cannot encode.
  return json.dumps(line) if _SURROGATE.search(text) else text


class _Conversion:
  """Converts exports to the lines of one file.

  Attributes:
    lines: of all exports.
    exports: each as read.
    missing: errors about images that were not found.
    unreadable: errors about images that cannot be opened.
    root: the folder that paths in lines are relative to; empty for the folder of the file.
  """

  def __init__(self, args: argparse.Namespace, fit: photos.Fit, splits: Mapping[str, float]):
    """Starts without lines."""
    self._args, self._fit, self._splits = args, fit, splits
    self._home = os.path.dirname(args.out) or "."
    self.lines: list[dict[str, Any]] = []
    self.exports: list[collect.Export] = []
    self.missing: list[str] = []
    self.unreadable: list[str] = []
    self.root = ""

  def add(self, file: str, images: embedded.EmbeddedImages) -> None:
    """Converts an export.

    Raises:
      InputError: it cannot be read, or does not fit its images.
    """
    args = self._args
    several = len(args.files) > 1
    own = file if os.path.isdir(file) else os.path.dirname(file) or "."
    folder = args.images or (own if several else self._home)
    if not os.path.isdir(folder):
      raise InputError(f"--images {folder}: no such folder")
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
      export = READERS[args.format](file, options)
    except InputError as error:
      raise _with_format(error, file, args.format) from error
    if export.embedded and args.images:
      raise InputError(
        f"--images {args.images}: the images are in {file} itself and are written to "
        f"{images.folder}; remove --images"
      )
    if silent := sum(not region.texts for region in export.regions):
      export.skipped["region without an expression"] = silent
    export.drop_incomplete()
    if not args.with_instances:
      export.regions = [region for region in export.regions if region.texts]
    photos.check_ids(export.regions)
    paths, missing = photos.find_photos(export, folder)
    regions, unreadable = photos.fit_regions(export, paths, folder, self._fit)
    if several and not self._splits and not all(region.split for region in regions):
      split = _split_of_export(file)
      regions = [dataclasses.replace(region, split=region.split or split) for region in regions]
      export.note(f"split {split} from the name of the export", file)
    inside = self._paths_in_lines(export, paths, folder)
    lines = list(collect.make_lines(regions, inside, self._splits, args.with_instances))
    for line in lines:
      if isinstance(line["target"], list):
        export.note("several regions merged into one target", line["image"])
    self.lines += lines
    self.exports.append(export)
    self.missing += missing
    self.unreadable += unreadable

  def _paths_in_lines(
    self, export: collect.Export, paths: Mapping[str, str], folder: str
  ) -> dict[str, str]:
    """Returns paths relative to the folder of the lines, so that --images is not needed later."""
    prefix = os.path.relpath(os.path.realpath(folder), os.path.realpath(self._home))
    if prefix == ".." or prefix.startswith(".." + os.sep):
      if len(self._args.files) > 1 and not self._args.images:
        raise InputError(f"--out {self._args.out}: choose a folder that contains the exports")
      self.root = folder
      return dict(paths)
    prefix = "" if prefix == "." else prefix.replace(os.sep, "/") + "/"
    return {
      name: path if name in export.embedded else prefix + path for name, path in paths.items()
    }

  def drop_repeated_ids(self) -> bool:
    """Removes all image ids if two images share one; returns whether it did."""
    owners: dict[int, str] = {}
    rows = [line for line in self.lines if "image_id" in line]
    if all(owners.setdefault(row["image_id"], row["image"]) == row["image"] for row in rows):
      return False
    for row in rows:
      del row["image_id"]
    return True


def _split_of_export(path: str) -> str:
  """Returns the split in the name of an export or of its folder."""
  folder, name = os.path.split(os.path.abspath(path))
  # COCO's years: instances_val2017.json.
  texts = [re.sub(r"20\d\d", "", text) for text in (name, os.path.basename(folder))]
  split = collect.split_in(texts[0]) or (collect.split_in(texts[1]) if texts[1].isalpha() else None)
  if split is None:
    raise InputError(
      f"{path}: no split, such as train or valid, in the name of the file or its folder; set the "
      "split with --split"
    )
  return split


def _with_format(error: InputError, path: str, format_name: str) -> InputError:
  """Replaces the error if the file has another known format."""
  actual = recognise.recognise(path)
  # Several tools write COCO files; their own readers explain best what is wrong.
  if actual in (None, format_name) or (actual == "coco" and format_name not in recognise.OWN):
    return error
  return InputError(f"{path}: this looks like {actual}; use --from {actual}")


def _report(out: str, conversion: _Conversion) -> None:
  lines = conversion.lines
  counts = {
    "line": len(lines),
    "expression": sum(len(line["sentences"]) for line in lines),
    "image": len({line["image"] for line in lines}),
  }
  print(f"wrote {out}: {', '.join(counted(number, noun) for noun, number in counts.items())}")
  for row in (row for export in conversion.exports for row in export.report()):
    print(row)
  for errors, what in (
    (conversion.missing, "not found"),
    (conversion.unreadable, "could not be opened to check the size"),
  ):
    if errors:
      few = "; ".join(errors[:_SHOWN]) + "; ..." * (len(errors) > _SHOWN)
      print(f"warning: {counted(len(errors), 'image')} {what}: {few}", file=sys.stderr)
