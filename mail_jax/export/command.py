"""Writes a trained model as a folder that one can share, and that runs elsewhere (docs/guides/export.md):

python -m mail_jax.export --checkpoint runs/demo --out exported --format safetensors,stablehlo,saved_model,onnx
"""

import copy
import datetime
import importlib.metadata
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
from etils import epath

from input_pipeline.common import atomic_files, buckets
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from mail_jax.config import to_json
from mail_jax.export import bundle, folder, forward, load, model_card
from mail_jax.export import formats as artifacts
from mail_jax.export import scripts as standalone
from mail_jax.models.build import make_model

# Whose versions the card tells, where they are installed.
_PACKAGES = ("jax", "flax", "numpy", "safetensors", "onnx")


def export(
  checkpoint: str,
  out: str,
  formats: tuple[str, ...] = ("safetensors",),
  step: str | int = "best",
  metrics: str | None = None,
  overwrite: bool = False,
) -> dict[str, int]:
  """Exports a trained model.

  Args:
    checkpoint: the folder of a run, or an exported folder with safetensors.
    out: the folder to be made; it appears whole or not at all.
    formats: of `folder.PLACES`.
    step: of a run: `best`, `last` or a number.
    metrics: a file that `mail_jax.evaluate --json` wrote, for the card.
    overwrite: replaces what was exported there before.

  Returns:
    Bytes of each format.

  Raises:
    InputError: a wrong argument, a package that is missing, or a place that cannot be written to.
  """
  _check(out, formats, overwrite)
  splits = model_card.read_metrics(metrics) if metrics else {}
  model = load.load(checkpoint, step)
  if model.forward is not None:
    raise InputError(
      f"--checkpoint {checkpoint}: it holds no parameters; export from a run or its safetensors"
    )
  variables = jax.device_get(model.on_one_device())
  with atomic_files.whole_folder(out, overwrite) as place:
    for form in formats:
      _write_format(form, place, model, variables)
    _write_scripts(formats, place, model)
    about = _describe(model, variables, formats, place)
    (place / folder.ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    package = standalone.TOKENIZER_PACKAGES[model.tokenizer.kind]
    (place / folder.README).write_text(model_card.write(about, package, splits))
    files = {name: size for name, (size, _) in about["files"].items()}
  return {
    form: sum(size for name, size in files.items() if name.startswith(folder.PLACES[form]))
    for form in formats
  }


def _check(out: str, formats: tuple[str, ...], overwrite: bool) -> None:
  """Looks for what is wrong before anything takes long."""
  unknown = [form for form in formats if form not in folder.PLACES]
  if unknown or not formats:
    raise InputError(
      f"--format {','.join(unknown)!r} is not one of {', '.join(folder.PLACES)}, separated by commas"
    )
  for form in formats:
    artifacts.check_installed(form)
  if buckets.is_remote(out):
    raise InputError(f"--out {out}: name a folder on this machine, and copy it afterwards")
  atomic_files.check_free(out, overwrite)
  there = pathlib.Path(out)
  if there.is_dir() and any(there.iterdir()):
    folder.read_about(epath.Path(there))  # nothing else is ever replaced


def _write_format(form: str, place: pathlib.Path, model: load.LoadedModel, variables: Any) -> None:
  if form == "safetensors":
    (place / folder.PLACES[form]).write_bytes(folder.variables_to_bytes(variables))
    return
  config = copy.deepcopy(model.config)
  config.model.backend = "xla"  # the attention that runs everywhere
  if form == "onnx":
    # Its runtimes hardly know bfloat16; parameters are float32 anyway.
    config.model.dtype = "float32"
    config, variables = forward.without_loop(config, variables)
  network = make_model(config, model.tokenizer.vocab_size)
  artifacts.write(form, place / folder.PLACES[form], config, network, variables)


def _write_scripts(formats: tuple[str, ...], place: pathlib.Path, model: load.LoadedModel) -> None:
  kind = model.tokenizer.kind
  (place / folder.TOKENIZERS[kind]).write_bytes(model.tokenizer.file_bytes())
  scripts = [standalone.SCRIPTS[form][0] for form in formats if form in standalone.SCRIPTS]
  if not scripts:
    return
  (place / standalone.PREPROCESSING).write_text(
    bundle.preprocessing(kind, standalone.TOKENIZER_PACKAGES[kind])
  )
  for script in scripts:
    shutil.copyfile(pathlib.Path(standalone.__file__).with_name(script), place / script)


def _describe(
  model: load.LoadedModel, variables: Any, formats: tuple[str, ...], place: pathlib.Path
) -> dict[str, Any]:
  """What `config.json` holds."""
  config = to_json(model.config)
  kind = model.tokenizer.kind
  return {
    "format": folder.FORMAT,
    "format_version": folder.VERSION,
    "formats": list(formats),
    "step": model.step,
    "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(variables["params"])),
    "inputs": {key: config[key] for key in ("image_size", "max_instances", "max_tokens")},
    "tokenizer": {"kind": kind, "file": folder.TOKENIZERS[kind]},
    "metrics": dict(model.metrics),
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "versions": _versions(),
    "config": config,
    "files": folder.list_files(place),
  }


def _versions() -> dict[str, str]:
  found = {}
  for name in ("mail_jax", *_PACKAGES):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue  # a checkout, or a package that was not needed
  return found


def main(argv: list[str] | None = None) -> None:
  """The command."""
  parser = command_parser("mail_jax.export", __doc__)
  load.add_arguments(parser)
  parser.add_argument("--out", required=True, metavar="FOLDER", help="the folder to be made")
  parser.add_argument(
    "--format",
    default="safetensors",
    metavar="A,B",
    help=f"of {', '.join(folder.PLACES)} (default: safetensors, which mail_jax loads)",
  )
  parser.add_argument(
    "--metrics", metavar="JSON", help="what mail_jax.evaluate --json wrote, for the card"
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace what was exported there before"
  )
  args = parser.parse_args(argv)
  formats = tuple(dict.fromkeys(filter(None, args.format.replace(" ", "").split(","))))
  sizes = export(args.checkpoint, args.out, formats, args.step, args.metrics, args.overwrite)
  print(
    f"wrote {args.out}: {', '.join(f'{form} {size / 1e6:.1f} MB' for form, size in sizes.items())}"
  )
