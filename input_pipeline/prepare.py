"""Prepares a data set: images, expressions and instance masks to records.

    python -m input_pipeline.prepare --dataset shapes --data_dir data
    python -m input_pipeline.prepare --dataset refcoco_unc --refer_root refer \
        --images train2014 --instances coco:instances_train2014.json --data_dir data

A data set that is there already is left as it is. docs/data.md says where files come from.
"""

import argparse
import os
import sys
import time
from typing import Any

from input_pipeline import errors, storage
from input_pipeline.errors import InputError
from input_pipeline.instances import leakage, open_provider
from input_pipeline.instances.postprocess import MAX_INSTANCES, Selection
from input_pipeline.sources import refer, scene_set

# The builder is imported late: TensorFlow takes seconds to import, wrong input should be told
# before that, and the processes that make scenes import this module again.

_REFER_ONLY = ("refer_root", "images", "annotations", "instances", "trained_on", "max_instances")
_SHAPES_ONLY = ("train_scenes", "eval_scenes", "size", "seed", "noise")


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m input_pipeline.prepare",
    description="Prepares images, expressions and instance masks as TFRecords.",
  )
  parser.add_argument("--dataset", required=True, choices=list(storage.CONFIGS))
  parser.add_argument("--data_dir", required=True, help="where the data set is written")
  parser.add_argument("--overwrite", action="store_true", help="replace what is there")
  family = parser.add_argument_group("RefCOCO family")
  family.add_argument("--refer_root", help="folder with refcoco/, refcoco+/, refcocog/")
  family.add_argument("--images", help="folder with the COCO train2014 photos")
  family.add_argument(
    "--annotations", help="COCO file with the refs' objects (default: instances.json beside them)"
  )
  family.add_argument("--instances", help="coco:INSTANCES.json, or none")
  family.add_argument(
    "--trained_on",
    metavar="WHAT",
    help=f"the masks' detector: {', '.join(leakage.WORDS)}, or a FILE with its training images",
  )
  family.add_argument("--max_instances", type=int, help="instance masks an image (default: 16)")
  shapes = parser.add_argument_group("shapes")
  shapes.add_argument("--train_scenes", type=int, help="(default: 16000)")
  shapes.add_argument("--eval_scenes", type=int, help="in every other split (default: 500)")
  shapes.add_argument("--size", type=int, help="image side in pixels (default: 96)")
  shapes.add_argument("--seed", type=int, help="(default: 0)")
  shapes.add_argument("--noise", choices=scene_set.NOISES, help="of the simulated detector")
  args = parser.parse_args(argv)
  foreign = _REFER_ONLY if args.dataset == "shapes" else _SHAPES_ONLY
  for name in foreign:
    if getattr(args, name) is not None:
      parser.error(f"--{name} is not for --dataset {args.dataset}")
  return args


def _describe(args: argparse.Namespace) -> dict[str, Any]:
  """Returns what the data set is made from, quickly: the same description, the same records."""
  if args.dataset == "shapes":
    return {
      "train_scenes": _default(args.train_scenes, scene_set.TRAIN_SCENES),
      "eval_scenes": _default(args.eval_scenes, scene_set.EVAL_SCENES),
      "size": _default(args.size, scene_set.SIZE),
      "seed": _default(args.seed, 0),
      "noise": _default(args.noise, scene_set.NOISES[0]),
    }
  for name in ("refer_root", "images", "instances"):
    if getattr(args, name) is None:
      raise InputError(f"--dataset {args.dataset} needs --{name}; docs/data.md has an example")
  refs, annotations = refer.locate(args.dataset, args.refer_root, args.annotations)
  provider, _, argument = args.instances.partition(":")
  return {
    "refs": _identify(refs),
    "annotations": _identify(annotations),
    "images": os.path.abspath(args.images),
    "instances": f"{provider}:{_identify(argument)}" if argument else provider,
    "trained_on": _identify(_default(args.trained_on, "as the provider says")),
    "max_instances": _default(args.max_instances, MAX_INSTANCES),
  }


def _default(value: Any, default: Any) -> Any:
  return default if value is None else value


def _identify(path: str) -> str:
  if not os.path.isfile(path):
    return path
  return f"{os.path.basename(path)} (sha256 {storage.fingerprint(path)})"


def _make_source(args: argparse.Namespace, described: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
  """Returns what `builder.write_dataset` reads from, and its provenance; checks all that can be checked in advance."""
  if args.dataset == "shapes":
    scenes = scene_set.SceneSet(**described)
    return scenes, leakage.of_scenes(scenes.splits)
  said = None if args.trained_on is None else leakage.parse(args.trained_on)
  selection = Selection(max_instances=described["max_instances"])
  reader = refer.RefReader(args.dataset, args.refer_root, args.annotations)
  if (warning := reader.warning()) is not None:
    print(f"warning: {warning}", file=sys.stderr)
  provider = open_provider(args.instances, selection, said.text if said else "")
  trained_on = leakage.of_provider(provider.provider, said)
  provenance = leakage.provenance(args.instances.partition(":")[0], trained_on, reader.splits)
  for line in leakage.warnings(provenance["leakage"]):
    print(line, file=sys.stderr)
  return refer.ReferSet(reader, args.images, provider), provenance


def _is_prepared(args: argparse.Namespace, described: dict[str, Any]) -> bool:
  """Whether exactly this is there already; another data set of the name is an InputError."""
  metadata = storage.read_metadata(args.data_dir, args.dataset)
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
      f"--data_dir {args.data_dir}: {args.dataset} is there already, made otherwise "
      f"({'; '.join(differences)}); replace it with --overwrite or choose another --data_dir"
    )
  return True


def _print_table(data_dir: str, dataset: str) -> None:
  counts = (storage.read_metadata(data_dir, dataset) or {}).get("counts", {})
  print(f"{'split':8}{'records':>10}{'refs':>10}{'sentences':>11}")
  for split, row in counts.items():
    print(f"{split:8}{row['records']:10,}{row['refs']:10,}{row['sentences']:11,}")


def main(argv: list[str] | None = None) -> None:
  """Runs the command.

  Raises:
    InputError: something is wrong with what was given; nothing is left half-written.
  """
  args = _parse(argv)
  described = _describe(args)
  if _is_prepared(args, described):
    print(f"{args.dataset} is prepared in {args.data_dir} already: nothing to do")
    _print_table(args.data_dir, args.dataset)
    return
  started = time.monotonic()
  source, provenance = _make_source(args, described)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  from input_pipeline import builder

  builder.write_dataset(args.data_dir, args.dataset, source, described, provenance)
  print(
    f"{args.dataset} is prepared in {storage.dataset_dir(args.data_dir, args.dataset)} "
    f"({time.monotonic() - started:.0f} s)"
  )
  _print_table(args.data_dir, args.dataset)


if __name__ == "__main__":
  try:
    errors.run_command(main)
  except KeyboardInterrupt:
    print("interrupted: nothing was written", file=sys.stderr)
    sys.exit(130)
