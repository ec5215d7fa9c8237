"""A model of a few thousand parameters, and batches for it."""

import functools
from collections.abc import Callable
from typing import Any

import hurry
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from input_pipeline.preprocess import bit_planes
from mail_jax.config import recipe
from mail_jax.models.build import make_model, path_name
from mail_jax.models.mail import MaIL, Output

VOCAB = 20
# 18 slots: one more plane than 16 bits, and the second not full.
SLOTS = 18


def make_config(preset: str = "instance", slots: int = SLOTS, **model: Any) -> ConfigDict:
  """Returns the base recipe, or `paper`, at 32 x 32 pixels with that many instance slots."""
  config = recipe("base", preset)
  config.update(image_size=32, max_instances=slots, max_tokens=6)
  config.model.update(width=16, depth=1, heads=2, patch_size=8, decoder_widths=(8, 8, 4))
  config.model.update(**model)
  return config


def make_inputs(config: ConfigDict, count: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
  """Random arguments of the model for a batch; slots hold an instance or not, in any order."""
  rng = np.random.default_rng(seed)
  size, slots, length = config.image_size, config.max_instances, config.max_tokens
  planes = [bit_planes.packbits(random_boxes(rng, slots, size)) for _ in range(count)]
  return {
    "image": rng.integers(0, 256, (count, size, size, 3), np.uint8),
    "planes": np.stack(planes),
    "valid": rng.random((count, slots)) < 0.6,
    "tokens": rng.integers(1, VOCAB, (count, length), np.int32),
    "num_tokens": rng.integers(2, length, count, np.int32),
  }


def random_boxes(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
  """Masks of random rectangles with a speckle of holes; no two alike."""
  masks = np.zeros((count, size, size), bool)
  for mask in masks:
    top, left = rng.integers(0, size - 4, 2)
    height, width = rng.integers(4, size, 2)
    mask[top : top + height, left : left + width] = True
  return masks & (rng.random(masks.shape) < 0.9)


def random_variables(config: ConfigDict, vocab_size: int = VOCAB, seed: int = 0) -> dict[str, Any]:
  """Variables of the config's model in which nothing is 0 or 1, as much is when a model is new.

  Only shapes come from the model, so nothing is compiled.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path_name(path)
    noise = rng.normal(size=leaf.shape).astype(np.float32)
    if name.endswith("kernel"):
      fan_in = leaf.shape[0] if "qkv" in name else np.prod(leaf.shape[:-1])
      return jnp.asarray(noise / np.sqrt(fan_in))
    return jnp.asarray(1 + 0.3 * np.tanh(noise) if name.endswith(("scale", "var")) else 0.3 * noise)

  return jax.tree_util.tree_map_with_path(draw, shapes(config, vocab_size))


def shapes(config: ConfigDict, vocab_size: int = VOCAB) -> dict[str, Any]:
  """Shapes and dtypes of the model's variables."""
  return jax.eval_shape(make(config, vocab_size).init, jax.random.key(0), **make_inputs(config, 1))


def make(config: ConfigDict, vocab_size: int = VOCAB) -> MaIL:
  """The model of a config."""
  return make_model(config, vocab_size)


def run(config: ConfigDict, variables: dict[str, Any], inputs: dict[str, np.ndarray]) -> Output:
  """Runs the config's model as at test time; the output is on the host."""
  return jax.device_get(compiled(FrozenConfigDict(config))(variables, **inputs))


@functools.cache
def compiled(config: FrozenConfigDict) -> Callable[..., Output]:
  """The model's `apply`, compiled once a config."""
  return jax.jit(make(config).apply, compiler_options=hurry.OPTIONS)
