"""One update: state and batch in, state and metrics out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt16
from ml_collections import ConfigDict

from mail_jax.models import instances
from mail_jax.models.build import Batch, init_variables
from mail_jax.models.mail import MaIL, every
from mail_jax.models.parameters import Tree, Variables
from mail_jax.train import losses
from mail_jax.train.colours import change_colours

Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
  """All that training changes; `variables` and `averaged` are {"params", "batch_stats"}."""

  step: Any  # an int32; its shape or sharding where the state stands for those
  variables: Variables
  averaged: Variables
  opt_state: Tree


def create_state(
  model: MaIL, optimizer: optax.GradientTransformation, config: ConfigDict
) -> TrainState:
  """Creates the parameters, the optimizer's state and the average (to be jitted)."""
  variables = init_variables(model, config)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    variables=variables,
    averaged=jax.tree.map(jnp.copy, variables),
    opt_state=optimizer.init(variables["params"]),
  )


def drop_instances(
  key: PRNGKeyArray, valid: Bool[Array, "b k"], each: float, every: float
) -> Bool[Array, "b k"]:
  """Instance dropout: leaves out each instance with one probability, and all of an example's with another."""
  one, all_ = jax.random.split(key)
  keep = jax.random.uniform(one, valid.shape) >= each
  keep_any = jax.random.uniform(all_, (valid.shape[0], 1)) >= every
  return valid & keep & keep_any


def take_slots(
  order: Int[Array, "b k"], planes: UInt16[Array, "b g h w"], valid: Bool[Array, "b k"]
) -> tuple[UInt16[Array, "b g h w"], Bool[Array, "b k"]]:
  """Gives the instances other slots: slot i gets instance order[i]."""
  masks = jnp.take_along_axis(
    instances.unpack_planes(planes, valid.shape[1]), order[:, :, None, None], axis=1
  )
  return instances.pack_planes(masks, planes.shape[1]), jnp.take_along_axis(valid, order, axis=1)


def split_batch(batch: Batch, parts: int, keep: int = 1) -> Batch:
  """Splits a batch into micro-batches: [b, ...] to [parts, b / parts, ...].

  Every device keeps the examples that it has, and runs of `keep` examples stay together, so that the micro-batches
  decode the same examples as the whole batch would (see `every`).
  """

  def split(x: Shaped[Array, "b ..."]) -> Shaped[Array, "p m ..."]:
    runs = x.reshape(-1, parts, keep, *x.shape[1:])
    return jnp.moveaxis(runs, 1, 0).reshape(parts, -1, *x.shape[1:])

  return jax.tree.map(split, batch)


def change_light(batch: Batch) -> Batch:
  """Gives the photos of a batch the light that the loader has drawn for them, if it has."""
  if "jitter_factors" not in batch:
    return batch
  changed = batch | {"image": change_colours(batch["image"], batch["jitter_factors"])}
  del changed["jitter_factors"]
  return changed


def draw_chance(model: MaIL, batch: Batch, key: PRNGKeyArray, each: float, every: float) -> Batch:
  """Adds to a batch what chance decides: `valid`, after instance dropout, and for `stacked` masks their `slots`.

  It is drawn for the whole batch, so that a micro-batch finds what it would have found there.
  """
  drop, shuffle = jax.random.split(key)
  valid = instances.count_valid(batch["num_instances"], model.max_instances)
  batch = batch | {"valid": drop_instances(drop, valid, each, every)}
  if model.mask_tokens == "stacked" and model.max_instances:
    batch["slots"] = jnp.argsort(jax.random.uniform(shuffle, valid.shape), axis=1)
  return batch


def make_loss(
  model: MaIL, weights: dict[str, float], decode_every: int, teacher_forcing: bool
) -> Callable[..., tuple[jax.Array, tuple[Metrics, Tree]]]:
  """Makes the loss: (params, batch_stats, batch, counted, key) -> (loss, (metrics, batch_stats)).

  `counted` is what `count_weights` says of the whole batch, of which this one may be a part: the losses of the parts
  sum to that of the whole.
  """

  def loss_fn(params, batch_stats: Tree, batch: Batch, counted: dict[int, jax.Array], key):
    planes, valid = batch["instances"], batch["valid"]
    if "slots" in batch:
      planes, valid = take_slots(batch["slots"], planes, valid)
    truth, meant = None, None
    if model.max_instances and model.selection != "none":
      masks = instances.unpack_planes(planes, model.max_instances) & valid[:, :, None, None]
      overlap = instances.instance_share if model.selection == "multi" else instances.instance_iou
      truth = overlap(masks, batch["target"])
      if teacher_forcing:
        meant = truth > 0.5 if model.selection == "multi" else find_meant(truth)
    output, updated = model.apply(
      {"params": params, "batch_stats": batch_stats},
      batch["image"], planes, valid, batch["tokens"], batch["num_tokens"],
      train=True, decode_every=decode_every, meant=meant,
      mutable=["batch_stats"], rngs={"dropout": key},
    )  # fmt: skip

    target = every(batch["target"], decode_every)
    terms = {
      "bce": losses.binary_cross_entropy(output.logits, target),
      "dice": losses.dice(output.logits, target),
    }
    if truth is not None and model.selection == "multi":
      terms["selection"] = losses.gate_cross_entropy(output.selection_logits, truth, valid)
    elif truth is not None:
      terms["selection"] = losses.selection_cross_entropy(output.selection_logits, truth)
    if output.no_target is not None:
      terms["no_target"] = losses.no_target_cross_entropy(output.no_target, batch["target"])
    metrics = {name: weighted_mean(term, batch["weight"], counted) for name, term in terms.items()}
    loss = sum((weights[name] * value for name, value in metrics.items()), jnp.zeros(()))
    return loss, (metrics | {"loss": loss}, updated.get("batch_stats", {}))

  return loss_fn


def count_weights(weight: Float[Array, "b"], decode_every: int) -> dict[int, jax.Array]:
  """Examples that count, among all (key 1) and among one of so many (key `decode_every`); at least 1."""
  return {n: jnp.maximum(every(weight, n).sum(), 1) for n in {1, decode_every}}


def weighted_mean(
  terms: Float[Array, "c"], weight: Float[Array, "b"], counted: dict[int, jax.Array]
) -> Float[Array, ""]:
  """Mean over the examples that a term was computed for, one of every b / c.

  Args:
    terms: of those examples.
    weight: of all examples.
    counted: see `count_weights`; of the whole batch where this is a part of it, so that the parts sum to the mean.
  """
  one_of = weight.shape[0] // terms.shape[0]
  return (terms * every(weight, one_of)).sum() / counted[one_of]


def make_gradients(
  loss_fn: Callable[..., Any],
  decode_every: int,
  grad_accum_steps: int,
  gather: Callable[[Tree], Tree],
  scatter: Callable[[Tree], Tree],
) -> Callable[..., tuple[Tree, tuple[Metrics, Tree]]]:
  """Makes the gradient of a batch: (variables, batch, key) -> (gradients, (metrics, batch_stats)).

  With `grad_accum_steps` the batch is split into so many micro-batches, run one after the other. Gradients and metrics
  are those of the whole; batch statistics are the mean of those of its parts.
  """
  grad_fn = jax.grad(loss_fn, has_aux=True)

  def gradients(variables: Tree, batch: Batch, key: PRNGKeyArray):
    params, batch_stats = gather(variables["params"]), variables["batch_stats"]
    counted = count_weights(batch["weight"], decode_every)
    if grad_accum_steps == 1:
      grads, aux = grad_fn(params, batch_stats, batch, counted, key)
      return scatter(grads), aux

    def add(total, part):
      number, micro = part
      grads, aux = grad_fn(params, batch_stats, micro, counted, jax.random.fold_in(key, number))
      return jax.tree.map(jnp.add, total, scatter(grads)), aux

    zeros = scatter(jax.tree.map(jnp.zeros_like, params))
    parts = (jnp.arange(grad_accum_steps), split_batch(batch, grad_accum_steps, decode_every))
    grads, (metrics, stats) = jax.lax.scan(add, zeros, parts)
    return grads, (
      jax.tree.map(lambda x: x.sum(0), metrics),
      jax.tree.map(lambda x: x.mean(0), stats),
    )

  return gradients


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
  teacher_forcing: bool = False,
  grad_accum_steps: int = 1,
  gather: Callable[[Tree], Tree] = lambda params: params,
  scatter: Callable[[Tree], Tree] = lambda grads: grads,
) -> Callable[[TrainState, Batch, Float[Array, ""]], tuple[TrainState, Metrics]]:
  """Makes the update (to be jitted): (state, batch, learning rate) -> (state, metrics).

  Args:
    model, optimizer: as the config describes them.
    seed: of all chance in training.
    loss_weights: of the terms `bce`, `dice`, `selection` and `no_target`.
    instance_dropout, all_instances_dropout: see `drop_instances`.
    ema_decay: of the moving average.
    decode_every: decodes one example of so many.
    teacher_forcing: decodes the instance (with `multi` selection those) that is meant, not the one that is chosen.
    grad_accum_steps: micro-batches of a batch; see `make_gradients`.
    gather, scatter: see `sharding.make_gather_and_scatter`.
  """
  loss_fn = make_loss(model, loss_weights, decode_every, teacher_forcing)
  gradients = make_gradients(loss_fn, decode_every, grad_accum_steps, gather, scatter)

  def train_step(
    state: TrainState, batch: Batch, lr: Float[Array, ""]
  ) -> tuple[TrainState, Metrics]:
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
    batch = draw_chance(
      model, change_light(batch), keys[0], instance_dropout, all_instances_dropout
    )
    grads, (metrics, batch_stats) = gradients(state.variables, batch, keys[1])
    metrics["grad_norm"] = optax.global_norm(grads)
    sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    metrics["skipped_steps"] = 1.0 - sound

    def where_sound(new: Tree, old: Tree) -> Tree:
      return jax.tree.map(lambda n, o: jnp.where(sound, n, o), new, old)

    # Each part keeps what is old by itself: choosing between whole states would hold one of them longer.
    old = state.variables
    updates, opt_state = optimizer.update(grads, state.opt_state, old["params"])
    params = jax.tree.map(lambda p, u: p + lr * jnp.where(sound, u, 0), old["params"], updates)
    variables = {"params": params, "batch_stats": where_sound(batch_stats, old["batch_stats"])}
    averaged = average(state.averaged, variables, ema_decay, state.step, sound)
    opt_state = where_sound(opt_state, state.opt_state)
    return TrainState(state.step + 1, variables, averaged, opt_state), metrics

  return train_step


def find_meant(iou: Float[Array, "b k"]) -> Int[Array, "b"]:
  """Returns the instance that overlaps the target most, if by IoU > 0.5, else k for none of them."""
  return jnp.where(iou.max(1) > 0.5, jnp.argmax(iou, 1), iou.shape[1])


def average(
  old: Tree, new: Tree, decay: float, step: Int[Array, ""], sound: Bool[Array, ""] | bool = True
) -> Tree:
  """Exponential moving average, with a shorter memory at the beginning: decay <= (1 + step) / (10 + step).

  Where the update is not sound it stays as it was.
  """
  keep = jnp.where(sound, jnp.minimum(decay, (1 + step) / (10 + step)), 1.0)
  return jax.tree.map(lambda o, n: o + (1 - keep) * (n - o), old, new)
