"""The trimodal transformer encoder: pre-LN blocks as in ViT and ViLT, or multiway as in BEiT-3."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from input_pipeline.common.errors import InputError
from mail_jax.models.attention import attend, read_valid_first

# What the backward pass may keep of a block, by `Encoder.remat`; it computes the rest again.
_KEPT = {
  "block": jax.checkpoint_policies.nothing_saveable,
  "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
REMAT = ("none", *_KEPT)
# Name of the parameters of all blocks with `Encoder.scan`; their first dimension is `depth`.
STACK = "blocks"
# Values of `model.experts`. With `shared` all tokens have the same parameters, and with `multiway`
# those of an image, of masks and of a text have their own.
EXPERTS = ("shared", "multiway")
# The only expert of a shared encoder.
SHARED = ""
Parts = Sequence[Float[Array, "b _ d"]]


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
    dtype: of the result; the parameters are float32.
    operands: dtype of what is multiplied; None for that of the result.
  """

  inputs: tuple[int, ...]
  features: tuple[int, ...]
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]
  operands: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "... i"], parts: int = 1) -> list[Float[Array, "... o"]]:
    """Returns the features of each vector as one axis, cut into equal parts."""
    flat = math.prod(self.inputs), math.prod(self.features)
    kernel = self.param("kernel", self._init, flat)
    bias = self.param("bias", nn.initializers.zeros_init(), self.features).reshape(-1)
    left, right = (z.astype(self.operands or self.dtype) for z in (x, kernel.reshape(flat)))
    y = jnp.matmul(left, right, preferred_element_type=self.dtype)
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


def expert_part(expert: str, part: str) -> str:
  """Returns the name of the parameters of one expert's part of a block, such as `image_qkv`."""
  return f"{expert}_{part}" if expert else part


def _norm(expert: str, part: str, dtype: jnp.dtype) -> nn.LayerNorm:
  """Returns a LayerNorm with the epsilon of ViT, or of BEiT-3."""
  epsilon = 1e-5 if expert else 1e-6
  return nn.LayerNorm(epsilon=epsilon, dtype=dtype, name=expert_part(expert, part))


class Block(nn.Module):
  """One pre-LN transformer block: x + attention(LN(x)), then x + MLP(LN(x)).

  With several experts, each part of the sequence has its own norms, projections and MLP, while all
  tokens attend to each other; and as in BEiT-3 (arXiv 2208.10442), attention and MLP have one more
  LayerNorm each, before their last projection (arXiv 2210.06423).

  Attributes:
    heads: attention heads; the width must be a multiple of it.
    mlp_ratio: hidden units of the MLP per unit of width.
    dropout: dropout rate of the outputs of the residual branches.
    backend: see `attention.attend`.
    dtype: of the activations; parameters and statistics are float32.
    operands: see `Dense`.
    experts: names of the experts, one per part of the sequence; only `SHARED` for ViT's block.
  """

  heads: int
  mlp_ratio: float = 4.0
  dropout: float = 0.0
  backend: str = "xla"
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]
  operands: jnp.dtype | None = None
  experts: tuple[str, ...] = (SHARED,)

  @nn.compact
  def __call__(
    self,
    parts: Parts,
    valid: Bool[Array, "b t"],
    train: bool = False,
    order: Int[Array, "b u"] | None = None,
    drop_path: Float[Array, ""] | None = None,
  ) -> list[Float[Array, "b _ d"]]:
    """Applies the block.

    Args:
      parts: of the sequence, one per expert.
      valid: see `attention.attend`, as is `order`.
      train: dropout is on.
      order: see above.
      drop_path: probability that an example skips the attention, and likewise the MLP.
    """
    width = parts[0].shape[-1]
    if width % self.heads:
      raise InputError(f"model.width {width} is not a multiple of model.heads {self.heads}")
    projected = zip(*self._each(self._project, parts), strict=True)
    query, key, value = (jnp.concatenate(x, 1) for x in projected)
    y = attend(query, key, value, valid, self.backend, order).reshape(*valid.shape, width)
    ends = np.cumsum([part.shape[1] for part in parts])[:-1]
    ys = self._each(self._join_heads, jnp.split(y, ends, 1))
    parts = self._add(parts, ys, train, drop_path)
    return self._add(parts, self._each(self._mlp, parts), train, drop_path)

  def _each(self, function: Callable[[str, Any], Any], parts: Sequence[Any]) -> list[Any]:
    return [function(expert, part) for expert, part in zip(self.experts, parts, strict=True)]

  def _project(
    self, expert: str, x: Float[Array, "b t d"]
  ) -> list[Float[Array, "b t {self.heads} e"]]:
    """Returns queries, keys and values."""
    width = x.shape[-1]
    size, name = width // self.heads, expert_part(expert, "qkv")
    y = _norm(expert, "norm1", self.dtype)(x)
    qkv = self._dense((width,), (3, self.heads, size), name)(y, parts=3)
    return [part.reshape(*x.shape[:2], self.heads, size) for part in qkv]

  def _join_heads(self, expert: str, y: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    width = y.shape[-1]
    if expert:
      y = _norm(expert, "inner_norm", self.dtype)(y)
    heads, name = (self.heads, width // self.heads), expert_part(expert, "out")
    return self._dense(heads, (width,), name)(y)[0]

  def _mlp(self, expert: str, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    width = x.shape[-1]
    y = _norm(expert, "norm2", self.dtype)(x)
    hidden, name = int(width * self.mlp_ratio), expert_part(expert, "mlp_in")
    y = gelu(self._dense((width,), (hidden,), name)(y)[0])
    if expert:
      y = _norm(expert, "mlp_norm", self.dtype)(y)
    return self._dense((hidden,), (width,), expert_part(expert, "mlp_out"))(y)[0]

  def _dense(self, inputs: tuple[int, ...], features: tuple[int, ...], name: str) -> Dense:
    return Dense(inputs, features, self.dtype, self.operands, name=name)

  def _add(
    self, parts: Parts, branches: Parts, train: bool, drop_path: Float[Array, ""] | None
  ) -> list[Float[Array, "b _ d"]]:
    """Adds the outputs of a residual branch, which skipped examples lack."""
    branches = [nn.Dropout(self.dropout, deterministic=not train)(y) for y in branches]
    if drop_path is not None:
      draw = jax.random.bernoulli(self.make_rng("dropout"), 1 - drop_path, (len(parts[0]), 1, 1))
      kept = (draw / (1 - drop_path)).astype(self.dtype)
      branches = [y * kept for y in branches]
    return [x + y for x, y in zip(parts, branches, strict=True)]


class Encoder(nn.Module):
  """A stack of blocks and a final LayerNorm.

  Attributes:
    depth: number of blocks.
    heads, mlp_ratio, dropout, backend, dtype, operands, experts: see `Block`.
    remat: what the backward pass computes again instead of keeping it: `none`, `block` (everything
      but the input of each block: the least memory, a third more products), or `products`
      (everything between the matrix products).
    scan: compiles one block and runs it `depth` times, which takes the compile time of one block.
      The parameters are then stacked (`STACK`) instead of `block00`, `block01`, ...; see
      `stack_blocks`.
    drop_path: see `Block`; of the last block. It grows linearly from 0 in the first one.
  """

  depth: int
  heads: int
  mlp_ratio: float = 4.0
  dropout: float = 0.0
  backend: str = "xla"
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]
  operands: jnp.dtype | None = None
  remat: str = "none"
  scan: bool = False
  experts: tuple[str, ...] = (SHARED,)
  drop_path: float = 0.0

  @nn.compact
  def __call__(
    self, parts: Parts, valid: Bool[Array, "b t"], train: bool = False
  ) -> list[Float[Array, "b _ d"]]:
    """Encodes the parts of sequences, in `dtype`; the output at padding is undefined.

    Args:
      parts: one per expert; a shared encoder has a single one.
      valid: False for padding, of all parts together. With several parts, the first has none; with
        a single one it comes last.
      train: dropout is on.
    """
    parts = [part.astype(self.dtype) for part in parts]
    order = None
    if len(parts) > 1:
      order = read_valid_first(valid, parts[0].shape[1], self.backend)
    rates = jnp.linspace(0, self.drop_path, self.depth) if train and self.drop_path else None
    if self.scan:
      stack = nn.scan(
        lambda block, parts, rate: (block(parts, valid, train, order, rate), None),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=self.depth,
      )
      parts, _ = stack(self._block(STACK), parts, rates)
    else:
      for i in range(self.depth):
        rate = None if rates is None or i == 0 else rates[i]
        parts = self._block(block_name(i))(parts, valid, train, order, rate)
    return [
      _norm(expert, "norm", self.dtype)(part)
      for expert, part in zip(self.experts, parts, strict=True)
    ]

  def _block(self, name: str) -> Any:
    if self.remat not in REMAT:
      raise InputError(f"model.remat {self.remat!r} is not one of {', '.join(REMAT)}")
    block: Any = Block
    if self.remat != "none":
      # In a loop there is nothing that XLA could merge the second computation with.
      block = nn.remat(
        Block, policy=_KEPT[self.remat], prevent_cse=not self.scan, static_argnums=(3,)
      )
    return block(
      self.heads,
      self.mlp_ratio,
      self.dropout,
      self.backend,
      self.dtype,
      self.operands,
      self.experts,
      name=name,
    )


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
