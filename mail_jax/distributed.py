"""How the processes of a run find each other, on one machine or on many.

Every command that runs on several processes is started once a process, with the same arguments, and calls
`initialize` before anything touches a device. docs/scale.md has the launch recipes.
"""

import argparse
import contextlib
import glob
import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from input_pipeline.errors import InputError

# Seconds after which a host that says nothing counts as dead; JAX then ends the processes of all others.
HEARTBEAT = 40
# Seconds that a process waits at its end for the others to end too.
SHUTDOWN = 30
# Seconds for all processes to come: on a cluster one may have to pull its image first.
STARTUP = 300

_WAY_OUT = "or give --coordinator_address, --num_processes and --process_id"
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options for a run on several processes where no cluster tells what they are."""
  group = parser.add_argument_group(
    "several processes",
    "not needed on one machine, nor on Cloud TPU, Slurm, Kubernetes and Open MPI; else all three",
  )
  group.add_argument(
    "--coordinator_address", metavar="HOST:PORT", help="of process 0, a port that is free there"
  )
  group.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
  group.add_argument("--process_id", type=int, metavar="I", help="which one this is, from 0")


def initialize(args: argparse.Namespace) -> None:
  """Joins the other processes of the run; does nothing where there are none.

  Args:
    args: with the options of `add_arguments`. Without them the environment decides, see `detect`.

  Raises:
    InputError: the options, or what the environment says, cannot be used.
  """
  options = explicit(args) or detect(os.environ)
  if options is None:
    return
  jax.distributed.initialize(
    **options,
    initialization_timeout=STARTUP,
    heartbeat_timeout_seconds=HEARTBEAT,
    shutdown_timeout_seconds=SHUTDOWN,
  )


def is_main() -> bool:
  """Whether this is process 0: the only one that prints, and writes logs."""
  return jax.process_index() == 0


def agree(value: int) -> int:
  """The number of process 0, on all of them: clocks differ, steps must not."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def explicit(args: argparse.Namespace) -> dict[str, Any] | None:
  """Arguments for `jax.distributed.initialize` from the command line; None where it says nothing.

  Raises:
    InputError: some are missing, or cannot be.
  """
  names = ("coordinator_address", "num_processes", "process_id")
  given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
  if not given:
    return None
  if missing := [f"--{name}" for name in names if name not in given]:
    raise InputError(
      f"--{next(iter(given))} is given without {' and '.join(missing)}: give all three, or none "
      "where the cluster tells them"
    )
  address, count, index = (given[name] for name in names)
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise InputError(
      f"--coordinator_address {address}: write HOST:PORT of process 0, such as 10.0.0.1:8476"
    )
  if count < 1 or not 0 <= index < count:
    raise InputError(
      f"--process_id {index} of --num_processes {count}: processes are numbered from 0 to N - 1"
    )
  return given | {"cluster_detection_method": "deactivate"}


def detect(environ: Mapping[str, str]) -> dict[str, Any] | None:
  """Arguments for `jax.distributed.initialize` where a cluster runs several processes, else None.

  JAX itself finds out who and where they are; this says when to ask it, in the order in which it looks. On a machine
  of its own it would fail, and a job of one process needs no coordinator.

  Args:
    environ: variables of the process.

  Raises:
    InputError: there are several processes and JAX could not find them.
  """
  for cluster in (_open_mpi, _slurm, _cloud_tpu, _kubernetes):
    options = cluster(environ)
    if options is not None:
      return options
  return None


def _open_mpi(environ: Mapping[str, str]) -> dict[str, Any] | None:
  if _number(environ, "OMPI_COMM_WORLD_SIZE") < 2:
    return None
  if "OMPI_MCA_orte_hnp_uri" in environ:
    return {}
  # From version 5 on, mpirun no longer says where it runs.
  if importlib.util.find_spec("mpi4py"):
    return {"cluster_detection_method": "mpi4py"}
  raise InputError(f"mpirun of Open MPI 5: install mpi4py, {_WAY_OUT} $OMPI_COMM_WORLD_RANK")


def _slurm(environ: Mapping[str, str]) -> dict[str, Any] | None:
  # Both are of the step that srun started; those of an allocation alone say nothing of this process.
  tasks = _number(environ, "SLURM_STEP_NUM_TASKS")
  if tasks < 2 or "SLURM_STEP_NODELIST" not in environ:
    return None
  visible = environ.get("CUDA_VISIBLE_DEVICES", "")
  gpus = len(visible.split(",")) if visible else 0
  tasks_a_node = tasks // max(1, _number(environ, "SLURM_STEP_NUM_NODES"))
  if not gpus or gpus == tasks_a_node > 1:
    return {}  # JAX gives the task the GPU of its number on the node
  # Otherwise JAX's default would leave GPUs idle, or ask for one that the task does not see.
  if "SLURM_GPUS_PER_TASK" in environ or gpus % max(1, tasks_a_node):
    return {"local_device_ids": list(range(gpus))}
  share = gpus // max(1, tasks_a_node)
  first = _number(environ, "SLURM_LOCALID") * share
  return {"local_device_ids": list(range(first, first + share))}


def _cloud_tpu(environ: Mapping[str, str]) -> dict[str, Any] | None:
  if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):
    return None
  hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
  if hosts is None and "TPU_SKIP_MDS_QUERY" not in environ:
    hosts = _metadata("worker-network-endpoints")
  slices = environ.get("MEGASCALE_NUM_SLICES", "1")
  return {} if hosts and ("," in hosts or int(slices) > 1) else None


def _kubernetes(environ: Mapping[str, str]) -> dict[str, Any] | None:
  # Only a Job with completionMode Indexed, as every JobSet makes them, numbers its pods.
  if not {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environ.keys():
    return None
  if not importlib.util.find_spec("kubernetes"):
    raise InputError(f"an indexed job of Kubernetes: install the package kubernetes, {_WAY_OUT}")
  return {}


def _number(environ: Mapping[str, str], name: str) -> int:
  text = environ.get(name, "0")
  return int(text) if text.isdigit() else 0


def _metadata(key: str) -> str:
  """An attribute of this machine, from Google's metadata server; empty where there is none."""
  request = urllib.request.Request(_METADATA + key, headers={"Metadata-Flavor": "Google"})
  with (
    contextlib.suppress(urllib.error.URLError, TimeoutError),
    urllib.request.urlopen(request, timeout=10) as answer,
  ):
    return answer.read().decode()
  return ""
