"""AdamW with rules for the learning rate and the weight decay of each parameter."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from mail_jax.models.build import Tree
from mail_jax.models.rules import by_rule

Rules = Sequence[tuple[str, float]]


def check_rules(config: ConfigDict, params: Tree) -> None:
  """Checks the rules of a whole config.

  Args:
    config: with `lr_scale` and `decay_rules` in its `optimizer`.
    params: or their shapes.

  Raises:
    InputError: a rule is invalid or matches nothing, a parameter has none, or a value is negative.
  """
  for name in ("lr_scale", "decay_rules"):
    key, rules = f"optimizer.{name}", config.optimizer[name]
    by_rule(params, rules, key)
    for pattern, value in rules:
      if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InputError(f"config.{key}: the value of {pattern!r} is {value!r}, not a factor >= 0")


def make_optimizer_from(config: ConfigDict) -> optax.GradientTransformation:
  """Makes the optimizer of a whole config."""
  names = ("clip", "b1", "b2", "eps", "weight_decay", "lr_scale", "decay_rules")
  return make_optimizer(**{name: config.optimizer[name] for name in names})


def is_trained(params: Tree, lr_scale: Rules) -> Tree:
  """Returns for each parameter whether its learning rate is above 0."""
  return jax.tree.map(bool, by_rule(params, lr_scale, "optimizer.lr_scale"))


def freeze(params: Tree, lr_scale: Rules) -> Tree:
  """Returns the parameters without gradients of those whose learning rate is 0."""
  return jax.tree.map(
    lambda p, trained: p if trained else jax.lax.stop_gradient(p),
    params,
    is_trained(params, lr_scale),
  )


def learning_rate_from(config: ConfigDict, step: int, steps: int) -> float:
  """Returns the learning rate of a whole config; see `learning_rate`."""
  names = ("lr", "warmup_steps", "schedule", "power", "final")
  return learning_rate(step, steps, **{name: config.optimizer[name] for name in names})


def warmup_problem(config: ConfigDict, steps: int) -> str:
  """Returns a line about a warm-up that is not shorter than a run of `steps`; empty if it is."""
  warmup = config.optimizer.warmup_steps
  if not 0 < steps <= warmup:
    return ""
  return (
    f"warning: config.optimizer.warmup_steps is {warmup}, and the run has {steps} steps: the "
    f"learning rate ends at {steps / warmup:.1%} of its peak; set it to {max(1, steps // 10)} or so"
  )


def learning_rate(
  step: int,
  steps: int,
  *,
  lr: float,
  warmup_steps: int,
  schedule: str,
  power: float = 0.9,
  final: float = 0.0,
) -> float:
  """Returns the learning rate of a step: linear warm-up, then the schedule down to `final`.

  Args:
    step: from 0.
    steps: of the whole run; 0 if unknown, which keeps the peak after the warm-up.
    lr: the peak.
    warmup_steps: steps until the peak.
    schedule: `cosine`, `polynomial` or `constant`.
    power: exponent of the `polynomial` schedule.
    final: learning rate at the end, as a fraction of the peak.
  """
  if step < warmup_steps:
    return lr * (step + 1) / warmup_steps
  done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps)) if steps else 0.0
  if schedule == "cosine":
    left = 0.5 * (1 + math.cos(math.pi * done))
  elif schedule == "polynomial":
    left = (1 - done) ** power
  elif schedule == "constant":
    left = 1.0
  else:
    raise InputError(
      f"config.optimizer.schedule {schedule!r} is not one of cosine, polynomial, constant"
    )
  return lr * (final + (1 - final) * left)


def make_optimizer(
  *,
  clip: float,
  b1: float,
  b2: float,
  weight_decay: float,
  lr_scale: Rules,
  decay_rules: Rules,
  eps: float = 1e-8,
) -> optax.GradientTransformation:
  """Makes AdamW for a learning rate of 1; the caller scales the updates by the learning rate.

  Args:
    clip: largest global norm of the gradient.
    b1, b2: of Adam.
    weight_decay: decoupled, times the factor of `decay_rules`.
    lr_scale: rules for the learning rate of each parameter; those with 0 are frozen and have no
      state.
    decay_rules: rules for the weight decay of each parameter.
    eps: of Adam.
  """

  def scale_by_rules(updates, params=None):
    del params
    scales = by_rule(updates, lr_scale, "optimizer.lr_scale")
    return jax.tree.map(lambda u, s: -s * u if s else jnp.zeros_like(u), updates, scales)

  def decay(updates, params):
    rates = by_rule(params, decay_rules, "optimizer.decay_rules")
    return jax.tree.map(lambda u, p, r: u + weight_decay * r * p, updates, params, rates)

  def clip_by_global_norm(updates, params=None):
    del params
    # `optax.clip_by_global_norm` divides each element, and XLA writes the quotients to memory; a
    # product is fused into the two passes that read it.
    scale = clip / jnp.maximum(optax.global_norm(updates), clip)
    return jax.tree.map(lambda u: u * scale, updates)

  adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=jnp.float32)
  if any(scale == 0 for _, scale in lr_scale):
    adam = optax.masked(adam, lambda params: is_trained(params, lr_scale))
  return optax.chain(
    optax.stateless(clip_by_global_norm),
    adam,
    optax.stateless(decay),
    optax.stateless(scale_by_rules),
  )
