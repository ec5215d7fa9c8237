"""Programs on eight devices whose collectives are known; prints their text as JSON, by name."""

import functools
import json

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

ROUNDS = 5


def _looped(x: jax.Array) -> jax.Array:
  step = functools.partial(
    jax.lax.ppermute, axis_name="b", perm=[(i, (i + 1) % 4) for i in range(4)]
  )
  return jax.lax.fori_loop(0, ROUNDS, lambda _, y: jnp.sin(step(y)), x)


# Each gets 16 x 32 float32 a device: 2048 bytes.
PROGRAMS = {
  "all-reduce": lambda x: jax.lax.psum(x, ("a", "b")),
  "all-reduce in groups": lambda x: jax.lax.psum(x, "b"),
  "all-gather": lambda x: jax.lax.all_gather(x, "b"),
  "reduce-scatter": lambda x: jax.lax.psum_scatter(x, "b", scatter_dimension=0, tiled=True),
  "all-to-all": lambda x: jax.lax.all_to_all(x, "b", 0, 0, tiled=True),
  "collective-permute in a loop": _looped,
  "none": jnp.sin,
}


def compiled_text(name: str) -> str:
  """The program as it was compiled."""
  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  function = jax.shard_map(
    PROGRAMS[name], mesh=mesh, in_specs=P(("a", "b")), out_specs=P(("a", "b")), check_vma=False
  )
  return jax.jit(function).lower(jax.ShapeDtypeStruct((128, 32), jnp.float32)).compile().as_text()


if __name__ == "__main__":
  print(json.dumps({name: compiled_text(name) for name in PROGRAMS}))
