"""Adaptive mask selection: weights of the instances and their features (paper: figure, F_M^rho)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from input_pipeline.common.errors import InputError


def pool_instances(
  features: Float[Array, "b n d"], coverage: Float[Array, "b k n"]
) -> Float[Array, "b k d"]:
  """Averages features over each instance.

  Args:
    features: one vector per patch.
    coverage: fraction of each patch that the instance covers, in [0, 1].

  Returns:
    One vector per instance; zeros where the instance covers nothing.
  """
  area = coverage.sum(-1, keepdims=True)
  return jnp.einsum("bkn,bnd->bkd", coverage, features) / jnp.maximum(area, 1e-6)


def select(
  scores: Float[Array, "b k"],
  null: Float[Array, "b"],
  valid: Bool[Array, "b k"],
  kind: str,
  target_instance: Int[Array, "b"] | Bool[Array, "b k"] | None = None,
) -> Float[Array, "b k"]:
  """Returns the weights rho of the instances.

  Args:
    scores: logit of each instance.
    null: logit of "none of them", for referents that no instance mask covers.
    valid: slots that hold an instance.
    kind: `soft` is the softmax over the instances and "none of them". `hard` is its top 1, with the
      gradient of `soft` (straight-through). `multi`, for expressions with several targets, is a
      gate per instance, open if its score exceeds `null`, with the gradient of the sigmoid of the
      difference. `none` gives every instance the weight 1.
    target_instance: selected instead of the best, in training: with `hard` its number, k for none
      of them; with `multi` a flag per instance.

  Returns:
    rho in [0, 1], zero at slots without an instance.
  """
  if kind == "none":
    return valid.astype(scores.dtype)
  if kind == "multi":
    soft = jax.nn.sigmoid(scores - null[:, None]) * valid
    gates = soft > 0.5 if target_instance is None else target_instance
    return soft + jax.lax.stop_gradient((gates & valid) - soft)
  masked = jnp.where(valid, scores, -1e9)
  soft = jax.nn.softmax(jnp.concatenate([masked, null[:, None]], 1), axis=1)
  soft = soft[:, :-1] * valid
  if kind == "soft":
    return soft
  if kind == "hard":
    best = target_instance
    if best is None:
      best = jnp.argmax(jnp.concatenate([masked, null[:, None]], 1), axis=1)
    hard = jax.nn.one_hot(best, scores.shape[1] + 1)[:, :-1]
    return soft + jax.lax.stop_gradient(hard - soft)
  raise InputError(f"model.selection {kind!r} is not one of soft, hard, multi, none")


class MaskSelection(nn.Module):
  """Scores each instance from its mask feature m_k and the image feature g_k inside it.

  Attributes:
    kind: see `select`.
    hidden: units of the scoring network.
  """

  kind: str = "hard"
  hidden: int = 128

  @nn.compact
  def __call__(
    self,
    mask_features: Float[Array, "b k d"],
    image_features: Float[Array, "b n d"],
    summary: Float[Array, "b d"],
    coverage: Float[Array, "b k n"],
    valid: Bool[Array, "b k"],
    target_instance: Int[Array, "b"] | Bool[Array, "b k"] | None = None,
  ) -> tuple[Float[Array, "b n d"], Float[Array, "b k"], Float[Array, "b j"]]:
    """Selects.

    Args:
      mask_features: m_k, the encoder's output for each instance.
      image_features: F_I, the encoder's output for each patch.
      summary: the encoder's output for the class token.
      coverage: fraction of each patch that each instance covers.
      valid: slots that hold an instance.
      target_instance: see `select`.

    Returns:
      F_M^rho, one vector per patch; rho; and the logits, "none of them" last.
    """
    inside = pool_instances(image_features, coverage)
    x = nn.Dense(self.hidden, name="score_in")(jnp.concatenate([mask_features, inside], -1))
    scores = nn.Dense(1, name="score_out")(jax.nn.gelu(x))[..., 0]
    null = nn.Dense(1, name="null")(summary)[..., 0]
    rho = select(scores, null, valid, self.kind, target_instance)
    features = jnp.einsum("bkn,bkd->bnd", rho[..., None] * coverage, mask_features)
    logits = jnp.concatenate([jnp.where(valid, scores, -1e9), null[:, None]], 1)
    return features, rho, logits
