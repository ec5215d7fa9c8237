"""One update: state and batch in, state and metrics out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt8, UInt16
from ml_collections import ConfigDict

from input_pipeline.mixture import OPTIONS, Part
from input_pipeline.preprocess.bit_planes import PLANE_BITS
from mail_jax.models import instances
from mail_jax.models.build import Batch, Tree, Variables, init_variables
from mail_jax.models.folding import space_to_depth
from mail_jax.models.mail import MaIL, subsample
from mail_jax.train import losses

StepMetrics = dict[str, jax.Array]
# Weights of red, green and blue in a gray value (ITU-R BT.601).
_GRAY = (0.299, 0.587, 0.114)


@struct.dataclass
class TrainState:
  """Everything that training changes.

  Attributes:
    step: number of updates, an int32; its shape or sharding where the state holds those.
    variables: of the model.
    averaged: moving average of the variables.
    opt_state: of the optimizer.
  """

  step: Any
  variables: Variables
  averaged: Variables
  opt_state: Tree


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """Options of an update, as in `configs/base.py`."""

  seed: int
  loss_weights: Mapping[str, float]
  instance_dropout: float = 0.0
  all_instances_dropout: float = 0.0
  ema_decay: float = 0.0
  decode_every: int = 1
  teacher_forcing: bool = False
  grad_accum_steps: int = 1
  datasets: tuple[Part, ...] = ()
  """Of a mixture; the `dataset` of an example is a number of them."""


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
  key: PRNGKeyArray, valid: Bool[Array, "b k"], each: float, all_of_example: float
) -> Bool[Array, "b k"]:
  """Leaves out each instance with one probability, and all those of an example with another."""
  each_key, all_key = jax.random.split(key)
  keep = jax.random.uniform(each_key, valid.shape) >= each
  keep_any = jax.random.uniform(all_key, (valid.shape[0], 1)) >= all_of_example
  return valid & keep & keep_any


def permute_slots(
  order: Int[Array, "b k"], planes: UInt16[Array, "b g h w"], valid: Bool[Array, "b k"]
) -> tuple[UInt16[Array, "b g h w"], Bool[Array, "b k"]]:
  """Moves the instances to other slots: slot i gets instance order[i]."""
  moved = [jnp.zeros_like(planes[:, 0]) for _ in range(planes.shape[1])]
  for slot in range(valid.shape[1]):
    mask = instances.take_slot(planes, order[:, slot]).astype(planes.dtype)
    moved[slot // PLANE_BITS] |= mask << slot % PLANE_BITS
  return jnp.stack(moved, 1), jnp.take_along_axis(valid, order, axis=1)


def color_jitter(
  images: UInt8[Array, "b h w 3"], factors: Float[Array, "b 3"]
) -> UInt8[Array, "b h w 3"]:
  """Changes brightness, then contrast about the mean gray, then saturation, in one pass.

  With y = contrast * brightness * x + offset, saturation * y + (1 - saturation) * gray(y) is a
  weighted sum of x, gray(x) and the same offset, because the gray weights sum to 1.

  Args:
    images: RGB bytes.
    factors: of brightness, contrast and saturation; 1 changes nothing.
  """
  brightness, contrast, saturation = (factors[:, i, None, None] for i in range(3))
  red, green, blue = (images[..., i].astype(jnp.float32) for i in range(3))
  gray = _GRAY[0] * red + _GRAY[1] * green + _GRAY[2] * blue
  scale = contrast * brightness
  offset = (1 - contrast) * brightness * gray.mean((1, 2), keepdims=True)
  joint = gray * (scale * (1 - saturation)) + offset
  changed = jnp.stack([x * (scale * saturation) + joint for x in (red, green, blue)], -1)
  return (jnp.clip(changed, 0, 255) + 0.5).astype(jnp.uint8)


def jitter_batch(batch: Batch) -> Batch:
  """Applies the `jitter_factors` of a batch, if it has any, to its images."""
  if "jitter_factors" not in batch:
    return batch
  # All readers take the bytes; otherwise the compiler keeps the colours as floats for some of them.
  image = jax.lax.optimization_barrier(color_jitter(batch["image"], batch["jitter_factors"]))
  jittered = batch | {"image": image}
  del jittered["jitter_factors"]
  return jittered


def sample_augmentation(
  model: MaIL,
  batch: Batch,
  key: PRNGKeyArray,
  instance_dropout: float,
  all_instances_dropout: float,
) -> Batch:
  """Adds to a batch the random choices of the step: `valid`, and for `stacked` masks `slots`.

  They are drawn for the whole batch, so that micro-batches get the same ones.
  """
  drop, shuffle = jax.random.split(key)
  valid = instances.count_valid(batch["num_instances"], model.max_instances)
  valid = drop_instances(drop, valid, instance_dropout, all_instances_dropout)
  batch = batch | {"valid": valid}
  if model.options.mask_tokens == "stacked" and model.max_instances:
    batch["slots"] = jnp.argsort(jax.random.uniform(shuffle, valid.shape), axis=1)
  return batch


def split_batch(batch: Batch, parts: int, keep: int = 1) -> Batch:
  """Splits a batch into micro-batches: [b, ...] to [parts, b / parts, ...].

  Examples stay on their devices, and runs of `keep` examples stay together, so that the
  micro-batches decode the same examples as the whole batch (see `subsample`).
  """

  def split(x: Shaped[Array, "b ..."]) -> Shaped[Array, "p m ..."]:
    runs = x.reshape(-1, parts, keep, *x.shape[1:])
    return jnp.moveaxis(runs, 1, 0).reshape(parts, -1, *x.shape[1:])

  return jax.tree.map(split, batch)


def make_loss(
  model: MaIL,
  weights: Mapping[str, float],
  decode_every: int,
  teacher_forcing: bool,
  freeze: Callable[[Tree], Tree] = lambda params: params,
  datasets: Sequence[Part] = (),
) -> Callable[..., tuple[jax.Array, tuple[StepMetrics, Tree]]]:
  """Makes the loss: (params, batch_stats, batch, counted, key) -> (loss, (metrics, batch_stats)).

  `counted` is the result of `count_weights` for the whole batch, of which `batch` may be a part:
  the losses of the parts sum to that of the whole. `freeze` stops gradients of parameters.
  `datasets` are those of a mixture, whose options say what their examples teach.
  """
  selection = model.options.selection
  multi = selection == "multi"
  lacking = {name: any(name not in part.options for part in datasets) for name in OPTIONS}

  def may(option: str, batch: Batch) -> Bool[Array, "b"]:
    return jnp.array([option in part.options for part in datasets])[batch["dataset"]]

  def loss_fn(params, batch_stats: Tree, batch: Batch, counted: dict[int, jax.Array], key):
    planes, valid = batch["instances"], batch["valid"]
    if "slots" in batch:
      planes, valid = permute_slots(batch["slots"], planes, valid)
    truth, target_instance = None, None
    if model.max_instances and selection != "none":
      overlap = instances.instance_share if multi else instances.instance_iou
      seen = instances.clear_slots(planes, valid)
      truth = overlap(seen, model.max_instances, batch["target"], model.options.dtype)
      if multi and lacking["multi"]:
        iou = instances.instance_iou(
          seen, model.max_instances, batch["target"], model.options.dtype
        )
        only = jax.nn.one_hot(match_target(iou), model.max_instances, dtype=truth.dtype)
        truth = jnp.where(may("multi", batch)[:, None], truth, only)
      if teacher_forcing:
        target_instance = truth > 0.5 if multi else match_target(truth)
    output, updated = model.apply(
      {"params": freeze(params), "batch_stats": batch_stats},
      batch["image"], planes, valid, batch["tokens"], batch["num_tokens"],
      train=True, decode_every=decode_every, target_instance=target_instance,
      mutable=["batch_stats"], rngs={"dropout": key},
    )  # fmt: skip

    target = subsample(batch["target"], decode_every)[..., None]
    target = space_to_depth(target, target.shape[1] // output.tiles.shape[1])
    terms = {
      "bce": losses.binary_cross_entropy(output.tiles, target),
      "dice": losses.dice(output.tiles, target),
    }
    if truth is not None and multi:
      terms["selection"] = losses.gate_cross_entropy(output.selection_logits, truth, valid)
    elif truth is not None:
      terms["selection"] = losses.selection_cross_entropy(output.selection_logits, truth)
    if output.no_target is not None:
      terms["no_target"] = losses.no_target_cross_entropy(output.no_target, batch["target"])
      if lacking["no_target"]:
        terms["no_target"] = terms["no_target"] * may("no_target", batch)
    metrics = {name: weighted_mean(term, batch["weight"], counted) for name, term in terms.items()}
    loss = sum((weights[name] * value for name, value in metrics.items()), jnp.zeros(()))
    metrics |= {"loss": loss}
    if datasets:
      metrics |= sum_by_dataset(terms, weights, batch, [part.name for part in datasets])
    return loss, (metrics, updated.get("batch_stats", {}))

  return loss_fn


def count_weights(weight: Float[Array, "b"], decode_every: int) -> dict[int, jax.Array]:
  """Sums the weights of all examples (key 1) and of the decoded ones (key `decode_every`).

  Each sum is at least 1.
  """
  return {n: jnp.maximum(subsample(weight, n).sum(), 1) for n in {1, decode_every}}


def weighted_mean(
  terms: Float[Array, "c"], weight: Float[Array, "b"], counted: dict[int, jax.Array]
) -> Float[Array, ""]:
  """Returns the mean over the examples that a term was computed for, the first of every b / c.

  Args:
    terms: of those examples.
    weight: of all examples.
    counted: see `count_weights`; of the whole batch, so that the means of its parts sum up.
  """
  every = weight.shape[0] // terms.shape[0]
  return (terms * subsample(weight, every)).sum() / counted[every]


def sum_by_dataset(
  terms: Mapping[str, Float[Array, "_"]],
  weights: Mapping[str, float],
  batch: Batch,
  names: Sequence[str],
) -> StepMetrics:
  """Sums the loss and the examples of each data set, as `loss/NAME` and `samples/NAME`.

  A term that was computed for the first of every few examples counts that many times, so that the
  sums of all data sets are the loss of the batch times its examples.

  Args:
    terms: of the examples that they were computed for.
    weights: of the terms in the loss.
    batch: with the number of each example's data set in `dataset`.
    names: of the data sets.
  """
  weight = batch["weight"]
  inside = (batch["dataset"][:, None] == jnp.arange(len(names))) * weight[:, None]
  loss = jnp.zeros(len(names))
  for name, term in terms.items():
    every = weight.shape[0] // term.shape[0]
    loss += weights[name] * every * (term[:, None] * subsample(inside, every)).sum(0)
  sums = {"loss": loss, "samples": inside.sum(0)}
  return {f"{key}/{name}": x[i] for key, x in sums.items() for i, name in enumerate(names)}


def make_gradients(
  loss_fn: Callable[..., Any],
  decode_every: int,
  grad_accum_steps: int,
  gather: Callable[[Tree], Tree],
  scatter: Callable[[Tree], Tree],
) -> Callable[..., tuple[Tree, tuple[StepMetrics, Tree]]]:
  """Makes the gradient of a batch: (variables, batch, key) -> (gradients, (metrics, batch_stats)).

  Runs the micro-batches of `grad_accum_steps` one after the other. Gradients and metrics are those
  of the whole batch; batch statistics are the mean of those of the micro-batches.
  """
  grad_fn = jax.grad(loss_fn, has_aux=True)

  def gradients(variables: Variables, batch: Batch, key: PRNGKeyArray):
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
  options: StepOptions,
  gather: Callable[[Tree], Tree] = lambda params: params,
  scatter: Callable[[Tree], Tree] = lambda grads: grads,
  freeze: Callable[[Tree], Tree] = lambda params: params,
) -> Callable[[TrainState, Batch, Float[Array, ""]], tuple[TrainState, StepMetrics]]:
  """Makes the update (to be jitted): (state, batch, learning rate) -> (state, metrics).

  Args:
    model: the network.
    optimizer: for a learning rate of 1.
    options: see `StepOptions`.
    gather, scatter: see `sharding.make_gather_and_scatter`.
    freeze: see `optim.freeze`.
  """
  decode_every = options.decode_every
  loss_fn = make_loss(
    model, options.loss_weights, decode_every, options.teacher_forcing, freeze, options.datasets
  )
  gradients = make_gradients(loss_fn, decode_every, options.grad_accum_steps, gather, scatter)

  def train_step(
    state: TrainState, batch: Batch, lr: Float[Array, ""]
  ) -> tuple[TrainState, StepMetrics]:
    keys = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), state.step))
    # `plan` tells the parts of a step by these names.
    with jax.named_scope("augmentation"):
      batch = sample_augmentation(
        model,
        jitter_batch(batch),
        keys[0],
        options.instance_dropout,
        options.all_instances_dropout,
      )
    grads, (metrics, batch_stats) = gradients(state.variables, batch, keys[1])
    with jax.named_scope("optimizer"):
      metrics["grad_norm"] = optax.global_norm(grads)
      finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
      metrics["skipped_steps"] = 1.0 - finite

      def where_finite(new: Tree, old: Tree) -> Tree:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

      # Part by part: choosing between whole states would keep one of them in memory for longer.
      old = state.variables
      updates, opt_state = optimizer.update(grads, state.opt_state, old["params"])
      params = jax.tree.map(lambda p, u: p + lr * jnp.where(finite, u, 0), old["params"], updates)
      variables = {"params": params, "batch_stats": where_finite(batch_stats, old["batch_stats"])}
      averaged = average(state.averaged, variables, options.ema_decay, state.step, finite)
      opt_state = where_finite(opt_state, state.opt_state)
    return TrainState(state.step + 1, variables, averaged, opt_state), metrics

  return train_step


def match_target(iou: Float[Array, "b k"]) -> Int[Array, "b"]:
  """Returns the instance that overlaps the target most, if its IoU exceeds 0.5, and k otherwise."""
  return jnp.where(iou.max(1) > 0.5, jnp.argmax(iou, 1), iou.shape[1])


def average(
  old: Tree, new: Tree, decay: float, step: Int[Array, ""], finite: Bool[Array, ""] | bool = True
) -> Tree:
  """Updates an exponential moving average; stays the same unless `finite`.

  Its memory is shorter at the beginning: decay <= (1 + step) / (10 + step).
  """
  keep = jnp.where(finite, jnp.minimum(decay, (1 + step) / (10 + step)), 1.0)
  return jax.tree.map(lambda o, n: o + (1 - keep) * (n - o), old, new)
