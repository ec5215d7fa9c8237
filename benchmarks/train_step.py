r"""Measures the time of a training step, and of the same network in PyTorch:

  python -m benchmarks.train_step --batch_size 4 --config.image_size=384 \
      --config.model.dtype=float32

Our program and each peer start from the same weights and get the same batch; their losses must
agree before the measurement. Then they take turns (A B A B), and the figures are medians over the
turns. A step includes everything: losses, gradients, clipping, AdamW and the moving average. Beside
them is what `mail_jax.plan` says of the program that ran.
`--peers` are the twin of `benchmarks/torch_twin.py`, eager, compiled, and on CPUs with its linear
layers through oneDNN. All of them use a GPU if there is one.
"""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import contestants
from input_pipeline.common.errors import run_command
from mail_jax.distributed import sharding
from mail_jax.hardware import flops
from mail_jax.train.program import build_program

# Difference of the losses, which are about 3, of two programs: float32, and with bf16 inside.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


def serve_ours(config: ConfigDict, folder: str) -> None:
  """Serves our step, as `mail_jax.train` runs it."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  program = build_program(config, contestants.VOCAB, mesh)
  batch = sharding.global_batch(mesh, contestants.make_batch(config, config.batch_size))
  memory, lr = contestants.jax_memory(), np.float32(config.optimizer.lr)
  held: dict[str, Any] = {}

  def step() -> dict[str, Any]:
    held["state"], metrics = held["compiled"](held["state"], batch, lr)
    return metrics

  def start() -> float:
    held["state"] = program.create()
    held["compiled"] = program.step.lower(held["state"], batch, lr).compile()
    contestants.write_variables(folder, jax.device_get(held["state"].variables))
    loss = float(step()["loss"])
    jax.block_until_ready(step())
    return loss

  contestants.serve(
    start,
    step,
    lambda m: jax.block_until_ready((m, held["state"])),
    memory,
    lambda: contestants.plan_of(held["compiled"], config.model.dtype),
  )


def serve_peer(name: str, config: ConfigDict, folder: str) -> None:
  """Serves the twin's step."""
  twin, batch, _, memory = contestants.open_peer(name, config, folder)
  from benchmarks import torch_twin

  step = torch_twin.Training(twin, config, compiled=name == "compiled")

  def start() -> float:
    loss = step(batch).item()
    step(batch).item()
    return loss

  contestants.serve(start, lambda: step(batch), lambda loss: loss.item(), memory)


CONTEST = contestants.Contest(
  "benchmarks.train_step",
  __doc__,
  "samples",
  flops.train_step_flops,
  TOLERANCE,
  serve_ours,
  serve_peer,
)


if __name__ == "__main__":
  run_command(CONTEST.main)
