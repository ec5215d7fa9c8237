"""What helps a run that has no memory left, in the order in which it helps."""

import math
from typing import Any

import jax
from ml_collections import ConfigDict

from mail_jax.distributed import sharding
from mail_jax.train.program import Program, build_program

_PLAN = "`mail-jax plan` tells what a setting takes"


def ways_out(config: ConfigDict, vocab_size: int, free: int | None) -> list[str]:
  """Returns what helps, best first.

  What a batch takes can be made smaller without other results. What the model itself takes, its
  parameters, gradients, optimizer and average, cannot; if that alone is too much, nothing about the
  batch helps.

  Args:
    config: of the run.
    vocab_size: of its tokenizer.
    free: bytes that each device had at the start; None if unknown.
  """
  program = build_program(config, vocab_size, sharding.make_mesh(**config.mesh))
  needed = state_bytes(program)
  if free is not None and needed > free:
    return _of_state(program, needed, free)
  return [*_of_batch(config, program.mesh.size), _PLAN]


def state_bytes(program: Program) -> int:
  """Returns the bytes of the state and the gradients on a device during an update."""
  return _bytes(program.shapes) + _bytes(program.shapes.variables["params"])


def _bytes(tree: Any) -> int:
  """Returns the bytes of a device's share of arrays, from their shapes and shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def _of_state(program: Program, needed: int, free: int) -> list[str]:
  config = program.config
  model = "a smaller config.model.width or config.model.depth"
  if config.ema_decay:
    model += f"; config.ema_decay=0.0 ({_bytes(program.shapes.averaged) / 1e9:.1f} GB less)"
  sizes = f"the model and its optimizer take {needed / 1e9:.1f} GB, a device has {free / 1e9:.1f}"
  return [
    f"more devices that share the model, config.mesh.fsdp={2 * config.mesh.fsdp} ({sizes})",
    model,
  ]


def _of_batch(config: ConfigDict, devices: int) -> list[str]:
  accumulated, decoded = config.grad_accum_steps, config.decode_every
  per_device = config.batch_size // (devices * decoded)
  more = next((n for n in range(2 * accumulated, per_device + 1) if per_device % n == 0), None)
  found = []
  if more:
    found.append(f"config.grad_accum_steps={more}, with the same batch")
  if config.model.remat != "block":
    found.append("config.model.remat=block, slower")
  if decoded == 1 and config.batch_size % (2 * devices * accumulated) == 0:
    found.append("config.decode_every=2")
  if config.batch_size > devices:
    found.append(f"config.batch_size={max(devices, config.batch_size // 2)}")
  return [*found, f"more devices that share the model, config.mesh.fsdp={2 * config.mesh.fsdp}"]
