"""Detects whether a cluster runs this process as one of several.

On Cloud TPU, Slurm, Kubernetes and Open MPI JAX finds the processes itself. But it must be asked
to, it fails without a cluster, and a job of one process does not need it.
"""

import glob
import importlib.util
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from input_pipeline.common.errors import InputError

EXPLICIT = "give --coordinator_address, --num_processes and --process_id"
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"

Environ = Mapping[str, str]
Options = dict[str, Any]


def detect(environ: Environ) -> Options | None:
  """Returns the arguments of `jax.distributed.initialize`, or None for a single process.

  Args:
    environ: environment variables of the process.

  Raises:
    InputError: there are several processes, and JAX lacks a package to find them.
  """
  for cluster in (_open_mpi, _slurm, _cloud_tpu, _kubernetes):  # The order in which JAX looks.
    options = cluster(environ)
    if options is not None:
      return options
  return None


def _open_mpi(environ: Environ) -> Options | None:
  if _number(environ, "OMPI_COMM_WORLD_SIZE") < 2:
    return None
  if "OMPI_MCA_orte_hnp_uri" in environ:
    return {}
  # From version 5 on mpirun does not say where the processes run.
  if _installed("mpi4py"):
    return {"cluster_detection_method": "mpi4py"}
  raise InputError(
    f"mpirun runs several processes, which can only be found with mpi4py: install it, or {EXPLICIT}"
  )


def _slurm(environ: Environ) -> Options | None:
  # Of the step that srun started: the script of an allocation has variables too, but is a single
  # process.
  tasks, nodes = (_number(environ, f"SLURM_STEP_NUM_{name}") for name in ("TASKS", "NODES"))
  if tasks < 2 or "SLURM_STEP_NODELIST" not in environ:
    return None
  devices = _share_of_gpus(environ, max(1, tasks // max(1, nodes)))
  return {} if devices is None else {"local_device_ids": devices}


def _share_of_gpus(environ: Environ, tasks_per_node: int) -> list[int] | None:
  """Returns the indices, among the GPUs that a task sees, of those to use; None for JAX's default.

  By default JAX uses the one GPU whose index is that of the task on its node. That leaves most GPUs
  idle if a task has several, and does not exist if a task sees only its own.
  """
  visible = len(environ.get("CUDA_VISIBLE_DEVICES", "").split(","))
  if not environ.get("CUDA_VISIBLE_DEVICES"):
    return None
  if "SLURM_GPUS_PER_TASK" in environ or visible % tasks_per_node:
    return list(range(visible))
  share = visible // tasks_per_node
  first = _number(environ, "SLURM_LOCALID") * share
  return list(range(first, first + share))


def _cloud_tpu(environ: Environ) -> Options | None:
  if not _has_tpu():
    return None
  hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
  slices = environ.get("MEGASCALE_NUM_SLICES", "")
  # If neither is set this may be a machine of Compute Engine, whose metadata server knows.
  if hosts is None and "TPU_SKIP_MDS_QUERY" not in environ:
    hosts = _metadata("worker-network-endpoints")
    rows = [row.partition(":") for row in _metadata("tpu-env").splitlines()]
    slices = slices or next((v for k, _, v in rows if k.strip() == "MEGASCALE_NUM_SLICES"), "")
  several = "," in (hosts or "") or slices.strip(" '") not in ("", "1")
  return {} if several else None


def _kubernetes(environ: Environ) -> Options | None:
  # Only a Job with completionMode Indexed, which every JobSet creates, numbers its pods.
  if not {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environ.keys():
    return None
  if not _installed("kubernetes"):
    raise InputError(
      "the pods of an indexed Kubernetes job can only be found with the package kubernetes: "
      f"install it, or {EXPLICIT}"
    )
  return {}


def _number(environ: Environ, name: str) -> int:
  text = environ.get(name, "")
  return int(text) if text.isdigit() else 0


def _installed(package: str) -> bool:
  return importlib.util.find_spec(package) is not None


def _has_tpu() -> bool:
  return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def _metadata(key: str) -> str:
  """Returns an attribute of this machine from Google's metadata server; empty without one."""
  request = urllib.request.Request(_METADATA + key, headers={"Metadata-Flavor": "Google"})
  try:
    with urllib.request.urlopen(request, timeout=10) as response:
      return response.read().decode()
  except (urllib.error.URLError, TimeoutError):
    return ""
