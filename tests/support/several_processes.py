"""Runs commands as several local processes, with the environment variables of clusters."""

import contextlib
import os
import pathlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

CHECKOUT = pathlib.Path(__file__).parents[2]
# On Slurm and Open MPI JAX derives the port of process 0 from the number of the job: one of this
# many, the last ones.
_CLUSTER_PORTS = 2**12

Environment = dict[str, str]


class Ended(NamedTuple):
  """The result of a process: exit code, output, and seconds since the start of all of them."""

  code: int
  printed: str
  seconds: float

  @property
  def last_line(self) -> str:
    return self.printed.splitlines()[-1]


class Processes:
  """Processes that run in the background."""

  def __init__(
    self,
    command: Sequence[str],
    environments: Sequence[Environment],
    reserved: socket.socket | None = None,
  ):
    """Starts a command of this Python once in every environment; these add to that of the test.

    Args:
      command: arguments of Python.
      environments: one per process; `{i}` in the command is the number of the process.
      reserved: kept open until all have ended.
    """
    self._reserved = reserved
    self._began = time.monotonic()
    paths = [str(CHECKOUT), str(CHECKOUT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
    base = os.environ | {
      "PYTHONPATH": os.pathsep.join(filter(None, paths)),
      "PYTHONUNBUFFERED": "1",
    }
    self._started = [
      subprocess.Popen(
        [sys.executable, *(word.replace("{i}", str(index)) for word in command)],
        env=base | environment,
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      for index, environment in enumerate(environments)
    ]

  def all_run(self) -> bool:
    """Returns whether none has ended yet."""
    return all(process.poll() is None for process in self._started)

  def send(self, number: int, index: int | None = None) -> None:
    """Sends a signal to all of them, or to one."""
    for process in self._started if index is None else [self._started[index]]:
      process.send_signal(number)

  def wait(self, timeout: float = 240) -> list[Ended]:
    """Waits for all of them; those still running by then are killed, and the test fails."""
    seconds: dict[int, float] = {}
    try:
      while len(seconds) < len(self._started):
        time.sleep(0.05)
        now = time.monotonic() - self._began
        for index, process in enumerate(self._started):
          if process.poll() is not None:
            seconds.setdefault(index, now)
        assert now < timeout, f"of {len(self._started)} processes only {sorted(seconds)} have ended"
    finally:
      for process in self._started:
        process.kill()
      if self._reserved:
        self._reserved.close()
      printed = [process.communicate()[0] for process in self._started]
      print(*printed, sep="\n-----\n")
    return [
      Ended(process.returncode, text, seconds[index])
      for index, (process, text) in enumerate(zip(self._started, printed, strict=True))
    ]


def start(count: int, *command: str, environment: Environment | None = None) -> Processes:
  """Starts a command in several processes, with the options that connect them."""
  environments = [environment or {}] * count
  if count == 1:
    return Processes(command, environments)
  reserved = _reserve_port()
  options = {
    "--coordinator_address": f"127.0.0.1:{reserved.getsockname()[1]}",
    "--num_processes": str(count),
    "--process_id": "{i}",
  }
  words = [word for pair in options.items() for word in pair]
  return Processes([*command, *words], environments, reserved)


def _reserve_port() -> socket.socket:
  """Reserves a port for process 0, whose server shares ports; no other process gets it."""
  reserved = socket.socket(socket.AF_INET6)
  reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
  reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
  reserved.bind(("::", 0))
  return reserved


def devices(count: int) -> Environment:
  """Returns variables that give a process so many CPU devices."""
  flags = os.environ.get("XLA_FLAGS", "")
  return {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={count}"}


def slurm(tasks: int, nodes: int = 1, job: int = 0) -> list[Environment]:
  """Returns the variables that `srun` sets for each task, with equally many tasks per node."""
  a_node = tasks // nodes
  return [
    {
      "SLURM_JOB_ID": str(job),
      "SLURM_JOB_NODELIST": "127.0.0.1",
      "SLURM_NTASKS": str(tasks),
      "SLURM_NNODES": str(nodes),
      "SLURM_STEP_NODELIST": "127.0.0.1",
      "SLURM_STEP_NUM_TASKS": str(tasks),
      "SLURM_STEP_NUM_NODES": str(nodes),
      "SLURM_PROCID": str(task),
      "SLURM_LOCALID": str(task % a_node),
    }
    for task in range(tasks)
  ]


def open_mpi(tasks: int, job: int = 0) -> list[Environment]:
  """Returns the variables that `mpirun` of Open MPI 4 sets for each process."""
  return [
    {
      "OMPI_MCA_orte_hnp_uri": f"{job * 2**12}.0;tcp://127.0.0.1:34911",
      "OMPI_COMM_WORLD_SIZE": str(tasks),
      "OMPI_COMM_WORLD_RANK": str(task),
      "OMPI_COMM_WORLD_LOCAL_RANK": str(task),
    }
    for task in range(tasks)
  ]


def free_port() -> int:
  """Returns a free port of 127.0.0.1."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def free_job() -> int:
  """Returns the number of a job for which JAX takes a free port."""
  while True:
    job = random.randrange(_CLUSTER_PORTS)
    with (
      contextlib.suppress(OSError),
      socket.create_server(("", 2**16 - _CLUSTER_PORTS + job)),
    ):
      return job
