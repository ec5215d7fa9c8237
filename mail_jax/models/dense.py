"""A dense layer between axes of any number, as one matrix product in both directions."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Dense(nn.Module):
  """What `nn.DenseGeneral` over the last axes is, with the same parameters, as a product of two matrices.

  `nn.DenseGeneral` contracts several axes at once, for which XLA transposes the whole kernel in the backward pass.

  Attributes:
    features: axes out.
    axes: how many of the last axes go in.
    dtype: of the product; the parameters are float32.
  """

  features: tuple[int, ...]
  axes: int = 1
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]

  @nn.compact
  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the leading axes of x, then `features`."""
    leading, inputs = x.shape[: -self.axes], x.shape[-self.axes :]
    kernel = self.param("kernel", self._init, (*inputs, *self.features))
    bias = self.param("bias", nn.initializers.zeros_init(), self.features)
    flat = kernel.reshape(math.prod(inputs), -1).astype(self.dtype)
    y = x.reshape(*leading, -1).astype(self.dtype) @ flat + bias.reshape(-1).astype(self.dtype)
    return y.reshape(*leading, *self.features)

  def _init(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    inputs = math.prod(shape[: self.axes])
    return nn.initializers.lecun_normal()(key, (inputs, math.prod(self.features))).reshape(shape)
