"""The trimodal transformer encoder: pre-LN blocks as in ViT and ViLT."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from input_pipeline.common.errors import InputError
from mail_jax.models.attention import attend
from mail_jax.models.dense import Dense

# What the backward pass may keep of a block, by `Encoder.remat`; what it may not keep it computes again.
_KEPT = {
  "block": jax.checkpoint_policies.nothing_saveable,
  "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
REMAT = ("none", *_KEPT)
# The parameters of all blocks lie here in one, each with a first dimension of `depth`, where `Encoder.scan` is set.
STACK = "blocks"


def pack(
  tokens: Float[Array, "b t d"], valid: Bool[Array, "b t"]
) -> tuple[Float[Array, "b t d"], Int[Array, "b"], Int[Array, "b t"]]:
  """Moves padding to the end, keeping the order of the rest.

  Returns:
    The packed tokens; how many of each sequence count; and where each token went.
  """
  order = jnp.argsort(~valid, axis=1, stable=True)
  packed = jnp.take_along_axis(tokens, order[..., None], axis=1)
  return packed, valid.sum(1, dtype=jnp.int32), jnp.argsort(order, axis=1)


class Block(nn.Module):
  """One pre-LN transformer block: x + attention(LN(x)), then x + MLP(LN(x)).

  Attributes:
    heads: attention heads; the width must be a multiple of it.
    mlp_ratio: hidden units of the MLP per unit of width.
    dropout: share of the residual branches' outputs that is dropped in training.
    backend: see `attention.attend`.
    dtype: dtype of the matrix products; parameters and statistics are float32.
  """

  heads: int
  mlp_ratio: float = 4.0
  dropout: float = 0.0
  backend: str = "xla"
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(
    self, x: Float[Array, "b t d"], lengths: Int[Array, "b"], train: bool = False
  ) -> Float[Array, "b t d"]:
    """Applies the block to packed sequences; see `attention.attend` for `lengths`."""
    width = x.shape[-1]
    if width % self.heads:
      raise InputError(f"model.width {width} is not a multiple of model.heads {self.heads}")
    drop = nn.Dropout(self.dropout, deterministic=not train)
    y = nn.LayerNorm(epsilon=1e-6, name="norm1")(x).astype(self.dtype)
    qkv = Dense((3, self.heads, width // self.heads), dtype=self.dtype, name="qkv")(y)
    y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], lengths, self.backend)
    y = Dense((width,), axes=2, dtype=self.dtype, name="out")(y)
    x = x + drop(y).astype(x.dtype)
    y = nn.LayerNorm(epsilon=1e-6, name="norm2")(x).astype(self.dtype)
    y = nn.Dense(int(width * self.mlp_ratio), dtype=self.dtype, name="mlp_in")(y)
    y = nn.Dense(width, dtype=self.dtype, name="mlp_out")(jax.nn.gelu(y, approximate=False))
    return x + drop(y).astype(x.dtype)


class Encoder(nn.Module):
  """A stack of blocks and a final LayerNorm.

  Attributes:
    depth: number of blocks; the others are `Block`'s.
    remat: what training computes again in the backward pass instead of keeping it: `none`, `block` (all but the input
      of each block: the least memory, a third more products), or `products` (what lies between the matrix products).
    scan: whether the blocks are one program that runs `depth` times, which compiles in the time of one of them. Their
      parameters then lie stacked (`STACK`), in place of `block00`, `block01`, ...; `stack_blocks` makes these of those.
  """

  depth: int
  heads: int
  mlp_ratio: float = 4.0
  dropout: float = 0.0
  backend: str = "xla"
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]
  remat: str = "none"
  scan: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "b t d"], lengths: Int[Array, "b"], train: bool = False
  ) -> Float[Array, "b t d"]:
    """Encodes packed sequences; what stands at the padding means nothing."""
    if self.scan:
      stack = nn.scan(
        lambda block, x, _: (block(x, lengths, train), None),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=self.depth,
      )
      x, _ = stack(self._block(STACK), x, None)
    else:
      for i in range(self.depth):
        x = self._block(block_name(i))(x, lengths, train)
    return nn.LayerNorm(epsilon=1e-6, name="norm")(x)

  def _block(self, name: str) -> Any:
    if self.remat not in REMAT:
      raise InputError(f"model.remat {self.remat!r} is not one of {', '.join(REMAT)}")
    kind: Any = Block
    if self.remat != "none":
      # In a loop XLA has nothing to merge the second computation with.
      kind = nn.remat(
        Block, policy=_KEPT[self.remat], prevent_cse=not self.scan, static_argnums=(3,)
      )
    return kind(self.heads, self.mlp_ratio, self.dropout, self.backend, self.dtype, name=name)


def block_name(index: int) -> str:
  """Name of the parameters of a block that is not stacked."""
  return f"block{index:02d}"


def stack_blocks(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Stacks what belongs to the blocks, as `Encoder.scan` wants it; the rest stays.

  Args:
    parameters: by name, as in `encoder/block00/qkv/kernel`; all of each block of an encoder or the same part of each.
  """
  stacked, rows = {}, {}
  for name, value in sorted(parameters.items()):
    if found := re.fullmatch(r"(.*)/block\d+/(.*)", name):
      rows.setdefault(f"{found[1]}/{STACK}/{found[2]}", []).append(value)
    else:
      stacked[name] = value
  return stacked | {name: np.stack(row) for name, row in rows.items()}
