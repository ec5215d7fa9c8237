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
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import announce, counted, list_counts, text_table
from input_pipeline.prepare import arguments, download
from input_pipeline.proposers import custom, folds, leakage, mask_recipe, registry
from input_pipeline.proposers.selection import Selection
from input_pipeline.sources import annotated_images, jsonl, readers, refer, scene_source
from input_pipeline.sources.source import Source

# The builder is imported late: TensorFlow takes seconds to import, invalid input should be reported
# before that, and the processes that make scenes import this module again.

# Preparing this many takes about as long as starting a process.
_IMAGES_PER_WORKER = 200
_CUSTOM_DEFAULT = "custom, or none without instances"
_COUNTS = ("records", "refs", "expressions")
_SELECTION = ("max_instances", "rank", "min_area", "nms_iou")


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
  if not args.dataset.startswith(arguments.BY_PATH):
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
    with announce(f"opening {spec}, and looking for the images"):
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
  recipe = mask_recipe.of_spec(folds.fill(spec, evaluated_by), make.selection)
  provenance |= {mask_recipe.KEY: recipe.to_json()} | reader.more_metadata()
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
    with announce("reading refs and annotations"):
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
  args = arguments.parse(argv, __doc__ or "")
  name = _name(args)
  if args.download and args.refer_root and args.images:
    download.fetch_missing(args.dataset, args.refer_root, args.images)
  with announce("identifying the input files"):
    described = _describe(args)
  if _is_prepared(args, described):
    print(f"{name} is already prepared in {args.data_dir}: nothing to do")
    _print_table(args.data_dir, name)
    return
  started = time.monotonic()
  source = _make_source(args, described)
  with announce("importing TensorFlow"):
    from input_pipeline.tf import builder

  builder.write_dataset(args.data_dir, name, source, described, args.beam)
  print(
    f"{name} is prepared in {storage.dataset_dir(args.data_dir, name)} "
    f"({time.monotonic() - started:.0f} s)"
  )
  _print_table(args.data_dir, name)
