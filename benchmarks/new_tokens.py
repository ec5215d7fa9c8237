"""Measures how much new mask tokens change a pretrained encoder's output for image and text.

  python -m benchmarks.new_tokens --init vilt:vilt-b32-mlm

One row per way to initialise them, on generated scenes with their instance masks, resized to
--image_size. Compares z_I and z_L with and without mask tokens by the mean over tokens of
|z' - z| / |z - mean z|: 0 is no change, 1 is the spread of the tokens.
"""

import argparse
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import preprocess
from input_pipeline.common.errors import run_command
from input_pipeline.preprocess import bit_planes
from input_pipeline.preprocess.tokenizer import Tokenizer
from input_pipeline.shapes import scenes as shapes
from mail_jax.config import recipe
from mail_jax.models.build import make_model, path_name
from mail_jax.models.encoder import Encoder
from mail_jax.pretrained import initialise
from mail_jax.pretrained.conversion import Pretrained

Values = dict[str, np.ndarray]
MAX_TOKENS, MAX_INSTANCES = 20, 16


def make_config(pretrained: Pretrained, preset: str, image_size: int) -> ConfigDict:
  """Returns the base recipe at the checkpoint's size; preset `none` has no mask tokens."""
  config = recipe("base", "paper" if preset == "stacked" else "instance")
  config.image_size, config.max_tokens = image_size, MAX_TOKENS
  config.max_instances = 0 if preset == "none" else MAX_INSTANCES
  for key, value in pretrained.sizes().items():
    name = key.partition(".")[2]
    config.model[name] = type(config.model[name])(value)
  config.model.decoder_widths = (8,) * (config.model.patch_size.bit_length() - 1)
  return config


def make_inputs(tokenizer: Tokenizer, count: int, size: int) -> dict[str, np.ndarray]:
  """Makes inputs of generated scenes, each with its first expression."""
  scenes = [shapes.make_scene("val", 0, i) for i in range(count)]
  texts = [next(e.text for texts in s.expressions for e in texts) for s in scenes]
  tokens, num_tokens, _ = tokenizer(texts, MAX_TOKENS)
  masks = [s.instances.masks[:MAX_INSTANCES] for s in scenes]
  return {
    "image": np.stack([preprocess.resize_image(s.image, size) for s in scenes]),
    "planes": np.stack([preprocess.resize_planes(bit_planes.packbits(m), size) for m in masks]),
    "valid": np.arange(MAX_INSTANCES) < np.array([len(m) for m in masks])[:, None],
    "tokens": tokens,
    "num_tokens": num_tokens,
  }


def encode(config: ConfigDict, vocab_size: int, values: Values, inputs: Any) -> list[np.ndarray]:
  """Returns z_I and z_L, one row per token without padding."""
  model = make_model(config, vocab_size)
  inputs = inputs | {"valid": inputs["valid"][:, : config.max_instances]}
  shapes_of = jax.eval_shape(model.init, jax.random.key(0), **inputs)
  variables = jax.jit(model.init)(jax.random.key(0), **inputs)
  wanted = {path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(shapes_of["params"])}
  used = {name: value for name, value in values.items() if name in wanted}
  variables = variables | {"params": initialise.place(variables["params"], used)}
  _, captured = model.apply(
    variables, **inputs,
    capture_intermediates=lambda module, _: isinstance(module, Encoder), mutable=["intermediates"],
  )  # fmt: skip
  parts = [np.asarray(part) for part in captured["intermediates"]["encoder"]["__call__"][0]]
  z, images = np.concatenate(parts, 1), 1 + (config.image_size // config.model.patch_size) ** 2
  if config.model.experts == "multiway":
    masks = np.full(len(z), z.shape[1] - images - MAX_TOKENS)
  elif not config.max_instances:
    masks = np.zeros(len(z), int)
  elif config.model.mask_tokens == "instance":
    masks = inputs["valid"].sum(1)
  else:
    masks = np.full(len(z), images - 1)
  texts = [
    row[images + m : images + m + n]
    for row, m, n in zip(z, masks, inputs["num_tokens"], strict=True)
  ]
  return [z[:, :images].reshape(-1, z.shape[-1]), np.concatenate(texts)]


def starts(
  preset: str, fitted: Values, ours: Values, shapes_of: dict[str, tuple]
) -> dict[str, Values]:
  """Returns ways to initialise the new tokens, by name; `ours` is that of training."""
  if preset == "instance":
    scale = np.ones(shapes_of["mask/norm/scale"], np.float32)
    size = np.sqrt((fitted["image/position"][1:] ** 2).mean())
    return {
      "as they come: LayerNorm with a scale of 1": {},
      "scale of the image's position embedding": {"mask/norm/scale": size * scale},
      "scale 0": {"mask/norm/scale": 0 * scale},
      "in training": ours,
    }
  position = {"mask/position": fitted["image/position"][1:]}
  kernel = np.zeros(shapes_of["mask/patches/kernel"], np.float32)
  of_image = fitted["image/patches/kernel"]
  # Pixels row by row, channels last: one grey value for the three colours, the mean of all masks
  # for the grey value.
  grey = of_image.reshape(-1, 3, of_image.shape[1]).sum(1)
  grey = np.repeat(grey / MAX_INSTANCES, MAX_INSTANCES, axis=0)
  picture = {"mask/patches/kernel": grey, "mask/patches/bias": fitted["image/patches/bias"]}
  return {
    "as they come: random projection and position": {},
    "the image's positions, random projection": position,
    "the image's positions, projection 0": position | {"mask/patches/kernel": kernel},
    "the image's positions and projection, of the masks as a grey picture": position | picture,
    "in training": ours,
  }


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--init", required=True, help="as config.init: vilt:PATH or beit3:PATH")
  parser.add_argument("--image_size", type=int, default=384)
  parser.add_argument("--count", type=int, default=8, help="scenes")
  args = parser.parse_args(argv)
  pretrained, tokenizer = initialise.read(args.init), initialise.read_tokenizer(args.init)
  inputs = make_inputs(tokenizer, args.count, args.image_size)

  def shapes_of(config: ConfigDict) -> Any:
    given = inputs | {"valid": inputs["valid"][:, : config.max_instances]}
    model = make_model(config, tokenizer.vocab_size)
    return jax.eval_shape(model.init, jax.random.key(0), **given)["params"]

  without = make_config(pretrained, "none", args.image_size)
  fitted = initialise.fit(pretrained, without, shapes_of(without))
  alone = encode(without, tokenizer.vocab_size, fitted, inputs)
  print("| mask tokens | start | z_I moves by | z_L moves by |\n| --- | --- | ---: | ---: |")
  for preset in ("instance", "stacked"):
    config = make_config(pretrained, preset, args.image_size)
    tree = shapes_of(config)
    by_name = {path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(tree)}
    ours = initialise.fit(pretrained, config, tree)
    for name, start in starts(preset, fitted, ours, by_name).items():
      z = encode(config, tokenizer.vocab_size, fitted | start, inputs)
      moved = [
        np.mean(np.linalg.norm(b - a, axis=-1) / np.linalg.norm(a - a.mean(0), axis=-1))
        for a, b in zip(alone, z, strict=True)
      ]
      print(f"| {preset} | {name} | {moved[0]:.3f} | {moved[1]:.3f} |", flush=True)


if __name__ == "__main__":
  run_command(main)
