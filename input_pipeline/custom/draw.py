"""Draws lines from everywhere in the file: what is meant in blue, instances outlined in yellow.

python -m input_pipeline.custom look mine.jsonl --out look.png --count 6
"""

import argparse
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, UInt8

from input_pipeline.common import drawing
from input_pipeline.common.command_line import add_subparser
from input_pipeline.common.errors import InputError
from input_pipeline.custom import check, image_files, masks, problems, scan, schema
from input_pipeline.custom.problems import Wrong

_TILE = 240  # pixels, the longer side


def add_parser(subparsers: argparse._SubParsersAction) -> None:
  """Adds `look`."""
  parser = add_subparser(
    subparsers, "look", "draw lines of the file: photos with what is meant", __doc__
  )
  parser.add_argument(
    "file", metavar="FILE.jsonl", help="docs/guides/custom-data.md says what it holds"
  )
  parser.add_argument("--out", required=True, metavar="OUT.png", help="the picture")
  parser.add_argument("--images", help="folder that paths start in (default: that of FILE)")
  parser.add_argument(
    "--annotations", help="COCO file of ann_id (default: the one that a line names)"
  )
  parser.add_argument("--count", type=int, default=24, help="lines on it (default: 24)")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  if args.count < 1:
    raise InputError(f"--count {args.count}: at least 1")
  drawing.check_writable(args.out)
  found = scan.scan(args.file, args.images, args.annotations, check.How(fast=True))
  if not found.facts:
    raise InputError(
      f"{args.file}: no line can be used, the first problem: {problems.errors(found.problems)[0]}; "
      f"`python -m input_pipeline.custom validate {args.file}` lists them all"
    )
  step = max(1, len(found.facts) // args.count)
  wanted = {facts.number for facts in found.facts[::step][: args.count]}
  tiles, captions = [], []
  for line in _lines(args.file, wanted):
    tiles.append(_draw(line, found.places))
    captions.append(f"line {line.number}, {line.split}: {' / '.join(line.sentences)}")
  drawing.save(drawing.contact_sheet(tiles, captions), args.out)
  print(
    f"wrote {args.out}: {len(tiles)} of {len(found.facts):,} lines; blue is meant, yellow outlines are instances"
  )


def _lines(path: str, wanted: set[int]) -> Iterator[schema.Line]:
  for number, _, data in scan.read_rows(path):
    if number in wanted:
      line, _ = schema.parse(number, data)
      if line is not None:
        yield line


def _draw(line: schema.Line, places: masks.Places) -> UInt8[np.ndarray, "h w 3"]:
  try:
    path = places.image(line.image)
    with open(path, "rb") as file:
      _, pixels = image_files.stored_upright(file.read(), path)
    shape = (pixels.shape[0], pixels.shape[1])
    target = _union(line.target, line, places, shape)
    instances = [_union([mask], line, places, shape) for mask in line.instances or ()]
  except OSError as error:
    raise InputError(f"line {line.number}: image {line.image}: {error.strerror}") from error
  except Wrong as wrong:
    raise InputError(str(wrong.at(line.number))) from wrong
  size = drawing.fitting_size(*shape, _TILE)
  meant = drawing.stretch(target, size)
  picture = drawing.overlay(drawing.stretch(pixels, size), meant, meant)
  for mask in instances:
    picture = drawing.outline(picture, drawing.stretch(mask, size), drawing.CHOSEN)
  return picture


def _union(
  found: Iterable[schema.Mask], line: schema.Line, places: masks.Places, size: tuple[int, int]
) -> Bool[np.ndarray, "{size[0]} {size[1]}"]:
  union = np.zeros(size, bool)
  for mask in found:
    for part in masks.resolve(mask, line.image, places):
      union |= masks.rasterise(part, *size)
  return union
