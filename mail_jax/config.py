"""Configs: from a recipe, changed on the command line, and to and from JSON.

A recipe is a Python file with a function `get_config()` that returns a `ConfigDict`. Ours have
names: `demo` is `configs/demo.py`. A recipe starts from another one with `recipe`:

```python
from mail_jax.config import recipe

def get_config():
  c = recipe("base")
  c.steps = 1000
  return c
```
"""

import argparse
import ast
import copy
import functools
import json
import pathlib
import reprlib
import runpy
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError

_HERE = pathlib.Path(__file__).resolve().parent
# Of the recipes; in a clone the folder is beside this package, and when installed it is inside.
FOLDER = next(f for f in (_HERE / "configs", _HERE.parent / "configs") if (f / "base.py").is_file())
_BASE = "base"

# Keys that may change when a run is resumed, for they change no update: where it runs, how it is
# judged, and how much it logs and saves.
MAY_CHANGE = (
  "mesh.",
  "sharding_rules",
  "grad_accum_steps",
  "deterministic",
  "loader.cache",
  "loader.threads",
  "loader.on_error",
  "eval_",
  "save_every",
  "log_every",
  "best_metric",
  "early_stop",
  "max_nonfinite_steps",
  "model.backend",
  "model.remat",
  "model.pad_to_multiple_of",
  "log.",
)

# Keys that the first models that were kept lack; they get the base's value.
_ADDED = (
  "deterministic",
  "early_stop",
  "init_leave_out",
  "model.drop_path",
  "model.experts",
  "augment.scale",
  "augment.mask_noise",
  "exclude",
  "mixture_temperature",
  "log.picture_every",
)

# The smallest and the largest sizes of a stored config; larger ones would take all memory.
_SIZES = {
  "image_size": (1, 16_384),
  "max_instances": (0, 4_096),
  "max_tokens": (1, 65_536),
  "model.width": (1, 65_536),
  "model.depth": (1, 1_024),
  "model.heads": (1, 4_096),
  "model.patch_size": (1, 4_096),
  "model.decoder_widths": (1, 65_536),
  "model.pad_to_multiple_of": (1, 65_536),
}


def add_config_argument(parser: argparse.ArgumentParser) -> None:
  """Adds `--config` to a command; the command passes on `--config.KEY=VALUE`."""
  parser.add_argument(
    "--config",
    required=True,
    metavar="RECIPE[:ARGUMENT]",
    help=f"{', '.join(recipe_names())}, or a file such as configs/demo.py; ARGUMENT is passed to "
    "the recipe. --config.KEY=VALUE changes a value, such as --config.batch_size=16",
  )


def parse_overrides(
  parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
  """Parses a command line with `--config.KEY=VALUE`, and returns those words apart.

  Exits with code 2, like argparse, on any other word that the parser does not know.
  """
  args, rest = parser.parse_known_args(argv)
  for before, word in zip(["", *rest], rest, strict=False):
    if not word.startswith("--config."):
      key = before if before.startswith("--config.") and "=" not in before else ""
      parser.error(f"unrecognized argument: {word}" + (f"; write {key}={word}" if key else ""))
  return args, rest


def recipe_names() -> list[str]:
  """Returns the names of the recipes that come with mail_jax."""
  return sorted({path.stem for path in FOLDER.glob("*.py")} - {"__init__", _BASE})


def recipe(name: str, argument: str = "") -> ConfigDict:
  """Returns the config of a recipe, for another recipe to start from.

  Args:
    name: `base`, one of `recipe_names()`, or the path of a file.
    argument: passed to the recipe's `get_config()`, unless it is empty.

  Raises:
    InputError: no such recipe, or it has no `get_config`.
  """
  return _run(name, FOLDER / f"{_BASE}.py" if name == _BASE else _find(name), argument)


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """Loads a recipe and changes some of its values.

  Args:
    spec: a recipe's name or file, and `:ARGUMENT` where it takes one.
    overrides: `--config.KEY=VALUE` or `KEY=VALUE`, with dots for inner keys.

  Raises:
    InputError: no such recipe, no `get_config`, an unknown key, or a value of the wrong type.
  """
  name, _, argument = spec.partition(":")
  config = _run(name, _find(name), argument)
  for override in overrides:
    _override(config, override)
  return config.lock()


def _find(name: str) -> pathlib.Path:
  if name in recipe_names():
    return FOLDER / f"{name}.py"
  if not pathlib.Path(name).is_file():
    raise InputError(
      f"--config {name}: not a file and not a recipe of mail_jax; the recipes are "
      f"{', '.join(recipe_names())}"
    )
  return pathlib.Path(name).resolve()


def _run(name: str, path: pathlib.Path, argument: str) -> ConfigDict:
  # Unlike an import, this leaves nothing in `sys.modules` and no compiled file.
  module = runpy.run_path(str(path), run_name="recipe")
  if "get_config" not in module:
    raise InputError(f"--config {name}: the file defines no get_config()")
  return module["get_config"](argument) if argument else module["get_config"]()


def _override(config: ConfigDict, override: str) -> None:
  key, equals, text = override.removeprefix("--config.").partition("=")
  if not equals:
    raise InputError(f"{override}: overrides are written --config.KEY=VALUE")
  *parents, name = key.split(".")
  parent, node = config, config
  for part in (*parents, name):
    if not isinstance(node, ConfigDict) or part not in node:
      known = ", ".join(sorted(node)) if isinstance(node, ConfigDict) else "none"
      raise InputError(f"--config.{key}: unknown key {part!r}; the keys are {known}")
    parent, node = node, node[part]
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = text
  if isinstance(node, float) and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if isinstance(node, tuple) and isinstance(value, list):
    value = tuple(value)
  if type(value) is not type(node):
    raise InputError(f"--config.{key}: {text!r} is not of type {type(node).__name__}")
  parent[name] = value


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns a nested config as one level, its keys joined by dots."""
  flat = {}
  for key, value in data.items():
    flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat


def to_json(config: ConfigDict) -> dict[str, Any]:
  """Returns a config as plain data; tuples become lists."""
  return json.loads(config.to_json())


def from_json(data: Any, where: str = "the config") -> ConfigDict:
  """Undoes `to_json`.

  Args:
    data: from an untrusted file, so it can be of any type.
    where: the file, for errors.

  Raises:
    InputError: a key of `configs/base.py` is missing and not of `_ADDED`, is of another type there,
      or is too large.
  """

  def with_tuples(value):
    if isinstance(value, dict):
      return {k: with_tuples(v) for k, v in value.items()}
    return tuple(with_tuples(v) for v in value) if isinstance(value, list) else value

  stored = _with_added(data) if isinstance(data, dict) else {}
  for path, problem in _problems(_base(), stored):
    raise InputError(
      f"{where}: config.{path} {problem}; the file is damaged or of another version of mail_jax"
    )
  return ConfigDict({key: with_tuples(value) for key, value in stored.items()})


def _with_added(stored: dict[str, Any]) -> dict[str, Any]:
  """Returns a stored config with the keys of `_ADDED` that it lacks."""
  stored = copy.deepcopy(stored)
  for key in _ADDED:
    *parents, name = key.split(".")
    base, inner = _base(), stored
    for parent in parents:
      base, inner = base[parent], inner.get(parent) if isinstance(inner, dict) else None
    if isinstance(inner, dict):
      inner.setdefault(name, base[name])
  return stored


@functools.cache
def _base() -> dict[str, Any]:
  return to_json(recipe(_BASE))


def _problems(
  base: dict[str, Any], stored: dict[str, Any], inside: str = ""
) -> Iterator[tuple[str, str]]:
  """Yields the keys of a stored config that are not as in the base, and what is wrong with them."""
  for key, default in base.items():
    path, value = inside + key, stored.get(key)
    if key not in stored:
      yield path, "is missing"
    elif isinstance(default, dict) and isinstance(value, dict):
      yield from _problems(default, value, f"{path}.")
    elif type(value) is not type(default) and not (type(default) is float and type(value) is int):
      yield path, f"is {reprlib.repr(value)}, not of type {type(default).__name__}"
    elif path in _SIZES and not _is_size(value, _SIZES[path]):
      yield path, f"is {reprlib.repr(value)}, not {_SIZES[path][0]} to {_SIZES[path][1]:,}"
  if inside == "model.":
    yield from ((inside + key, "is unknown") for key in stored.keys() - base.keys())


def _is_size(value: Any, limits: tuple[int, int]) -> bool:
  values = value if isinstance(value, list) else [value]
  return all(type(x) is int and limits[0] <= x <= limits[1] for x in values)
