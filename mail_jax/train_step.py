"""One update: state and batch in, state and metrics out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt16

from mail_jax import losses
from mail_jax.models import instances
from mail_jax.models.mail import MaIL, Output

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Tree = Any  # a nest of arrays, as JAX has them


@struct.dataclass
class TrainState:
  """All that training changes; `variables` and `averaged` are {"params", "batch_stats"}."""

  step: Any  # an int32; its shape or sharding where the state stands for those
  variables: Tree
  averaged: Tree
  opt_state: Tree


def create_state(
  model: MaIL, optimizer: optax.GradientTransformation, image_size: int, max_tokens: int, seed: int
) -> TrainState:
  """Initialises the parameters, the optimizer and the average (to be jitted: shapes alone decide)."""
  groups = max(1, -(-model.max_instances // instances.PLANE_BITS))
  variables = model.init(
    jax.random.key(seed),
    jnp.zeros((1, image_size, image_size, 3), jnp.uint8),
    jnp.zeros((1, groups, image_size, image_size), jnp.uint16),
    jnp.zeros((1, model.max_instances), bool),
    jnp.zeros((1, max_tokens), jnp.int32),
    jnp.ones((1,), jnp.int32),
  )
  variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    variables=variables,
    averaged=jax.tree.map(jnp.copy, variables),
    opt_state=optimizer.init(variables["params"]),
  )


def apply_model(model: MaIL, variables: Tree, batch: Batch) -> Output:
  """Runs the model on a batch, as at test time."""
  valid = instances.count_valid(batch["num_instances"], model.max_instances)
  return model.apply(
    variables, batch["image"], batch["instances"], valid, batch["tokens"], batch["num_tokens"]
  )  # pyright: ignore[reportReturnType]


def drop_instances(
  key: PRNGKeyArray, valid: Bool[Array, "b k"], each: float, every: float
) -> Bool[Array, "b k"]:
  """Instance dropout: leaves out each instance with one probability, and all of an example's with another."""
  one, all_ = jax.random.split(key)
  keep = jax.random.uniform(one, valid.shape) >= each
  keep_any = jax.random.uniform(all_, (valid.shape[0], 1)) >= every
  return valid & keep & keep_any


def shuffle_slots(
  key: PRNGKeyArray, planes: UInt16[Array, "b g h w"], valid: Bool[Array, "b k"]
) -> tuple[UInt16[Array, "b g h w"], Bool[Array, "b k"]]:
  """Gives the instances random slots, so that their order carries nothing."""
  order = jnp.argsort(jax.random.uniform(key, valid.shape), axis=1)
  masks = jnp.take_along_axis(
    instances.unpack_planes(planes, valid.shape[1]), order[:, :, None, None], axis=1
  )
  return instances.pack_planes(masks, planes.shape[1]), jnp.take_along_axis(valid, order, axis=1)


def make_train_step(
  model: MaIL,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  loss_weights: dict[str, float],
  instance_dropout: float = 0.0,
  all_instances_dropout: float = 0.0,
  ema_decay: float = 0.0,
) -> Callable[[TrainState, Batch, Float[Array, ""]], tuple[TrainState, Metrics]]:
  """Makes the update (to be jitted): (state, batch, learning rate) -> (state, metrics)."""
  shuffled = model.mask_tokens == "stacked"

  def loss_fn(params, state: TrainState, batch: Batch):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), 3)
    valid = instances.count_valid(batch["num_instances"], model.max_instances)
    valid = drop_instances(keys[0], valid, instance_dropout, all_instances_dropout)
    planes = batch["instances"]
    if shuffled and model.max_instances:
      planes, valid = shuffle_slots(keys[1], planes, valid)
    output, updated = model.apply(
      {**state.variables, "params": params},
      batch["image"], planes, valid, batch["tokens"], batch["num_tokens"],
      train=True, mutable=["batch_stats"], rngs={"dropout": keys[2]},
    )  # fmt: skip
    terms = {
      "bce": losses.binary_cross_entropy(output.logits, batch["target"]),
      "dice": losses.dice(output.logits, batch["target"]),
    }
    if model.max_instances and model.selection != "none":
      iou = losses.instance_iou(output.masks, batch["target"])
      terms["selection"] = losses.selection_cross_entropy(output.selection_logits, iou)
    weight = batch["weight"] / jnp.maximum(batch["weight"].sum(), 1)
    metrics = {name: (term * weight).sum() for name, term in terms.items()}
    loss = sum((loss_weights[name] * value for name, value in metrics.items()), jnp.zeros(()))
    return loss, (metrics | {"loss": loss}, updated.get("batch_stats", {}))

  def train_step(
    state: TrainState, batch: Batch, lr: Float[Array, ""]
  ) -> tuple[TrainState, Metrics]:
    grad_fn = jax.grad(loss_fn, has_aux=True)
    grads, (metrics, batch_stats) = grad_fn(state.variables["params"], state, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.variables["params"])
    params = jax.tree.map(lambda p, u: p + lr * u, state.variables["params"], updates)
    variables = {"params": params, "batch_stats": batch_stats}
    averaged = average(state.averaged, variables, ema_decay, state.step)
    metrics["grad_norm"] = optax.global_norm(grads)
    return TrainState(state.step + 1, variables, averaged, opt_state), metrics

  return train_step


def average(old: Tree, new: Tree, decay: float, step: Int[Array, ""]) -> Tree:
  """Exponential moving average, with a shorter memory at the beginning: decay <= (1 + step) / (10 + step)."""
  keep = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda o, n: o + (1 - keep) * (n - o), old, new)
