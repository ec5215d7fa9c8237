"""Recipes from files, overrides from the command line, and back from checkpoints."""

import ast
import json
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from mail_jax import recipes

# Keys that configs of before do not have, with what the code of then did.
ADDED = {
  "max_nonfinite_steps": 10,
  "loader.refs_per_image": 1,
  "loader.text_buckets": [],
  "loader.on_error": "stop",
  "model.scan": False,
  "model.no_target": False,
  "model.separate_blocks": 0,
  "model.sparse_tokens": 32,
  "model.instance_views": "both",
  "model.none_slot": True,
  "model.coordinates": True,
  "loss.no_target": 1.0,
}

# Keys that may change when a run is resumed: where it runs, and how much it logs.
MAY_CHANGE = (
  "mesh.", "sharding_rules", "grad_accum_steps", "loader.threads", "loader.on_error", "log_every",
  "max_nonfinite_steps", "model.backend", "model.remat", "model.pad_to_multiple_of",
  "log.",
)  # fmt: skip

# Without these, and what is in them, no model can be built or judged.
_NEEDED = (
  "dataset", "ema_decay", "eval_batch_size", "eval_split", "image_size", "max_instances", "max_tokens", "model",
  "optimizer", "seed",
)  # fmt: skip
# What a model is built from, with the least and the most that a stored config may say; more would take all memory.
_SIZES = {
  "image_size": (1, 16_384),
  "max_instances": (0, 4_096),
  "max_tokens": (1, 65_536),
  "model.width": (1, 65_536),
  "model.depth": (1, 1_024),
  "model.heads": (1, 4_096),
  "model.patch_size": (1, 4_096),
  "model.decoder_widths": (1, 65_536),
  "model.separate_blocks": (0, 1_024),
  "model.sparse_tokens": (1, 1 << 20),
  "model.pad_to_multiple_of": (1, 65_536),
}


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """Loads a recipe.

  Args:
    spec: a recipe's name or file, and `:ARGUMENT`; see `recipes.make`.
    overrides: `--config.KEY=VALUE` or `KEY=VALUE`, with dots for inner keys.

  Raises:
    InputError: no such recipe, no `get_config`, an unknown key, or a value of the wrong type.
  """
  config = recipes.make(spec)
  for override in overrides:
    _override(config, override)
  return config.lock()


def _override(config: ConfigDict, override: str) -> None:
  key, equals, text = override.removeprefix("--config.").partition("=")
  if not equals:
    raise InputError(f"{override}: overrides are written --config.KEY=VALUE")
  *parents, name = key.split(".")
  parent, node = config, config
  for part in (*parents, name):
    if not isinstance(node, ConfigDict) or part not in node:
      known = ", ".join(sorted(node)) if isinstance(node, ConfigDict) else "nothing"
      raise InputError(f"--config.{key}: unknown key {part!r}; there is {known}")
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


def to_json(config: ConfigDict) -> dict[str, Any]:
  """A config as plain data; tuples become lists."""
  return json.loads(config.to_json())


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns a nested config as one level, its names joined by dots."""
  found = {}
  for key, value in data.items():
    found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return found


def from_json(data: Any, where: str = "the config") -> ConfigDict:
  """Undoes `to_json`; a key that was added since gets the value of what was done without it.

  Args:
    data: what was stored; from wherever, so that it may be anything.
    where: it was stored, for errors.

  Raises:
    InputError: a key is of another type than in `configs/base.py`, larger than any model's, or missing where models
      are built from it.
  """

  def tuples(value):
    if isinstance(value, dict):
      return {k: tuples(v) for k, v in value.items()}
    return tuple(tuples(v) for v in value) if isinstance(value, list) else value

  filled = dict(data) if isinstance(data, dict) else {}
  for path, value in ADDED.items():
    part, _, key = path.partition(".")
    if not key:
      filled.setdefault(path, value)
    elif isinstance(filled.get(part), dict):
      filled[part] = {key: value} | filled[part]
  for path, told in _differences(to_json(recipes.base()), filled):
    raise InputError(f"{where}: config.{path} {told}; is it damaged, or of a newer version?")
  return ConfigDict({key: tuples(value) for key, value in filled.items()})


def _differences(
  base: dict[str, Any], stored: dict[str, Any], inside: str = ""
) -> Iterator[tuple[str, str]]:
  """Yields the keys that a config lacks or that are of another kind, and what is wrong with them."""
  for key, like in base.items():
    path, value = inside + key, stored.get(key)
    if key not in stored:
      if path.partition(".")[0] in _NEEDED:
        yield path, "is missing"
    elif isinstance(like, dict) and isinstance(value, dict):
      yield from _differences(like, value, f"{path}.")
    elif type(value) is not type(like) and not (type(like) is float and type(value) is int):
      yield path, f"is {reprlib.repr(value)}, not of type {type(like).__name__}"
    elif path in _SIZES and not _is_size(value, _SIZES[path]):
      yield path, f"is {reprlib.repr(value)}, not {_SIZES[path][0]} to {_SIZES[path][1]:,}"
  if inside == "model.":
    yield from ((inside + key, "is unknown") for key in stored.keys() - base.keys())


def _is_size(value: Any, limits: tuple[int, int]) -> bool:
  values = value if isinstance(value, list) else [value]
  return all(type(x) is int and limits[0] <= x <= limits[1] for x in values)
