"""The loss terms: BCE and Dice of the pixels, cross-entropy of the selection and of `no_target`."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float


def binary_cross_entropy(
  logits: Float[Array, "b *p"], target: Bool[Array, "b *p"]
) -> Float[Array, "b"]:
  """Returns the mean binary cross-entropy over the pixels of each example, in nats."""
  # -log sigmoid(x) = softplus(x) - x takes one logarithm per pixel instead of two.
  return (jax.nn.softplus(logits) - jnp.where(target, logits, 0)).mean(range(1, logits.ndim))


def dice(logits: Float[Array, "b *p"], target: Bool[Array, "b *p"]) -> Float[Array, "b"]:
  """Returns the Dice loss of each example, in [0, 1].

  As in V-Net (arXiv 1606.04797), with sums in the denominator. For an empty target it is
  s / (s + 1), where s is the sum of the probabilities: 0 if nothing is predicted.
  """
  probability = jax.nn.sigmoid(logits)
  truth, pixels = target.astype(jnp.float32), range(1, target.ndim)
  overlap = (probability * truth).sum(pixels)
  total = probability.sum(pixels) + truth.sum(pixels)
  return 1 - (2 * overlap + 1) / (total + 1)


def selection_cross_entropy(
  logits: Float[Array, "b j"], iou: Float[Array, "b k"]
) -> Float[Array, "b"]:
  """Returns the cross-entropy of the selection with the instances of an IoU above 0.5.

  Args:
    logits: one per instance, and the one of "none of them" last, j = k + 1.
    iou: of each instance with the target.

  Returns:
    In nats, for each example. Several such instances share the probability equally; without one,
    "none of them" is right.
  """
  hit = (iou > 0.5).astype(jnp.float32)
  none = 1 - hit.max(1, keepdims=True, initial=0.0)
  truth = jnp.concatenate([hit, none], 1)
  return optax.softmax_cross_entropy(logits, truth / truth.sum(1, keepdims=True))


def gate_cross_entropy(
  logits: Float[Array, "b j"], share: Float[Array, "b k"], valid: Bool[Array, "b k"]
) -> Float[Array, "b"]:
  """Returns the binary cross-entropy of each instance's gate with a `share` above one half.

  Args:
    logits: one per instance, and the one of "none of them" last, j = k + 1; a gate's logit is the
      difference.
    share: fraction of each instance inside the target; see `instances.instance_share`.
    valid: slots that hold an instance.

  Returns:
    In nats, the mean over the instances of each example; 0 without instances.
  """
  gates = jnp.where(valid, logits[:, :-1] - logits[:, -1:], 0)
  each = optax.sigmoid_binary_cross_entropy(gates, (share > 0.5).astype(jnp.float32)) * valid
  return each.sum(1) / jnp.maximum(valid.sum(1), 1)


def no_target_cross_entropy(
  logits: Float[Array, "b"], target: Bool[Array, "b h w"]
) -> Float[Array, "b"]:
  """Returns the binary cross-entropy of `no_target` with whether the target is empty, in nats."""
  return optax.sigmoid_binary_cross_entropy(logits, (~target.any((1, 2))).astype(jnp.float32))
