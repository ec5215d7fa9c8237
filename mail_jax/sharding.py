"""Mesh and placement: the only file that knows the topology."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from input_pipeline.errors import InputError

Tree = Any  # a nest of arrays, as JAX has them

# Arrays smaller than this are not worth cutting (bytes).
_SMALL = 4 * 2**20


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
  """Mesh of all devices with the axes `data` and `fsdp`; one of the sizes may be -1, and takes what is left."""
  devices, sizes = jax.device_count(), {"data": data, "fsdp": fsdp}
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) == 1:
    sizes[free[0]] = devices // max(1, int(np.prod([s for s in sizes.values() if s != -1])))
  if min(sizes.values()) < 1 or sizes["data"] * sizes["fsdp"] != devices:
    raise InputError(
      f"config.mesh: data {data} x fsdp {fsdp} does not make {devices} devices; one may be -1"
    )
  return jax.make_mesh(
    (sizes["data"], sizes["fsdp"]), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Examples are spread over all devices."""
  return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, P())


def state_sharding(mesh: Mesh, state: Tree) -> Tree:
  """Placement of parameters, optimizer state and EMA: the largest divisible dimension of large arrays over `fsdp`."""
  parts = mesh.shape["fsdp"]

  def place(leaf):
    size = np.prod(leaf.shape, dtype=np.int64) * leaf.dtype.itemsize
    if parts > 1 and size >= _SMALL:
      for axis in sorted(range(leaf.ndim), key=lambda i: -leaf.shape[i]):
        if leaf.shape[axis] % parts == 0:
          return NamedSharding(mesh, P(*(None,) * axis, "fsdp"))
    return replicated(mesh)

  return jax.tree.map(place, state)


def global_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """Turns each process's share of a batch into one global array a field."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()
  }
