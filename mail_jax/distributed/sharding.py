"""The mesh of devices, and where arrays are placed on it; no other file knows the topology."""

import collections
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from input_pipeline.common.errors import InputError
from mail_jax.models.build import Tree, path_name
from mail_jax.models.rules import by_rule

# "fsdp", "zero1", "replicate", or an axis of the mesh (or None) for each dimension.
Rule = str | tuple[str | None, ...]
Rules = Sequence[tuple[str, Rule]]

# An abstract mesh, without devices, is enough to plan a placement.
AnyMesh = Mesh | AbstractMesh

AXES = ("slice", "data", "fsdp")
# The axes of a rule of one word: none shards over slices, which only a slow network joins.
_SHARDED_BY = {"fsdp": ("fsdp",), "zero1": ("fsdp", "data")}
# Instead of a dtype, for a parameter that is not sent: see `make_gather_and_scatter`.
STAYS = object()
# Bytes. Smaller arrays are replicated: sharding would save less memory than gathering costs time.
_MIN_SHARDED_BYTES = 2**17


def slice_of(device: Any) -> int:
  """Returns the number of a device's slice; devices of a single slice may not say it."""
  names = ("slice_index", "partition_index")  # Versions of JAX differ.
  return next((number for name in names if (number := getattr(device, name, None)) is not None), 0)


def host_of(device: Any) -> int:
  """Returns the number of a device's host."""
  return device.process_index


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  devices: Sequence[Any] | None = None,
  slice_of: Callable[[Any], int] = slice_of,
) -> Mesh:
  """Returns a mesh with the axes `slice`, `data` (of each slice) and `fsdp`.

  A slice is what fast links join: a TPU slice, or a machine with GPUs.

  Args:
    data: number of copies of the model on all slices, each for its own examples; -1 for as many as
      the devices allow, which holds for `fsdp`, too.
    fsdp: number of devices of a slice that share one copy, each for its own examples too.
    devices: to use; all by default.
    slice_of: returns the number of a device's slice.

  Raises:
    InputError: the product of the sizes is not the number of devices, or `fsdp` would be cut across
      slices.
  """
  devices = jax.devices() if devices is None else devices
  count, sizes = len(devices), {"data": data, "fsdp": fsdp}
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) == 1:
    sizes[free[0]] = count // max(1, int(np.prod([s for s in sizes.values() if s != -1])))
  if min(sizes.values()) < 1 or sizes["data"] * sizes["fsdp"] != count:
    raise InputError(
      f"config.mesh: data {data} x fsdp {fsdp} is not {count}, the number of devices; one may be -1"
    )
  return Mesh(
    _arrange(sizes["fsdp"], devices, slice_of), AXES, axis_types=(AxisType.Auto,) * len(AXES)
  )


def _arrange(fsdp: int, devices: Sequence[Any], slice_of: Callable[[Any], int]) -> np.ndarray:
  """Returns the devices as [slice, data, fsdp], neighbours on a link next to each other."""
  slices = collections.defaultdict(list)
  for device in devices:
    slices[slice_of(device)].append(device)
  sizes = [len(of_one) for of_one in slices.values()]
  smallest, largest = min(sizes), max(sizes)
  if smallest < largest:
    raise InputError(
      f"config.mesh: the slices have {smallest} to {largest} devices; use slices of one size"
    )
  if smallest % fsdp:
    raise InputError(
      f"config.mesh: fsdp {fsdp} would be cut across {len(slices)} slices of {smallest} devices; "
      f"set fsdp to {smallest} or a divisor of it, and data to -1"
    )
  # A side of the torus is split where no other arrangement fits.
  return np.stack(
    [
      mesh_utils.create_device_mesh(
        (smallest // fsdp, fsdp), of_one, allow_split_physical_axes=True
      )
      for _, of_one in sorted(slices.items())
    ]
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch, whose examples are spread over all devices."""
  return NamedSharding(mesh, P(AXES))


def replicated(mesh: AnyMesh) -> NamedSharding:
  """Returns the sharding of arrays that are the same on every device."""
  return NamedSharding(mesh, P())


def state_sharding(mesh: AnyMesh, state: Tree, rules: Rules = ((".*", "fsdp"),)) -> Tree:
  """Returns the shardings of parameters, optimizer state and moving average.

  Args:
    mesh: of all devices.
    state: arrays or their shapes.
    rules: ordered (regex, rule); the first whose regex matches in the path of an array, such as
      `variables/params/encoder/block00/qkv/kernel` or `opt_state/1/mu/...`, applies. `fsdp` shards
      a dimension that the axis divides, of arrays that are large enough; `zero1` shards over
      `data`, too, so that each device of a slice updates its own part of the model; `replicate`
      does not shard; a tuple names an axis, or None, for every dimension.

  Raises:
    InputError: no rule matches an array, a rule is unknown, or does not fit an array.
  """

  def place(path, leaf, rule) -> NamedSharding:
    if isinstance(rule, str) and rule in _SHARDED_BY:
      return NamedSharding(mesh, _shard(leaf, mesh, _SHARDED_BY[rule]))
    if rule == "replicate":
      return replicated(mesh)
    return NamedSharding(mesh, _explicit(path_name(path), leaf, rule, mesh))

  return jax.tree_util.tree_map_with_path(place, state, by_rule(state, rules, "sharding_rules"))


def gathered_over_data(rules: Rules) -> Rules:
  """Returns the rules by which variables that are only read are placed: `fsdp` for `zero1`."""
  return [(pattern, "fsdp" if rule == "zero1" else rule) for pattern, rule in rules]


def _shard(leaf, mesh: AnyMesh, axes: Sequence[str]) -> P:
  """Shards over one axis after the other, each time the dimension that leaves the fullest tiles.

  Of several such dimensions it takes the longest.
  """
  shape, names = list(leaf.shape), [[] for _ in leaf.shape]
  if math.prod(shape) * leaf.dtype.itemsize < _MIN_SHARDED_BYTES:
    return P()
  for axis in axes:
    parts = mesh.shape[axis]
    shards = {
      i: [*shape[:i], size // parts, *shape[i + 1 :]]
      for i, size in enumerate(shape)
      if size % parts == 0 and parts > 1
    }
    if shards:
      best = min(shards, key=lambda i: (_padded(shards[i]), -shape[i]))
      shape = shards[best]
      names[best].append(axis)
  while names and not names[-1]:
    names.pop()
  return P(*(tuple(of_one) or None for of_one in names))


def _padded(shape: Sequence[int]) -> int:
  """Returns the elements of an array in tiles of 8 x 128, the longest dimension along the tile.

  TPUs store arrays so, and move no less than whole tiles.
  """
  *rest, second, longest = sorted([1, *shape])
  return math.prod(rest) * (-(-second // 8) * 8) * (-(-longest // 128) * 128)


def _explicit(name: str, leaf, rule: Rule, mesh: AnyMesh) -> P:
  if not isinstance(rule, tuple | list) or any(axis not in (None, *AXES) for axis in rule):
    raise InputError(
      f"config.sharding_rules: {rule!r} is neither 'fsdp', 'zero1', 'replicate' nor a tuple of "
      f"{', '.join(map(repr, AXES))} and None, one per dimension"
    )
  for length, axis in zip(leaf.shape, rule, strict=False):
    if len(rule) != leaf.ndim or (axis and length % mesh.shape[axis]):
      raise InputError(
        f"config.sharding_rules: {rule} does not fit {name!r} of shape {leaf.shape} on a mesh of "
        f"{dict(mesh.shape)}"
      )
  return P(*rule)


def make_gather_and_scatter(
  mesh: AnyMesh, placed: Tree, dtypes: Tree
) -> tuple[Callable[[Tree], Tree], Callable[[Tree], Tree]]:
  """Returns functions that gather parameters before they are used, and scatter their gradients.

  Without them the compiler might move the activations instead, which are larger.

  Args:
    mesh: of all devices.
    placed: the sharding of each parameter.
    dtypes: the dtype in which each parameter is sent to the other devices, or `STAYS` if what is
      read of it is sent instead. Its gradient has that dtype too, and is kept in float32; in which
      of the two it is summed over devices is the compiler's choice.

  Returns:
    Two functions to call in the traced program; they leave replicated parameters alone.
  """
  everywhere = replicated(mesh)

  def gather(params: Tree) -> Tree:
    def gather_leaf(x: jax.Array, place: NamedSharding, dtype: Any) -> jax.Array:
      if place == everywhere or dtype is STAYS:
        return x
      if x.dtype != dtype:
        # Constrained twice: otherwise the compiler sends the wider dtype and converts it there.
        x = jax.lax.with_sharding_constraint(x.astype(dtype), place)
      return jax.lax.with_sharding_constraint(x, everywhere)

    return jax.tree.map(gather_leaf, params, placed, dtypes)

  def scatter(grads: Tree) -> Tree:
    return jax.tree.map(
      lambda x, s: (
        x if s == everywhere else jax.lax.with_sharding_constraint(x.astype(jnp.float32), s)
      ),
      grads,
      placed,
    )

  return gather, scatter


def traced_on(mesh: Mesh, function: Callable[..., Tree]) -> Callable[..., Tree]:
  """Returns a function, to be jitted, in which kernels that use `shard_map` find the mesh."""

  @functools.wraps(function)
  def traced(*args: Tree) -> Tree:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args)

  return traced


def shapes_at(shapes: Tree, places: Tree) -> Tree:
  """Returns shapes and dtypes of arrays, or of their shapes, with a sharding for each."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places
  )


def global_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """Turns each process's share of a batch into one global array per field."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()
  }


def on_every_device(mesh: Mesh, tree: Tree) -> Tree:
  """Puts arrays, the same on every process, on every device."""
  everywhere = replicated(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(everywhere, x, x.shape), tree
  )


def local_batch_size(mesh: Mesh, batch_size: int) -> int:
  """Returns the examples of this process, so that all devices have equally many.

  Together they have at least `batch_size`.
  """
  return -(-batch_size // mesh.size) * len(mesh.local_devices)
