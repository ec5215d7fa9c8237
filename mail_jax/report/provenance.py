"""What the numbers of a report rest on: the model, its config, the data, and the programs that computed them."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

import jax

from input_pipeline import storage
from mail_jax.config import to_json
from mail_jax.export.load import LoadedModel

_PACKAGES = ("mail_jax", "jax", "jaxlib", "flax", "numpy", "pillow")


def facts(
  model: LoadedModel, data_dir: str, described: Mapping[str, Mapping[str, Any]], written: str
) -> dict[str, dict[str, str]]:
  """Returns headings, each with names and what they are.

  Args:
    model: that was judged.
    data_dir: what `prepare` was given.
    described: what `evaluate.describe` says of the splits that it was judged on; at least one.
    written: when.
  """
  prints = {name: about["fingerprints"] for name, about in described.items()}
  found = {"Model": _model(model, next(iter(prints.values())))}
  splits: dict[str, dict[str, str]] = {}
  for name, own in prints.items():
    dataset, _, split = name.rpartition("/")
    splits.setdefault(dataset, {})[split] = own["data"]
  for dataset, own in splits.items():
    found[f"Data: {dataset}"] = _data(storage.read_metadata(data_dir, dataset) or {}, own)
  return found | {"Written by": _programs(written)}


def config_text(model: LoadedModel) -> str:
  """Returns the config as JSON."""
  return json.dumps(to_json(model.config), indent=2)


def _model(model: LoadedModel, prints: Mapping[str, str]) -> dict[str, str]:
  config = model.config
  parts = config.model
  # An exported program holds its parameters itself.
  numbers = sum(x.size for x in jax.tree.leaves(model.variables.get("params", {})))
  return {
    **({"parameters": f"{numbers:,}"} if numbers else {}),
    "step": f"{model.step:,}",
    "encoder": f"{parts.depth} blocks of width {parts.width}, {parts.heads} heads",
    "image": f"{config.image_size} x {config.image_size} pixels, patches of {parts.patch_size}",
    "instances": f"up to {config.max_instances}, {parts.mask_tokens} tokens, {parts.selection} selection",
    "text": f"up to {config.max_tokens} of {model.tokenizer.vocab_size:,} word pieces",
    "started from": config.init or "random weights",
    "trained on": f"{config.dataset}, batches of {config.batch_size}, seed {config.seed}",
    "fingerprint": prints["model"],
    "of the config": prints["config"],
  }


def _data(metadata: Mapping[str, Any], prints: Mapping[str, str]) -> dict[str, str]:
  """What is known of a data set, and of its splits that have these fingerprints."""
  source = metadata.get("instances", {})
  found = {
    "version": storage.VERSION,
    "instance masks": f"{source.get('from', 'unknown')}, trained on {source.get('trained_on', 'unknown')}",
  }
  for split, fingerprint in prints.items():
    counts = metadata.get("counts", {}).get(split, {})
    sizes = [f"{value:,} {what}" for what, value in counts.items() if type(value) is int]
    found[split] = ", ".join([*sizes, f"fingerprint {fingerprint}"])
  for key, value in metadata.get("arguments", {}).items():
    found[f"prepared with {key}"] = str(value)
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
