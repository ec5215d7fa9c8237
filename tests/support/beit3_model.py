"""Hidden states of our model, without instance masks, with the weights of a BEiT-3."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mail_jax.config import recipe
from mail_jax.models import embeddings
from mail_jax.models.build import make_model, path_name
from mail_jax.models.encoder import Block, Encoder
from mail_jax.pretrained import initialise
from mail_jax.pretrained.conversion import Pretrained


def make_inputs(
  size: int, batch: int, vocab: int = 60, full: bool = False, seed: int = 0
) -> dict[str, np.ndarray]:
  """Returns random images, and texts of different lengths or all of full length."""
  rng = np.random.default_rng(seed)
  lengths = np.full(batch, 12) if full else np.array([12, 3, 7, 11][-batch:])
  return {
    "image": rng.integers(0, 256, (batch, size, size, 3), np.uint8),
    "tokens": rng.integers(4, vocab, (batch, 12), np.int32),
    "num_tokens": lengths.astype(np.int32),
  }


def run(pretrained: Pretrained, heads: int, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
  """Returns embeddings, the states after each layer, and after the last norms, [image | text]."""
  pretrained = dataclasses.replace(pretrained, heads=heads)
  config = recipe("base")
  config.max_instances, config.image_size = 0, inputs["image"].shape[1]
  config.max_tokens = inputs["tokens"].shape[1]
  config.model.decoder_widths = (8, 8, 4, 4)
  for key, value in pretrained.sizes().items():
    name = key.partition(".")[2]
    config.model[name] = type(config.model[name])(value)
  model = make_model(config, len(pretrained.parameters["text/words/embedding"]))
  batch, height, width = inputs["image"].shape[:3]
  arguments = {
    **inputs,
    "planes": np.zeros((batch, 1, height, width), np.uint16),
    "valid": np.zeros((batch, 0), bool),
  }
  arguments = {name: jnp.asarray(value) for name, value in arguments.items()}
  variables = jax.eval_shape(model.init, jax.random.key(0), **arguments)
  values = initialise.fit(pretrained, config, variables["params"])
  names = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])}
  assert {name for name in names if name.startswith(("encoder", "image", "text"))} == values.keys()
  fill = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)
  variables = fill | {"params": initialise.place(fill["params"], values)}
  wanted = (Block, Encoder, embeddings.ImageEmbedding, embeddings.TextEmbedding)
  _, captured = model.apply(
    variables, **arguments,
    capture_intermediates=lambda module, _: isinstance(module, wanted), mutable=["intermediates"],
  )  # fmt: skip
  found = captured["intermediates"]
  encoder = found["encoder"]
  blocks = [encoder[name]["__call__"][0] for name in sorted(encoder) if name.startswith("block")]
  states = [[found["image"]["__call__"][0], found["text"]["__call__"][0]], *blocks]
  return [np.concatenate(parts, 1) for parts in (*states, encoder["__call__"][0])]


def largest_difference(
  ours: list[np.ndarray], theirs: list[np.ndarray], inputs: dict[str, np.ndarray]
) -> float:
  """Returns the largest difference over all states of all tokens but padding, by their scale."""
  assert len(ours) == len(theirs)
  length = inputs["tokens"].shape[1]
  counts = np.ones(ours[0].shape[:2], bool)
  counts[:, -length:] = np.arange(length) < inputs["num_tokens"][:, None]
  differences = []
  for a, b in zip(ours, theirs, strict=True):
    assert a.shape == b.shape and b[counts].std() > 0.1
    differences.append(float(np.abs(a - b)[counts].max() / np.abs(b[counts]).max()))
  return max(differences)
