"""The update of a step, against one that is written out here in NumPy."""

import dataclasses
from typing import Any

import hurry
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_model
import tiny_run

from input_pipeline.preprocess import bit_planes
from mail_jax.distributed import sharding
from mail_jax.models.build import path_name
from mail_jax.train import step
from mail_jax.train.optim import learning_rate
from mail_jax.train.program import Program, build_program

ROWS, SLOTS, SIZE = 8, 4, 32
WEIGHTS = {"bce": 0.7, "dice": 1.3, "selection": 0.4, "no_target": 0.9}


def make_program(preset: str = "instance", model: dict | None = None, **changes: Any) -> Program:
  config = tiny_model.make_config(preset, SLOTS, no_target=True, **(model or {}))
  config.update(batch_size=ROWS, vocab_size=tiny_model.VOCAB, loss=WEIGHTS, **changes)
  # An epsilon at which nothing depends on the sign of a gradient that is all rounding.
  config.optimizer.update(eps=1e-3, clip=0.5, weight_decay=0.1, b1=0.8, b2=0.9)
  return build_program(config, tiny_model.VOCAB, sharding.make_mesh(**config.mesh))


def make_batch(seed: int = 0) -> dict[str, np.ndarray]:
  """Draws a batch: the targets of most examples are instances, of two nothing, of one a part."""
  rng = np.random.default_rng(seed)
  masks = np.stack([tiny_model.random_boxes(rng, SLOTS, SIZE) for _ in range(ROWS)])
  target = masks[np.arange(ROWS), rng.integers(0, SLOTS, ROWS)]
  target[2] = target[5] = False
  target[4, :, ::2] = False
  return {
    "image": rng.integers(0, 256, (ROWS, SIZE, SIZE, 3), np.uint8),
    "instances": np.stack([bit_planes.packbits(each) for each in masks]),
    "num_instances": np.array([4, 4, 3, 4, 4, 0, 2, 4], np.int32),
    "tokens": rng.integers(1, tiny_model.VOCAB, (ROWS, 6), np.int32),
    "num_tokens": rng.integers(2, 6, ROWS, np.int32),
    "target": target,
    "weight": np.array([1, 1, 1, 0, 1, 1, 1, 1], np.float32),
    "jitter_factors": np.ones((ROWS, 3), np.float32),
  }


def random_state(program: Program) -> step.TrainState:
  variables = {"batch_stats": {}} | tiny_model.random_variables(program.config)
  state = program.create()
  averaged = jax.tree.map(lambda x: 0.9 * x, variables)
  return dataclasses.replace(state, variables=variables, averaged=averaged)


def named(tree: Any) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
  return {path_name(path): np.asarray(leaf, np.float64) for path, leaf in leaves}


def choose(batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Returns which instances overlap the target by more than one half, and the best of them."""
  iou = np.zeros((ROWS, SLOTS))
  for b in range(ROWS):
    masks = bit_planes.unpackbits(batch["instances"][b], SLOTS)
    for k in range(batch["num_instances"][b]):
      union = (masks[k] | batch["target"][b]).sum()
      iou[b, k] = (masks[k] & batch["target"][b]).sum() / union if union else 0
  hit = iou > 0.5
  return hit, np.where(hit.any(1), iou.argmax(1), SLOTS)


def written_out(program: Program, decode_every: int):
  """Returns (loss, (terms, statistics)) and the gradient, as a function of variables and batch."""
  decoded = slice(None, None, decode_every)

  def loss(params, batch_stats, batch, hit, best):
    valid = jnp.arange(SLOTS) < batch["num_instances"][:, None]
    output, updated = program.model.apply(
      {"params": params, "batch_stats": batch_stats},
      batch["image"], batch["instances"], valid, batch["tokens"], batch["num_tokens"],
      train=True, decode_every=decode_every, target_instance=best, mutable=["batch_stats"],
    )  # fmt: skip

    def mean(terms, rows=slice(None)):
      return (terms * batch["weight"][rows]).sum() / batch["weight"][rows].sum()

    target = batch["target"][decoded].astype(jnp.float32)
    p = jax.nn.sigmoid(output.logits)
    both = 2 * (p * target).sum((1, 2)) + 1
    # Instances that overlap the target share the probability.
    truth = jnp.concatenate([hit, ~hit.any(1, keepdims=True)], 1)
    truth = truth / truth.sum(1, keepdims=True)
    absent = ~batch["target"].any((1, 2))
    says_absent = jax.nn.sigmoid(output.no_target)
    terms = {
      "bce": mean(-jnp.log(jnp.where(target > 0, p, 1 - p)).mean((1, 2)), decoded),
      "dice": mean(1 - both / (p.sum((1, 2)) + target.sum((1, 2)) + 1), decoded),
      "selection": mean(-(truth * jax.nn.log_softmax(output.selection_logits)).sum(1)),
      "no_target": mean(-jnp.log(jnp.where(absent, says_absent, 1 - says_absent))),
    }
    total = sum(WEIGHTS[name] * value for name, value in terms.items())
    return total, (terms, updated["batch_stats"])

  return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=hurry.OPTIONS)


class AdamW:
  """AdamW with clipping, as in the papers, in float64."""

  def __init__(self, config, names):
    self.o, self.steps = config.optimizer, 0
    self.mu, self.nu = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)

  def update(self, params, grads, lr):
    o, self.steps = self.o, self.steps + 1
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    new = {}
    for name, p in params.items():
      g = grads[name] * min(1.0, o.clip / norm)
      self.mu[name] = o.b1 * self.mu[name] + (1 - o.b1) * g
      self.nu[name] = o.b2 * self.nu[name] + (1 - o.b2) * g**2
      mean, square = (
        m / (1 - b**self.steps) for m, b in ((self.mu[name], o.b1), (self.nu[name], o.b2))
      )
      decays = name.endswith(("kernel", "words/embedding"))
      rate = lr * (4.0 if name.startswith(("decoder", "mask_gain")) else 1.0)
      new[name] = p - rate * (mean / (np.sqrt(square) + o.eps) + decays * o.weight_decay * p)
    return new


@pytest.mark.parametrize("decode_every", [1, 2])
def test_three_updates_are_those_that_are_written_out(decode_every):
  off = {"instance_dropout": 0.0, "all_instances_dropout": 0.0}
  program = make_program(augment=off, decode_every=decode_every, ema_decay=0.15)
  state = random_state(program)
  adam = AdamW(program.config, named(state.variables["params"]))
  differentiate = written_out(program, decode_every)
  for number, lr in enumerate((0.01, 0.003, 0.02)):
    batch = make_batch(number)
    params, stats = state.variables["params"], state.variables["batch_stats"]
    before, averaged = named(state.variables), named(state.averaged)
    hit, best = choose(batch)
    assert 2 < hit.any(1).sum() < ROWS
    (loss, (terms, new_stats)), grads = differentiate(params, stats, batch, hit, best)
    updated = adam.update(named(params), named(grads), lr)
    state, metrics = program.step(state, batch, np.float32(lr))
    # Most gradients are clipped, which would hide a factor.
    norm = np.sqrt(sum((g**2).sum() for g in named(grads).values()))
    np.testing.assert_allclose(float(metrics["grad_norm"]), norm, rtol=1e-4)
    for name, value in (terms | {"loss": loss}).items():
      np.testing.assert_allclose(float(metrics[name]), float(value), rtol=1e-5, err_msg=name)
    after = named(state.variables)
    wanted = {f"params/{name}": x for name, x in updated.items()}
    wanted |= {f"batch_stats/{name}": x for name, x in named(new_stats).items()}
    assert after.keys() == wanted.keys()
    keep = min(0.15, (1 + number) / (10 + number))
    average = named(state.averaged)
    for name, value in wanted.items():
      np.testing.assert_allclose(after[name], value, rtol=1e-3, atol=2e-5, err_msg=name)
      # Of the kinds of instances only differences count, so that these have no effect.
      without = ("neighbours/norm/bias", "neighbours/kinds/bias")
      assert (after[name] != before[name]).any() != name.endswith(without), name
      mean = keep * averaged[name] + (1 - keep) * value
      np.testing.assert_allclose(average[name], mean, rtol=1e-3, atol=2e-5, err_msg=name)
    assert state.step == number + 1


@pytest.mark.parametrize("mask_tokens", ["instance", "stacked"])
def test_gradients_of_every_part_are_the_slopes_of_the_loss(mask_tokens):
  """With soft selection nothing is cut or replaced, so that differences can tell."""
  program = make_program("paper", {"mask_tokens": mask_tokens, "norm": "group"})
  variables = tiny_model.random_variables(program.config)
  batch = {key: jnp.asarray(value) for key, value in make_batch().items()}
  del batch["jitter_factors"]
  batch["valid"] = jnp.arange(SLOTS) < batch["num_instances"][:, None]
  # The terms on the decoder's output alone: the selection learns through F_M^rho.
  weights = dict.fromkeys(WEIGHTS, 0.0) | {"bce": 1.0, "dice": 1.0}
  loss_fn = step.make_loss(program.model, weights, 1, False)
  counted = step.count_weights(batch["weight"], 1)

  @jax.jit
  def loss(params):
    return loss_fn(params, {}, batch, counted, jax.random.key(0))[0]

  params = variables["params"]
  grads = jax.jit(jax.grad(loss))(params)
  for part in params:
    if part == "no_target_logit":  # On the summary, which the decoder does not see.
      continue
    slope = float(optax.global_norm(grads[part]))
    # So far that the loss changes by more than it is rounded, and less than it is curved.
    far = min(3e-4 / slope, 3e-3 * max(1.0, float(optax.global_norm(params[part]))))

    def moved(distance, part=part, slope=slope):
      along = jax.tree.map(lambda x, g: x + distance / slope * g, params[part], grads[part])
      return float(loss(params | {part: along}))

    difference = (moved(far) - moved(-far)) / (2 * far)
    assert slope > 1e-4, part
    np.testing.assert_allclose(slope, difference, rtol=0.03, err_msg=part)


def test_what_chance_decides_differs_between_steps_and_repeats():
  chances = {"instance_dropout": 0.4, "all_instances_dropout": 0.0}
  for model, augment in (({"dropout": 0.3}, dict.fromkeys(chances, 0.0)), ({}, chances)):
    program, losses = make_program(model=model, augment=augment), []
    for number in (0, 1, 0):
      state = dataclasses.replace(random_state(program), step=jnp.int32(number))
      _, metrics = program.step(state, make_batch(), np.float32(0))
      losses.append(float(metrics["loss"]))
    assert losses[0] == losses[2] != losses[1]


def test_the_two_chances_to_leave_out_instances_are_not_mistaken_for_each_other(monkeypatch):
  given = []

  def record(key, valid, each, all_of_example):
    del key
    given.append((each, all_of_example))
    return valid

  monkeypatch.setattr(step, "drop_instances", record)
  program = make_program(augment={"instance_dropout": 0.25, "all_instances_dropout": 0.75})
  jax.eval_shape(program.step, program.shapes, make_batch(), np.float32(0))
  assert given == [(0.25, 0.75)]


@pytest.mark.parametrize(("decay", "name"), [(0.9, "averaged"), (0.0, "variables")])
def test_the_average_is_what_is_judged_where_there_is_one(decay, name):
  program = make_program(ema_decay=decay)
  state = random_state(program)
  expected = named(getattr(state, name))
  for path, value in named(program.to_evaluate(state)).items():
    np.testing.assert_array_equal(value, expected[path])


def test_slots_that_are_shuffled_keep_their_instances():
  """Stacked masks are told apart by their channel alone; what a slot holds goes with it."""
  program = make_program("paper")
  assert program.config.model.mask_tokens == "stacked"
  batch = {key: jnp.asarray(value) for key, value in make_batch().items()}
  del batch["jitter_factors"]
  valid = jnp.arange(SLOTS) < batch["num_instances"][:, None]
  order = np.stack([np.random.default_rng(b).permutation(SLOTS) for b in range(ROWS)])
  loss_fn = step.make_loss(program.model, WEIGHTS, 1, False)
  variables = {"batch_stats": {}} | tiny_model.random_variables(program.config)

  @jax.jit
  def loss(batch):
    counted = step.count_weights(batch["weight"], 1)
    args = (variables["params"], variables["batch_stats"], batch, counted, jax.random.key(0))
    return loss_fn(*args)[0]

  masks = [bit_planes.unpackbits(x, SLOTS) for x in np.asarray(batch["instances"])]
  moved = np.stack([bit_planes.packbits(m[o]) for m, o in zip(masks, order, strict=True)])
  there = jnp.take_along_axis(valid, jnp.asarray(order), axis=1)
  by_hand = loss(batch | {"instances": jnp.asarray(moved), "valid": there})
  shuffled = loss(batch | {"valid": valid, "slots": jnp.asarray(order)})
  np.testing.assert_allclose(float(shuffled), float(by_hand), rtol=1e-6)
  assert abs(float(loss(batch | {"valid": valid})) - float(by_hand)) > 1e-4


def test_the_learning_rate_of_a_step_is_that_of_its_number(finished_run):
  optimizer = tiny_run.get_config().optimizer
  options = {key: optimizer[key] for key in ("lr", "warmup_steps", "schedule", "final")}
  # Row n tells of the update from step n - 1 to step n.
  rates = {row["step"] - 1: row["lr"] for row in tiny_run.rows(finished_run) if "lr" in row}
  assert len(rates) == tiny_run.STEPS
  for number, rate in rates.items():
    assert rate == pytest.approx(learning_rate(number, tiny_run.STEPS, **options))
