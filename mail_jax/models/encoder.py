"""The trimodal transformer encoder: pre-LN blocks as in ViT and ViLT."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from input_pipeline.errors import InputError
from mail_jax.models.attention import attend
from mail_jax.models.dense import Dense


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
  """

  depth: int
  heads: int
  mlp_ratio: float = 4.0
  dropout: float = 0.0
  backend: str = "xla"
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(
    self, x: Float[Array, "b t d"], lengths: Int[Array, "b"], train: bool = False
  ) -> Float[Array, "b t d"]:
    """Encodes packed sequences; what stands at the padding means nothing."""
    for i in range(self.depth):
      x = Block(
        self.heads, self.mlp_ratio, self.dropout, self.backend, self.dtype, name=f"block{i:02d}"
      )(x, lengths, train)
    return nn.LayerNorm(epsilon=1e-6, name="norm")(x)
