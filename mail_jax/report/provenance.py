"""The provenance of a report: the model, its config, the data, and the versions of programs."""

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
  """Returns headings, each with names and values.

  Args:
    model: that was evaluated.
    data_dir: the folder that `prepare` wrote to.
    described: as `runner.describe` returns it, for at least one split.
    written: date and time.
  """
  prints = {name: about["fingerprints"] for name, about in described.items()}
  headings = {"Model": _model(model, next(iter(prints.values())))}
  splits: dict[str, dict[str, str]] = {}
  for name, own in prints.items():
    dataset, _, split = name.rpartition("/")
    splits.setdefault(dataset, {})[split] = own["data"]
  for dataset, own in splits.items():
    headings[f"Data: {dataset}"] = _data(storage.read_metadata(data_dir, dataset) or {}, own)
  return headings | {"Written by": _programs(written)}


def config_text(model: LoadedModel) -> str:
  """Returns the config as JSON."""
  return json.dumps(to_json(model.config), indent=2)


def _model(model: LoadedModel, prints: Mapping[str, str]) -> dict[str, str]:
  config = model.config
  parts = config.model
  # An exported program contains its parameters.
  parameters = sum(x.size for x in jax.tree.leaves(model.variables.get("params", {})))
  return {
    **({"parameters": f"{parameters:,}"} if parameters else {}),
    "step": f"{model.step:,}",
    "encoder": f"{parts.depth} blocks of width {parts.width}, {parts.heads} heads",
    "image": f"{config.image_size} x {config.image_size} pixels, patches of {parts.patch_size}",
    "instances": f"up to {config.max_instances}; tokens: {parts.mask_tokens}; selection: "
    + parts.selection,
    "text": f"up to {config.max_tokens} of {model.tokenizer.vocab_size:,} word pieces",
    "started from": config.init or "random weights",
    "trained on": f"{config.dataset}, batches of {config.batch_size}, seed {config.seed}",
    "fingerprint": prints["model"],
    "config fingerprint": prints["config"],
  }


def _data(metadata: Mapping[str, Any], prints: Mapping[str, str]) -> dict[str, str]:
  """Returns the facts of a data set, and of its splits that have these fingerprints."""
  source = metadata.get("instances", {})
  origin, trained_on = source.get("from", "unknown"), source.get("trained_on", "unknown")
  facts = {
    "version": storage.VERSION,
    "instance masks": f"{origin}, trained on {trained_on}",
  }
  for split, fingerprint in prints.items():
    counts = metadata.get("counts", {}).get(split, {})
    names = {"sentences": "expressions"}
    sizes = [
      f"{value:,} {names.get(name, name)}" for name, value in counts.items() if type(value) is int
    ]
    facts[split] = ", ".join([*sizes, f"fingerprint {fingerprint}"])
  for key, value in metadata.get("arguments", {}).items():
    facts[f"prepared with {key}"] = str(value)
  return facts


def _programs(written: str) -> dict[str, str]:
  facts = {"date": written, "Python": platform.python_version()}
  for package in _PACKAGES:
    try:
      facts[package] = importlib.metadata.version(package)
    # A checkout that is not installed.
    except importlib.metadata.PackageNotFoundError:
      continue
  device = jax.devices()[0]
  return facts | {"device": f"{jax.device_count()} x {device.device_kind} ({device.platform})"}
