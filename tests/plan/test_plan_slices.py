"""The training step on two slices of TPUs, by the real compiler."""

import math
from typing import Any

import pytest
import test_plan_compiler
from gradients import count_gradients

from input_pipeline.common.errors import InputError
from mail_jax.distributed import sharding
from mail_jax.hardware import chips
from mail_jax.plan import ahead, programs
from mail_jax.plan.estimate import estimate_cost

pytestmark = test_plan_compiler.pytestmark


TOPOLOGY = chips.parse_topology("2*v5e:2x2")


@pytest.fixture(scope="module")
def devices() -> list[Any]:
  """The chips of two slices."""
  return ahead.open_topology(TOPOLOGY)


@pytest.mark.parametrize("fsdp", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_cross_the_network_once_a_share_from_each_chip(devices, fsdp):
  program = ahead.make_program(test_plan_compiler.make_config(fsdp), 320, devices)
  assert [d.slice_index for d in program.mesh.devices.flat] == [0] * 4 + [1] * 4
  with count_gradients(program.config) as count:
    lowered = programs.lower("train", program, test_plan_compiler.CANVAS)
  compiled, _ = ahead.compile_lowered(lowered, devices[0], "quick")
  actual = estimate_cost("train", program.config, compiled, TOPOLOGY)
  far = {kind: total for kind, total in actual.collectives.items() if total.sent_far}
  assert list(far) == ["all-reduce between slices"]
  # In float32, over the network as they lie in memory: small folded kernels are padded to 128.
  assert 4 * count() < 4 * actual.network_bytes < 1.5 * 4 * count()
  assert actual.seconds["network"] == actual.network_bytes / 3.125e9
  assert actual.bound == "network"
  if fsdp == 1:
    # Within a slice each goes twice.
    assert actual.sent_bytes == pytest.approx(2 * 3 / 4 * 4 * actual.network_bytes, rel=0.1)


@pytest.mark.parametrize(("fsdp", "shape"), [(1, (2, 4, 1)), (2, (2, 2, 2)), (4, (2, 1, 4))])
def test_a_copy_of_the_model_stays_within_a_slice(devices, fsdp, shape):
  mesh = sharding.make_mesh(-1, fsdp, devices)
  assert mesh.devices.shape == shape
  for i, of_one in enumerate(mesh.devices):
    assert {device.slice_index for device in of_one.flat} == {i}


def test_a_model_that_is_cut_across_slices_is_refused(devices):
  with pytest.raises(InputError, match="fsdp 8 would be cut across 2 slices of 4 devices"):
    sharding.make_mesh(1, -1, devices)


@pytest.mark.parametrize(
  ("name", "fsdp"), [("v6e:4x4", 8), ("v5p:4x4x4", 8), ("v5p:4x4x4", 2), ("v4:4x4x4", 32)]
)
def test_a_side_of_the_torus_is_split_where_nothing_else_fits(name, fsdp):
  topology = chips.parse_topology(name)
  mesh = sharding.make_mesh(-1, fsdp, ahead.open_topology(topology))
  assert mesh.devices.shape == (1, math.prod(topology.sides) // fsdp, fsdp)
