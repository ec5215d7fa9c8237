"""Starts and ends the processes of a run together.

A command that runs on several processes is started once per process, with the same arguments, and
calls `initialize` before it touches a device. docs/guides/scale.md has the launch recipes.
"""

import argparse
import contextlib
import glob
import importlib.util
import json
import os
import sys
import threading
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from input_pipeline.common import errors, terminal
from input_pipeline.common.errors import InputError
from mail_jax.distributed import watchdog

EXPLICIT = "give --coordinator_address, --num_processes and --process_id"
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"

Environ = Mapping[str, str]
Options = dict[str, Any]
# Seconds to wait for all processes at the start: on a cluster one may have to pull its image first.
STARTUP = 300
# Seconds without a heartbeat after which JAX considers a process dead, if the watchdog cannot tell.
HEARTBEAT = 40
# Seconds that a process waits for the others at the end.
SHUTDOWN = 30

_OPTIONS = ("coordinator_address", "num_processes", "process_id")
# Of this process; at most one.
_watchdogs: list[watchdog.ProcessWatchdog] = []


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options for several processes, for machines without a cluster manager."""
  group = parser.add_argument_group(
    "several processes",
    "All three or none. Not needed on Cloud TPU, Slurm, Kubernetes and Open MPI, nor for a single "
    "process.",
  )
  group.add_argument(
    "--coordinator_address", metavar="HOST:PORT", help="host of process 0, and any free port"
  )
  group.add_argument("--num_processes", type=int, metavar="N", help="number of processes")
  group.add_argument("--process_id", type=int, metavar="I", help="number of this process, from 0")


def initialize(args: argparse.Namespace, saves_on_sigterm: bool = True) -> None:
  """Joins the other processes of the run; does nothing if there are none.

  If one of them dies later, the others end too: see `watchdog`.

  Args:
    args: the options of `add_arguments`. Without them the environment decides: see `detect`.
    saves_on_sigterm: whether the command handles SIGTERM, as `guards.Preemption` does. If not, the
      signal ends it: with several processes JAX would otherwise catch it.

  Raises:
    InputError: the options or the environment are invalid.
  """
  options = explicit(args)
  host = options["coordinator_address"].rpartition(":")[0].strip("[]") if options else ""
  options = options or detect(os.environ)
  if options is None:
    return
  jax.config.update("jax_enable_preemption_service", saves_on_sigterm)
  _join(options)
  if jax.process_count() > 1:
    _watchdogs.append(watchdog.ProcessWatchdog(host))


def is_main() -> bool:
  """Returns whether this is process 0, the only one that prints and writes logs."""
  return jax.process_index() == 0


def announce(doing: str) -> contextlib.AbstractContextManager[None]:
  """Says on process 0 what is being done if it takes long; see `terminal.announce`."""
  return terminal.announce(doing) if is_main() else contextlib.nullcontext()


def broadcast_from_main(value: int) -> int:
  """Returns the number of process 0 on every process: clocks differ, steps must not."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def all_gather_object(value: Any) -> list[Any]:
  """Returns the values of all processes, in order, on every process; values are JSON."""
  if jax.process_count() == 1:
    return [value]
  data = json.dumps(value).encode()
  size = int(multihost_utils.process_allgather(np.int32(len(data))).max())
  rows = multihost_utils.process_allgather(np.frombuffer(data.ljust(size), np.uint8))
  return [json.loads(row.tobytes()) for row in rows]


def run_command(main: Callable[[], None], interrupted: str = "") -> None:
  """Runs a command as `errors.run_command` does, but a process that fails ends without waiting.

  Args:
    main: the command.
    interrupted: the message after Ctrl-C.
  """
  try:
    errors.run_command(main, interrupted)
  except BaseException as error:
    code = error.code if isinstance(error, SystemExit) else 1
    if not _watchdogs or not code:
      raise
    is_bug = not isinstance(error, SystemExit)
    if is_bug:
      traceback.print_exc()
    sys.stdout.flush()
    _watchdogs[0].fail(code if isinstance(code, int) else 1, may_follow=is_bug)


def explicit(args: argparse.Namespace) -> dict[str, Any] | None:
  """Returns the arguments of `jax.distributed.initialize` from the command line; None if not given.

  Raises:
    InputError: some are missing or invalid.
  """
  given = {name: value for name in _OPTIONS if (value := getattr(args, name)) is not None}
  if not given:
    return None
  if missing := [f"--{name}" for name in _OPTIONS if name not in given]:
    raise InputError(
      f"--{next(iter(given))} is given without {' and '.join(missing)}: give all three, or none of "
      "them on a cluster"
    )
  address, count, index = given.values()
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise InputError(
      f"--coordinator_address {address}: write HOST:PORT of process 0, such as 10.0.0.1:8476"
    )
  if not 0 <= index < count:
    raise InputError(
      f"--process_id {index} of --num_processes {count}: processes are numbered from 0 to N - 1"
    )
  return given | {"cluster_detection_method": "deactivate"}


def _join(options: dict[str, Any]) -> None:
  where = f" at {options['coordinator_address']}" if "coordinator_address" in options else ""

  def give_up() -> None:
    line = (
      f"error: the processes did not find each other within {STARTUP} s: process 0{where} cannot "
      "be reached, or not all of them were started"
    )
    os.write(2, f"{line}\n".encode())
    os._exit(1)

  # JAX itself would abort with a C++ stack trace.
  timer = threading.Timer(STARTUP, give_up)
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      **options,
      initialization_timeout=STARTUP + 60,
      heartbeat_timeout_seconds=HEARTBEAT,
      shutdown_timeout_seconds=SHUTDOWN,
    )
  except (ValueError, RuntimeError) as error:
    raise InputError(
      f"cannot join the processes of this run{where}: {error} (is the port free on process 0? If "
      f"the cluster is not detected correctly, {EXPLICIT})"
    ) from error
  finally:
    timer.cancel()


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
