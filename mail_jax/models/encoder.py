"""The trimodal transformer encoder: pre-LN blocks as in ViT and ViLT."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from input_pipeline.common.errors import InputError
from mail_jax.models.attention import attend

# What the backward pass may keep of a block, by `Encoder.remat`; it computes the rest again.
_KEPT = {
  "block": jax.checkpoint_policies.nothing_saveable,
  "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
REMAT = ("none", *_KEPT)
# Name of the parameters of all blocks with `Encoder.scan`; their first dimension is `depth`.
STACK = "blocks"


def pack(
  tokens: Float[Array, "b t d"], valid: Bool[Array, "b t"]
) -> tuple[Float[Array, "b t d"], Int[Array, "b"], Int[Array, "b t"]]:
  """Moves padding to the end, keeping the order of the rest.

  Returns:
    The packed tokens, the length of each sequence without padding, and the new index of each token.
  """
  order = jnp.argsort(~valid, axis=1, stable=True)
  packed = jnp.take_along_axis(tokens, order[..., None], axis=1)
  return packed, valid.sum(1, dtype=jnp.int32), jnp.argsort(order, axis=1)


class Dense(nn.Module):
  """A dense layer over the last axis, as one matrix product in both directions.

  The parameters are those of `nn.DenseGeneral`, which may have heads as an axis. Activations have
  not: XLA would transpose the whole kernel in the backward pass, and a TPU pads the last two axes
  to 8 x 128, which took longer for queries, keys and values than the product that makes them.

  Attributes:
    inputs: sizes of the kernel's input axes.
    features: sizes of its output axes.
    dtype: of the product; the parameters are float32.
  """

  inputs: tuple[int, ...]
  features: tuple[int, ...]
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(self, x: Float[Array, "... i"], parts: int = 1) -> list[Float[Array, "... o"]]:
    """Returns the features of each vector as one axis, cut into equal parts."""
    flat = math.prod(self.inputs), math.prod(self.features)
    kernel = self.param("kernel", self._init, flat)
    bias = self.param("bias", nn.initializers.zeros_init(), self.features).reshape(-1)
    y = x.astype(self.dtype) @ kernel.reshape(flat).astype(self.dtype)
    # Part by part, the sum that is the bias's gradient needs no pass of its own.
    cut = zip(jnp.split(y, parts, -1), jnp.split(bias.astype(self.dtype), parts), strict=True)
    return [y + bias for y, bias in cut]

  def _init(self, key: jax.Array, flat: tuple[int, int]) -> jax.Array:
    drawn = nn.initializers.lecun_normal()(key, flat)
    return drawn.reshape(*self.inputs, *self.features)


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Computes x times the normal distribution's share below x, in float32; returns the type of x.

  For the backward pass it keeps x alone. `jax.nn.gelu` keeps two more arrays of the MLP's hidden
  units, and computes each factor in the type of x.
  """
  return _gelu_and_slope(x)[0]


def _gelu_and_slope(x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
  y = x.astype(jnp.float32)
  below = 0.5 * (1 + jax.lax.erf(y * 0.5**0.5))
  slope = below + y * jnp.exp(-0.5 * y * y) * (2 * jnp.pi) ** -0.5
  return (y * below).astype(x.dtype), slope


def _gelu_backward(x: Float[Array, "..."], gradient: Float[Array, "..."]):
  return ((gradient * _gelu_and_slope(x)[1]).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class Block(nn.Module):
  """One pre-LN transformer block: x + attention(LN(x)), then x + MLP(LN(x)).

  Attributes:
    heads: attention heads; the width must be a multiple of it.
    mlp_ratio: hidden units of the MLP per unit of width.
    dropout: dropout rate of the outputs of the residual branches.
    backend: see `attention.attend`.
    dtype: of the activations; parameters and statistics are float32.
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
    width, size = x.shape[-1], x.shape[-1] // self.heads
    if width % self.heads:
      raise InputError(f"model.width {width} is not a multiple of model.heads {self.heads}")
    drop = nn.Dropout(self.dropout, deterministic=not train)
    y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm1")(x)
    qkv = Dense((width,), (3, self.heads, size), self.dtype, name="qkv")(y, parts=3)
    query, key, value = (part.reshape(*x.shape[:2], self.heads, size) for part in qkv)
    y = attend(query, key, value, lengths, self.backend).reshape(x.shape)
    [y] = Dense((self.heads, size), (width,), self.dtype, name="out")(y)
    x = x + drop(y)
    y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm2")(x)
    y = nn.Dense(int(width * self.mlp_ratio), dtype=self.dtype, name="mlp_in")(y)
    y = nn.Dense(width, dtype=self.dtype, name="mlp_out")(gelu(y))
    return x + drop(y)


class Encoder(nn.Module):
  """A stack of blocks and a final LayerNorm.

  Attributes:
    depth: number of blocks.
    heads, mlp_ratio, dropout, backend, dtype: see `Block`.
    remat: what the backward pass computes again instead of keeping it: `none`, `block` (everything
      but the input of each block: the least memory, a third more products), or `products`
      (everything between the matrix products).
    scan: compiles one block and runs it `depth` times, which takes the compile time of one block.
      The parameters are then stacked (`STACK`) instead of `block00`, `block01`, ...; see
      `stack_blocks`.
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
    """Encodes packed sequences, in `dtype`; the output at padding is undefined."""
    x = x.astype(self.dtype)
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
    return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)

  def _block(self, name: str) -> Any:
    if self.remat not in REMAT:
      raise InputError(f"model.remat {self.remat!r} is not one of {', '.join(REMAT)}")
    block: Any = Block
    if self.remat != "none":
      # In a loop there is nothing that XLA could merge the second computation with.
      block = nn.remat(
        Block, policy=_KEPT[self.remat], prevent_cse=not self.scan, static_argnums=(3,)
      )
    return block(self.heads, self.mlp_ratio, self.dropout, self.backend, self.dtype, name=name)


def block_name(index: int) -> str:
  """Returns the name of the parameters of one block, without `Encoder.scan`."""
  return f"block{index:02d}"


def stack_blocks(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Stacks the parameters of the blocks for `Encoder.scan`; the others stay as they are.

  Args:
    parameters: by name, such as `encoder/block00/qkv/kernel`: the same ones of every block.
  """
  stacked, rows = {}, {}
  for name, value in sorted(parameters.items()):
    if match := re.fullmatch(r"(.*)/block\d+/(.*)", name):
      rows.setdefault(f"{match[1]}/{STACK}/{match[2]}", []).append(value)
    else:
      stacked[name] = value
  return stacked | {name: np.stack(row) for name, row in rows.items()}
