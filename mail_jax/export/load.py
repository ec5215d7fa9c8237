"""A trained model from a run's folder, complete in itself: no config is asked from the user."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from input_pipeline.common import buckets
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import tokenizer as tokenizers
from mail_jax.checkpoints import checkpoint
from mail_jax.config import from_json
from mail_jax.distributed import sharding
from mail_jax.export import folder, formats
from mail_jax.models.attention import runs_on
from mail_jax.models.build import apply_model, init_variables, make_model
from mail_jax.models.mail import MaIL, Output
from mail_jax.models.parameters import Variables


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """What a checkpoint or an exported model holds, ready to be applied.

  Attributes:
    config: of the run; its attention is one that runs here.
    model: the network.
    variables: {"params", "batch_stats"}, the moving average where the run kept one, on every device; empty where
      `forward` holds them.
    tokenizer: of the run.
    step: updates that the parameters have seen.
    metrics: of the evaluation in training, where there was one.
    forward: runs in place of the network, if it is not None; see `artifacts.open_forward`.
    files: names and SHA-256 of the files that `forward` is, for whoever asks which model this is.
  """

  config: ConfigDict
  model: MaIL
  variables: Any
  tokenizer: tokenizers.Tokenizer
  step: int
  metrics: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
  forward: Callable[[Any, Mapping[str, jax.Array]], Output] | None = None
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def apply(self, variables: Any, batch: Mapping[str, jax.Array]) -> Output:
    """Runs the model on a batch, as at test time; to be called or traced.

    Args:
      variables: of this model, wherever they are by now.
      batch: see docs/reference/formats.md.
    """
    if self.forward is not None:
      return self.forward(variables, batch)
    return apply_model(self.model, variables, dict(batch))

  def on_one_device(self) -> Any:
    """The variables on the first device of this process alone, for what the others need no part in."""
    return jax.tree.map(lambda x: x.addressable_data(0), self.variables)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options that name the model that a command loads: `--checkpoint` and `--step`."""
  parser.add_argument(
    "--checkpoint",
    required=True,
    help="the --workdir of a training run, or what mail_jax.export wrote: the folder, or one format in it",
  )
  add_step_argument(parser)


def add_step_argument(parser: argparse.ArgumentParser) -> None:
  """Adds `--step` alone, for a command that names the run in another way."""
  parser.add_argument(
    "--step",
    type=_parse_step,
    default="best",
    metavar="best|last|N",
    help="which checkpoint of a run: the best one, the last one, or the one of step N (default: best)",
  )


def _parse_step(text: str) -> str | int:
  if text in ("best", "last"):
    return text
  if text.isdecimal():
    return int(text)
  raise argparse.ArgumentTypeError(f"{text!r} is not best, last or the number of a step")


def load(workdir: str, step: str | int = "best") -> LoadedModel:
  """Loads a checkpoint, or an exported model.

  Args:
    workdir: of the training run, a folder or an address in a bucket; or what `mail_jax.export` wrote: the folder, or
      one of the formats in it, such as `FOLDER/model.onnx`.
    step: `best` by the run's metric (the last one if none was evaluated), `last`, or the number of a step. If the
      `best` or the `last` checkpoint is damaged, the next best or the previous one is loaded, with a warning.

  Raises:
    InputError: no such folder, no intact checkpoint (of that step) in it, or no intact exported model.
  """
  found = folder.find(buckets.folder(workdir, "--checkpoint"), workdir)
  return _load_run(workdir, step) if found is None else _load_exported(*found, step)


def _load_run(workdir: str, selected: str | int) -> LoadedModel:
  checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
  try:
    step = checkpoints.select(selected)
    meta = checkpoints.meta(step)
    config = _config_for_here(meta["config"], f"--checkpoint {workdir}")
    tokenizer = tokenizers.from_bytes(checkpoint.unpack_bytes(meta["tokenizer"]))
    model, variables = _describe(config, tokenizer.vocab_size, f"--checkpoint {workdir}")
    # Names of fields of `TrainState`.
    field = "averaged" if config.ema_decay else "variables"
    shapes = {field: variables}
    everywhere = jax.tree.map(lambda _: sharding.replicated(sharding.make_mesh()), shapes)
    variables = checkpoints.restore(step, checkpoint.abstract_like(shapes, everywhere))[field]
    metrics = checkpoints.metrics(step)
  except (KeyError, FileNotFoundError) as error:
    raise InputError(f"--checkpoint {workdir}: the checkpoint is not complete ({error})") from error
  finally:
    checkpoints.close()
  return LoadedModel(config, model, variables, tokenizer, step, metrics)


def _load_exported(place: epath.Path, form: str, step: str | int) -> LoadedModel:
  about = folder.read_about(place)
  if isinstance(step, int) and step != about["step"]:
    raise InputError(f"--step {step}: {place} was exported from step {about['step']}")
  config = _config_for_here(about["config"], str(place / folder.ABOUT))
  kind, name = about["tokenizer"]["kind"], about["tokenizer"]["file"]
  tokenizer = tokenizers.from_file_bytes(
    kind, folder.read_file(place, about, name), str(place / name)
  )
  model, shapes = _describe(config, tokenizer.vocab_size, str(place / folder.ABOUT))
  variables, forward, files = {}, None, {}
  if form == "safetensors":
    name = folder.PLACES[form]
    data = folder.read_file(place, about, name)
    arrays = folder.variables_from_bytes(data, shapes, str(place / name))
    variables = sharding.on_every_device(sharding.make_mesh(), arrays)
  else:
    path = folder.check_place(place, about, form)
    forward = formats.open_forward(form, path, config, model)
    files = {name: about["files"][name][1] for name in folder.names_of(about, form)}
  return LoadedModel(
    config, model, variables, tokenizer, about["step"], about["metrics"], forward, files
  )


def _config_for_here(data: dict[str, Any], where: str) -> ConfigDict:
  """The config of any machine, with an attention that runs on this one."""
  config = from_json(data, where)
  if not runs_on(config.model.backend, jax.default_backend()):
    config.model.backend = "xla"
  return config


def _describe(config: ConfigDict, vocab_size: int, where: str) -> tuple[MaIL, Variables]:
  """Returns the model of a stored config, and the shapes of its variables.

  Raises:
    InputError: the config describes no model.
  """
  try:
    model = make_model(config, vocab_size)
    return model, jax.eval_shape(functools.partial(init_variables, model, config))
  except InputError as error:
    raise InputError(f"{where}: {error}") from error
  except Exception as error:  # whatever its parts raise of values that fit no model
    reason = str(error).strip().split("\n")[0]
    raise InputError(f"{where}: its config describes no model ({reason})") from error
