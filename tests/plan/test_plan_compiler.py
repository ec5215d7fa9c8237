"""`mail_jax.plan` with the real TPU compiler: what it says of slices that are not there."""

import importlib.util
import json
import os
import re
from typing import Any

import jax
import pytest
import tiny_run
from gradients import count_gradients, count_parameters

from input_pipeline.common.errors import InputError
from mail_jax.config import recipe
from mail_jax.hardware import chips, flops
from mail_jax.plan import ahead, costs, hlo, parts, programs
from mail_jax.plan import command as plan
from mail_jax.plan.estimate import Wanted, estimate_cost, make_plan, memory_of

_MISSING = not os.path.isfile(os.environ.get("TPU_LIBRARY_PATH", "")) and (
  importlib.util.find_spec("libtpu") is None
)
pytestmark = [
  pytest.mark.plan,
  pytest.mark.skipif(_MISSING, reason="needs libtpu, the TPU compiler: make plan"),
]
SLICE = chips.parse_topology("v5e:2x2")
CANVAS = (64, 64)


def make_config(fsdp: int = 1, **model: Any):
  """Returns the tiny run with an encoder worth cutting, and without what takes long to compile."""
  config = tiny_run.get_config()
  config.max_instances, config.batch_size, config.mesh.fsdp = 0, 64, fsdp
  config.model.update(width=256, norm="group", **model)
  config.sharding_rules = ((".*", "fsdp"),)
  return config.lock()


def _compile(fsdp: int, **model: Any) -> jax.stages.Compiled:
  devices = ahead.open_topology(SLICE)
  program = ahead.make_program(make_config(fsdp, **model), 320, devices)
  return ahead.compile_lowered(programs.lower("train", program, CANVAS), devices[0], "quick")[0]


@pytest.fixture(scope="module")
def copies_and_gradients() -> tuple[jax.stages.Compiled, int]:
  """The step with a copy of the model on each of four chips, and its gradients' elements."""
  with count_gradients(make_config()) as count:
    return _compile(fsdp=1), count()


@pytest.fixture(scope="module")
def copies(copies_and_gradients) -> jax.stages.Compiled:
  return copies_and_gradients[0]


@pytest.fixture(scope="module")
def cut() -> jax.stages.Compiled:
  """The step with one copy of the model on four chips."""
  return _compile(fsdp=4)


def test_products_outside_of_the_decoder_are_those_counted_by_hand(copies, cut):
  """The decoder's folded kernels multiply zeros, too."""
  by_hand, decoder = (
    64 / SLICE.chips * sum(p.flops * (1 + p.gradients) for p in counted)
    for counted in (flops.products(make_config()), _products("decoder"))
  )
  assert by_hand == flops.train_step_flops(make_config()) / SLICE.chips
  for compiled in (copies, cut):
    module = hlo.parse(compiled.as_text())
    folded = parts.by_part(module)["decoder"].flops
    assert decoder < folded < 5 * decoder
    others = costs.product_flops(module) - folded
    assert others == pytest.approx(by_hand - decoder, rel=0.03)


def _products(part: str) -> list[flops.Product]:
  return [p for p in flops.products(make_config()) if p.part.startswith(part)]


def test_traffic_of_every_memory_is_what_xla_counts(copies):
  module = hlo.parse(copies.as_text())
  accessed = copies.cost_analysis()["bytes accessed"]
  assert costs.memory_bytes(module, every_space=True) == pytest.approx(accessed, rel=0.05)
  assert costs.memory_bytes(module) <= costs.memory_bytes(module, every_space=True)


def test_cycles_of_the_parts_are_all_that_the_compiler_estimates(copies):
  text = copies.as_text()
  assert " while(" not in text  # a loop's would count as often as it goes round
  by_part = parts.by_part(hlo.parse(text))
  cycles = {name: work.cycles for name, work in by_part.items()}
  total = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))
  assert sum(cycles.values()) == total
  assert cycles.get(parts.UNATTRIBUTED, 0) < 0.05 * total
  assert min(cycles["encoder"], cycles["decoder"], cycles["optimizer and average"]) > 0.05 * total
  assert sum(work.hbm_bytes for work in by_part.values()) == costs.memory_bytes(hlo.parse(text))


def test_products_of_a_part_are_those_counted_by_hand(copies):
  by_part = parts.by_part(hlo.parse(copies.as_text()))
  by_hand = 64 / SLICE.chips * sum(p.flops * (1 + p.gradients) for p in _products("encoder"))
  assert by_part["encoder"].flops == pytest.approx(by_hand, rel=0.01)


@pytest.mark.parametrize(
  "chip", [c for c in chips.CHIPS.values() if isinstance(c, chips.Tpu)], ids=lambda chip: chip.name
)
def test_a_large_product_takes_little_more_than_its_time_at_peak(chip):
  """So the clock is right, and so is the time of chips with two cores."""
  (device, *_) = ahead.open_topology(chips.Topology(chip, (1,) * chip.dimensions))
  at = jax.sharding.SingleDeviceSharding(device)
  square = jax.ShapeDtypeStruct((8192, 8192), "bfloat16", sharding=at)
  with ahead.without_flags():
    compiled = jax.jit(lambda x, y: x @ y).lower(square, square).compile()
  ((_, work),) = [k for k in costs.kernels(hlo.parse(compiled.as_text())) if k[1].flops]
  assert work.flops == 2 * 8192**3
  assert 1 < work.cycles / chip.clock / (work.flops / chip.flops) < 1.5


def test_nothing_but_gradients_and_numbers_is_sent_between_copies(copies_and_gradients):
  """Activations are not sent: what holds a chip's share of the examples stays on its chip."""
  compiled, gradients = copies_and_gradients
  actual = costs.count_collectives(hlo.parse(compiled.as_text()), [0] * SLICE.chips)
  assert list(actual) == ["all-reduce"]
  # Each once, in float32, and a few losses.
  assert actual["all-reduce"].bytes == pytest.approx(4 * gradients, rel=0.001)
  assert actual["all-reduce"].sent == pytest.approx(2 * 3 / 4 * actual["all-reduce"].bytes)


def test_attention_of_tpus_is_a_kernel_on_each_chip():
  compiled = _compile(fsdp=1, backend="tpu", dtype="bfloat16")
  kernels = re.findall(r'custom_call_target="tpu_custom_call"', compiled.as_text())
  # Forward, gradients of the queries, gradients of keys and values.
  assert len(kernels) == 3 * make_config().model.depth
  assert costs.foreign_kernels(hlo.parse(compiled.as_text())) == len(kernels)
  actual = costs.count_collectives(hlo.parse(compiled.as_text()), [0] * SLICE.chips)
  assert list(actual) == ["all-reduce"]


@pytest.mark.slow
def test_parameters_travel_in_bfloat16_where_they_are_used_in_it(cut):
  half = _compile(fsdp=4, dtype="bfloat16")
  gathered = [
    costs.count_collectives(hlo.parse(compiled.as_text()), [0] * SLICE.chips)["all-gather"].bytes
    for compiled in (half, cut)
  ]
  assert gathered[0] < 0.6 * gathered[1]


def test_a_model_that_is_cut_takes_a_quarter_and_is_gathered(copies, cut):
  whole, quarter = (memory_of(compiled, SLICE.chip).arguments for compiled in (copies, cut))
  batch = 64 // 4 * 32 * 32 * 4
  assert (quarter - batch) / (whole - batch) < 0.3
  actual = costs.count_collectives(hlo.parse(cut.as_text()), [0] * SLICE.chips)
  assert actual["all-gather"].bytes > 1.5 * count_parameters(make_config())


def test_an_estimate_of_a_slice(copies):
  actual = estimate_cost("train", make_config(), copies, SLICE)
  assert actual.memory.available == int(15.75 * 2**30)
  assert actual.seconds["compute"] == actual.flops_compiled / 197e12
  assert actual.whole.seconds == actual.whole.cycles / 1.5e9
  assert actual.whole.products_share == actual.seconds["compute"] / actual.whole.seconds
  assert sum(part.share for part in actual.parts.values()) == pytest.approx(1)
  # Two links of 50 GB/s at each corner of the square.
  assert actual.seconds["interconnect"] == actual.sent_bytes / (2 * 50e9)


@pytest.mark.parametrize(
  "name", ["v5e:1x1", "v5e:4x4", "v4:4x4x4", "v5p:4x4x8", "v6e:16x16", "2*v5e:4x4", "4*v5p:4x4x4"]
)
def test_a_slice_has_a_device_a_chip_and_four_chips_a_host(name):
  topology = chips.parse_topology(name)
  devices = ahead.open_topology(topology)
  assert len(devices) == topology.chips
  hosts = {device.process_index for device in devices}
  assert len(hosts) == -(-topology.chips // topology.chip.chips_per_host)
  if topology.islands > 1:
    assert {device.slice_index for device in devices} == set(range(topology.islands))


def test_a_slice_that_cannot_be_is_told():
  with pytest.raises(InputError, match=r"--topology v5e:3x3: .* not divisible"):
    ahead.open_topology(chips.parse_topology("v5e:3x3"))


@pytest.mark.parametrize(
  "name", [name for name, chip in chips.CHIPS.items() if isinstance(chip, chips.Tpu)]
)
def test_the_memory_of_a_chip_is_what_the_compiler_grants(name):
  chip = chips.CHIPS[name]
  assert isinstance(chip, chips.Tpu)
  (device, *_) = ahead.open_topology(chips.Topology(chip, (1,) * chip.dimensions))
  at = jax.sharding.SingleDeviceSharding(device)
  shape = jax.ShapeDtypeStruct(
    (chip.memory_published // 2**12 + 2**18, 1024), "float32", sharding=at
  )
  with (
    ahead.without_flags(),
    pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as refused,
  ):
    jax.jit(lambda x: x + 1).lower(shape).compile()
  # Two versions of the compiler differ in the last place.
  granted = re.search(r"available HBM \(([\d.]+)G\)", str(refused.value))
  assert granted
  assert float(granted[1]) == pytest.approx(chip.memory / 2**30, abs=0.016)


def test_a_batch_that_is_too_large_is_no_crash(tmp_path, capsys):
  smaller = ("--config.max_instances=0", "--config.model.norm=group")
  plan.main([
    "--config", tiny_run.__file__, "--topology", "v5e:2x2", "--batch_per_chip", "4000000", *smaller,
    "--search", "0", "--effort", "quick", "--json", str(tmp_path / "plan.json"),
  ])  # fmt: skip
  (row,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
  assert row["estimate"] is None
  assert row["refused"].startswith("RESOURCE_EXHAUSTED")
  assert "does not fit: RESOURCE_EXHAUSTED" in capsys.readouterr().out


@pytest.mark.slow
def test_bytes_a_chip_stay_from_16_to_256_chips_and_xla_counts_what_we_do():
  """ViLT-B/32 at 480 px with 8 examples per chip; takes minutes per slice."""
  totals = []
  for name in ("v5e:4x4", "v5e:16x16"):
    topology = chips.parse_topology(name)
    config = recipe("refcoco", "unc")
    config.batch_size = 8 * topology.chips
    actual = make_plan(config.lock(), topology, Wanted(effort="quick")).estimate
    assert actual
    totals.append(actual.memory.total)
    # Without the decoder, whose folded kernels multiply zeros, too.
    by_hand = 8 * sum(
      product.flops * (1 + product.gradients)
      for product in flops.products(config)
      if not product.part.startswith("decoder")
    )
    folded = actual.parts["decoder"].flops
    assert actual.flops_compiled - folded == pytest.approx(by_hand, rel=0.01)
    assert 1 < (actual.flops_xla - folded) / by_hand < 1.05
  assert totals[1] == pytest.approx(totals[0], rel=0.05)
