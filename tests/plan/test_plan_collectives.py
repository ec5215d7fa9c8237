"""Collectives in compiled programs: of eight CPU devices, and in lines of TPU programs."""

import dataclasses
import json
import os
import subprocess
import sys

import collective_programs
import pytest

from mail_jax.plan import hlo
from mail_jax.plan.costs import count_collectives, replica_groups

BYTES = 16 * 32 * 4  # what every device of `collective_programs` begins with


@pytest.fixture(scope="module")
def programs(request) -> dict[str, str]:
  flags = "--xla_force_host_platform_device_count=8"
  done = subprocess.run(
    [sys.executable, collective_programs.__file__],
    env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    cwd=request.config.rootpath,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def counted(module: hlo.Module, devices: int) -> dict[str, tuple[int, int, float]]:
  """Returns, by kind: their number, bytes of the arrays, bytes that a device of an island sends."""
  found = count_collectives(module, [0] * devices)
  assert not any(total.sent_far for total in found.values())
  return {kind: dataclasses.astuple(total)[:3] for kind, total in found.items()}


@pytest.mark.parametrize(
  ("name", "kind", "expected"),
  [
    # A ring of n sends each of the n parts 2 (n - 1) times to sum it and pass it on, n - 1 times
    # for one of them.
    ("all-reduce", "all-reduce", (1, BYTES, 2 * 7 / 8 * BYTES)),
    ("all-reduce in groups", "all-reduce", (1, BYTES, 2 * 3 / 4 * BYTES)),
    ("all-gather", "all-gather", (1, 4 * BYTES, 3 * BYTES)),
    ("reduce-scatter", "reduce-scatter", (1, BYTES, 3 / 4 * BYTES)),
    ("all-to-all", "all-to-all", (1, BYTES, 3 / 4 * BYTES)),
    ("collective-permute in a loop", "collective-permute", (5, 5 * BYTES, 5 * BYTES)),
  ],
)
def test_a_program_of_one_collective_sends_what_a_ring_sends(programs, name, kind, expected):
  assert counted(hlo.parse(programs[name]), 8) == {kind: expected}


def test_a_program_without_collectives_has_none(programs):
  assert counted(hlo.parse(programs["none"]), 8) == {}


@pytest.mark.parametrize(
  ("groups", "first", "number"),
  [
    ("replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add", [0, 1, 2, 3], 2),
    ("replica_groups={{0}}", [0], 1),
    ("replica_groups={}, to_apply=%add", list(range(16)), 1),
    ("channel_id=1, replica_groups=[2,8]<=[16], dimensions={0}", list(range(8)), 2),
    ("replica_groups=[8,2]<=[4,4]T(1,0), use_global_device_ids=true", [0, 4], 8),
    ("replica_groups=mesh['x'=16,'y'=1] {'x','y'}, metadata={}", list(range(16)), 1),
    # Devices 0, 4, 8, 12 have the first place on `c`, and one place each on `b`.
    ("replica_groups=mesh['a'=1,'b'=4,'c'=4] {'b'}, dimensions={1}", [0, 4, 8, 12], 4),
    ("replica_groups=mesh['b'=4,'c'=4], device_ids=([4,4]T(1,0)) {'b'}", [0, 1, 2, 3], 4),
    # `a` is 2 x 4; a step along the 4 passes both places on `b`.
    ("replica_groups=mesh['a'=8,'b'=2] {'a':(2)4}, dimensions={1}", [0, 2, 4, 6], 4),
    ("replica_groups=mesh['a'=8,'b'=2] {'a':(1)2,'a':(4)2}", [0, 2, 8, 10], 4),
    ("channel_id=3, to_apply=%add", list(range(16)), 1),
  ],
)
def test_groups_are_read_in_every_notation(groups, first, number):
  actual = replica_groups(groups, 16)
  assert sorted(actual[0]) == first
  assert len(actual) == number


def _module(*lines: str, before: str = "") -> hlo.Module:
  body = "\n".join(f"  {line}" for line in lines)
  return hlo.parse(f"HloModule m\n\n{before}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n")


def test_several_arrays_in_one_collective_are_all_counted():
  module = _module(
    "%a = f32[256]{0:T(256)S(1)} parameter(0)",
    "%b = bf16[3,3,16]{2,1,0:T(8,128)(2,1)} parameter(1)",
    "ROOT %sum = (f32[256]{0:T(256)S(1)}, /*index=1*/bf16[3,3,16]{2,1,0:T(8,128)(2,1)}) "
    "all-reduce(%a, %b), replica_groups=mesh['x'=4] {'x'}, to_apply=%region",
  )
  size = 256 * 4 + 3 * 3 * 16 * 2
  assert counted(module, 4) == {"all-reduce": (1, size, 1.5 * size)}


def test_an_asynchronous_collective_counts_once():
  module = _module(
    "%p = f32[8]{0} parameter(0)",
    "%begun = (f32[8]{0}, f32[32]{0}) all-gather-start(%p), "
    "replica_groups={{0,1,2,3}}, dimensions={0}",
    "%done = f32[32]{0} all-gather-done(%begun)",
    "%sent = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), "
    "source_target_pairs={{0,1},{1,0}}",
    "ROOT %got = f32[8]{0} collective-permute-done(%sent)",
  )
  assert counted(module, 4) == {
    "all-gather": (1, 128, 96),
    "collective-permute": (1, 32, 32),
  }


def test_a_collective_that_several_kernels_run_beside_counts_once():
  kernels = "".join(
    f"""%{name} (input: bf16[8,8]) -> bf16[32,8] {{
  %input.{i} = bf16[8,8]{{1,0}} parameter(0)
  ROOT %all.{i} = bf16[32,8]{{1,0}} all-gather(%input.{i}), channel_id={channel}, \
replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}
}}

"""
    for i, (name, channel) in enumerate(
      [("fused_computation", 7), ("async_collective_fusion", 7), ("async_collective_fusion.1", 8)]
    )
  )
  module = _module(
    "%p = bf16[8,8]{1,0} parameter(0)",
    "%begun = bf16[32,8]{1,0} fusion(%p), kind=kCustom, calls=%fused_computation",
    "%beside = bf16[32,8]{1,0} fusion(%p), kind=kCustom, calls=%async_collective_fusion",
    "ROOT %other = bf16[32,8]{1,0} fusion(%p), kind=kCustom, calls=%async_collective_fusion.1",
    before=kernels,
  )
  assert counted(module, 4) == {"all-gather": (2, 1024, 768)}


def test_a_sum_of_which_a_kernel_keeps_a_part_is_a_reduce_scatter():
  kernel = """%all-reduce-scatter.1 (input: bf16[64,8]) -> bf16[16,8] {
  %input = bf16[64,8]{1,0} parameter(0)
  %sum = bf16[64,8]{1,0} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = bf16[16,8]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={16,8}
}
"""
  module = _module(
    "%p = bf16[64,8]{1,0} parameter(0)",
    "ROOT %kept = bf16[16,8]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1",
    before=kernel,
  )
  assert counted(module, 4) == {"reduce-scatter": (1, 1024, 768)}


def _between(line: str, *, slices: int = 2, size: int = 4) -> tuple[float, float]:
  """Returns what a device of several slices sends within its own and over the network."""
  module = _module("%p = f32[1024]{0} parameter(0)", line)
  (total,) = count_collectives(module, [i // size for i in range(slices * size)]).values()
  return total.sent, total.sent_far


@pytest.mark.parametrize("slices", [2, 4])
def test_a_sum_over_slices_crosses_the_network_once(slices):
  near, far = _between("ROOT %sum = f32[1024]{0} all-reduce(%p), to_apply=%add", slices=slices)
  # Within a slice, parts are summed and passed on; over the network goes a device's quarter.
  assert near == 2 * 3 / 4 * 4096
  assert far == 2 * (slices - 1) / slices * 4096 / 4


def test_each_device_brings_its_part_of_a_gather_to_the_other_slice():
  near, far = _between("ROOT %all = f32[8192]{0} all-gather(%p), dimensions={0}")
  # The other one of the pair gets it, and within the slice pairs of parts are passed on.
  assert (near, far) == (3 * 2 * 4096, 4096)


def test_all_to_all_sends_half_to_the_other_slice():
  near, far = _between("ROOT %all = f32[1024]{0} all-to-all(%p), dimensions={0}")
  assert (near, far) == (3 * 512, 4 * 512)


def test_groups_within_slices_send_nothing_over_the_network():
  for groups in ("{{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]"):
    line = f"ROOT %sum = f32[1024]{{0}} all-reduce(%p), replica_groups={groups}, to_apply=%add"
    assert _between(line) == (2 * 3 / 4 * 4096, 0)
  # And groups of one of each slice nothing within.
  line = "ROOT %sum = f32[1024]{0} all-reduce(%p), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%a"
  assert _between(line) == (0, 4096)


def test_a_permutation_crosses_the_network_if_one_of_its_pairs_does():
  line = "ROOT %got = f32[1024]{0} collective-permute(%p), source_target_pairs="
  assert _between(f"{line}{{{{0,1}},{{1,0}}}}") == (4096, 0)
  assert _between(f"{line}{{{{0,1}},{{3,4}}}}") == (0, 4096)


@pytest.mark.parametrize(
  ("kind", "slices", "expected"),
  [
    ("ALL_REDUCE", "1,2", 1024),
    ("ALL_REDUCE", "1:4", 1536),
    ("ALL_GATHER", "1:4", 3072),
    ("REDUCE_SCATTER", "1,2", 512),
  ],
)
def test_what_tpus_leave_to_their_hosts_goes_over_the_network(kind, slices, expected):
  attributes = (
    "channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="
    f'"xla_megascale_runtime",_xla_megascale_target="{{{slices}}}x{{0:3}}",'
    f'_xla_megascale_transfer_type="{kind}"}}'
  )
  module = _module(
    "%p = f32[256]{0} parameter(0)",
    "%after = token[] after-all()",
    f"%sent = (f32[256]{{0}}, u32[], token[]) send(%p, %after), {attributes}",
    f"ROOT %done = token[] send-done(%sent), {attributes}",
  )
  found = count_collectives(module, [0, 0, 0, 0, 1, 1, 1, 1])
  name = f"{kind.lower().replace('_', '-')} between slices"
  assert {n: dataclasses.astuple(c) for n, c in found.items()} == {name: (1, 1024, 0.0, expected)}
