"""The programs that `plan` compiles: a step of training, of an evaluation, and a prediction."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mail_jax.distributed import sharding
from mail_jax.hardware import flops
from mail_jax.models.build import apply_model, input_specs
from mail_jax.predict.segmenter import jit_predict
from mail_jax.train.program import Program

PROGRAMS = ("train", "evaluate", "predict")


def lower(kind: str, program: Program, canvas: tuple[int, int]) -> jax.stages.Lowered:
  """Traces one of the programs of a run.

  Args:
    kind: one of `PROGRAMS`; `predict` runs on one device, with its share of the batch.
    program: on the devices to compile for.
    canvas: height and width of the original images, padding included; not for `train`.
  """
  if kind == "train":
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    return program.step.lower(program.shapes, program.batch, rate)
  config, mesh = program.config, program.mesh
  variables = program.evaluated
  if kind == "evaluate":
    batch = _evaluated(config, canvas)
    spread = dict.fromkeys(batch, sharding.batch_sharding(mesh))
    return program.measure.lower(variables, sharding.shapes_at(batch, spread))
  device = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
  rows = config.batch_size // mesh.size
  batch = input_specs(config, rows) | {"original_size": jax.ShapeDtypeStruct((rows, 2), jnp.int32)}
  inputs: Any = sharding.shapes_at(
    (variables, batch), jax.tree.map(lambda _: device, (variables, batch))
  )
  predict = jit_predict(functools.partial(apply_model, program.model), config.model.selection)
  return predict.lower(*inputs, canvas)


def _evaluated(config: ConfigDict, canvas: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a batch of an evaluation (docs/reference/formats.md)."""
  rows, size = config.batch_size, config.image_size
  more = {
    "target": ((rows, size, size), jnp.bool_),
    "original_target": ((rows, *canvas), jnp.bool_),
    "original_size": ((rows, 2), jnp.int32),
    "cut": ((rows,), jnp.bool_),
    "index": ((rows,), jnp.int32),
    "total": ((rows,), jnp.int32),
  }
  return input_specs(config, rows) | {n: jax.ShapeDtypeStruct(*spec) for n, spec in more.items()}


def flops_by_hand(kind: str, config: ConfigDict) -> float:
  """Returns the operations of the model's products in a run of a program, over all devices."""
  if kind == "train":
    return flops.train_step_flops(config)
  return flops.forward_flops(config) * config.batch_size
