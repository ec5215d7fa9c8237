"""The arguments of `input_pipeline.prepare`, and which of them go together."""

import argparse
import os

from input_pipeline import storage
from input_pipeline.common.command_line import command_parser
from input_pipeline.proposers import leakage, ranking
from input_pipeline.proposers.selection import Selection
from input_pipeline.sources import jsonl, refer

BY_PATH = (refer.PREFIX, jsonl.PREFIX)
"""Prefixes of data sets given by path."""
_SHAPES = "shapes"
_AT_LEAST_ONE = ("workers", "batch_size")


def parse(argv: list[str] | None, description: str) -> argparse.Namespace:
  """Parses the command line; ends the program for arguments that do not go together."""
  parser = command_parser("input_pipeline.prepare", description)
  _add_common(parser)
  family = _add_family(parser)
  masks = _add_masks(parser)
  shapes = _add_shapes(parser)
  args = parser.parse_args(argv)
  if unknown := _unknown_dataset(args):
    parser.error(unknown)
  for option in _foreign(args.dataset, family + masks, shapes):
    if getattr(args, option) is not None:
      parser.error(f"--{option} cannot be used with --dataset {args.dataset}")
  for option in _AT_LEAST_ONE:
    if getattr(args, option) is not None and getattr(args, option) < 1:
      parser.error(f"--{option} {getattr(args, option)}: must be at least 1")
  return args


def _foreign(dataset: str, photos: list[str], shapes: list[str]) -> list[str]:
  """Returns the options that a data set does not have; None is their default."""
  foreign = photos if dataset == _SHAPES else list(shapes)
  if dataset == "phrasecut":
    foreign = [*foreign, "annotations"]
  return [*foreign, *(("refer_root", "download") if dataset.startswith(BY_PATH) else ("name",))]


def _names(group: argparse._ArgumentGroup) -> list[str]:
  return [action.dest for action in group._group_actions]


def _add_common(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--dataset",
    required=True,
    metavar="NAME",
    help=f"{', '.join(storage.CONFIGS)}, refer:FOLDER:SPLITBY for FOLDER/refs(SPLITBY).p, or "
    "jsonl:FILE for custom data (docs/guides/custom-data.md)",
  )
  parser.add_argument("--data_dir", required=True, help="folder to write the data set to")
  parser.add_argument("--overwrite", action="store_true", help="replace an existing data set")
  parser.add_argument("--workers", type=int, help="processes (default: as many as are useful)")
  parser.add_argument(
    "--beam",
    metavar="OPTIONS",
    help='run on Apache Beam, such as --beam="--runner=FlinkRunner"',
  )
  parser.add_argument(
    "--name",
    help="name of a refer: or jsonl: data set for other commands (default: from its files)",
  )


def _add_family(parser: argparse.ArgumentParser) -> list[str]:
  family = parser.add_argument_group("RefCOCO family, gRefCOCO, PhraseCut and custom data")
  family.add_argument(
    "--refer_root", help="folder with refcoco/, refcoco+/, refcocog/, grefcoco/ or VGPhraseCut_v0/"
  )
  family.add_argument(
    "--images",
    help="folder with the images: COCO train2014, Visual Genome's, or yours (default: beside FILE)",
  )
  family.add_argument(
    "--annotations",
    help="COCO file with the refs' objects (default: instances.json beside them, or the file that "
    "a line names)",
  )
  family.add_argument(
    "--download",
    action="store_true",
    default=None,
    help="first fetch what is missing in --refer_root and --images (up to 28 GB while unpacking)",
  )
  family.add_argument(
    "--on_error", choices=("stop", "skip"), help="on a damaged image (default: stop)"
  )
  return _names(family)


def _add_masks(parser: argparse.ArgumentParser) -> list[str]:
  masks = parser.add_argument_group("instance masks, except for shapes (docs/guides/proposals.md)")
  masks.add_argument(
    "--instances", metavar="NAME[:ARG]", help="coco:FILE, results:FILE, huggingface:MODEL, ..."
  )
  masks.add_argument(
    "--trained_on",
    metavar="DATA",
    help=f"the detector's training data: {', '.join(leakage.TRAINED_ON)}, or a FILE listing it",
  )
  masks.add_argument(
    "--folds",
    type=int,
    metavar="N",
    help="masks of training images from a detector that was trained without them: {fold} in "
    "--instances and --trained_on is 1 to N for these, all for the other splits",
  )
  masks.add_argument("--max_instances", type=int, help="masks per image, 1 to 64 (default: 16)")
  masks.add_argument(
    "--rank",
    choices=sorted(ranking.RANKS),
    help="which masks come first: `score`, the proposer's best, `distinct`, large, stable ones "
    "unlike each other, for generators of hundreds of masks, or `given`, as in the file (default: "
    f"{Selection.rank})",
  )
  masks.add_argument("--min_area", type=float, help="share of the image (default: 0.0002)")
  masks.add_argument(
    "--nms_iou", type=float, help="IoU above which the worse of two masks goes (default: 0.9)"
  )
  masks.add_argument("--batch_size", type=int, help="images per batch of the detector (default: 4)")
  masks.add_argument(
    "--categories", metavar="FILE", help="COCO file with the masks' categories (default: the refs')"
  )
  masks.add_argument(
    "--allow_empty", action="store_true", default=None, help="an image without results has no masks"
  )
  return _names(masks)


def _add_shapes(parser: argparse.ArgumentParser) -> list[str]:
  shapes = parser.add_argument_group("shapes")
  shapes.add_argument("--train_scenes", type=int, help="training scenes (default: 16000)")
  shapes.add_argument("--eval_scenes", type=int, help="scenes in every other split (default: 500)")
  shapes.add_argument("--size", type=int, help="image side in pixels (default: 96)")
  shapes.add_argument("--seed", type=int, help="random seed (default: 0)")
  shapes.add_argument(
    "--noise",
    metavar="WORD",
    help="errors of the simulated detector: default, oracle (none), x0.5 (half as many), miss0.2 "
    "(share of objects missed), nothing (finds none)",
  )
  return _names(shapes)


def _unknown_dataset(args: argparse.Namespace) -> str:
  """Returns the error message for an unknown value of `--dataset`; empty if it is known."""
  if args.dataset in storage.CONFIGS or args.dataset.startswith(BY_PATH):
    return ""
  hint = storage.did_you_mean(args.dataset)
  if not hint and "_" in args.dataset:
    folder, _, split_by = args.dataset.rpartition("_")
    path = os.path.join(args.refer_root or "FOLDER", folder)
    hint = f"; give other data sets by path: --dataset {refer.PREFIX}{path}:{split_by}"
  known = ", ".join(storage.CONFIGS)
  return (
    f"argument --dataset: {args.dataset!r} is not one of {known}, refer:FOLDER:SPLITBY or "
    f"jsonl:FILE{hint}"
  )
