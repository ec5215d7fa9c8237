"""Converts our parameters to the twin's: names, and the order of axes and channels."""

from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from benchmarks.torch_twin import PIXELS, Twin
from mail_jax.models.encoder import block_name


def load(twin: Twin, variables: dict[str, Any]) -> None:
  """Copies our parameters and batch statistics to the twin."""
  params, stats = variables["params"], variables["batch_stats"]
  state: dict[str, Any] = {
    "cls": params["image"]["cls"], "position": params["image"]["position"], "kind": params["type"],
    "gain": params["mask_gain"], "words.weight": params["text"]["words"]["embedding"],
    "text_position": params["text"]["position"],
  }  # fmt: skip
  patches = np.asarray(params["image"]["patches"]["kernel"])
  tiles = patches.reshape(twin.patch, twin.patch, 3, -1)
  state |= {
    "patches.weight": tiles.transpose(3, 2, 0, 1),
    "patches.bias": params["image"]["patches"]["bias"],
  }
  state |= _norm("text_norm", params["text"]["norm"])
  state |= _mask(params["mask"]) | _encoder(params["encoder"])
  for name in ("score_in", "score_out", "null"):
    state |= _linear(f"selection.{name}", params["selection"][name])
  state |= _decoder(params["decoder"], stats["decoder"])
  own = twin.state_dict()
  for name, value in state.items():
    own[name].copy_(torch.from_numpy(np.array(value)))
  missing = {
    name for name in own if name != "coordinates" and "num_batches" not in name
  } - state.keys()
  assert not missing, missing


def _linear(name: str, layer: dict[str, Any]) -> dict[str, Any]:
  kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"]).reshape(-1)
  return {f"{name}.weight": kernel.reshape(-1, len(bias)).T, f"{name}.bias": bias}


def _norm(name: str, layer: dict[str, Any]) -> dict[str, Any]:
  return {f"{name}.weight": layer["scale"], f"{name}.bias": layer["bias"]}


def _mask(params: dict[str, Any]) -> dict[str, Any]:
  state = _linear("mask.project", params["project"]) | _norm("mask.norm", params["norm"])
  for name in ("crop", "frame", "box", "pixels", "colour", "texture"):
    layer = params[name]
    if name == "pixels":  # channels last in ours
      kernel = np.asarray(layer["kernel"]).reshape(PIXELS, PIXELS, 3, -1).transpose(2, 0, 1, 3)
      layer = layer | {"kernel": kernel}
    state |= _linear(f"mask.groups.{name}", layer)
  beside = params["neighbours"]
  state |= _norm("mask.neighbours.norm", beside["norm"])
  state |= {"mask.neighbours.sharpness": beside["sharpness"]}
  # Ours flattens heads, sides, steps; so does the twin.
  for name in ("kinds", "project"):
    state |= _linear(f"mask.neighbours.{name}", beside[name])
  return state


def _encoder(params: dict[str, Any]) -> dict[str, Any]:
  state = _norm("encoder.norm", params["norm"])
  for i in range(sum(name.startswith("block") for name in params)):
    block, name = params[block_name(i)], f"encoder.layers.{i}"
    state |= _norm(f"{name}.layernorm_before", block["norm1"])
    state |= _norm(f"{name}.layernorm_after", block["norm2"])
    for j, part in enumerate(("query", "key", "value")):
      width = block["norm1"]["scale"].shape[0]
      layer = {
        "kernel": np.asarray(block["qkv"]["kernel"])[:, j].reshape(width, width),
        "bias": np.asarray(block["qkv"]["bias"])[j],
      }
      state |= _linear(f"{name}.attention.attention.{part}", layer)
    state |= _linear(f"{name}.attention.output.dense", block["out"])
    state |= _linear(f"{name}.intermediate.dense", block["mlp_in"])
    state |= _linear(f"{name}.output.dense", block["mlp_out"])
  return state


def _decoder(params: dict[str, Any], stats: dict[str, Any]) -> dict[str, Any]:
  state: dict[str, Any] = {}
  stages = sum(name.startswith("stage") for name in params)
  for i in range(stages):
    stage, norm = params[f"stage{i}"], f"decoder.norms.{i}"
    kernel = np.asarray(stage["conv"]["kernel"])  # [3, 3, in, out]
    if (
      i == stages - 1
    ):  # a tile's four pixels: ours row, column, channel; PyTorch's channel, row, column
      joined = kernel.shape[2] - 20
      tile = kernel[:, :, joined:].reshape(3, 3, 4, 5, -1).swapaxes(2, 3)
      kernel = np.concatenate([kernel[:, :, :joined], tile.reshape(3, 3, 20, -1)], 2)
    state[f"decoder.convs.{i}.weight"] = kernel.transpose(3, 2, 0, 1)
    state |= _norm(norm, stage["norm"])
    held = stats[f"stage{i}"]["norm"]
    state |= {f"{norm}.running_mean": held["mean"], f"{norm}.running_var": held["var"]}
  for name in ("logits", "detail"):
    kernel, bias = params[name]["kernel"], params[name]["bias"]
    state |= {
      f"decoder.{name}.weight": np.asarray(kernel).transpose(3, 2, 0, 1),
      f"decoder.{name}.bias": bias,
    }
  return state
