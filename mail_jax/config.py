"""Recipes from files, overrides from the command line, and back from checkpoints."""

import ast
import json
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from input_pipeline.errors import InputError
from mail_jax import recipes
from mail_jax.models.mail import MaIL

# Keys that configs of before do not have, with what the code of then did.
ADDED = {
  "max_skipped_steps": 10,
  "loader.expressions_per_image": 1,
  "loader.text_lengths": [],
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


def from_json(data: dict[str, Any]) -> ConfigDict:
  """Undoes `to_json`; a key that was added since gets the value of what was done without it."""

  def tuples(value):
    if isinstance(value, dict):
      return {k: tuples(v) for k, v in value.items()}
    return tuple(tuples(v) for v in value) if isinstance(value, list) else value

  filled = dict(data)
  for path, value in ADDED.items():
    part, _, key = path.partition(".")
    if not key:
      filled.setdefault(path, value)
    elif part in filled:
      filled[part] = {key: value} | filled[part]
  return ConfigDict({key: tuples(value) for key, value in filled.items()})


def make_model(config: ConfigDict, vocab_size: int) -> MaIL:
  """Builds the model that a config describes.

  Args:
    config: a whole config.
    vocab_size: word pieces of the tokenizer (it may have fewer than `config.vocab_size`).
  """
  if config.image_size % config.model.patch_size:
    raise InputError(
      f"config.image_size {config.image_size} is not a multiple of config.model.patch_size {config.model.patch_size}"
    )
  fields = dict(config.model)
  if fields["dtype"] not in ("float32", "bfloat16"):
    raise InputError(f"config.model.dtype {fields['dtype']!r} is not one of float32, bfloat16")
  fields["dtype"] = jnp.dtype(fields["dtype"])
  return MaIL(
    vocab_size=vocab_size,
    max_instances=config.max_instances,
    max_tokens=config.max_tokens,
    **fields,
  )
