"""Attention of a TPU against XLA's, on CPU devices, by JAX's interpreter of kernels.

`python tests/support/tpu_attention.py` prints how far they are apart on all devices.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas

from mail_jax.distributed import sharding
from mail_jax.models.attention import attend

# More than one block of a TPU has.
TOKENS = 130


def difference() -> float:
  """Largest difference of results or gradients, rows spread over all devices.

  Some rows have hardly any token.
  """
  rows = max(2, jax.device_count())
  draw = np.random.default_rng(0).normal
  query, key, value, weight = (draw(size=(rows, TOKENS, 2, 8)).astype(np.float32) for _ in range(4))
  lengths = jnp.array([TOKENS, 3] * (rows // 2))
  # Padding may be anywhere.
  valid = jnp.roll(jnp.arange(TOKENS) < lengths[:, None], 2, axis=1)
  counts = valid[..., None, None]

  def run(backend: str):
    def loss(query, key, value):
      out = attend(query, key, value, valid, backend)
      return (out * weight * counts).sum(), out * counts

    mesh = sharding.make_mesh()
    spread = sharding.batch_sharding(mesh)
    step = sharding.traced_on(mesh, jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = jax.jit(step, in_shardings=(spread,) * 3)(query, key, value)
    return out, *gradients

  interpreted = functools.partial(pallas.pallas_call, interpret=True)
  with mock.patch.object(pallas, "pallas_call", interpreted):
    found = run("tpu")
  return max(float(jnp.abs(a - b).max()) for a, b in zip(found, run("xla"), strict=True))


if __name__ == "__main__":
  print(jax.device_count(), difference())
