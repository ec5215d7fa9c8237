"""Loads a trained model from the folder of a run or from an exported one, with its own config."""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from input_pipeline import left_out
from input_pipeline.common import buckets, fingerprint
from input_pipeline.common.errors import InputError
from input_pipeline.image_hashes import ImageSet
from input_pipeline.preprocess import tokenizer as tokenizers
from input_pipeline.proposers import mask_recipe
from input_pipeline.proposers.mask_recipe import MaskRecipe
from mail_jax.checkpoints import checkpoint
from mail_jax.config import MAY_CHANGE, flatten, from_json, to_json
from mail_jax.distributed import processes, sharding
from mail_jax.export import folder, formats, hub
from mail_jax.hardware import processor
from mail_jax.models.attention import BACKENDS
from mail_jax.models.build import (
  Variables,
  apply_model,
  choose_backend_from,
  init_variables,
  make_model,
  path_name,
  prepare_variables,
)
from mail_jax.models.mail import MaIL, Output

DEMO = "demo"
"""The name of the model that comes with mail_jax, trained by `configs/demo.py`."""
DEMO_FOLDER = pathlib.Path(__file__).parents[1] / DEMO
"""Where it is: an exported folder."""


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """The contents of a checkpoint or of an exported model, ready to be applied.

  Attributes:
    config: of the run, with an attention that runs on this machine.
    model: the network, in the fastest dtypes of this machine; see `choose_operands`.
    variables: {"params", "batch_stats"}, the moving average if the run kept one, on every device;
      empty if `forward` holds them.
    tokenizer: of the run.
    step: number of updates.
    metrics: of the evaluation during training, if there was one.
    forward: runs in place of the network if it is not None; see `formats.Opened`.
    outside: computes what `forward` finds in a batch; see `complete`.
    files: names and SHA-256 of the files that `forward` was read from.
    images: hashes of the images that it was trained on, by DATASET/SPLIT; None if they are unknown.
    left_out: of `left_out.note`, by the last run; None if nothing is to be said.
    mask_recipes: how the instance masks of the data sets were made; None if it is unknown.
  """

  config: ConfigDict
  model: MaIL
  variables: Variables
  tokenizer: tokenizers.Tokenizer
  step: int
  metrics: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
  forward: Callable[[Variables, Mapping[str, jax.Array]], Output] | None = None
  outside: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  images: Mapping[str, ImageSet] | None = None
  left_out: Mapping[str, Any] | None = None
  mask_recipes: tuple[MaskRecipe, ...] | None = None

  def apply(self, variables: Variables, batch: Mapping[str, jax.Array]) -> Output:
    """Runs the model on a batch, as at test time; may be traced for a batch of `complete`.

    Args:
      variables: of this model, on any devices.
      batch: see docs/reference/formats.md.
    """
    if self.forward is not None:
      return self.forward(variables, batch if "logits" in batch else self.complete(batch))
    return apply_model(self.model, variables, dict(batch))

  def complete(self, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Adds to a batch what a library other than JAX computes, if the model needs one.

    Args:
      batch: on the host or on devices of this process.
    """
    return {**batch, **(self.outside(batch) if self.outside else {})}

  def prepare(self, variables: Variables) -> Variables:
    """Returns variables that `apply` has less to convert of; see `build.prepare_variables`."""
    return prepare_variables(self.model, variables) if self.forward is None else variables

  def on_one_device(self) -> Variables:
    """Returns the variables on the first device of this process, for work it does alone."""
    return jax.tree.map(lambda x: x.addressable_data(0), self.variables)

  def fingerprint(self) -> str:
    """Returns a hash of all that predictions depend on: variables, config and tokenizer.

    If the model holds its variables itself, as an ONNX file does, its files are hashed instead.
    """
    digest = hashlib.sha256(fingerprint_config(self.config).encode())
    digest.update(self.tokenizer.to_bytes())
    digest.update("".join(f"{name} {sha256}\n" for name, sha256 in self.files.items()).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(self.on_one_device()):
      values = np.ascontiguousarray(leaf)
      digest.update(f"{path_name(path)} {values.dtype} {values.shape}\n".encode())
      digest.update(values.tobytes())
    return fingerprint.of_digest(digest)


def fingerprint_config(config: ConfigDict) -> str:
  """Returns a hash of a config, without the keys that may differ between runs of one model."""
  settings = {
    key: value for key, value in flatten(to_json(config)).items() if not key.startswith(MAY_CHANGE)
  }
  return fingerprint.of_bytes(json.dumps(settings, sort_keys=True).encode())


def add_arguments(parser: argparse.ArgumentParser, demo: str = "") -> None:
  """Adds the options that name the model that a command loads: `--checkpoint` and `--step`.

  Args:
    parser: of the command.
    demo: the help of `--demo`, which stands for `--checkpoint demo`; without it, there is none.
  """
  options = parser.add_mutually_exclusive_group(required=True) if demo else parser
  options.add_argument(
    "--checkpoint",
    required=not demo,
    help="the --workdir of a run, an exported folder, a format in an exported folder, "
    "hf://USER/NAME[@REVISION] on the Hugging Face Hub, or demo",
  )
  if demo:
    options.add_argument(
      "--demo", dest="checkpoint", action="store_const", const=str(DEMO_FOLDER), help=demo
    )
  add_step_argument(parser)


def add_step_argument(parser: argparse.ArgumentParser) -> None:
  """Adds `--step` alone, for a command that takes the run in another way."""
  parser.add_argument(
    "--step",
    type=_parse_step,
    default="best",
    metavar="best|last|N",
    help="checkpoint of a run: best, last, or the number of a step (default: best)",
  )


def add_backend_argument(parser: argparse.ArgumentParser) -> None:
  """Adds `--backend`, for a command that runs the model."""
  parser.add_argument(
    "--backend",
    choices=BACKENDS,
    default="",
    help="implementation of the attention (default: as in training if it runs here, else auto)",
  )


def _parse_step(text: str) -> str | int:
  if text in ("best", "last"):
    return text
  if text.isdecimal():
    return int(text)
  raise argparse.ArgumentTypeError(f"{text!r} is not best, last or the number of a step")


def locate(named: str) -> str:
  """Returns the path or address of a model: of the demo's, and of a copy of one on the Hub.

  Args:
    named: as in `load`.

  Raises:
    InputError: the model cannot be fetched from the Hub; see `hub.fetch`.
  """
  if named == DEMO and not os.path.exists(DEMO):
    return str(DEMO_FOLDER)
  if not hub.is_address(named):
    return named
  try:
    return hub.fetch(named)
  except InputError as error:
    raise InputError(f"--checkpoint {error}") from error


def load(
  workdir: str, step: str | int = "best", averaged: bool = True, backend: str = ""
) -> LoadedModel:
  """Loads a checkpoint or an exported model.

  Args:
    workdir: of a run, a folder or an address in a bucket; or an exported folder, or one of the
      formats in it, such as `FOLDER/model.onnx`; or `hf://USER/NAME[@REVISION]`, an exported folder
      on the Hugging Face Hub; or `demo`, the model that comes with mail_jax, unless there is a file
      or folder of that name.
    step: `best` by the run's metric (the last one if none was evaluated), `last`, or the number of
      a step. If the best or the last checkpoint is damaged, the next best or the previous one is
      loaded, with a warning.
    averaged: the moving average, if a run kept one, and not the parameters that it continues with.
    backend: `config.model.backend` to run it with; empty for that of the run, if it runs here.

  Raises:
    InputError: no such folder, no intact checkpoint of that step, no intact exported model, or
      `step` is something else.
  """
  if step not in ("best", "last") and not isinstance(step, int):
    raise InputError(f"step {step!r} is not 'best', 'last' or the number of a step")
  workdir = locate(workdir)
  exported = folder.find(buckets.folder(workdir, "--checkpoint"), workdir)
  with processes.announce(f"loading {workdir}"):
    if exported is None:
      return _load_run(workdir, step, averaged, backend)
    return _load_exported(*exported, step, backend)


def _load_run(workdir: str, selected: str | int, averaged: bool, backend: str) -> LoadedModel:
  checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
  try:
    step = checkpoints.select(selected)
    meta = checkpoints.meta(step)
    config = _config_for_here(meta["config"], f"--checkpoint {workdir}", backend)
    tokenizer = tokenizers.from_bytes(checkpoint.unpack_bytes(meta["tokenizer"]))
    model, variables = _describe(config, tokenizer.vocab_size, f"--checkpoint {workdir}")
    # Names of fields of `TrainState`.
    field = "averaged" if averaged and config.ema_decay else "variables"
    shapes = {field: variables}
    everywhere = jax.tree.map(lambda _: sharding.replicated(sharding.make_mesh()), shapes)
    variables = checkpoints.restore(step, sharding.shapes_at(shapes, everywhere))[field]
    metrics, images = checkpoints.metrics(step), checkpoint.read_images(meta)
    data = meta.get("data") or {}
    noted = left_out.from_json(data.get("left_out"), f"--checkpoint {workdir}")
    recipes = _mask_recipes(data.get(mask_recipe.KEY), config, f"--checkpoint {workdir}")
  except (KeyError, FileNotFoundError) as error:
    raise InputError(f"--checkpoint {workdir}: the checkpoint is incomplete ({error})") from error
  finally:
    checkpoints.close()
  return LoadedModel(
    config,
    model,
    variables,
    tokenizer,
    step,
    metrics,
    images=images,
    left_out=noted,
    mask_recipes=recipes,
  )


def _load_exported(place: epath.Path, form: str, wanted: str | int, backend: str) -> LoadedModel:
  about = folder.read_about(place)
  if isinstance(wanted, int) and wanted != about["step"]:
    raise InputError(f"--step {wanted}: {place} was exported from step {about['step']}")
  config = _config_for_here(about["config"], str(place / folder.ABOUT), backend)
  kind, name = about["tokenizer"]["kind"], about["tokenizer"]["file"]
  tokenizer = tokenizers.from_file_bytes(
    kind, folder.read_file(place, about, name), str(place / name)
  )
  model, shapes = _describe(config, tokenizer.vocab_size, str(place / folder.ABOUT))
  variables, forward, outside, files = {}, None, None, {}
  if form == "safetensors":
    variables = _read_variables(place, about, folder.PLACES[form], shapes)
  else:
    path = folder.check_place(place, about, form)
    forward, outside = formats.open_forward(form, path, model)
    files = {name: about["files"][name][1] for name in folder.names_of(about, form)}
    beside = folder.beside(folder.PLACES[form])
    if form == "stablehlo" and beside in files:
      variables = _read_variables(place, about, beside, shapes)
  images = folder.read_images(place, about)
  return LoadedModel(
    config,
    model,
    variables,
    tokenizer,
    about["step"],
    about["metrics"],
    forward,
    outside,
    files,
    images,
    left_out.from_json(about.get("left_out"), str(place / folder.ABOUT)),
    _mask_recipes(about.get(mask_recipe.KEY), config, str(place / folder.ABOUT), portable=True),
  )


def _mask_recipes(
  rows: Any, config: ConfigDict, where: str, portable: bool = False
) -> tuple[MaskRecipe, ...] | None:
  """Reads how the instance masks of a model were made; models of generated scenes need not say."""
  recipes = mask_recipe.all_from_json(rows, where)
  if recipes is None and config.dataset == mask_recipe.SCENES:
    return (MaskRecipe(mask_recipe.SCENES),)
  # What others exported names no address that would be asked.
  return tuple(r.portable() for r in recipes) if recipes and portable else recipes


def _read_variables(place: epath.Path, about: Any, name: str, shapes: Variables) -> Variables:
  """Reads safetensors of an exported folder, onto every device."""
  data = folder.read_file(place, about, name)
  arrays = folder.variables_from_bytes(data, shapes, str(place / name))
  return sharding.on_every_device(sharding.make_mesh(), arrays)


def _config_for_here(data: dict[str, Any], where: str, backend: str) -> ConfigDict:
  """Returns a stored config, with an attention that runs on this machine.

  Raises:
    InputError: the chosen one does not.
  """
  config = from_json(data, where)
  options = config.model
  options.backend, stored = backend or options.backend, options.backend
  try:
    choose_backend_from(config)
  except InputError as error:
    if backend:
      raise InputError(f"--backend {backend}: {error}") from error
    options.backend = "auto" if stored in BACKENDS else stored
  return config


def choose_operands(config: ConfigDict) -> str | None:
  """Returns the fastest dtype of products on this machine that is no less exact than the config's.

  CPUs compute activations fastest in float32, and with their instructions for it products of
  bfloat16.
  """
  if jax.default_backend() != "cpu" or config.model.dtype == "float32":
    return None
  return "bfloat16" if processor.multiplies_bfloat16() else "float32"


def _describe(config: ConfigDict, vocab_size: int, where: str) -> tuple[MaIL, Variables]:
  """Returns the model of a stored config, and the shapes of its variables.

  Raises:
    InputError: the config describes no model.
  """
  try:
    model = make_model(config, vocab_size, operands=choose_operands(config))
    return model, jax.eval_shape(functools.partial(init_variables, model, config))
  except InputError as error:
    raise InputError(f"{where}: {error}") from error
  except Exception as error:  # Values that fit no model raise many kinds of errors.
    reason = str(error).strip().split("\n")[0]
    raise InputError(f"{where}: its config describes no model ({reason})") from error
