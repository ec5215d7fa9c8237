"""Micro-batches give the update of the whole batch."""

import jax
import jax.numpy as jnp
import mesh_training
import numpy as np
import pytest
import tiny_model

from mail_jax.models.build import path_name
from mail_jax.models.mail import subsample
from mail_jax.train import step
from mail_jax.train.step import TrainState

ROWS = 32


def _update(model: dict, **changes) -> dict[str, np.ndarray]:
  """Runs one step from nonzero variables; returns metrics, variables and the gradient."""
  config = mesh_training.make_config(batch_size=ROWS, **changes)
  config.model.update(width=16, heads=2, **model)
  program = mesh_training.build(config)
  variables = {"batch_stats": {}} | tiny_model.random_variables(config, mesh_training.VOCAB)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    variables=variables,
    averaged=jax.tree.map(jnp.copy, variables),
    opt_state=jax.tree.map(
      lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), program.shapes.opt_state
    ),
  )
  state, metrics = program.step(state, mesh_training.make_batch(config, 1), np.float32(1e-3))
  # The first moment of Adam is a tenth of the first gradient, clipped to a norm of 1.
  gradient = jax.tree.map(lambda m: m / (1 - config.optimizer.b1), state.opt_state[1].mu)
  actual = {"metrics": metrics, "variables": state.variables, "gradient": gradient}
  return {
    path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(actual)
  }


def _assert_the_same_update(whole: dict[str, np.ndarray], parts: dict[str, np.ndarray]) -> None:
  assert parts.keys() == whole.keys()
  for name, value in whole.items():
    scale = np.abs(value).max() if name.startswith("metrics") else 1.0
    assert np.abs(parts[name] - value).max() <= 1e-6 * scale, name
  assert np.sqrt(sum((v**2).sum() for k, v in whole.items() if k.startswith("gradient"))) > 0.99


def test_four_times_eight_is_thirty_two_with_group_norm():
  changes = {"decode_every": 2, "teacher_forcing": False}
  whole = _update({"norm": "group"}, **changes)
  _assert_the_same_update(whole, _update({"norm": "group"}, grad_accum_steps=4, **changes))


@pytest.mark.slow
def test_masks_that_change_slots_change_the_same_slots():
  stacked = {"norm": "group", "mask_tokens": "stacked", "selection": "soft"}
  _assert_the_same_update(_update(stacked), _update(stacked, grad_accum_steps=4))


@pytest.mark.slow
def test_batch_statistics_are_the_mean_of_those_of_the_micro_batches():
  """The first stage has the same input, so its means agree; its variances are smaller.

  They lack the variance between the means of the parts.
  """
  whole, parts = _update({"norm": "batch"}), _update({"norm": "batch"}, grad_accum_steps=4)
  first = "variables/batch_stats/decoder/stage0/norm/"
  np.testing.assert_allclose(parts[first + "mean"], whole[first + "mean"], rtol=1e-5, atol=1e-6)
  assert (parts[first + "var"] < whole[first + "var"]).all()
  assert (parts[first + "var"] > 0.9 * whole[first + "var"]).all()
  # Each part is normalised separately, which is another update.
  assert any(np.abs(parts[k] - whole[k]).max() > 1e-4 for k in whole if k.startswith("gradient"))


def test_micro_batches_take_from_every_device_and_decode_what_the_whole_batch_would():
  rows = jnp.arange(48)
  parts = step.split_batch({"rows": rows}, 4, keep=3)["rows"]
  assert parts.shape == (4, 12)
  assert sorted(parts.reshape(-1).tolist()) == list(range(48))
  decoded = jnp.concatenate([subsample(part, 3) for part in parts])
  assert sorted(decoded.tolist()) == subsample(rows, 3).tolist()
  for device in range(2):  # each has half of the rows, and half of every micro-batch
    held = set(range(24 * device, 24 * device + 24))
    assert all(len(held & set(part.tolist())) == 6 for part in parts)


def test_what_chance_decides_is_drawn_for_the_whole_batch():
  config = mesh_training.make_config()
  program = mesh_training.build(config)
  batch = jax.tree.map(jnp.asarray, mesh_training.make_batch(config, 0))
  drawn = step.sample_augmentation(program.model, batch, jax.random.key(1), 0.3, 0.1)
  again = step.sample_augmentation(program.model, batch, jax.random.key(1), 0.3, 0.1)
  np.testing.assert_array_equal(drawn["valid"], again["valid"])
  counts = np.arange(config.max_instances) < np.asarray(batch["num_instances"])[:, None]
  assert 0 < np.asarray(drawn["valid"]).sum() < counts.sum()
  assert not (np.asarray(drawn["valid"]) & ~counts).any()
