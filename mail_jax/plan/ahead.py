"""Ahead-of-time compilation for a TPU topology."""

import contextlib
import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from mail_jax.distributed import sharding
from mail_jax.hardware.chips import Topology
from mail_jax.train.program import Program, build_program

# Keeps the compiler from looking for chips, other machines of a cluster, and other programs that
# use the chips, and from writing a log.
_ALONE = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_LOG_DIR": "disabled",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
}
# JAX's names of the compiler's optimization levels.
EFFORTS = {"full": "UNKNOWN", "quick": "O1"}


@contextlib.contextmanager
def without_flags() -> Iterator[None]:
  """Hides `XLA_FLAGS`: the compiler exits on unknown flags, such as those for CPUs."""
  flags = os.environ.pop("XLA_FLAGS", None)
  try:
    yield
  finally:
    if flags is not None:
      os.environ["XLA_FLAGS"] = flags


class DoesNotFitError(Exception):
  """The program needs more memory than the chip has; the message is the compiler's."""


def open_topology(topology: Topology) -> list[Any]:
  """Returns the devices of a slice to compile for, one per chip.

  Raises:
    InputError: the compiler is not installed, or does not know the slice.
  """
  _find_compiler()
  # A host has two chips along each of the first two sides; in smaller slices, fewer.
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
      f"--topology {topology.name}: unknown to the compiler; sides above 1 must be even: "
      f"{str(error).splitlines()[0].partition(': ')[2]}"
    ) from error
  return description.devices


def _find_compiler() -> None:
  path = os.environ.get("TPU_LIBRARY_PATH", "")
  spec = importlib.util.find_spec("libtpu")
  if not os.path.isfile(path) and (spec is None or spec.origin is None):
    raise InputError(
      "plan needs the TPU compiler, libtpu, in a separate folder (JAX would look for chips): run "
      "make plan, or pip install --target .libtpu -r requirements-plan.txt and then "
      "PYTHONPATH=.libtpu python -m mail_jax.plan ..."
    )
  for name, value in _ALONE.items():
    os.environ.setdefault(name, value)
  # JAX must not use the chips of this machine, or look for them.
  jax.config.update("jax_platforms", "cpu")


def compiler_version() -> str:
  """Returns the version of libtpu; empty if only its file is known."""
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    return importlib.metadata.version("libtpu")
  return ""


def make_program(config: ConfigDict, vocab_size: int, devices: list[Any]) -> Program:
  """Builds the programs of a config on a slice, with the config's mesh."""
  return build_program(config, vocab_size, sharding.make_mesh(**config.mesh, devices=devices))


def compile_lowered(
  lowered: jax.stages.Lowered, effort: str = "full"
) -> tuple[jax.stages.Compiled, float]:
  """Compiles a program.

  Args:
    lowered: for the devices of `open_topology`.
    effort: `full` is the one of training; `quick` takes a quarter of the time, and makes a program
      that needs as much memory, but has more HBM traffic.

  Returns:
    The compiled program, which cannot run here, and the seconds that compiling took.

  Raises:
    DoesNotFitError: the program needs more memory than a chip has.
  """
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
