r"""Prepares a data set: converts images, expressions and instance masks to TFRecords.

python -m input_pipeline.prepare --dataset shapes --data_dir data
python -m input_pipeline.prepare --dataset refcoco_unc --refer_root refer --images train2014 \
    --instances coco:instances_train2014.json --data_dir data
python -m input_pipeline.prepare --dataset jsonl:mine.jsonl --data_dir data
python -m input_pipeline.prepare --dataset refer:refer/rrsisd:unc --images JPEGImages \
    --instances none --data_dir data
python -m input_pipeline.prepare --dataset phrasecut --refer_root PhraseCutDataset/data \
    --images PhraseCutDataset/data/VGPhraseCut_v0/images --instances huggingface:MODEL \
    --data_dir data

An existing data set is not changed. docs/guides/datasets.md has the sources of the files.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Collection, Iterator
from typing import Any

from input_pipeline import storage
from input_pipeline.common import buckets, fingerprint, parallel, places
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted, list_counts, text_table
from input_pipeline.prepare import download
from input_pipeline.proposers import custom, folds, leakage, ranking, registry
from input_pipeline.proposers.selection import Selection
from input_pipeline.sources import annotated_images, jsonl, readers, refer, scene_source
from input_pipeline.sources.source import Source

# The builder is imported late: TensorFlow takes seconds to import, invalid input should be reported
# before that, and the processes that make scenes import this module again.

# Preparing this many takes about as long as starting a process.
_IMAGES_PER_WORKER = 200
_CUSTOM_DEFAULT = "custom, or none without instances"
_COUNTS = ("records", "refs", "expressions")
# Prefixes of data sets given by path.
_BY_PATH = (refer.PREFIX, jsonl.PREFIX)
_SELECTION = ("max_instances", "rank", "min_area", "nms_iou")
_SHAPES_ONLY = ("train_scenes", "eval_scenes", "size", "seed", "noise")


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = command_parser("input_pipeline.prepare", __doc__)
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
  name = parser.add_argument(
    "--name",
    help="name of a refer: or jsonl: data set for other commands (default: from its files)",
  )
  family = parser.add_argument_group("RefCOCO family, gRefCOCO, PhraseCut and custom data")
  root = family.add_argument(
    "--refer_root", help="folder with refcoco/, refcoco+/, refcocog/, grefcoco/ or VGPhraseCut_v0/"
  )
  family.add_argument(
    "--images",
    help="folder with the images: COCO train2014, Visual Genome's, or yours (default: beside FILE)",
  )
  annotations = family.add_argument(
    "--annotations",
    help="COCO file with the refs' objects (default: instances.json beside them, or the file that "
    "a line names)",
  )
  fetching = family.add_argument(
    "--download",
    action="store_true",
    default=None,
    help="first fetch what is missing in --refer_root and --images (up to 28 GB while unpacking)",
  )
  family.add_argument(
    "--on_error", choices=("stop", "skip"), help="on a damaged image (default: stop)"
  )
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
    help="which masks come first: `score`, the proposer's best, or `distinct`, large, stable ones "
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
  args = parser.parse_args(argv)
  if unknown := _unknown_dataset(args):
    parser.error(unknown)
  refer_only = [option.dest for group in (family, masks) for option in group._group_actions]
  foreign = refer_only if args.dataset == "shapes" else list(_SHAPES_ONLY)
  foreign += [annotations.dest] if args.dataset == "phrasecut" else []
  foreign += [root.dest, fetching.dest] if args.dataset.startswith(_BY_PATH) else [name.dest]
  for option in foreign:
    if getattr(args, option) is not None:
      parser.error(f"--{option} cannot be used with --dataset {args.dataset}")
  for option in ("workers", "batch_size"):
    if getattr(args, option) is not None and getattr(args, option) < 1:
      parser.error(f"--{option} {getattr(args, option)}: must be at least 1")
  return args


def _unknown_dataset(args: argparse.Namespace) -> str:
  """Returns the error message for an unknown value of `--dataset`; empty if it is known."""
  if args.dataset in storage.CONFIGS or args.dataset.startswith(_BY_PATH):
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


def _custom_file(args: argparse.Namespace) -> str | None:
  """Returns the file of custom data, None for another data set."""
  if not args.dataset.startswith(jsonl.PREFIX):
    return None
  return args.dataset.removeprefix(jsonl.PREFIX)


def _name(args: argparse.Namespace) -> str:
  """Returns the name of the data set for other commands.

  Raises:
    InputError: the name is taken, or not valid.
  """
  if not args.dataset.startswith(_BY_PATH):
    return args.dataset
  if (path := _custom_file(args)) is not None:
    name = jsonl.name_of(path, args.name)
  else:
    name = args.name or refer.default_name(args.dataset)
  if name in storage.CONFIGS:
    raise InputError(
      f"{name} is the name of a known data set; choose another one, such as --name mine"
    )
  try:
    storage.config_name(name)
  except InputError as error:
    raise InputError(
      f"{name!r} is not a valid name; use letters, digits and _: --name mine"
    ) from error
  return name


def _describe(args: argparse.Namespace) -> dict[str, Any]:
  """Describes quickly what the data set is made from: equal descriptions, equal records."""
  if args.dataset == "shapes":
    return {
      "train_scenes": _default(args.train_scenes, scene_source.TRAIN_SCENES),
      "eval_scenes": _default(args.eval_scenes, scene_source.EVAL_SCENES),
      "size": _default(args.size, scene_source.SIZE),
      "seed": _default(args.seed, 0),
      "noise": _default(args.noise, scene_source.NOISE),
    }
  if (path := _custom_file(args)) is not None:
    if not places.is_file(path):
      raise InputError(
        f"--dataset {args.dataset}: no such file; docs/guides/custom-data.md describes the format"
      )
    description = {
      "lines": _identify(path),
      "annotations": _identify(args.annotations) if args.annotations else "",
      "images": places.absolute(args.images or os.path.dirname(path) or "."),
    }
    return description | _describe_instances(args, _default(args.instances, _CUSTOM_DEFAULT))
  needed = ("images", "instances")
  for name in needed if args.dataset.startswith(refer.PREFIX) else ("refer_root", *needed):
    if getattr(args, name) is None:
      raise InputError(
        f"--dataset {args.dataset} needs --{name}; docs/guides/datasets.md has an example"
      )
  readers.check_proposer(args.dataset, args.instances)
  refs, annotations = readers.locate(args.dataset, args.refer_root or "", args.annotations)
  description = {
    "refs": ",".join(map(_identify, refs)),
    "annotations": _identify(annotations),
    "images": places.absolute(args.images),
  }
  return description | _describe_instances(args, args.instances)


def _describe_instances(args: argparse.Namespace, spec: str) -> dict[str, Any]:
  trained_on = _default(args.trained_on, "as the proposer says")
  folds.check_number(args.folds, spec, "--instances")
  if folds.PLACE in trained_on:
    folds.check_number(args.folds, trained_on, "--trained_on")
  proposer, _, argument = spec.partition(":")
  names = folds.names(args.folds)
  files = dict.fromkeys(part for name in names for part in folds.fill(argument, name).split(","))
  lists = dict.fromkeys(folds.fill(trained_on, name) for name in names)
  return {
    "instances": f"{proposer}:{','.join(map(_identify, files))}" if argument else proposer,
    "trained_on": ",".join(map(_identify, lists)),
    **({"folds": args.folds} if args.folds else {}),
    **dataclasses.asdict(_selection(args)),
    "categories": _identify(args.categories) if args.categories else "",
    "allow_empty": bool(args.allow_empty),
    "on_error": _default(args.on_error, "stop"),
  }


def _selection(args: argparse.Namespace) -> Selection:
  given = {name: getattr(args, name) for name in _SELECTION}
  return Selection(**{name: value for name, value in given.items() if value is not None})


def _default(value: Any, default: Any) -> Any:
  return default if value is None else value


def _identify(path: str) -> str:
  if not (buckets.is_remote(path) or os.path.isfile(path)):
    return path
  return f"{places.name_in(path)} (sha256 {fingerprint.of_file(path)})"


def _make_source(args: argparse.Namespace, described: dict[str, Any]) -> Source:
  """Returns the source for `builder.write_dataset`; checks all that can be checked early."""
  if args.dataset == "shapes":
    return scene_source.SceneSource(**described, workers=args.workers)
  declared = {
    name: None if args.trained_on is None else leakage.parse(folds.fill(args.trained_on, name))
    for name in folds.names(args.folds)
  }
  reader = _open_reader(args)
  spec = _instances(args, reader)
  for warning in reader.warnings():
    print(f"warning: {warning}", file=sys.stderr)
  texts = {name: known.text if known else "" for name, known in declared.items()}
  make = annotated_images.RecordMaker(
    spec,
    _selection(args),
    texts.get("", ""),
    texts if args.folds else {},
    categories=_categories(spec, args.categories, reader),
    allow_empty=bool(args.allow_empty),
    skip=args.on_error == "skip",
  )
  coco_ids = reader.coco_ids()
  for name in folds.names(args.folds):
    images = {
      image_id
      for split, ids in reader.splits.items()
      for image_id in ids
      if folds.fold_of(split, image_id, coco_ids, make.num_folds) == name
    }
    _check_images(spec, make.proposer(name), reader, described["images"], images)
  trained_on = {
    name: leakage.of_proposer(make.proposer(name).proposer, known)
    for name, known in declared.items()
  }
  evaluated_by = folds.names(args.folds)[-1]
  provenance = leakage.provenance(
    spec.partition(":")[0], trained_on[evaluated_by], reader.splits, coco_ids
  )
  if args.folds:
    finding = folds.check_unseen(trained_on, reader.splits.get(leakage.TRAIN, ()), coco_ids)
    provenance["leakage"][leakage.TRAIN] = dataclasses.asdict(finding)
    provenance["instances"]["folds"] = args.folds
  provenance |= reader.more_metadata()
  for line in leakage.warnings(provenance["leakage"]):
    print(line, file=sys.stderr)
  source = readers.ImageSource(
    reader,
    described["images"],
    make,
    provenance,
    _default(args.workers, _useful_workers(make.proposer(evaluated_by).proposer, reader)),
    _default(args.batch_size, readers.BATCH_SIZE),
  )
  for warning in source.warnings:
    print(f"warning: {warning}", file=sys.stderr)
  return source


def _open_reader(args: argparse.Namespace) -> readers.Reader:
  path = _custom_file(args)
  if path is None:
    return readers.open_reader(args.dataset, args.refer_root or "", args.annotations, _name(args))
  return jsonl.JsonlReader(
    path,
    _name(args),
    args.images,
    args.annotations,
    skip=args.on_error == "skip",
    workers=args.workers,
  )


def _instances(args: argparse.Namespace, reader: readers.Reader) -> str:
  """Returns the proposer; by default, custom data brings its own instances or has none."""
  if not isinstance(reader, jsonl.JsonlReader):
    return args.instances
  return _default(args.instances, custom.NAME if reader.has_instances else "none")


def _categories(spec: str, given: str | None, reader: readers.Reader) -> str:
  """Returns the file with the masks' categories; detection results have those of the refs."""
  looked_up = spec.partition(":")[0] == "results"
  return given or (reader.annotations_path if looked_up else "")


def _useful_workers(proposer: Any, reader: readers.Reader) -> int:
  """Returns the number of cores, or fewer if starting a process takes longer than its work."""
  if not getattr(proposer, "parallel", False):
    return 1
  images = sum(len(ids) for ids in reader.splits.values())
  return max(1, min(parallel.available_cores(), images // _IMAGES_PER_WORKER))


def _check_images(
  spec: str,
  proposer: registry.SelectingProposer,
  reader: readers.Reader,
  folder: str,
  image_ids: Collection[int],
) -> None:
  """Checks that the masks of a file are those of these images, and not of another data set."""
  has_ids = not isinstance(reader, jsonl.JsonlReader) or reader.has_ids
  if not has_ids and getattr(proposer.proposer, "needs_ids", False):
    raise InputError(
      f"--instances {spec}: needs image ids, but the lines of {reader.dataset} have no image_id; "
      "add image_id to the lines, or `file_name` to the rows of that file"
    )

  def images() -> Iterator[tuple[str, int | None, str]]:
    for image_id in sorted(image_ids):
      with contextlib.suppress(InputError):  # `readers.ImageSource` reports missing images
        path = reader.image_path(folder, image_id)
        yield path, image_id if has_ids else None, places.relative(path, folder)

  try:
    registry.check_images(proposer, images(), any_known=True)
  except InputError as error:
    raise InputError(f"--instances {spec}: {error}") from error


def _is_prepared(args: argparse.Namespace, described: dict[str, Any]) -> bool:
  """Returns whether exactly this data set exists.

  Raises:
    InputError: another one of the same name exists.
  """
  name = _name(args)
  metadata = storage.read_metadata(args.data_dir, name)
  if metadata is None or args.overwrite:
    return False
  earlier = metadata.get("arguments", {})
  differences = [
    f"{key} was {earlier.get(key)} and is now {value}"
    for key, value in described.items()
    if earlier.get(key) != value
  ]
  if differences:
    raise InputError(
      f"--data_dir {args.data_dir}: {name} already exists with other arguments "
      f"({'; '.join(differences)}); replace it with --overwrite or choose another --data_dir"
    )
  return True


def _print_table(data_dir: str, dataset: str) -> None:
  metadata = storage.read_metadata(data_dir, dataset) or {}
  rows = [["split", *_COUNTS]]
  for split, counts in metadata.get("counts", {}).items():
    rows.append([split, *(f"{counts[name]:,}" for name in _COUNTS)])
  print(text_table(rows))
  for split, notes in metadata.get("notes", {}).items():
    print(f"{split}: {list_counts(notes)}")
  for number, reason in metadata.get("lines_left_out", []):
    print(f"skipped line {number}: {reason}")
  for what, ref_ids in metadata.get("left_out", {}).items():
    print(f"left out: {what}: {len(ref_ids):,} ({refer.examples(ref_ids)})")
  for split, rows in metadata.get("skipped", {}).items():
    print(f"skipped in {split}: {counted(len(rows), 'image')}")
    for image_id, reason in rows:
      print(f"  {image_id}: {' '.join(reason.split())}")


def main(argv: list[str] | None = None) -> None:
  """Runs the command.

  Raises:
    InputError: invalid input; nothing is left half-written.
  """
  args = _parse(argv)
  name = _name(args)
  if args.download and args.refer_root and args.images:
    download.fetch_missing(args.dataset, args.refer_root, args.images)
  described = _describe(args)
  if _is_prepared(args, described):
    print(f"{name} is already prepared in {args.data_dir}: nothing to do")
    _print_table(args.data_dir, name)
    return
  started = time.monotonic()
  source = _make_source(args, described)
  from input_pipeline.tf import builder

  builder.write_dataset(args.data_dir, name, source, described, args.beam)
  print(
    f"{name} is prepared in {storage.dataset_dir(args.data_dir, name)} "
    f"({time.monotonic() - started:.0f} s)"
  )
  _print_table(args.data_dir, name)
