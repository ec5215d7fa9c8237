"""Masks as one token for each pair of an instance and a patch that it covers: `model.mask_tokens = "sparse"`."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from mail_jax.models import instances

_INIT = nn.initializers.truncated_normal(0.02)


class Pairs(NamedTuple):
  """The pairs of an instance and a patch that get a token, in ascending order; void ones last.

  Attributes:
    instance, patch: numbers of the two; of a void pair they mean nothing.
    coverage: share of the patch that the instance covers, in (0, 1]; 0 of a void pair.
    dropped: how many pairs there are beyond those.
  """

  instance: Int[Array, "b m"]
  patch: Int[Array, "b m"]
  coverage: Float[Array, "b m"]
  dropped: Int[Array, "b"]


def count_tokens(budget: int, slots: int, patches: int) -> int:
  """Places for tokens: the budget, or all pairs that there can be where these are fewer."""
  return min(budget, slots * patches)


def find_pairs(coverage: Float[Array, "b k n"], budget: int) -> Pairs:
  """Finds the pairs with any coverage; of more than `budget` those that are covered most.

  Of pairs that are covered equally those come first that stand first, and the instances stand best score first. An
  instance may lose all its pairs: what is known of it then is the image inside it.

  Args:
    coverage: see `instances.patch_coverage`.
    budget: places for tokens.
  """
  _, slots, patches = coverage.shape
  flat = coverage.reshape(-1, slots * patches)
  most = jnp.argsort(-flat, axis=1, stable=True)[:, : count_tokens(budget, slots, patches)]
  there = jnp.take_along_axis(flat, most, axis=1) > 0
  places = jnp.sort(jnp.where(there, most, slots * patches), axis=1)
  found = jnp.minimum(places, slots * patches - 1)
  covered = jnp.take_along_axis(flat, found, axis=1) * (places < slots * patches)
  dropped = (flat > 0).sum(1, dtype=jnp.int32) - there.sum(1, dtype=jnp.int32)
  return Pairs(found // patches, found % patches, covered, dropped)


def share_of_tokens(pairs: Pairs, slots: int) -> Float[Array, "b {slots} m"]:
  """Coverage of each token by instance: what `pool_instances` weighs an instance's tokens by; 0 for those of others."""
  own = jnp.arange(slots)[:, None] == pairs.instance[:, None]
  return own * pairs.coverage[:, None]


class SparseMaskEmbedding(nn.Module):
  """One token a pair: the mask inside the patch, where the patch is, and whose it is.

  "Whose" cannot be the number of the slot: slots carry no order, and their numbers would say nothing of the image. It
  is a dense layer of the instance's box (`instances.box_features`, with waves so fine that other boxes are far away)
  and of the share of its box that it fills. It is the same for all tokens of an instance, so that attention finds
  those that belong together, and tells each of them the size and the outline's frame of the whole, which the patch
  does not show. Two masks with one box and one area have the same; their tokens differ by the patches alone.

  Attributes:
    width: of the tokens.
    patch_size: P, in pixels.
  """

  width: int
  patch_size: int
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(
    self, masks: Bool[Array, "b k h w"], coverage: Float[Array, "b k n"], pairs: Pairs
  ) -> Float[Array, "b m d"]:
    """Returns one token a pair; void pairs give a token that the caller drops."""
    inside = take_patches(masks, pairs, self.patch_size).astype(jnp.float32)
    x = nn.Dense(self.width, dtype=self.dtype, name="patches")(inside).astype(jnp.float32)
    position = self.param("position", _INIT, (coverage.shape[-1], self.width))
    x += jnp.take(position, pairs.patch, axis=0, mode="clip")
    whose = nn.Dense(self.width, dtype=self.dtype, name="instance")(
      describe(masks, coverage, self.patch_size)
    )
    x += jnp.take_along_axis(whose.astype(jnp.float32), pairs.instance[..., None], axis=1)
    return nn.LayerNorm(epsilon=1e-6, name="norm")(x)


def take_patches(
  masks: Bool[Array, "b k h w"], pairs: Pairs, patch_size: int
) -> Bool[Array, "b m p"]:
  """The pixels of each pair's patch, row by row."""
  batch, slots, height, width = masks.shape
  rows, cols = height // patch_size, width // patch_size
  tiles = masks.reshape(batch, slots, rows, patch_size, cols, patch_size)
  flat = tiles.transpose(0, 1, 2, 4, 3, 5).reshape(batch, slots * rows * cols, patch_size**2)
  place = pairs.instance * (rows * cols) + pairs.patch
  return jnp.take_along_axis(flat, place[..., None], axis=1)


def describe(
  masks: Bool[Array, "b k h w"], coverage: Float[Array, "b k n"], patch_size: int
) -> Float[Array, "b k f"]:
  """The box of each instance and how full it is, of about unit scale; see `SparseMaskEmbedding`."""
  box = instances.boxes(masks)
  top, left, bottom, right = jnp.moveaxis(box, -1, 0)
  filled = coverage.sum(-1) * patch_size**2 / ((bottom - top) * (right - left))
  return jnp.concatenate(
    [instances.box_features(box, *masks.shape[2:]), filled[..., None] * 2 - 1], -1
  )
