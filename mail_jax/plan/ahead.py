"""The real step of training, compiled for chips that are not there."""

import contextlib
import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from mail_jax.distributed import sharding
from mail_jax.hardware.chips import Topology
from mail_jax.train.program import Program, build_program

# The compiler looks for neither chips, nor machines of a cluster, nor other programs that hold them, and keeps no log.
_ALONE = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_LOG_DIR": "disabled",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
}
# JAX's own names of how much the compiler takes upon itself for a fast program.
EFFORTS = {"full": "UNKNOWN", "quick": "O1"}


@contextlib.contextmanager
def without_flags() -> Iterator[None]:
  """Hides `XLA_FLAGS`: the compiler ends the process at a flag that it does not know, such as any for CPUs."""
  flags = os.environ.pop("XLA_FLAGS", None)
  try:
    yield
  finally:
    if flags is not None:
      os.environ["XLA_FLAGS"] = flags


class DoesNotFitError(Exception):
  """The compiler says that the program needs more memory than there is; the message is the compiler's."""


def open_topology(topology: Topology) -> list[Any]:
  """The devices of a slice, one a chip, to compile for.

  Raises:
    InputError: the compiler is not installed, or knows no such slice.
  """
  _find_compiler()
  # Two chips each along the first two sides have a host; smaller slices have a smaller one.
  first, second, *_ = topology.sides
  try:
    description = topologies.get_topology_desc(
      topology.name,
      platform="tpu",
      chip_config_name="megacore" if topology.chip.cores > 1 else "default",
      chips_per_host_bounds=(min(2, first), min(2, second), 1),
    )
  except jax.errors.JaxRuntimeError as error:
    raise InputError(
      f"--topology {topology.name}: the compiler has no such slice; sides of more than one chip are even: "
      f"{str(error).splitlines()[0].partition(': ')[2]}"
    ) from error
  return description.devices


def _find_compiler() -> None:
  path = os.environ.get("TPU_LIBRARY_PATH", "")
  spec = importlib.util.find_spec("libtpu")
  if not os.path.isfile(path) and (spec is None or spec.origin is None):
    raise InputError(
      "plan needs the TPU compiler, libtpu, kept apart because JAX looks for chips where it is: make plan, or "
      "pip install --target .libtpu -r requirements-plan.txt; then PYTHONPATH=.libtpu python -m mail_jax.plan ..."
    )
  for name, value in _ALONE.items():
    os.environ.setdefault(name, value)
  # A machine that has chips leaves them alone, and one that has none does not look for them.
  jax.config.update("jax_platforms", "cpu")


def compiler_version() -> str:
  """Version of libtpu, or nothing where only its file is known."""
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    return importlib.metadata.version("libtpu")
  return ""


def make_program(config: ConfigDict, vocab_size: int, devices: list[Any]) -> Program:
  """The programs of a config on a slice, with the mesh that it asks for."""
  return build_program(config, vocab_size, sharding.make_mesh(**config.mesh, devices=devices))


def compile_step(program: Program, effort: str = "full") -> tuple[jax.stages.Compiled, float]:
  """Compiles the step of training.

  Args:
    program: on the devices of `open_topology`.
    effort: `full` is what training compiles with; `quick` takes a quarter of the time, makes a program that takes as
      much memory but leaves more of it in HBM.

  Returns:
    The compiled step, which cannot be run here, and the seconds it took.

  Raises:
    DoesNotFitError: it needs more memory than a chip has.
  """
  rate = jax.ShapeDtypeStruct((), jnp.float32)
  lowered = program.step.lower(program.shapes, program.batch, rate)
  began, usual = time.monotonic(), jax.config.values["jax_optimization_level"]
  jax.config.update("jax_optimization_level", EFFORTS[effort])
  try:
    with without_flags():
      compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise DoesNotFitError(str(error)) from error
  finally:
    jax.config.update("jax_optimization_level", usual)
  return compiled, time.monotonic() - began
