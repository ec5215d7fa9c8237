"""Several processes find each other, and end together when one of them fails."""

import argparse
import os

import jax
import pytest
import several_processes
from several_processes import Ended, open_mpi, slurm

from input_pipeline.common.errors import InputError
from mail_jax.distributed import processes as clusters
from mail_jax.distributed import processes as distributed

SCRIPT = str(several_processes.CHECKOUT / "tests" / "support" / "ending_together.py")
K8S = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
POD = "t1v-n-0,t1v-n-1"
# Each is (fate, process, what the others do).
GONE = {
  "killed while the other waits in a collective": ("killed", "1", "wait"),
  "killed while the other works on the host": ("killed", "1", "busy"),
  "the coordinator killed while the other waits": ("killed", "0", "wait"),
  "the coordinator killed while the other works": ("killed", "0", "busy"),
  "asked to end by a signal that it does not watch for": ("asked", "1", "wait"),
  "an error while the other works": ("raises", "1", "busy"),
  "bad input on one host while the other waits": ("input", "0", "wait"),
}


def _parse(*words: str) -> argparse.Namespace:
  parser = argparse.ArgumentParser()
  distributed.add_arguments(parser)
  return parser.parse_args(words)


@pytest.fixture
def joined(monkeypatch) -> list[dict]:
  """Arguments of calls of `jax.distributed.initialize`, which is replaced; no cluster exists."""
  calls: list[dict] = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
  monkeypatch.setattr(clusters, "_has_tpu", lambda: False)
  for name in list(os.environ):
    if name.startswith(("SLURM", "OMPI", "TPU", "KUBERNETES", "JOB_", "MEGASCALE")):
      monkeypatch.delenv(name)
  return calls


def test_a_laptop_stays_a_laptop(joined):
  distributed.initialize(_parse())
  assert joined == []
  assert distributed.is_main() and distributed.broadcast_from_main(7) == 7


def test_explicit_options_go_to_jax_and_no_cluster_is_asked(joined, monkeypatch):
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
  address = "--coordinator_address=10.0.0.1:8476"
  distributed.initialize(_parse(address, "--num_processes=4", "--process_id=3"))
  [options] = joined
  wanted = {"coordinator_address": "10.0.0.1:8476", "num_processes": 4, "process_id": 3}
  assert options.items() >= wanted.items()
  assert options["cluster_detection_method"] == "deactivate"
  assert options["heartbeat_timeout_seconds"] <= 60


def test_on_a_cluster_jax_finds_the_others_by_itself(joined, monkeypatch):
  for name, value in slurm(2)[1].items():
    monkeypatch.setenv(name, value)
  distributed.initialize(_parse())
  assert [{k for k in options if "timeout" not in k} for options in joined] == [set()]


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (
      ["--num_processes=2"],
      r"--num_processes is given without --coordinator_address and --process_id",
    ),
    (["--coordinator_address=h:1", "--process_id=0"], r"without --num_processes: give all three"),
    (
      ["--coordinator_address=host", "--num_processes=2", "--process_id=0"],
      r"host: write HOST:PORT",
    ),
    (["--coordinator_address=:80", "--num_processes=2", "--process_id=0"], r":80: write HOST:PORT"),
    (["--coordinator_address=h:x", "--num_processes=2", "--process_id=0"], r"h:x: write HOST:PORT"),
    (["--coordinator_address=h:99999", "--num_processes=2", "--process_id=0"], r"write HOST:PORT"),
    (
      ["--coordinator_address=h:1", "--num_processes=2", "--process_id=2"],
      r"--process_id 2 of --num_processes 2: ",
    ),
    (["--coordinator_address=h:1", "--num_processes=2", "--process_id=-1"], r"--process_id -1 of"),
    (["--coordinator_address=h:1", "--num_processes=0", "--process_id=0"], r"of --num_processes 0"),
  ],
)
def test_wrong_options_are_named(joined, words, message):
  with pytest.raises(InputError, match=message):
    distributed.initialize(_parse(*words))
  assert joined == []


ALLOCATION = {
  name: value for name, value in slurm(4)[0].items() if not name.startswith("SLURM_STEP")
}
# srun runs an interactive shell as a step of one task, with the variables of the allocation.
SHELL = slurm(4)[0] | {"SLURM_STEP_NUM_TASKS": "1"}


@pytest.mark.parametrize(
  "environment",
  [ALLOCATION, SHELL, slurm(1)[0], open_mpi(1)[0], K8S, {"JOB_COMPLETION_INDEX": "0"}],
  ids=["allocation", "shell", "one task", "mpirun of one", "a pod of no indexed job", "no cluster"],
)
def test_a_job_of_one_process_needs_no_others(environment, monkeypatch):
  monkeypatch.setattr(clusters, "_has_tpu", lambda: False)
  assert clusters.detect(environment) is None


@pytest.mark.parametrize(
  ("tasks", "nodes", "visible", "devices"),
  [
    (16, 2, "", None),  # no GPUs to share
    (2, 2, "0,1,2,3", [0, 1, 2, 3]),  # one task per node gets all
    (8, 2, "0,1,2,3", [3]),  # one task per GPU
    (4, 2, "0,1,2,3", [2, 3]),  # two tasks share four
    (8, 2, "5", [0]),  # bound to its own GPU, with any number
    (6, 2, "0,1", [0, 1]),  # two GPUs per task
  ],
)
def test_on_slurm_no_gpu_of_a_node_is_left_idle(tasks, nodes, visible, devices):
  """Checks the last task, which is also the last one of its node."""
  environment = slurm(tasks, nodes)[-1] | {"CUDA_VISIBLE_DEVICES": visible}
  expected = {} if devices is None else {"local_device_ids": devices}
  assert clusters.detect(environment) == expected


def test_on_slurm_gpus_per_task_are_the_tasks_own():
  environment = slurm(4, 2)[-1] | {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}
  assert clusters.detect(environment) == {"local_device_ids": [0, 1]}


@pytest.mark.parametrize(
  ("environment", "metadata", "several"),
  [
    ({"TPU_WORKER_HOSTNAMES": POD}, {}, True),  # Kubernetes
    ({"TPU_PROCESS_ADDRESSES": POD}, {}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, {}, False),
    ({"TPU_WORKER_HOSTNAMES": "host", "MEGASCALE_NUM_SLICES": "2"}, {}, True),
    ({}, {"worker-network-endpoints": POD}, True),  # Compute Engine
    ({}, {"worker-network-endpoints": "t1v-n-0"}, False),
    (
      {},
      {"worker-network-endpoints": "a", "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'"},
      True,
    ),
    (
      {},
      {"worker-network-endpoints": "a", "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '1'"},
      False,
    ),
    ({}, {}, False),  # a notebook with its own TPU
    ({"TPU_SKIP_MDS_QUERY": "1"}, {"worker-network-endpoints": POD}, False),
  ],
)
def test_on_cloud_tpu_a_slice_of_several_hosts_is_seen(environment, metadata, several, monkeypatch):
  monkeypatch.setattr(clusters, "_metadata", lambda key: metadata.get(key, ""))
  monkeypatch.setattr(clusters, "_has_tpu", lambda: True)
  assert clusters.detect(environment) == ({} if several else None)
  monkeypatch.setattr(clusters, "_has_tpu", lambda: False)
  assert clusters.detect(environment) is None


def test_without_a_metadata_server_a_machine_is_on_its_own(monkeypatch):
  monkeypatch.setattr(clusters, "_METADATA", f"http://127.0.0.1:{several_processes.free_port()}/")
  assert clusters._metadata("tpu-env") == ""


@pytest.mark.parametrize(
  ("environment", "package", "options"),
  [
    (K8S | {"JOB_COMPLETION_INDEX": "1"}, "kubernetes", {}),
    (
      {"OMPI_COMM_WORLD_SIZE": "2"},  # Open MPI 5
      "mpi4py",
      {"cluster_detection_method": "mpi4py"},
    ),
  ],
)
def test_what_jax_needs_to_find_the_others_is_asked_for(environment, package, options, monkeypatch):
  monkeypatch.setattr(clusters, "_has_tpu", lambda: False)
  monkeypatch.setattr(clusters, "_installed", lambda name: name == package)
  assert clusters.detect(environment) == options
  monkeypatch.setattr(clusters, "_installed", lambda name: False)
  with pytest.raises(InputError, match=rf"{package}: install it, or give --coordinator_address"):
    clusters.detect(environment)


def _start_alone(index: str) -> several_processes.Processes:
  nobody = f"--coordinator_address=127.0.0.1:{several_processes.free_port()}"
  who = [nobody, "--num_processes=2", f"--process_id={index}"]
  return several_processes.Processes([SCRIPT, "alone", "0", "wait", *who], [{}])


@pytest.fixture(scope="module")
def ended() -> dict[str, list[Ended]]:
  """Results of all processes that this file starts; starting them at once is fastest."""
  command = [SCRIPT, "well", "0", "wait"]
  on_slurm = slurm(2, job=several_processes.free_job())
  on_open_mpi = open_mpi(2, job=several_processes.free_job())
  started = {
    "Slurm": several_processes.Processes(command, on_slurm),
    "Open MPI": several_processes.Processes(command, on_open_mpi),
    "late": several_processes.start(3, SCRIPT, "late", "0", "wait"),
    **{name: several_processes.start(2, SCRIPT, *arguments) for name, arguments in GONE.items()},
    **{f"only process {index}": _start_alone(index) for index in ("0", "1")},
  }
  return {name: processes.wait() for name, processes in started.items()}


@pytest.mark.parametrize("cluster", ["Slurm", "Open MPI"])
def test_on_a_cluster_two_processes_become_one_run(ended, cluster):
  for index, process in enumerate(ended[cluster]):
    assert process.code == 0
    assert f"process {index} of 2 heard 70, main: {index == 0}" in process.printed


def test_processes_that_are_done_wait_for_one_that_is_not(ended):
  assert [process.code for process in ended["late"]] == [0, 0, 0]
  assert all(f"process {i} ends" in process.printed for i, process in enumerate(ended["late"]))


@pytest.mark.parametrize("name", GONE)
def test_when_one_is_gone_the_other_ends_soon_and_says_so(ended, name):
  fate, number, _ = GONE[name]
  gone, other = ended[name][int(number)], ended[name][1 - int(number)]
  assert other.code == 1
  assert f"error: process {number} of 2 died (see its output)" in other.last_line
  assert "run the same command on all hosts again to resume" in other.last_line
  assert other.seconds - gone.seconds < distributed.HEARTBEAT / 2  # Before JAX notices.
  assert gone.code == {"killed": -9, "asked": -15, "raises": 1, "input": 2}[fate]
  if fate not in ("killed", "asked"):
    assert gone.last_line.endswith(
      {
        "raises": "ArithmeticError: a defect of one process",
        "input": "error: a file that is bad on one host",
      }[fate]
    )


@pytest.mark.parametrize("index", ["0", "1"])
def test_who_waits_in_vain_for_the_others_gives_up(ended, index):
  [process] = ended[f"only process {index}"]
  assert process.code == 1
  assert "did not find each other within 4 s: process 0 at 127.0.0.1:" in process.last_line
