"""Mesh and placement: the only file that knows the topology."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from input_pipeline.common.errors import InputError
from mail_jax.models.parameters import Tree, path_name

Rule = (
  str | tuple[str | None, ...]
)  # "fsdp", "replicate", or an axis of the mesh (or None) for each dimension
Rules = Sequence[tuple[str, Rule]]

AnyMesh = Mesh | AbstractMesh  # without devices it says where things would lie

AXES = ("data", "fsdp")
# Smaller arrays are on every device: what cutting them would save is less than what gathering them would cost (bytes).
_SMALL = 2**17


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
  """Mesh with the axes `data` and `fsdp`; one of the sizes may be -1, and takes what is left.

  Args:
    data: copies of the model, each for its own examples.
    fsdp: devices that hold one copy together, each for its own examples too.
    devices: of which it is made; all that there are by default.

  Raises:
    InputError: the sizes do not make up the devices.
  """
  devices = jax.devices() if devices is None else devices
  count, sizes = len(devices), {"data": data, "fsdp": fsdp}
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) == 1:
    sizes[free[0]] = count // max(1, int(np.prod([s for s in sizes.values() if s != -1])))
  if min(sizes.values()) < 1 or sizes["data"] * sizes["fsdp"] != count:
    raise InputError(
      f"config.mesh: data {data} x fsdp {fsdp} does not make {count} devices; one may be -1"
    )
  shape = (sizes["data"], sizes["fsdp"])
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Examples are spread over all devices."""
  return NamedSharding(mesh, P(AXES))


def replicated(mesh: AnyMesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, P())


def state_sharding(mesh: AnyMesh, state: Tree, rules: Rules = ((".*", "fsdp"),)) -> Tree:
  """Placement of parameters, optimizer state and moving average.

  Args:
    mesh: of all devices.
    state: arrays or their shapes.
    rules: ordered (regex, rule); the first whose regex is found in the path of an array, such as
      `variables/params/encoder/block00/qkv/kernel` or `opt_state/1/mu/...`, decides. `fsdp` cuts the largest dimension
      that divides over that axis, of arrays that are worth it; `replicate` does not; a tuple names the axis, or None,
      of every dimension.

  Raises:
    InputError: an array that no rule names, an unknown rule, or one that does not fit an array.
  """

  def place(path, leaf) -> NamedSharding:
    name = path_name(path)
    rule = next((rule for pattern, rule in rules if re.search(pattern, name)), None)
    if rule == "fsdp":
      return NamedSharding(mesh, _cut_largest(leaf, mesh.shape["fsdp"]))
    if rule == "replicate":
      return replicated(mesh)
    if rule is None:
      raise InputError(
        f"config.sharding_rules: no rule matches {name!r}; end the list with ('.*', rule)"
      )
    return NamedSharding(mesh, _explicit(name, leaf, rule, mesh))

  return jax.tree_util.tree_map_with_path(place, state)


def _cut_largest(leaf, parts: int) -> P:
  size = np.prod(leaf.shape, dtype=np.int64) * leaf.dtype.itemsize
  if parts > 1 and size >= _SMALL:
    for axis in sorted(range(leaf.ndim), key=lambda i: -leaf.shape[i]):
      if leaf.shape[axis] % parts == 0:
        return P(*(None,) * axis, "fsdp")
  return P()


def _explicit(name: str, leaf, rule: Rule, mesh: AnyMesh) -> P:
  if isinstance(rule, str) or any(axis not in (None, *AXES) for axis in rule):
    raise InputError(
      f"config.sharding_rules: {rule!r} is neither 'fsdp', 'replicate' nor a tuple of "
      f"{', '.join(map(repr, AXES))} and None, one a dimension"
    )
  for length, axis in zip(leaf.shape, rule, strict=False):
    if len(rule) != leaf.ndim or (axis and length % mesh.shape[axis]):
      raise InputError(
        f"config.sharding_rules: {rule} does not fit {name!r} of shape {leaf.shape} on a mesh of {dict(mesh.shape)}"
      )
  return P(*rule)


def make_gather_and_scatter(
  mesh: AnyMesh, placed: Tree, dtypes: Tree
) -> tuple[Callable[[Tree], Tree], Callable[[Tree], Tree]]:
  """What brings parameters to every device before they are used, and gradients back to where the parameters are kept.

  Without them the compiler might as well move the activations, which are larger.

  Args:
    mesh: of all devices.
    placed: where each parameter is kept.
    dtypes: in which each parameter travels to the other devices. Its gradient comes in that dtype, too, and is kept in
      float32; in which of the two the devices' parts are summed is the compiler's choice.

  Returns:
    Two functions, to be called in the traced program; they do nothing where the parameters are on every device.
  """
  everywhere = replicated(mesh)

  def gather(params: Tree) -> Tree:
    def one(x: jax.Array, place: NamedSharding, dtype: Any) -> jax.Array:
      if place == everywhere:
        return x
      if x.dtype != dtype:
        # Told twice where it is, for else the compiler sends the wider one and converts it there.
        x = jax.lax.with_sharding_constraint(x.astype(dtype), place)
      return jax.lax.with_sharding_constraint(x, everywhere)

    return jax.tree.map(one, params, placed, dtypes)

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
  """A function, to be jitted for a mesh, in which those kernels that each device calls by itself find that mesh."""

  @functools.wraps(function)
  def traced(*args: Tree) -> Tree:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args)

  return traced


def shapes_at(shapes: Tree, places: Tree) -> Tree:
  """Shapes and dtypes of arrays, or of their shapes, with a sharding for each."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places
  )


def global_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """Turns each process's share of a batch into one global array a field."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()
  }


def on_every_device(mesh: Mesh, tree: Tree) -> Tree:
  """Puts arrays that every process has on every device."""
  everywhere = replicated(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(everywhere, x, x.shape), tree
  )


def local_batch_size(mesh: Mesh, batch_size: int) -> int:
  """Rows that this process gives so that every device has equally many and all have at least `batch_size` together."""
  return -(-batch_size // mesh.size) * len(mesh.local_devices)
