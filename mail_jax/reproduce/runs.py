"""The runs of a table: a recipe for each data set and seed."""

import dataclasses
import functools
from collections.abc import Sequence

from ml_collections import ConfigDict

from input_pipeline import mixture
from input_pipeline.common.errors import InputError
from mail_jax.config import load_config
from mail_jax.reproduce.published import SETS

_PLACE = "{set}"
# What the recipes for photos take as an argument, and their data sets.
MODELS = {
  "unc": "refcoco_unc",
  "refcoco+": "refcoco+_unc",
  "umd": "refcocog_umd",
  "google": "refcocog_google",
  "mixed": "refcoco_unc,refcoco+_unc,refcocog_umd",
}
"""Names of models and what each is trained on."""
ALONE = ("unc", "refcoco+", "umd", "google")
# Recipes that need an argument, and the one that they get.
_ARGUMENTS = {"refcoco": _PLACE, "refcoco_beit3": f"base,{_PLACE}"}


@dataclasses.dataclass(frozen=True)
class Run:
  """A run.

  Attributes:
    model: of MODELS.
    seed: of the run.
    spec: the recipe with its argument, as `train --config` takes it.
    overrides: `--config.KEY=VALUE` each.
    evaluated: data sets.
  """

  model: str
  seed: int
  spec: str
  overrides: tuple[str, ...]
  evaluated: tuple[str, ...]

  @property
  def name(self) -> str:
    """The name of its folder."""
    return f"{self.model},seed={self.seed}"

  @functools.cached_property
  def config(self) -> ConfigDict:
    """The config of the recipe, before any shortening."""
    return load_config(self.spec, self.overrides)

  @property
  def datasets(self) -> tuple[str, ...]:
    """What it is trained on."""
    return tuple(part.name for part in mixture.parse(self.config.dataset))


def make(
  recipe: str, models: Sequence[str], seeds: int, overrides: Sequence[str], across: bool
) -> list[Run]:
  """Returns the runs; all models of a seed come before the next seed.

  Args:
    recipe: with or without an argument; `{set}` in it stands for the name of a model. Without it,
      a recipe that is not one of ours for photos gets `config.dataset`.
    models: of MODELS.
    seeds: their number.
    overrides: `--config.KEY=VALUE` for all of them.
    across: whether every model is evaluated on every data set, or only on those that it was
      trained on.

  Raises:
    InputError: an unknown model or recipe, or a number below 1; or the recipe trains on data sets
      that are not in the table.
  """
  for model in models:
    if model not in MODELS:
      raise InputError(f"--train {model}: the models are {', '.join(MODELS)}")
  if len({*models}) < len(models):
    raise InputError(f"--train {','.join(models)}: names a model twice")
  if seeds < 1:
    raise InputError(f"--seeds {seeds}: at least 1")
  for key in ("seed", "dataset"):
    if any(word.startswith(f"--config.{key}=") for word in overrides):
      raise InputError(f"--config.{key}: is set for each run; use --seeds and --train")
  runs = []
  for seed in range(seeds):
    for model in models:
      spec = spec_of(recipe, model)
      own = [] if _PLACE in _with_place(recipe) else [f"--config.dataset={MODELS[model]}"]
      words = (*own, *overrides, f"--config.seed={seed}")
      run = Run(model, seed, spec, words, tuple(SETS) if across else ())
      if unknown := [name for name in run.datasets if name not in SETS]:
        raise InputError(f"--recipe {recipe}: trains on {unknown[0]}, which is not in the table")
      runs.append(run if across else dataclasses.replace(run, evaluated=run.datasets))
  return runs


def _with_place(recipe: str) -> str:
  argument = _ARGUMENTS.get(recipe)
  return recipe if argument is None else f"{recipe}:{argument}"


def spec_of(recipe: str, model: str) -> str:
  """Returns the recipe of a model, as `train --config` takes it."""
  return _with_place(recipe).replace(_PLACE, model)
