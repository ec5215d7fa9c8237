"""Starts and ends the processes of a run together.

A command that runs on several processes is started once per process, with the same arguments, and
calls `initialize` before it touches a device. docs/guides/scale.md has the launch recipes.
"""

import argparse
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from input_pipeline.common import errors
from input_pipeline.common.errors import InputError
from mail_jax.distributed import clusters, watchdog

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
    args: the options of `add_arguments`. Without them the environment decides: see `clusters`.
    saves_on_sigterm: whether the command handles SIGTERM, as `preemption.Preemption` does. If not,
      the signal ends it: with several processes JAX would otherwise catch it.

  Raises:
    InputError: the options or the environment are invalid.
  """
  options = explicit(args)
  host = options["coordinator_address"].rpartition(":")[0].strip("[]") if options else ""
  options = options or clusters.detect(os.environ)
  if options is None:
    return
  jax.config.update("jax_enable_preemption_service", saves_on_sigterm)
  _join(options)
  if jax.process_count() > 1:
    _watchdogs.append(watchdog.ProcessWatchdog(host))


def is_main() -> bool:
  """Returns whether this is process 0, the only one that prints and writes logs."""
  return jax.process_index() == 0


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
      f"the cluster is not detected correctly, {clusters.EXPLICIT})"
    ) from error
  finally:
    timer.cancel()
