"""The compiled programs of a run: `train` runs them, and `plan` asks the compiler about them."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from input_pipeline import mixture
from input_pipeline.common.errors import InputError
from mail_jax.distributed import sharding
from mail_jax.evaluate.segmentation import jit_measure
from mail_jax.models.build import input_specs, make_model, path_name
from mail_jax.models.mail import IN_DTYPE, LOOKED_UP, MaIL
from mail_jax.train.optim import check_rules, freeze, make_optimizer_from
from mail_jax.train.step import StepOptions, TrainState, create_state, make_train_step

# For the same numbers in every run on GPUs: kernels are not chosen by measuring, and none adds in
# the order in which its threads happen to arrive. Elsewhere they always are the same.
DETERMINISTIC = {
  "xla_gpu_autotune_level": 0,
  "xla_gpu_deterministic_ops": True,
  "xla_gpu_exclude_nondeterministic_ops": True,
}


@dataclasses.dataclass(frozen=True)
class Program:
  """The programs of a run; each is compiled at its first call.

  Attributes:
    config: a whole config.
    model: the network.
    mesh: of the devices that the programs run on.
    shapes: shapes and shardings of the state.
    batch: shapes and shardings of a global batch of training.
    create: () -> the new state.
    step: (state, batch, learning rate) -> (state, metrics); it donates the state.
    evaluated: shapes and shardings of the variables that are evaluated.
    to_evaluate: state -> those variables: the moving average, if there is one.
    measure: (variables, batch) -> counts of an evaluation, on every device.
  """

  config: ConfigDict
  model: MaIL
  mesh: Mesh
  shapes: TrainState
  batch: dict[str, jax.ShapeDtypeStruct]
  create: Any
  step: Any
  evaluated: Any
  to_evaluate: Any
  measure: Any


def build_program(config: ConfigDict, vocab_size: int, mesh: Mesh) -> Program:
  """Builds the programs of a whole config on a mesh.

  Raises:
    InputError: the batch size is not a multiple of the devices, the attention does not run on them,
      or a rule does not fit.
  """
  _check_batch(config, mesh)
  model = make_model(config, vocab_size, mesh.devices.flat[0])
  optimizer = make_optimizer_from(config)
  create = functools.partial(create_state, model, optimizer, config)
  shapes = jax.eval_shape(create)
  check_rules(config, shapes.variables["params"])
  placed = sharding.state_sharding(mesh, shapes, config.sharding_rules)
  spread, same = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  params = sharding.shapes_at(shapes.variables["params"], placed.variables["params"])
  gather, scatter = sharding.make_gather_and_scatter(
    mesh, placed.variables["params"], _dtypes_sent(model, params, config)
  )
  options = StepOptions(
    seed=config.seed,
    loss_weights=dict(config.loss),
    instance_dropout=config.augment.instance_dropout,
    all_instances_dropout=config.augment.all_instances_dropout,
    ema_decay=config.ema_decay,
    decode_every=config.decode_every,
    teacher_forcing=config.teacher_forcing,
    grad_accum_steps=config.grad_accum_steps,
    datasets=mixture.several(config.dataset),
  )
  frozen = functools.partial(freeze, lr_scale=config.optimizer.lr_scale)
  step = make_train_step(model, optimizer, options, gather, scatter, frozen)

  def to_evaluate(state: TrainState) -> Any:
    return state.averaged if config.ema_decay else state.variables

  xla: Any = {"compiler_options": compiler_options(config, mesh.devices.flat[0].platform)}
  # Gathered once per evaluation, not once per batch.
  read = sharding.gathered_over_data(config.sharding_rules)
  evaluated = to_evaluate(sharding.state_sharding(mesh, shapes, read))
  return Program(
    config,
    model,
    mesh,
    shapes=sharding.shapes_at(shapes, placed),
    batch=sharding.shapes_at(batch_shapes(config), dict.fromkeys(batch_shapes(config), spread)),
    create=jax.jit(create, out_shardings=placed, **xla),
    step=jax.jit(
      sharding.traced_on(mesh, step),
      in_shardings=(placed, spread, same),
      out_shardings=(placed, same),
      donate_argnums=0,
      **xla,
    ),
    evaluated=sharding.shapes_at(to_evaluate(shapes), evaluated),
    to_evaluate=jax.jit(to_evaluate, out_shardings=evaluated, **xla),
    measure=jit_measure(model, mesh, evaluated, **xla),
  )


def compiler_options(config: ConfigDict, platform: str) -> dict[str, Any] | None:
  """Returns what `config.deterministic` asks of XLA on a platform."""
  return DETERMINISTIC if config.deterministic and platform == "gpu" else None


def batch_shapes(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a global batch of training (docs/reference/formats.md)."""
  rows, size = config.batch_size, config.image_size
  specs = input_specs(config, rows)
  specs |= {
    "target": jax.ShapeDtypeStruct((rows, size, size), jnp.bool_),
    "weight": jax.ShapeDtypeStruct((rows,), jnp.float32),
  }
  if config.augment.jitter:
    specs["jitter_factors"] = jax.ShapeDtypeStruct((rows, 3), jnp.float32)
  if mixture.several(config.dataset):
    specs["dataset"] = jax.ShapeDtypeStruct((rows,), jnp.int32)
  return specs


def _dtypes_sent(model: MaIL, params: Any, config: ConfigDict) -> Any:
  """Returns the type in which the model reads each of its parameters, which is sent in it."""

  def dtype(path: Any, x: jax.ShapeDtypeStruct) -> Any:
    name = path_name(path)
    if name == LOOKED_UP and _is_sent_by_row(x, config):
      return sharding.STAYS
    return model.options.dtype if IN_DTYPE.match(name) else x.dtype

  return jax.tree_util.tree_map_with_path(dtype, params)


def _is_sent_by_row(table: jax.ShapeDtypeStruct, config: ConfigDict) -> bool:
  """Returns whether the devices that share a table read fewer rows than it has."""
  place = table.sharding
  assert isinstance(place, NamedSharding)
  share = math.prod(place.shard_shape(table.shape)) / math.prod(table.shape)
  rows = config.batch_size * config.max_tokens / (share * place.mesh.size)
  return rows < table.shape[0]


def _check_batch(config: ConfigDict, mesh: Mesh) -> None:
  counts = {
    name: int(config[name])  # pyright: ignore[reportArgumentType]
    for name in ("batch_size", "grad_accum_steps", "decode_every")
  }
  for name, count in counts.items():
    if count < 1:
      raise InputError(f"config.{name} is {count}; it must be at least 1")
  size = counts.pop("batch_size")
  if size % (mesh.size * math.prod(counts.values())):
    times = "".join(f" times config.{name} {n}" for name, n in counts.items() if n > 1)
    raise InputError(f"config.batch_size {size} is not a multiple of {mesh.size} devices{times}")
