r"""Exports a trained model as a folder that can be shared and runs elsewhere:

python -m mail_jax.export --checkpoint runs/demo --out exported --format safetensors,stablehlo

docs/guides/export.md describes the formats. To the Hugging Face Hub, with a card:

python -m mail_jax.export --checkpoint runs/demo --push hf://USER/NAME --license apache-2.0 \
    --metrics metrics.json --pictures overlays.png
"""

import argparse
import contextlib
import copy
import datetime
import importlib.metadata
import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from input_pipeline import image_hashes
from input_pipeline.common import atomic_files, buckets
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import announce
from input_pipeline.proposers import mask_recipe
from mail_jax.config import to_json
from mail_jax.export import folder, formats, hub, load, model_card, scripts
from mail_jax.export import precision as precisions
from mail_jax.export.model_card import CardOptions
from mail_jax.models.build import make_model

# Packages whose versions the model card lists.
_PACKAGES = ("jax", "flax", "numpy", "safetensors", "onnx")
_NO_CARD_OPTIONS = CardOptions()


def export(
  checkpoint: str,
  out: str,
  names: tuple[str, ...] = ("safetensors",),
  step: str | int = "best",
  card: CardOptions = _NO_CARD_OPTIONS,
  overwrite: bool = False,
  precision: str = "float32",
) -> dict[str, int]:
  """Exports a trained model.

  Args:
    checkpoint: the folder of a run, or an exported folder with safetensors.
    out: the folder to create; it appears complete or not at all.
    names: formats, of `folder.PLACES`.
    step: which checkpoint of a run: `best`, `last` or the number of a step.
    card: what to write into the model card.
    overwrite: replaces an earlier export.
    precision: of the weights in `safetensors`, `onnx` and `tensorrt`: see `precision.PRECISIONS`.

  Returns:
    Bytes per format.

  Raises:
    InputError: an argument is invalid, a package is missing, or `out` cannot be written.
  """
  _check_precision(precision, names)
  _check(out, names, overwrite)
  splits = card.check()
  model = load.load(checkpoint, step)
  if model.forward is not None:
    raise InputError(
      f"--checkpoint {checkpoint}: has no parameters; export from a run or its safetensors"
    )
  variables = jax.device_get(model.on_one_device())
  with atomic_files.whole_folder(out, overwrite) as target:
    for name in names:
      with announce(f"writing {name}"):
        _write_format(name, target, model, variables, precision)
    tokenizer_file = folder.TOKENIZERS[model.tokenizer.kind]
    (target / tokenizer_file).write_bytes(model.tokenizer.file_bytes())
    if model.images is not None:
      (target / folder.IMAGES).write_bytes(image_hashes.to_bytes(model.images))
    scripts.copy(names, target)
    card.copy_pictures(target)
    about: dict[str, Any] = _describe(model, variables, names, target)
    about["precision"] = precision
    (target / folder.ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    package = scripts.TOKENIZER_PACKAGES[model.tokenizer.kind]
    (target / folder.README).write_text(model_card.write(about, package, splits, card))
  files = {file: size for file, (size, _) in about["files"].items()}
  return {name: sum(files[file] for file in folder.names_of(about, name)) for name in names}


def _check(out: str, names: tuple[str, ...], overwrite: bool) -> None:
  """Checks the arguments before any work starts."""
  unknown = [name for name in names if name not in folder.PLACES]
  if unknown or not names:
    raise InputError(
      f"--format {','.join(unknown)!r}: expected some of {', '.join(folder.PLACES)}, "
      "separated by commas"
    )
  for name in names:
    formats.check_installed(name)
  if buckets.is_remote(out):
    raise InputError(f"--out {out}: must be a folder on this machine; copy it to the bucket later")
  atomic_files.check_free(out, overwrite)
  target = pathlib.Path(out)
  if target.is_dir() and any(target.iterdir()):
    folder.read_about(epath.Path(target))  # only an earlier export is ever replaced


def _check_precision(precision: str, names: tuple[str, ...]) -> None:
  if precision not in precisions.PRECISIONS:
    raise InputError(
      f"--precision {precision!r}: expected one of {', '.join(precisions.PRECISIONS)}"
    )
  if precision == "float32":
    return
  able = ("safetensors", "onnx") if precision == "int8" else ("safetensors", "onnx", "tensorrt")
  if unable := [name for name in names if name not in able]:
    raise InputError(
      f"--precision {precision}: not for {', '.join(unable)}, only for {', '.join(able)}; export "
      "the others to another folder"
    )


def _write_format(
  name: str, target: pathlib.Path, model: load.LoadedModel, variables: Any, precision: str
) -> None:
  path = target / folder.PLACES[name]
  if name == "safetensors":
    folder.write_variables(path, variables, precision)
    return
  config = copy.deepcopy(model.config)
  # The attention that runs on every platform.
  config.model.backend = "xla"
  if name in ("onnx", "tensorrt"):
    # What is computed in fewer bits is decided there.
    config.model.dtype = "float32"
    config, variables = formats.without_loop(config, variables)
  if name == "saved_model":
    # TensorFlow Serving takes a folder of numbered versions.
    path /= str(model.step)
    path.parent.mkdir()
  network = make_model(config, model.tokenizer.vocab_size)
  formats.write(name, path, config, network, variables, precision)


def _describe(
  model: load.LoadedModel, variables: Any, names: tuple[str, ...], target: pathlib.Path
) -> dict[str, Any]:
  """Returns the contents of `config.json`."""
  config = to_json(model.config)
  kind = model.tokenizer.kind
  return {
    "format": folder.FORMAT,
    "format_version": folder.VERSION,
    "formats": list(names),
    "step": model.step,
    "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(variables["params"])),
    "inputs": {key: config[key] for key in ("image_size", "max_instances", "max_tokens")},
    "tokenizer": {"kind": kind, "file": folder.TOKENIZERS[kind]},
    "metrics": dict(model.metrics),
    "left_out": model.left_out,
    mask_recipe.KEY: mask_recipe.all_to_json(
      model.mask_recipes and [recipe.portable() for recipe in model.mask_recipes]
    ),
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "versions": _versions(),
    "config": config,
    "files": folder.list_files(target),
  }


def _versions() -> dict[str, str]:
  versions = {}
  for name in ("mail_jax", *_PACKAGES):
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue  # a checkout, or a package that was not needed
  return versions


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  args = _parse(argv)
  names = tuple(dict.fromkeys(filter(None, args.format.replace(" ", "").split(","))))
  address = hub.check_pushable(args.push) if args.push else None
  card = CardOptions(
    args.metrics, tuple(args.pictures), args.license, str(address or CardOptions.name)
  )
  with _place(args.out) as out:
    sizes = export(args.checkpoint, out, names, args.step, card, args.overwrite, args.precision)
    shown = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())
    if args.out:
      print(f"wrote {args.out}: {shown}")
    if address:
      commit = hub.push(pathlib.Path(out), address, args.private)
      print(f"pushed {address}: {shown} ({commit})")


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = command_parser("mail_jax.export", __doc__)
  load.add_arguments(parser)
  parser.add_argument("--out", metavar="FOLDER", help="the folder to create")
  parser.add_argument(
    "--push",
    metavar="hf://USER/NAME",
    help="upload the folder to the Hugging Face Hub, @BRANCH at the end for a branch; creates what "
    "is not there",
  )
  parser.add_argument(
    "--private", action="store_true", help="if --push creates a repository: a private one"
  )
  parser.add_argument(
    "--format",
    default="safetensors",
    metavar="A,B",
    help=f"one or more of {', '.join(folder.PLACES)} (default: safetensors, which mail_jax loads)",
  )
  parser.add_argument(
    "--precision",
    default="float32",
    choices=precisions.PRECISIONS,
    help="of the weights, for safetensors and onnx (tensorrt: not int8); default: float32",
  )
  parser.add_argument(
    "--metrics",
    metavar="JSON",
    help="a file written by mail_jax.evaluate --json, for the model card",
  )
  parser.add_argument(
    "--pictures",
    action="append",
    default=[],
    metavar="FILE",
    help="an image for the model card, such as of mail_jax.evaluate --overlays; repeatable",
  )
  parser.add_argument(
    "--license",
    default=CardOptions.licence,
    metavar="NAME",
    help="of the weights, for the model card, such as apache-2.0 (default: to be filled in)",
  )
  parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
  args = parser.parse_args(argv)
  if not args.out and not args.push:
    parser.error("set --out, --push, or both")
  return args


@contextlib.contextmanager
def _place(out: str | None) -> Iterator[str]:
  """Yields the folder to export to: one that is removed at the end if none is named."""
  if out:
    yield out
    return
  with tempfile.TemporaryDirectory(prefix="mail_jax-export-") as temporary:
    yield str(pathlib.Path(temporary, "model"))
