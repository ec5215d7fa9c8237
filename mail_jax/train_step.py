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
from mail_jax.models.mail import MaIL, Output, every

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
  decode_every: int = 1,
  decode_meant: bool = False,
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
    iou, meant = None, None
    if model.max_instances and model.selection != "none":
      masks = instances.unpack_planes(planes, model.max_instances) & valid[:, :, None, None]
      iou = losses.instance_iou(masks, batch["target"])
      meant = find_meant(iou) if decode_meant else None
    output, updated = model.apply(
      {**state.variables, "params": params},
      batch["image"], planes, valid, batch["tokens"], batch["num_tokens"],
      train=True, decode_every=decode_every, meant=meant,
      mutable=["batch_stats"], rngs={"dropout": keys[2]},
    )  # fmt: skip
    target = every(batch["target"], decode_every)
    terms = {
      "bce": losses.binary_cross_entropy(output.logits, target),
      "dice": losses.dice(output.logits, target),
    }
    if iou is not None:
      terms["selection"] = losses.selection_cross_entropy(output.selection_logits, iou)
    metrics = {name: weighted_mean(term, batch["weight"]) for name, term in terms.items()}
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


def find_meant(iou: Float[Array, "b k"]) -> Int[Array, "b"]:
  """The instance that overlaps the target most, if by IoU > 0.5, else k: none of them."""
  return jnp.where(iou.max(1) > 0.5, jnp.argmax(iou, 1), iou.shape[1])


def weighted_mean(terms: Float[Array, "c"], weight: Float[Array, "b"]) -> Float[Array, ""]:
  """Mean over the examples that a term was computed for, `weight` being that of all of them."""
  weight = every(weight, weight.shape[0] // terms.shape[0])
  return (terms * weight).sum() / jnp.maximum(weight.sum(), 1)


def average(old: Tree, new: Tree, decay: float, step: Int[Array, ""]) -> Tree:
  """Exponential moving average, with a shorter memory at the beginning: decay <= (1 + step) / (10 + step)."""
  keep = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda o, n: o + (1 - keep) * (n - o), old, new)
