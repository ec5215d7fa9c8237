"""The twin in PyTorch computes the same network as ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from mail_jax.models.build import apply_model
from mail_jax.train.step import make_loss, sample_augmentation

torch = pytest.importorskip("torch", reason="needs torch and transformers: make extras")
pytest.importorskip("transformers", reason="needs torch and transformers: make extras")

pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def pair():
  """Our model, its variables, the twin with the same parameters, and a batch."""
  from benchmarks import torch_twin, torch_weights

  config = tiny_model.make_config(slots=16)
  config.image_size = 96  # the twin's full-frame view is pooled, so its 12 cells divide the image
  config.model.depth = 2
  variables = tiny_model.random_variables(config)
  inputs = tiny_model.make_inputs(config, count=4)
  rng = np.random.default_rng(1)
  batch = {name: inputs[name] for name in ("image", "tokens", "num_tokens")}
  batch |= {
    "instances": inputs["planes"],
    "num_instances": np.array([16, 5, 0, 1], np.int32),
    "target": rng.random((4, 96, 96)) < 0.5,
    "weight": np.ones(4, np.float32),
  }
  # One target is an instance; the others are none of the instances.
  batch["target"][1] = (inputs["planes"][1, 0] >> 2) & 1
  twin = torch_twin.Twin(config, tiny_model.VOCAB)
  torch_weights.load(twin, variables)
  return config, variables, batch, twin, torch_twin.to_torch(batch, 16)


def test_the_twin_says_what_our_model_says(pair):
  config, variables, batch, twin, theirs = pair
  ours = jax.jit(lambda v, b: apply_model(tiny_model.make(config), v, b))(variables, batch)
  with torch.no_grad():
    logits, choice = twin.eval()(theirs)
  np.testing.assert_allclose(logits.numpy(), ours.logits, atol=1e-3)
  np.testing.assert_allclose(choice.numpy(), ours.selection_logits, rtol=1e-5, atol=1e-3)


def test_the_twin_learns_what_our_model_learns(pair):
  from benchmarks import torch_twin

  config, variables, batch, twin, theirs = pair
  model = tiny_model.make(config)
  loss_fn = make_loss(model, dict(config.loss), 1, True)
  drawn = sample_augmentation(model, jax.tree.map(jnp.asarray, batch), jax.random.key(0), 0.0, 0.0)
  counted = {1: jnp.float32(4)}

  def loss_of(params):
    return loss_fn(params, variables["batch_stats"], drawn, counted, jax.random.key(0))[0]

  loss, grads = jax.jit(jax.value_and_grad(loss_of))(variables["params"])
  twin.train().zero_grad()
  twin_loss = torch_twin.loss_of(twin, theirs)
  twin_loss.backward()
  assert twin_loss.item() == pytest.approx(float(loss), rel=1e-5)
  norm = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm().item()
  expected = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
  assert norm == pytest.approx(expected, rel=1e-4)
  np.testing.assert_allclose(twin.kind.grad.numpy(), grads["type"], rtol=1e-3, atol=1e-4)
  kernel = grads["decoder"]["stage0"]["conv"]["kernel"].transpose(3, 2, 0, 1)
  gradient = twin.decoder.convs[0].weight.grad.numpy()
  np.testing.assert_allclose(gradient, kernel, rtol=1e-3, atol=1e-4)
