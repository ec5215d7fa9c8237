"""What a new run starts from: `config.init`."""

import dataclasses
import re
from collections.abc import Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.common import buckets
from input_pipeline.common.errors import InputError
from input_pipeline.image_hashes import ImageSet
from input_pipeline.preprocess.tokenizer import Tokenizer
from mail_jax.checkpoints.checkpoint import FOLDER
from mail_jax.export import folder, load
from mail_jax.models.build import Tree, Variables, path_name
from mail_jax.pretrained import initialise
from mail_jax.pretrained.transfer import Arrays, Side, check_leave_out, transfer

# A model of ours: RUN[@STEP], or an exported folder, also on the Hub.
_OURS = ("run", "export")
_STEP = re.compile(r"@(best|last|\d+)$")


@dataclasses.dataclass(frozen=True)
class Start:
  """What a new run takes over.

  Attributes:
    variables: values by collection (`params`, `batch_stats`) and name; see `initialise.place`.
    averaged: the same of the moving average.
    line: what was taken over, changed to fit, and what is new.
    images: hashes of the images that the model was trained on; None if they are unknown.
  """

  variables: dict[str, Arrays]
  averaged: dict[str, Arrays]
  line: str
  images: Mapping[str, ImageSet] | None = None

  def put_into(self, variables: Variables, averaged: Variables) -> tuple[Variables, Variables]:
    """Returns new variables, and their average, with these values."""
    return _place(variables, self.variables), _place(averaged, self.averaged)


def _place(variables: Variables, values: dict[str, Arrays]) -> Variables:
  return {key: initialise.place(tree, values.get(key, {})) for key, tree in variables.items()}


def open_tokenizer(init: str) -> Tokenizer | None:
  """Returns the tokenizer that comes with `config.init`; None for random weights.

  Raises:
    InputError: it has none, or is of another form.
  """
  if not init:
    return None
  if _is_ours(init):
    return _load(init, averaged=True).tokenizer
  return initialise.read_tokenizer(init)


def load_start(config: ConfigDict, shapes: Variables, tokenizer: Tokenizer) -> Start | None:
  """Loads what `config.init` names, fitted to the model; None for random weights.

  Args:
    config: a whole config.
    shapes: of the model's variables.
    tokenizer: of the run.

  Raises:
    InputError: it cannot be loaded, or fits no model of this config.
  """
  if not config.init:
    if config.init_leave_out:
      raise InputError("config.init_leave_out is set, but config.init is empty; nothing is loaded")
    return None
  if _is_ours(config.init):
    return _start_from_ours(config, shapes, tokenizer)
  values = initialise.load(config, shapes["params"])
  check_leave_out(config.init_leave_out, values)
  if config.init_leave_out:
    values = {k: v for k, v in values.items() if not re.search(config.init_leave_out, k)}
  line = f"{config.init}: {initialise.summary(shapes['params'], values)}"
  if warning := initialise.leakage(config.init):
    line += f"\nwarning: {warning}"
  return Start({"params": values}, {"params": values}, line)


def _is_ours(init: str) -> bool:
  return init.partition(":")[0] in _OURS


def _load(init: str, averaged: bool) -> load.LoadedModel:
  """Loads a run or an exported model; `averaged` chooses the average, if a run kept one."""
  scheme, _, path = init.partition(":")
  step = _STEP.search(path) if scheme == "run" else None
  path = path[: step.start()] if step else path
  selected = step[1] if step else "best"
  where, named = f"config.init {init!r}", path
  try:
    path = load.locate(named)
    exported = folder.find(buckets.folder(path, "--checkpoint"), path) is not None
    if exported and scheme == "run":
      raise InputError(f"{named} is an exported model; write export:{named}")
    if not exported and scheme == "export" and (buckets.folder(path, "") / FOLDER).is_dir():
      raise InputError(f"{path} is a run; write run:{path}")
    model = load.load(path, int(selected) if selected.isdecimal() else selected, averaged)
  except InputError as error:
    reason = re.sub(rf"^--checkpoint ({re.escape(path)}|{re.escape(named)}): ", "", str(error))
    raise InputError(f"{where}: {reason}") from error
  if model.forward is not None:
    raise InputError(f"{where}: has no parameters; give the exported folder, with its safetensors")
  return model


def _start_from_ours(config: ConfigDict, shapes: Variables, tokenizer: Tokenizer) -> Start:
  model = _load(config.init, averaged=True)
  old, new = Side(model.config, model.tokenizer), Side(config, tokenizer)
  states = [_by_name(model)]
  if config.init.startswith("run:") and model.config.ema_decay:
    states.insert(0, _by_name(_load(config.init, averaged=False)))
  check_leave_out(config.init_leave_out, states[0]["params"])
  fitted = [
    {key: transfer(state[key], _shapes(shapes[key]), old, new, config.init_leave_out)
     for key in shapes}
    for state in states
  ]  # fmt: skip
  values = [{key: part.values for key, part in parts.items()} for parts in fitted]
  params = fitted[0]["params"]
  line = f"{config.init}, step {model.step}: "
  line += initialise.summary(shapes["params"], params.values)
  if params.resized:
    line += f"; changed to fit: {', '.join(params.resized)}"
  if params.unused:
    line += f"; not taken: {', '.join(sorted({name.partition('/')[0] for name in params.unused}))}"
  return Start(values[0], values[-1], line, model.images)


def _by_name(model: load.LoadedModel) -> dict[str, Arrays]:
  variables = jax.device_get(model.on_one_device())
  return {
    key: {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    for key, tree in variables.items()
  }


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
