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

SHAPES = ("8x1", "2x4")


@pytest.fixture(scope="module")
def one_device() -> dict[str, np.ndarray]:
  if jax.device_count() != 1:
    pytest.skip(f"compares with one device, and there are {jax.device_count()}")
  return sharded_training.train(1, 1)


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory, request) -> dict[str, dict[str, np.ndarray]]:
  """What came out of each mesh, in a process of its own: the number of devices is fixed at the start."""
  folder, root = tmp_path_factory.mktemp("sharded"), request.config.rootpath
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(root),
    # The second flag only shortens compilation.
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
  }
  script = pathlib.Path(sharded_training.__file__)
  command = [sys.executable, str(script), str(folder), *SHAPES]
  done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return {shape: dict(np.load(folder / f"{shape}.npz")) for shape in SHAPES}


@pytest.mark.parametrize("shape", SHAPES)
def test_metrics_of_eight_devices_are_those_of_one(one_device, eight_devices, shape):
  names = [name for name in one_device if name.startswith("metrics/")]
  assert {name.split("/")[2] for name in names} >= {"loss", "bce", "dice", "selection"}
  for name in names:
    np.testing.assert_allclose(
      eight_devices[shape][name], one_device[name], rtol=1e-5, err_msg=name
    )
  losses = [float(one_device[f"metrics/{step}/loss"]) for step in range(3)]
  assert len(set(losses)) == 3


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_of_eight_devices_are_those_of_one(one_device, eight_devices, shape):
  found = eight_devices[shape]
  assert found.keys() == one_device.keys()
  arrays = [name for name in one_device if name != "pieces" and "metrics/" not in name]
  assert any("batch_stats" in name for name in arrays)
  for name in arrays:
    scale = np.abs(one_device[name]).max()
    np.testing.assert_allclose(
      found[name], one_device[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name
    )


def test_large_arrays_are_cut_over_fsdp_and_nothing_over_data(eight_devices):
  assert {shape: int(found["pieces"]) for shape, found in eight_devices.items()} == {
    "8x1": 1,
    "2x4": 4,
  }


def test_minus_one_takes_what_is_left():
  devices = jax.device_count()
  assert dict(make_mesh().shape) == {"data": devices, "fsdp": 1}
  assert dict(make_mesh(1, -1).shape) == {"data": 1, "fsdp": devices}


@pytest.mark.parametrize("data, fsdp", [(-1, -1), (1000, 1), (-1, 1000), (0, -1), (-2, 1)])
def test_impossible_mesh_names_its_place_in_the_config(data, fsdp):
  with pytest.raises(InputError, match=rf"config\.mesh: data {data} x fsdp {fsdp} does not make"):
    make_mesh(data, fsdp)
