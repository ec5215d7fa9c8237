"""A step on a mixture: what the examples of a data set teach, and what the log says of them."""

from typing import Any

import jax
import jax.numpy as jnp
import mesh_training
import numpy as np
import pytest
import tiny_model

from input_pipeline import mixture
from input_pipeline.preprocess import bit_planes
from mail_jax.models.mail import subsample
from mail_jax.train import loop, losses, step

NAMES = ("grefcoco_unc", "refcoco_unc")
MIXTURE = "grefcoco_unc:1:multi:no_target,refcoco_unc:1"


def _losses(dataset: np.ndarray, text: str, changes: dict[str, Any] | None = None):
  """Returns the metrics of the loss of one batch, and the batch; `changes` replace its fields."""
  config = mesh_training.make_config(batch_size=8)
  config.model.update(width=16, heads=2, selection="multi", no_target=True)
  program = mesh_training.build(config)
  variables = {"batch_stats": {}} | tiny_model.random_variables(config, mesh_training.VOCAB)
  batch = jax.tree.map(jnp.asarray, mesh_training.make_batch(config, 0)) | (changes or {})
  count = jnp.arange(config.max_instances) < batch["num_instances"][:, None]
  batch |= {"valid": count, "dataset": jnp.asarray(dataset)}
  loss_fn = step.make_loss(
    program.model,
    dict(config.loss),
    config.decode_every,
    teacher_forcing=False,
    datasets=mixture.several(text),
  )
  counted = step.count_weights(batch["weight"], config.decode_every)
  _, (metrics, _) = loss_fn(
    variables["params"], variables["batch_stats"], batch, counted, jax.random.key(0)
  )
  return {name: float(value) for name, value in metrics.items()}, batch


def test_the_losses_of_the_data_sets_sum_to_that_of_the_batch():
  dataset = np.array([0, 1, 1, 0, 1, 1, 1, 0], np.int32)
  metrics, batch = _losses(dataset, MIXTURE)
  weight = np.asarray(batch["weight"])
  for n, name in enumerate(NAMES):
    assert metrics[f"samples/{name}"] == weight[dataset == n].sum()
  total = sum(metrics[f"loss/{name}"] for name in NAMES)
  assert total == pytest.approx(metrics["loss"] * weight.sum(), rel=1e-5)


def test_sums_are_those_of_a_loop_also_of_terms_of_few_examples():
  rng = np.random.default_rng(0)
  dataset, weight = rng.integers(0, 3, 12), np.ones(12, np.float32)
  weight[4] = 0
  terms = {"bce": rng.random(4).astype(np.float32), "selection": rng.random(12).astype(np.float32)}
  factors = {"bce": 2.0, "selection": 0.5}
  batch = {"dataset": jnp.asarray(dataset), "weight": jnp.asarray(weight)}
  sums = step.sum_by_dataset(
    {k: jnp.asarray(v) for k, v in terms.items()}, factors, batch, ("a", "b", "c")
  )
  expected = dict.fromkeys(("a", "b", "c"), 0.0)
  for row in range(12):
    name = "abc"[dataset[row]]
    expected[name] += 0.5 * terms["selection"][row] * weight[row]
    if row % 3 == 0:
      expected[name] += 2.0 * 3 * terms["bce"][row // 3] * weight[row]
  for n, name in enumerate("abc"):
    assert sums[f"loss/{name}"] == pytest.approx(expected[name], rel=1e-6)
    assert sums[f"samples/{name}"] == weight[dataset == n].sum()
  np.testing.assert_array_equal(subsample(jnp.arange(12), 3), [0, 3, 6, 9])


def test_a_data_set_without_the_option_does_not_teach_the_output_for_no_target():
  both = "grefcoco_unc:1:multi:no_target,refcoco_unc:1:multi:no_target"
  mixed = np.array([0, 1, 1, 0, 1, 1, 1, 0], np.int32)
  every, batch = _losses(mixed, both)
  some, _ = _losses(mixed, MIXTURE)
  none, _ = _losses(np.ones(8, np.int32), MIXTURE)
  assert none["no_target"] == 0
  assert 0 < some["no_target"] < every["no_target"]
  first = float(batch["weight"][jnp.asarray(mixed == 0)].sum())
  only, _ = _losses(np.where(mixed == 0, 0, 1).astype(np.int32), MIXTURE)
  assert only["no_target"] == some["no_target"] and first > 0


def test_a_data_set_of_single_targets_learns_the_one_instance_of_the_highest_iou(monkeypatch):
  """A part of the target is inside of it, and still not what is meant."""
  seen = {}

  def gate_cross_entropy(logits, share, valid):
    seen["truth"] = np.asarray(share)
    return jnp.zeros(len(logits))

  monkeypatch.setattr(losses, "gate_cross_entropy", gate_cross_entropy)
  masks = np.zeros((tiny_model.SLOTS, 32, 32), bool)
  masks[0, 4:28, 4:27], masks[1, 10:14, 10:14], masks[2, :, :6] = True, True, True
  target = np.zeros((8, 32, 32), bool)
  target[:, 4:28, 4:28] = True
  dataset = np.array([0, 1] * 4, np.int32)
  planes = jnp.asarray(np.stack([bit_planes.packbits(masks)] * 8))
  changes = {"instances": planes, "num_instances": jnp.full(8, 3), "target": jnp.asarray(target)}
  _losses(dataset, MIXTURE, changes)
  several, one = seen["truth"][dataset == 0] > 0.5, seen["truth"][dataset == 1] > 0.5
  assert several[:, :3].tolist() == [[True, True, False]] * 4 and not several[:, 3:].any()
  assert one[:, :3].tolist() == [[True, False, False]] * 4 and not one[:, 3:].any()


def test_rows_of_the_log_have_the_mean_loss_and_the_samples_of_each_data_set():
  names = ("loss", "skipped_steps", "loss/a", "loss/b", "samples/a", "samples/b")
  steps = [
    (2.0, 0, 4.0, 6.0, 2.0, 3.0),
    (1.0, 0, 5.0, 0.0, 5.0, 0.0),
    (None, 1, 9.0, 9.0, 3.0, 2.0),
  ]
  rows = [dict(zip(names, step, strict=True)) for step in steps]
  values = loop.summarise(rows)
  assert values == {
    "loss": 1.5, "loss/a": 9 / 7, "loss/b": 2.0, "samples/a": 7, "samples/b": 3, "skipped_steps": 1
  }  # fmt: skip
  assert isinstance(values["samples/a"], int)
