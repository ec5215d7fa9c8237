"""What the numbers of a report rest on: the model, its config, the data, and the programs that computed them."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from input_pipeline import storage
from mail_jax.config import to_json
from mail_jax.reporting.judged import Judged
from mail_jax.trained import Trained

_PACKAGES = ("mail_jax", "jax", "jaxlib", "flax", "numpy", "pillow")


def facts(
  model: Trained, data_dir: str, splits: Sequence[Judged], written: str
) -> dict[str, dict[str, str]]:
  """Returns headings, each with names and what they are.

  Args:
    model: that was judged.
    data_dir: what `prepare` was given.
    splits: that it was judged on.
    written: when.
  """
  found = {"Model": _model(model)}
  for name in dict.fromkeys(split.name.rpartition("/")[0] for split in splits):
    found[f"Data: {name}"] = _data(storage.read_metadata(data_dir, name) or {}, name, splits)
  return found | {"Written by": _programs(written)}


def count_parameters(model: Trained) -> int:
  """Returns how many numbers the model has learned."""
  return sum(x.size for x in jax.tree.leaves(model.variables["params"]))


def config_text(model: Trained) -> str:
  """Returns the config as JSON."""
  return json.dumps(to_json(model.config), indent=2)


def _model(model: Trained) -> dict[str, str]:
  config = model.config
  parts = config.model
  return {
    "parameters": f"{count_parameters(model):,}",
    "step": f"{model.step:,}",
    "encoder": f"{parts.depth} blocks of width {parts.width}, {parts.heads} heads",
    "image": f"{config.image_size} x {config.image_size} pixels, patches of {parts.patch_size}",
    "instances": f"up to {config.max_instances}, as `{parts.mask_tokens}` tokens, `{parts.selection}` selection",
    "text": f"up to {config.max_tokens} of {model.tokenizer.vocab_size:,} word pieces",
    "started from": config.init or "random weights",
    "trained on": f"{config.dataset}, batches of {config.batch_size}, seed {config.seed}",
  }


def _data(metadata: Mapping[str, Any], name: str, splits: Sequence[Judged]) -> dict[str, str]:
  source = metadata.get("instances", {})
  found = {
    "version": storage.VERSION,
    "instance masks": f"{source.get('from', 'unknown')}, trained on {source.get('trained_on', 'unknown')}",
  }
  for split in splits:
    dataset, _, part = split.name.rpartition("/")
    counts = metadata.get("counts", {}).get(part, {})
    if dataset == name and counts:
      found[part] = ", ".join(f"{value:,} {what}" for what, value in counts.items() if type(value) is int)
  for key, value in metadata.get("arguments", {}).items():
    found[f"prepare: {key}"] = str(value)
  return found


def _programs(written: str) -> dict[str, str]:
  found = {"date": written, "Python": platform.python_version()}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
      continue
  device = jax.devices()[0]
  return found | {"device": f"{jax.device_count()} x {device.device_kind} ({device.platform})"}
