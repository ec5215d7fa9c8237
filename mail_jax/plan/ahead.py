"""Ahead-of-time compilation of a program for TPUs or GPUs that are not there."""

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
from mail_jax.hardware.chips import Gpu, Topology, Tpu
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
  "CUDA_VISIBLE_DEVICES": "-1",
}
# JAX's names of the TPU compiler's optimization levels.
EFFORTS = {"full": "UNKNOWN", "quick": "O1"}
_TPU_COMPILER = ("libtpu",)
_GPU_COMPILER = ("jax-cuda13-pjrt", "jax-cuda13-plugin", "nvidia-cudnn-cu13")
# Kernels are tuned by running them, and Triton's products cannot be compiled untuned.
_UNTUNED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
UNTUNED = (
  "compiled without autotuning, which needs a GPU, and without products by Triton: their time is "
  "the bound's, not the compiler's"
)


@contextlib.contextmanager
def without_flags() -> Iterator[None]:
  """Hides `XLA_FLAGS`: the compilers exit on unknown flags, such as those for CPUs."""
  flags = os.environ.pop("XLA_FLAGS", None)
  try:
    yield
  finally:
    if flags is not None:
      os.environ["XLA_FLAGS"] = flags


class DoesNotFitError(Exception):
  """The program needs more memory than the chip has; the message is the compiler's."""


def open_topology(topology: Topology) -> list[Any]:
  """Returns the devices to compile for, one per chip.

  Raises:
    InputError: the compiler is not installed, or does not know the slice.
  """
  # The compilers must not use the chips of this machine, or look for them.
  for name, value in _ALONE.items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")
  with without_flags():
    if isinstance(topology.chip, Gpu):
      return _open_gpus(topology, topology.chip)
    return _open_tpus(topology, topology.chip)


def _open_tpus(topology: Topology, tpu: Tpu) -> list[Any]:
  path = os.environ.get("TPU_LIBRARY_PATH", "")
  spec = importlib.util.find_spec("libtpu")
  if not os.path.isfile(path) and (spec is None or spec.origin is None):
    raise InputError(_how_to_install("TPU", "libtpu", ".libtpu", "requirements-plan.txt"))
  # A host has two chips along each of the first two sides; in smaller slices, fewer.
  first, second, *_ = topology.sides
  slices = {"num_slices": topology.islands} if topology.islands > 1 else {}
  try:
    description = topologies.get_topology_desc(
      Topology(tpu, topology.sides).name,
      platform="tpu",
      chip_config_name="megacore" if tpu.cores > 1 else "default",
      chips_per_host_bounds=(min(2, first), min(2, second), 1),
      **slices,
    )
  except jax.errors.JaxRuntimeError as error:
    raise InputError(
      f"--topology {topology.name}: unknown to the compiler; sides above 1 must be even: "
      f"{str(error).splitlines()[0].partition(': ')[2]}"
    ) from error
  return description.devices


def _open_gpus(topology: Topology, gpu: Gpu) -> list[Any]:
  try:
    cudnn = [importlib.metadata.version(name) for name in _GPU_COMPILER][-1]
  except importlib.metadata.PackageNotFoundError as error:
    raise InputError(
      _how_to_install("GPU", error.name or "", ".xla_gpu", "requirements-plan-gpu.txt")
    ) from error
  description = topologies.get_topology_desc(
    platform="cuda",
    target_config=_target(gpu, cudnn),
    topology=f"1x{topology.islands}x{topology.sides[0]}",
  )
  return description.devices


def _how_to_install(kind: str, package: str, folder: str, requirements: str) -> str:
  return (
    f"plan needs the {kind} compiler, {package}, in a separate folder (JAX would look for chips): "
    f"run make plan, or pip install --no-deps --target {folder} -r {requirements} and then "
    f"PYTHONPATH={folder} python -m mail_jax.plan ..."
  )


def _target(gpu: Gpu, cudnn: str) -> str:
  """Describes a GPU to the compiler: XLA's `GpuTargetConfigProto`, in text form."""
  major, minor, patch, *_ = cudnn.split(".")
  return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
  core_count: {gpu.multiprocessors} fpus_per_core: {gpu.lanes} clock_rate_ghz: {gpu.clock / 1e9}
  device_memory_size: {gpu.memory_published} memory_bandwidth: {gpu.bandwidth:.0f}
  l2_cache_size: {gpu.cache} shared_memory_per_core: {gpu.shared_memory}
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {gpu.shared_memory - 1024}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  threads_per_core_limit: {gpu.threads} threads_per_block_limit: 1024 threads_per_warp: 32
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
platform_name: "CUDA" runtime_version {{ major: 13 }}
dnn_version_info {{ major: {major} minor: {minor} patch: {patch} }}
device_description_str: "NVIDIA {gpu.name.upper()}"
"""


def compiler_versions() -> dict[str, str]:
  """Returns the versions of the installed compilers; of a file of libtpu none is known."""
  versions = {}
  for name in (*_TPU_COMPILER, *_GPU_COMPILER):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return versions


def make_program(config: ConfigDict, vocab_size: int, devices: list[Any]) -> Program:
  """Builds the programs of a config on the devices, with the config's mesh."""
  # JAX tells a real GPU's slice by the links between machines; here all say 0.
  slice_of = sharding.host_of if devices[0].platform == "gpu" else sharding.slice_of
  mesh = sharding.make_mesh(**config.mesh, devices=devices, slice_of=slice_of)
  return build_program(config, vocab_size, mesh)


def compile_lowered(
  lowered: jax.stages.Lowered, device: Any, effort: str = "full"
) -> tuple[jax.stages.Compiled, float]:
  """Compiles a program.

  Args:
    lowered: for the devices of `open_topology`.
    device: one of them.
    effort: of the TPU compiler. `full` is the one of training; `quick` takes a quarter of the time,
      and makes a program that needs as much memory, but has more HBM traffic.

  Returns:
    The compiled program, which cannot run here, and the seconds that compiling took.

  Raises:
    DoesNotFitError: the program needs more memory than a chip has.
  """
  began, usual = time.monotonic(), jax.config.values["jax_optimization_level"]
  gpu = device.platform == "gpu"
  jax.config.update("jax_optimization_level", EFFORTS["full" if gpu else effort])
  try:
    with without_flags():
      compiled = lowered.compile(compiler_options=_UNTUNED if gpu else None)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise DoesNotFitError(str(error)) from error
  finally:
    jax.config.update("jax_optimization_level", usual)
  return compiled, time.monotonic() - began
