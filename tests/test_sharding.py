"""The same training on one device and on eight, and meshes that cannot be."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import sharded_training

from input_pipeline.errors import InputError
from mail_jax.sharding import make_mesh

Results = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def one_and_eight(tmp_path_factory, request) -> Results:
  """What came out of one device, and of eight as data=4 x fsdp=2.

  The eight are in a process of their own, because their number is fixed when JAX starts.
  """
  if jax.device_count() != 1:
    pytest.skip(f"compares with one device, and there are {jax.device_count()}")
  folder, root = tmp_path_factory.mktemp("sharded"), request.config.rootpath
  flags = "--xla_force_host_platform_device_count=8"
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "XLA_FLAGS": flags}
  command = [sys.executable, sharded_training.__file__, str(folder), "4x2"]
  # It runs beside this process.
  with subprocess.Popen(command, env=environment, cwd=root, stderr=subprocess.PIPE) as process:
    one = sharded_training.train(1, 1)
    error = process.communicate()[1].decode()
  assert process.returncode == 0, error
  return one, dict(np.load(pathlib.Path(folder) / "4x2.npz"))


def test_metrics_of_eight_devices_are_those_of_one(one_and_eight):
  one, eight = one_and_eight
  names = [name for name in one if name.startswith("metrics/")]
  assert {name.split("/")[2] for name in names} >= {"loss", "bce", "dice", "selection"}
  for name in names:
    np.testing.assert_allclose(eight[name], one[name], rtol=1e-5, err_msg=name)
  assert len({float(one[f"metrics/{step}/loss"]) for step in range(3)}) == 3


def test_parameters_and_batch_statistics_of_eight_devices_are_those_of_one(one_and_eight):
  one, eight = one_and_eight
  assert eight.keys() == one.keys()
  names = [name for name in one if name != "pieces" and "metrics/" not in name]
  assert sum("batch_stats" in name for name in names) == 12  # 3 stages, and their moving averages
  for name in names:
    atol = 1e-5 * np.abs(one[name]).max()
    np.testing.assert_allclose(eight[name], one[name], rtol=1e-5, atol=atol, err_msg=name)


def test_large_arrays_are_cut_over_fsdp(one_and_eight):
  assert [int(result["pieces"]) for result in one_and_eight] == [1, 2]


def test_minus_one_takes_what_is_left():
  devices = jax.device_count()
  assert dict(make_mesh().shape) == {"data": devices, "fsdp": 1}
  assert dict(make_mesh(1, -1).shape) == {"data": 1, "fsdp": devices}


@pytest.mark.parametrize(("data", "fsdp"), [(-1, -1), (1000, 1), (-1, 1000), (0, -1), (-2, 1)])
def test_impossible_mesh_names_its_place_in_the_config(data, fsdp):
  with pytest.raises(InputError, match=rf"config\.mesh: data {data} x fsdp {fsdp} does not make"):
    make_mesh(data, fsdp)
