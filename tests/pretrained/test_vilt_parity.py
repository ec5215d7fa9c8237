"""Compares our encoder, without instance masks, with ViLT in `transformers`, layer by layer.

`make extras` installs torch and transformers, and runs these tests.
"""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vilt_weights

from mail_jax.config import recipe
from mail_jax.models import embeddings
from mail_jax.models.build import make_model, path_name
from mail_jax.models.encoder import Block, Encoder
from mail_jax.pretrained import conversion, initialise, vilt

torch = pytest.importorskip("torch", reason="needs torch and transformers: make extras")
transformers = pytest.importorskip("transformers", reason="needs transformers: make extras")

pytestmark = pytest.mark.extras
W = vilt_weights
SIZES = [(384, 384), (480, 480), (384, 608)]
FULL = {"width": 768, "depth": 12, "vocab": 30522}


def make_reference(weights: dict[str, np.ndarray], heads: int) -> torch.nn.Module:
  """Loads exactly these weights into the model of `transformers`."""
  text, width = weights["embeddings.text_embeddings.word_embeddings.weight"].shape
  config = transformers.ViltConfig(
    vocab_size=text,
    hidden_size=width,
    num_hidden_layers=sum(name.endswith("layernorm_before.bias") for name in weights),
    num_attention_heads=heads,
    intermediate_size=4 * width,
    image_size=384,
    patch_size=32,
    max_position_embeddings=W.LENGTH,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
  )
  model = transformers.ViltModel(config).eval()
  state = {name: torch.from_numpy(value) for name, value in weights.items()}
  missing, unexpected = model.load_state_dict(state, strict=False)
  assert not unexpected and all(
    name.endswith(("position_ids", "token_type_ids")) for name in missing
  )
  return model


def make_inputs(height: int, width: int, batch: int, vocab: int, seed: int = 0):
  """Returns random images, and texts of different lengths, the first one of full length."""
  rng = np.random.default_rng(seed)
  lengths = np.array([12, 3, 7, 11][:batch], np.int32)
  return {
    "image": rng.integers(0, 256, (batch, height, width, 3), np.uint8),
    "tokens": rng.integers(1, vocab, (batch, 12), np.int32),
    "num_tokens": lengths,
  }


@torch.no_grad()
def run_reference(model, inputs) -> list[np.ndarray]:
  """Returns hidden states of [text | image]: embeddings, after each layer, and after the last norm.

  The reference samples patches in random order; here the order is that of the image.
  """
  in_order = mock.patch("torch.multinomial", lambda weights, count: torch.arange(count))
  image = torch.from_numpy(inputs["image"]).permute(0, 3, 1, 2).float() / 255
  tokens = torch.from_numpy(inputs["tokens"]).long()
  mask = torch.arange(tokens.shape[1]) < torch.from_numpy(inputs["num_tokens"])[:, None]
  with in_order:
    output = model(
      input_ids=tokens,
      attention_mask=mask.long(),
      pixel_values=(image - 0.5) / 0.5,
      pixel_mask=torch.ones(image.shape[0], *image.shape[2:], dtype=torch.long),
      output_hidden_states=True,
    )
  return [state.numpy() for state in (*output.hidden_states, output.last_hidden_state)]


def run_ours(pretrained: conversion.Pretrained, inputs) -> list[np.ndarray]:
  """Returns the same for our model without instance masks, in the reference's order."""
  config = recipe("base")
  config.max_instances, config.image_size = 0, 384
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
  leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
  by_name = {path_name(path): leaf.shape for path, leaf in leaves}
  grid = (height // 32, width // 32)
  values = conversion.fit(pretrained, by_name, lambda p: vilt.resize_positions(p, *grid))
  fill = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)
  variables = fill | {"params": initialise.place(fill["params"], values)}
  wanted = (Block, Encoder, embeddings.ImageEmbedding, embeddings.TextEmbedding)
  _, captured = model.apply(
    variables, **arguments,
    capture_intermediates=lambda module, _: isinstance(module, wanted), mutable=["intermediates"],
  )  # fmt: skip
  found = captured["intermediates"]
  kind = values["type"]
  image, text = found["image"]["__call__"][0] + kind[0], found["text"]["__call__"][0] + kind[2]
  states = [np.concatenate([text, image], 1)]
  encoder = found["encoder"]
  blocks = [encoder[name]["__call__"][0] for name in sorted(encoder) if name.startswith("block")]
  length = image.shape[1]
  for [state] in (*blocks, encoder["__call__"][0]):
    states.append(np.concatenate([state[:, length:], state[:, :length]], 1))
  return states


def largest_difference(pretrained, model, inputs) -> float:
  """Returns the largest difference over all states of all tokens but padding."""
  ours, theirs = run_ours(pretrained, inputs), run_reference(model, inputs)
  assert len(ours) == len(theirs) == pretrained.sizes()["model.depth"] + 2
  length = inputs["tokens"].shape[1]
  counts = np.arange(ours[0].shape[1]) >= length
  counts = counts | (np.arange(len(counts)) < inputs["num_tokens"][:, None])
  differences = []
  for a, b in zip(ours, theirs, strict=True):
    assert a.shape == b.shape and b[counts].std() > 0.1
    differences.append(float(np.abs(a - b)[counts].max()))
  return max(differences)


@pytest.fixture(scope="module")
def weights():
  return W.random_weights()


@pytest.fixture(scope="module")
def reference(weights):
  return make_reference(weights, W.HEADS)


@pytest.fixture
def pretrained(tmp_path, weights):
  return vilt.load(W.write_folder(tmp_path, weights))


# A square grid and another, one example and several; the slow tests below have all combinations.
@pytest.mark.parametrize(
  ("size", "batch"), [((384, 608), 4), pytest.param((480, 480), 1, marks=pytest.mark.slow)]
)
def test_every_layer_equals_the_reference(pretrained, reference, size, batch):
  assert largest_difference(pretrained, reference, make_inputs(*size, batch, W.VOCAB)) < 1e-4


@pytest.mark.parametrize("exchanged", [("query", "key"), ("key", "value")])
def test_a_wrong_mapping_of_one_layer_is_seen(tmp_path, weights, reference, exchanged):
  one, other = (f"encoder.layer.1.attention.attention.{part}" for part in exchanged)
  wrong = dict(weights)
  for kind in ("weight", "bias"):
    a, b = f"{one}.{kind}", f"{other}.{kind}"
    wrong[a], wrong[b] = weights[b], weights[a]
  pretrained = vilt.load(W.write_folder(tmp_path, wrong))
  assert largest_difference(pretrained, reference, make_inputs(384, 384, 1, W.VOCAB)) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_every_layer_of_the_full_size_equals_the_reference(tmp_path, size, batch):
  weights = W.random_weights(**FULL)
  pretrained = vilt.load(W.write_folder(tmp_path, weights, heads=12))
  difference = largest_difference(
    pretrained, make_reference(weights, 12), make_inputs(*size, batch, FULL["vocab"])
  )
  print(f"{size} x {batch}: {difference:.2e}")
  assert difference < 1e-4


def test_folders_that_the_reference_saves_are_read(tmp_path, reference, pretrained):
  """Saves the model with a head by `save_pretrained`, and as a torch file."""
  model = transformers.ViltForMaskedLM(reference.config)
  model.vilt.load_state_dict(reference.state_dict())
  model.save_pretrained(tmp_path / "saved")
  torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
  for path in (tmp_path / "saved", tmp_path / "pytorch_model.bin"):
    loaded = vilt.load(path)
    assert any(name.startswith("mlm_score") for name in loaded.unused)
    for name, value in pretrained.parameters.items():
      np.testing.assert_array_equal(value, loaded.parameters[name])


class Callback:
  """An object as trainers pickle into checkpoints; unpickling it runs code."""

  ran = False

  def __setstate__(self, state):
    Callback.ran = True


def test_a_lightning_checkpoint_is_read_without_running_what_it_holds(
  tmp_path, weights, pretrained
):
  state = {name: torch.from_numpy(value) for name, value in W.as_original(weights).items()}
  callback = Callback()
  callback.best = 1.0
  content = {"state_dict": state, "epoch": 3, "callbacks": {Callback: {"best": 1.0}}, "x": callback}
  torch.save(content, tmp_path / "vilt.ckpt")
  loaded = vilt.load(tmp_path / "vilt.ckpt")
  assert not Callback.ran
  for name, value in pretrained.parameters.items():
    np.testing.assert_array_equal(value, loaded.parameters[name])


@pytest.mark.parametrize("grid", [(15, 15), (12, 19), (7, 5), (1, 3)])
def test_positions_are_resized_as_torch_does(weights, grid):
  position = weights["embeddings.position_embeddings"][0]
  square = torch.from_numpy(position[1:]).reshape(1, 12, 12, -1).permute(0, 3, 1, 2)
  theirs = torch.nn.functional.interpolate(square, grid, mode="bilinear", align_corners=True)
  theirs = theirs.permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1).numpy()
  ours = vilt.resize_positions(position, *grid)
  np.testing.assert_allclose(ours[1:], theirs, atol=1e-5)
  np.testing.assert_array_equal(ours[0], position[0])
