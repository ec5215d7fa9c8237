r"""Prepares a data set: images, expressions and instance masks to TFRecords.

python -m input_pipeline.prepare --dataset shapes --data_dir data
python -m input_pipeline.prepare --dataset refcoco_unc --refer_root refer --images train2014 \
    --instances coco:instances_train2014.json --data_dir data
python -m input_pipeline.prepare --dataset jsonl:mine.jsonl --data_dir data
python -m input_pipeline.prepare --dataset phrasecut --refer_root PhraseCutDataset/data \
    --images PhraseCutDataset/data/VGPhraseCut_v0/images --instances huggingface:MODEL --data_dir data

A data set that is there already is left as it is. docs/guides/datasets.md says where files come from.
"""

import argparse
import dataclasses
import os
import sys
import time
from typing import Any

from input_pipeline import storage
from input_pipeline.common import buckets, fingerprint, parallel
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from input_pipeline.common.text_table import text_table
from input_pipeline.proposers import custom, leakage
from input_pipeline.proposers.selection import Selection
from input_pipeline.sources import annotated_images, image_source, jsonl, readers, scene_source
from input_pipeline.sources.source import Source

# The builder is imported late: TensorFlow takes seconds to import, wrong input should be told
# before that, and the processes that make scenes import this module again.

_IMAGES_A_WORKER = 200  # take about as long as starting a process
_CUSTOM_DEFAULT = "custom, or none without instances"
_COUNTS = ("records", "refs", "sentences")
_SHAPES_ONLY = ("train_scenes", "eval_scenes", "size", "seed", "noise")


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = command_parser("input_pipeline.prepare", __doc__)
  parser.add_argument(
    "--dataset",
    required=True,
    type=_dataset,
    metavar="NAME",
    help=f"{', '.join(storage.CONFIGS)}, or jsonl:FILE, data of your own (docs/guides/custom-data.md)",
  )
  parser.add_argument("--data_dir", required=True, help="where the data set is written")
  parser.add_argument("--overwrite", action="store_true", help="replace what is there")
  parser.add_argument("--workers", type=int, help="processes (default: as many as it has use for)")
  parser.add_argument(
    "--beam", metavar="OPTIONS", help='run on Apache Beam, such as --beam="--runner=FlinkRunner"'
  )
  name = parser.add_argument(
    "--name", help="what data of your own is called from now on (default: as its file)"
  )
  family = parser.add_argument_group("RefCOCO family, gRefCOCO, PhraseCut and data of your own")
  root = family.add_argument(
    "--refer_root", help="folder with refcoco/, refcoco+/, refcocog/, grefcoco/ or VGPhraseCut_v0/"
  )
  family.add_argument(
    "--images",
    help="folder with the photos: COCO train2014, Visual Genome's, or yours (default: beside FILE)",
  )
  annotations = family.add_argument(
    "--annotations",
    help="COCO file with the refs' objects (default: instances.json beside them, or what a line names)",
  )
  family.add_argument(
    "--on_error", choices=("stop", "skip"), help="what to do with a broken image (default: stop)"
  )
  masks = parser.add_argument_group("instance masks, of all but shapes (docs/guides/proposals.md)")
  masks.add_argument(
    "--instances", metavar="NAME[:ARG]", help="coco:FILE, results:FILE, huggingface:MODEL, ..."
  )
  masks.add_argument(
    "--trained_on",
    metavar="WHAT",
    help=f"their detector: {', '.join(leakage.TRAINED_ON)}, or a FILE with its training images",
  )
  masks.add_argument("--max_instances", type=int, help="kept of an image, 1 to 64 (default: 16)")
  masks.add_argument("--min_area", type=float, help="share of the image (default: 0.0002)")
  masks.add_argument(
    "--nms_iou", type=float, help="of two masks more alike one goes (default: 0.9)"
  )
  masks.add_argument("--batch_size", type=int, help="photos a detector gets at once (default: 4)")
  masks.add_argument(
    "--categories", metavar="FILE", help="COCO file with the masks' categories (default: the refs')"
  )
  masks.add_argument(
    "--allow_empty", action="store_true", default=None, help="no row of an image: it has no masks"
  )
  shapes = parser.add_argument_group("shapes")
  shapes.add_argument("--train_scenes", type=int, help="scenes to learn from (default: 16000)")
  shapes.add_argument("--eval_scenes", type=int, help="scenes in every other split (default: 500)")
  shapes.add_argument("--size", type=int, help="image side in pixels (default: 96)")
  shapes.add_argument("--seed", type=int, help="of all that chance decides (default: 0)")
  shapes.add_argument(
    "--noise",
    metavar="WORD",
    help="mistakes of the simulated detector: default, oracle (none), x0.5 (half as many), miss0.2 (objects), nothing "
    "(finds none)",
  )
  args = parser.parse_args(argv)
  refer_only = [option.dest for group in (family, masks) for option in group._group_actions]
  foreign = refer_only if args.dataset == "shapes" else list(_SHAPES_ONLY)
  foreign += [annotations.dest] if args.dataset == "phrasecut" else []
  foreign += [root.dest] if _own_file(args) else [name.dest]
  for option in foreign:
    if getattr(args, option) is not None:
      parser.error(f"--{option} is not for --dataset {args.dataset}")
  for option in ("workers", "batch_size"):
    if getattr(args, option) is not None and getattr(args, option) < 1:
      parser.error(f"--{option} {getattr(args, option)}: at least 1")
  return args


def _dataset(text: str) -> str:
  """A data set that can be prepared, as it stands behind `--dataset`."""
  if text not in storage.CONFIGS and not text.startswith(jsonl.PREFIX):
    known = ", ".join(storage.CONFIGS)
    raise argparse.ArgumentTypeError(f"{text!r} is none of {known}, and no {jsonl.PREFIX}FILE")
  return text


def _own_file(args: argparse.Namespace) -> str | None:
  """The file of a user's own data, None where it is another data set."""
  if not args.dataset.startswith(jsonl.PREFIX):
    return None
  return args.dataset.removeprefix(jsonl.PREFIX)


def _name(args: argparse.Namespace) -> str:
  """What the data set is called by `train` and `evaluate`.

  Raises:
    InputError: it is the name of another data set, or none that a data set can have.
  """
  path = _own_file(args)
  if path is None:
    return args.dataset
  name = jsonl.name_of(path, args.name)
  if name in storage.CONFIGS:
    raise InputError(f"{name} is another data set; give yours a name of its own: --name mine")
  try:
    storage.config_name(name)
  except InputError as error:
    text = f"a data set cannot be called {name!r}; name it with letters, digits and _: --name mine"
    raise InputError(text) from error
  return name


def _describe(args: argparse.Namespace) -> dict[str, Any]:
  """Returns what the data set is made from, quickly: the same description, the same records."""
  if args.dataset == "shapes":
    return {
      "train_scenes": _default(args.train_scenes, scene_source.TRAIN_SCENES),
      "eval_scenes": _default(args.eval_scenes, scene_source.EVAL_SCENES),
      "size": _default(args.size, scene_source.SIZE),
      "seed": _default(args.seed, 0),
      "noise": _default(args.noise, scene_source.NOISE),
    }
  if (path := _own_file(args)) is not None:
    made_from = {
      "lines": _identify(path) if os.path.isfile(path) else fingerprint.of_file(path),
      "annotations": _identify(args.annotations) if args.annotations else "",
      "images": os.path.abspath(args.images or os.path.dirname(path) or "."),
    }
    return made_from | _describe_instances(args, _default(args.instances, _CUSTOM_DEFAULT))
  for name in ("refer_root", "images", "instances"):
    if getattr(args, name) is None:
      raise InputError(
        f"--dataset {args.dataset} needs --{name}; docs/guides/datasets.md has an example"
      )
  readers.check_proposer(args.dataset, args.instances)
  refs, annotations = readers.locate(args.dataset, args.refer_root, args.annotations)
  made_from = {
    "refs": ",".join(map(_identify, refs)),
    "annotations": _identify(annotations),
    "images": os.path.abspath(args.images),
  }
  return made_from | _describe_instances(args, args.instances)


def _describe_instances(args: argparse.Namespace, spec: str) -> dict[str, Any]:
  proposer, _, argument = spec.partition(":")
  files = ",".join(_identify(part) for part in argument.split(","))
  return {
    "instances": f"{proposer}:{files}" if argument else proposer,
    "trained_on": _identify(_default(args.trained_on, "as the proposer says")),
    **dataclasses.asdict(_selection(args)),
    "categories": _identify(args.categories) if args.categories else "",
    "allow_empty": bool(args.allow_empty),
    "on_error": _default(args.on_error, "stop"),
  }


def _selection(args: argparse.Namespace) -> Selection:
  given = {name: getattr(args, name) for name in ("max_instances", "min_area", "nms_iou")}
  return Selection(**{name: value for name, value in given.items() if value is not None})


def _default(value: Any, default: Any) -> Any:
  return default if value is None else value


def _identify(path: str) -> str:
  if not os.path.isfile(path):
    return path
  return f"{os.path.basename(path)} (sha256 {fingerprint.of_file(path)})"


def _make_source(args: argparse.Namespace, described: dict[str, Any]) -> Source:
  """Returns what `builder.write_dataset` reads from; checks all that can be checked in advance."""
  if args.dataset == "shapes":
    return scene_source.SceneSource(**described, workers=args.workers)
  said = None if args.trained_on is None else leakage.parse(args.trained_on)
  reader = _open_reader(args)
  spec = _instances(args, reader)
  if (warning := reader.warning()) is not None:
    print(f"warning: {warning}", file=sys.stderr)
  make = annotated_images.RecordMaker(
    spec,
    _selection(args),
    said.text if said else "",
    categories=_categories(spec, args.categories, reader),
    allow_empty=bool(args.allow_empty),
    skip=args.on_error == "skip",
  )
  proposer = make.proposer().proposer
  _check_images(spec, proposer, reader)
  trained_on = leakage.of_proposer(proposer, said)
  provenance = leakage.provenance(
    spec.partition(":")[0], trained_on, reader.splits, reader.coco_ids()
  )
  if isinstance(reader, jsonl.JsonlReader):
    provenance |= reader.more_metadata()
  for line in leakage.warnings(provenance["leakage"]):
    print(line, file=sys.stderr)
  return image_source.ImageSource(
    reader,
    described["images"],
    make,
    provenance,
    _default(args.workers, _useful_workers(proposer, reader)),
    _default(args.batch_size, image_source.BATCH_SIZE),
  )


def _open_reader(args: argparse.Namespace) -> image_source.Reader:
  path = _own_file(args)
  if path is None:
    return readers.open_reader(args.dataset, args.refer_root, args.annotations)
  return jsonl.JsonlReader(
    path,
    _name(args),
    args.images,
    args.annotations,
    skip=args.on_error == "skip",
    workers=args.workers,
  )


def _instances(args: argparse.Namespace, reader: image_source.Reader) -> str:
  """Who makes the masks; of a user's own data those that it comes with, unless something else is asked for."""
  if not isinstance(reader, jsonl.JsonlReader):
    return args.instances
  spec = _default(args.instances, custom.NAME if reader.has_instances else "none")
  reader.check_proposer(spec)
  return spec


def _categories(spec: str, given: str | None, reader: image_source.Reader) -> str:
  """The file whose list of categories the masks must keep to; a detector's results mean the refs' by default."""
  looked_up = spec.partition(":")[0] == "results"
  return given or (reader.annotations_path if looked_up else "")


def _useful_workers(proposer: Any, reader: image_source.Reader) -> int:
  """As many processes as there are cores, unless starting them takes longer than the work."""
  if not getattr(proposer, "parallel", False):
    return 1
  images = sum(len(ids) for ids in reader.splits.values())
  return max(1, min(parallel.available_cores(), images // _IMAGES_A_WORKER))


def _check_images(spec: str, proposer: Any, reader: image_source.Reader) -> None:
  """Masks that are looked up must be of these photos: another set's file is told at once."""
  if not hasattr(proposer, "image_ids"):
    return
  needed = {image_id for ids in reader.splits.values() for image_id in ids}
  if not needed & proposer.image_ids():
    raise InputError(
      f"--instances {spec}: it has masks for none of the {len(needed):,} images of {reader.dataset}; are these the "
      "results for another set?"
    )


def _is_prepared(args: argparse.Namespace, described: dict[str, Any]) -> bool:
  """Whether exactly this is there already; another data set of the name is an InputError."""
  name = _name(args)
  metadata = storage.read_metadata(args.data_dir, name)
  if metadata is None or args.overwrite:
    return False
  there = metadata.get("arguments", {})
  differences = [
    f"{key} was {there.get(key)} and is now {value}"
    for key, value in described.items()
    if there.get(key) != value
  ]
  if differences:
    raise InputError(
      f"--data_dir {args.data_dir}: {name} is there already, made otherwise "
      f"({'; '.join(differences)}); replace it with --overwrite or choose another --data_dir"
    )
  return True


def _print_table(data_dir: str, dataset: str) -> None:
  metadata = storage.read_metadata(data_dir, dataset) or {}
  rows = [["split", *_COUNTS]]
  for split, counts in metadata.get("counts", {}).items():
    rows.append([split, *(f"{counts[name]:,}" for name in _COUNTS)])
  print(text_table(rows))
  for number, reason in metadata.get("lines_left_out", []):
    print(f"left out: line {number}: {reason}")
  for split, rows in metadata.get("skipped", {}).items():
    print(f"left out of {split}: {len(rows):,} images")
    for image_id, reason in rows:
      print(f"  {image_id}: {' '.join(reason.split())}")


def main(argv: list[str] | None = None) -> None:
  """Runs the command.

  Raises:
    InputError: something is wrong with what was given; nothing is left half-written.
  """
  args = _parse(argv)
  if buckets.is_remote(args.data_dir):
    raise InputError(
      f"--data_dir {args.data_dir}: records are written to a disk; prepare them in a folder and copy that, as in "
      f"`gcloud storage rsync --recursive data {args.data_dir}`"
    )
  name = _name(args)
  described = _describe(args)
  if _is_prepared(args, described):
    print(f"{name} is prepared in {args.data_dir} already: nothing to do")
    _print_table(args.data_dir, name)
    return
  started = time.monotonic()
  source = _make_source(args, described)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  from input_pipeline.tf import builder

  builder.write_dataset(args.data_dir, name, source, described, args.beam)
  print(
    f"{name} is prepared in {storage.dataset_dir(args.data_dir, name)} "
    f"({time.monotonic() - started:.0f} s)"
  )
  _print_table(args.data_dir, name)
