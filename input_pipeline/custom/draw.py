"""Draws lines spread over the file: targets in blue, instances outlined in yellow.

python -m input_pipeline.custom draw mine.jsonl --out draw.png --count 6
"""

import argparse
import itertools
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, UInt8

from input_pipeline import preprocess
from input_pipeline.common import drawing, untrusted_files
from input_pipeline.common.command_line import add_subparser
from input_pipeline.common.errors import InputError
from input_pipeline.custom import image_files, line_files, masks, scan, schema
from input_pipeline.custom.check import CheckLevel
from input_pipeline.custom.schema import LineError

# Pixels, the longer side.
_TILE = 240


def add_parser(subparsers: argparse._SubParsersAction) -> None:
  """Adds `draw`."""
  parser = add_subparser(subparsers, "draw", "draw images with their targets", __doc__)
  parser.add_argument("file", metavar="FILE.jsonl", help="see docs/guides/custom-data.md")
  parser.add_argument("--out", required=True, metavar="OUT.png", help="output image")
  parser.add_argument("--images", help="folder that paths are relative to (default: that of FILE)")
  parser.add_argument(
    "--annotations", help="COCO file that ann_id refers to (default: the one that a line names)"
  )
  parser.add_argument("--count", type=int, default=24, help="number of lines (default: 24)")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  if args.count < 1:
    raise InputError(f"--count {args.count}: must be at least 1")
  drawing.check_writable(args.out)
  scanned = scan.scan(args.file, args.images, args.annotations, CheckLevel.FAST)
  if not scanned.lines:
    raise InputError(
      f"{args.file}: every line has an error; the first is: {scanned.errors()[0]}; "
      f"`python -m input_pipeline.custom validate {args.file}` lists them all"
    )
  step = max(1, len(scanned.lines) // args.count)
  chosen = list(itertools.islice(scanned.lines, 0, step * args.count, step))
  # An image has its instances on one of its lines.
  images = {line.image for line in chosen}
  sources = [line for line in scanned.lines.where("instances_hash != ''") if line.image in images]
  lines = _read_lines(args.file, {line.number for line in (*chosen, *sources)})
  instances = {line.image: lines[line.number] for line in sources}
  tiles, captions = [], []
  for summary in chosen:
    line = lines[summary.number]
    tiles.append(_draw(line, instances.get(summary.image, line), scanned.paths))
    captions.append(f"line {line.number}, {line.split}: {' / '.join(line.sentences)}")
  drawing.save(drawing.contact_sheet(tiles, captions), args.out)
  print(
    f"wrote {args.out}: {len(tiles)} of {len(scanned.lines):,} lines; targets in blue, "
    "instances outlined in yellow"
  )


def _read_lines(path: str, numbers: set[int]) -> dict[int, schema.Annotation]:
  """Returns valid lines by their numbers."""
  parsed = {
    number: schema.parse(number, data)[0]
    for number, _, data in line_files.read_rows(path)
    if number in numbers
  }
  return {number: line for number, line in parsed.items() if line is not None}


def _draw(
  line: schema.Annotation, with_instances: schema.Annotation, paths: masks.PathResolver
) -> UInt8[np.ndarray, "h w 3"]:
  """Draws a line; the instances are those of `with_instances`, a line of the same image."""
  try:
    path = paths.resolve(line.image)
    data = untrusted_files.read(
      path, f"line {line.number}: image {path}", preprocess.MAX_FILE_BYTES
    )
    _, pixels = image_files.stored_upright(data, path)
    shape = (pixels.shape[0], pixels.shape[1])
    target = _union(line.target, line, paths, shape)
    instances = [
      _union([mask], with_instances, paths, shape) for mask in with_instances.instances or ()
    ]
  except LineError as error:
    raise InputError(str(error.at(line.number))) from error
  size = drawing.fitting_size(*shape, _TILE)
  small_target = drawing.stretch(target, size)
  tile = drawing.overlay(drawing.stretch(pixels, size), small_target, small_target)
  for mask in instances:
    tile = drawing.outline(tile, drawing.stretch(mask, size), drawing.SELECTED)
  return tile


def _union(
  parts: Iterable[schema.Mask],
  line: schema.Annotation,
  paths: masks.PathResolver,
  size: tuple[int, int],
) -> Bool[np.ndarray, "{size[0]} {size[1]}"]:
  union = np.zeros(size, bool)
  for mask in parts:
    for part in masks.resolve(mask, line.image, paths):
      union |= masks.rasterise(part, *size)
  return union
