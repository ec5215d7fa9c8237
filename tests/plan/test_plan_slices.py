"""The training step on two slices of TPUs, by the real compiler."""

import math

import jax
import pytest
import test_plan_compiler
from jax.experimental import topologies

from input_pipeline.common.errors import InputError
from mail_jax.distributed import sharding
from mail_jax.plan import ahead, costs, hlo, programs

pytestmark = test_plan_compiler.pytestmark
SLICE = test_plan_compiler.SLICE


@pytest.fixture(scope="module")
def devices() -> list:
  """The chips of two slices of v5e:2x2."""
  ahead.open_topology(SLICE)  # It finds the compiler.
  return topologies.get_topology_desc(
    SLICE.name,
    platform="tpu",
    chip_config_name="default",
    chips_per_host_bounds=(2, 2, 1),
    num_slices=2,
  ).devices


def _compile(devices: list, fsdp: int) -> tuple[hlo.Module, int]:
  """Returns the step on two slices, and the bytes of its gradients, which are in float32."""
  program = ahead.make_program(test_plan_compiler.make_config(fsdp), 320, devices)
  parameters = sum(x.size for x in jax.tree.leaves(program.shapes.variables["params"]))
  lowered = programs.lower("train", program, test_plan_compiler.CANVAS)
  return hlo.parse(ahead.compile_lowered(lowered, "quick")[0].as_text()), 4 * parameters


def _sent_between_slices(module: hlo.Module) -> int:
  """Returns the bytes that a chip gives to the network between the slices."""
  return sum(
    times * shape.bytes
    for send, times in module.walk()
    if send.opcode == "send" and "_xla_megascale" in send.attributes
    for shape in module.operands(send)[0].shapes
  )


@pytest.mark.parametrize("fsdp", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_cross_the_network_once_a_share_per_chip(devices, fsdp):
  module, gradients = _compile(devices, fsdp)
  # Shares are padded to whole tiles.
  assert _sent_between_slices(module) == pytest.approx(gradients / SLICE.chips, rel=0.06)
  # Before that they are summed within a slice.
  within = costs.count_collectives(module, 2 * SLICE.chips)
  summed = within["reduce-scatter"].bytes + within["all-reduce"].bytes
  assert summed == pytest.approx(gradients, rel=0.06)


@pytest.mark.parametrize(("fsdp", "shape"), [(1, (8, 1)), (2, (4, 2)), (4, (2, 4))])
def test_a_copy_of_the_model_stays_within_a_slice(devices, fsdp, shape):
  mesh = sharding.make_mesh(-1, fsdp, devices)
  assert mesh.devices.shape == shape
  for copy in mesh.devices:
    assert len({device.slice_index for device in copy}) == 1
  assert len({device.slice_index for device in mesh.devices[: shape[0] // 2].flat}) == 1


def test_a_model_that_is_cut_across_slices_is_refused(devices):
  with pytest.raises(InputError, match="fsdp 8 would be cut across 2 slices of 4 devices"):
    sharding.make_mesh(1, -1, devices)


@pytest.mark.parametrize(
  ("name", "fsdp"), [("v6e:4x4", 8), ("v5p:4x4x4", 8), ("v5p:4x4x4", 2), ("v4:4x4x4", 32)]
)
def test_a_side_of_the_torus_is_split_where_nothing_else_fits(name, fsdp):
  topology = test_plan_compiler.chips.parse_topology(name)
  mesh = sharding.make_mesh(-1, fsdp, ahead.open_topology(topology))
  assert mesh.devices.shape == (math.prod(topology.sides) // fsdp, fsdp)
