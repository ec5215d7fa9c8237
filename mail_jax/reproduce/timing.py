"""The time of a training step: measured on this machine, or estimated for another one."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.common import atomic_files
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from mail_jax.config import add_config_argument, load_config, parse_overrides
from mail_jax.distributed import processes, sharding
from mail_jax.hardware import chips, flops
from mail_jax.plan import estimate
from mail_jax.train.program import batch_shapes, build_program

OPTION = "--time_steps"
# Steps are timed until one of these is reached.
_SECONDS, _STEPS = 10.0, 10


@dataclasses.dataclass(frozen=True)
class Speed:
  """How fast a config trains and is evaluated.

  Attributes:
    step: seconds of a training step.
    expression: seconds of an expression in an evaluation, from `step` by the products of both.
    source: where `step` is from.
  """

  step: float
  expression: float
  source: str


def make(config: ConfigDict, step: float, source: str) -> Speed:
  """Returns the speed of a config with steps of so many seconds."""
  share = flops.forward_flops(config) * config.batch_size / flops.train_step_flops(config)
  return Speed(step, step * share / config.batch_size, source)


def at_utilisation(config: ConfigDict, topology: str, mfu: float) -> Speed:
  """Returns the speed on a slice or host at a utilisation of its peak.

  Args:
    config: a whole config.
    topology: as `plan --topology` takes it.
    mfu: the share of the chips' peak that the model's products reach, in (0, 1].

  Raises:
    InputError: the topology is unknown, or the share is not in that range.
  """
  if not 0 < mfu <= 1:
    raise InputError(f"--mfu {mfu:g}: must be above 0 and at most 1, such as 0.4")
  place = chips.parse_topology(topology)
  peak = place.chips * chips.peak_flops(place.chip, config.model.dtype)
  seconds = flops.train_step_flops(config) / (peak * mfu)
  return make(config, seconds, f"at {mfu:.0%} of the peak of {place.name}")


def from_plan(config: ConfigDict, path: pathlib.Path) -> Speed:
  """Returns the speed that `plan --json` estimated.

  Raises:
    InputError: the program does not fit on the chips.
  """
  (plan,) = json.loads(path.read_text())["plans"]
  if plan["estimate"] is None or plan["refused"]:
    raise InputError(f"--topology {plan['topology']}: the step does not fit: {plan['refused']}")
  found = plan["estimate"]
  if found["whole"]["seconds"]:
    step = max(found["whole"]["seconds"], *found["seconds"].values())
    return make(config, step, f"by the compiler's estimate for {plan['topology']}")
  step = max(found["seconds"].values())
  return make(config, step, f"at best, by the bound for {plan['topology']}")


def from_file(config: ConfigDict, path: pathlib.Path) -> Speed:
  """Returns the speed that `main` measured."""
  found = json.loads(path.read_text())
  return make(config, found["seconds"], f"{found['steps']} steps timed on {found['devices']}")


def key_of(config: ConfigDict) -> str:
  """Returns a text that configs with equally fast steps share."""
  parts = json.loads(config.to_json())
  program = ("image_size", "max_instances", "max_tokens", "batch_size", "grad_accum_steps")
  program += ("decode_every", "model", "loss", "mesh", "sharding_rules", "init", "tokenizer")
  same = {name: parts[name] for name in program} | {"lr_scale": parts["optimizer"]["lr_scale"]}
  return json.dumps(same, sort_keys=True)


def main(argv: Sequence[str]) -> None:
  """Times steps on all devices: the command in a process of its own, which holds the devices."""
  parser = command_parser("mail_jax.reproduce", None)
  parser.add_argument(OPTION, required=True, metavar="OUT")
  add_config_argument(parser)
  processes.add_arguments(parser)
  args, overrides = parse_overrides(parser, argv)
  processes.initialize(args)
  seconds, count = measure(load_config(args.config, overrides))
  if processes.is_main():
    kind = jax.devices()[0].device_kind
    devices = f"{jax.device_count()} x {kind}"
    found = {"seconds": seconds, "steps": count, "devices": devices}
    atomic_files.write_whole(args.time_steps, json.dumps(found))


def measure(config: ConfigDict, clock: Callable[[], float] = time.monotonic) -> tuple[float, int]:
  """Returns the seconds of a training step, without reading data, and how many were timed."""
  mesh = sharding.make_mesh(**config.mesh)
  program = build_program(config, estimate.vocab_size(config), mesh)
  batch = sharding.global_batch(mesh, _batch(config, mesh))
  state, rate = program.create(), np.float32(config.optimizer.lr)
  # The first step compiles, the second is the first one at full speed.
  for _ in range(2):
    state, _metrics = program.step(state, batch, rate)
  jax.block_until_ready(state)
  began, count, seconds = clock(), 0, 0.0
  while count < _STEPS:
    state, metrics = program.step(state, batch, rate)
    jax.block_until_ready(metrics)
    seconds, count = clock() - began, count + 1
    # Clocks differ, and all processes must stop at the same step.
    if processes.broadcast_from_main(int(seconds >= _SECONDS)):
      break
  return seconds / count, count


def _batch(config: ConfigDict, mesh: Any) -> dict[str, np.ndarray]:
  """Returns this process's rows of a batch: black images with full texts and all instances."""
  rows = sharding.local_batch_size(mesh, config.batch_size)
  full: Mapping[str, int] = {
    "num_instances": config.max_instances,
    "num_tokens": config.max_tokens,
    "weight": 1,
    "jitter_factors": 1,
  }
  return {
    name: np.full((rows, *spec.shape[1:]), full.get(name, 0), spec.dtype)
    for name, spec in batch_shapes(config).items()
  }
