"""`mail_jax.plan` with the real compiler of GPUs: what it says of GPUs that are not there."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny_run
from gradients import count_gradients

from mail_jax.hardware import chips, flops
from mail_jax.plan import ahead, costs, hlo, products, programs
from mail_jax.plan import command as plan
from mail_jax.plan.estimate import Estimate, estimate_cost

_MISSING = importlib.util.find_spec("jax_plugins") is None or not all(
  importlib.util.find_spec(name) for name in ("jax_plugins.xla_cuda13", "nvidia.cudnn")
)
pytestmark = [
  pytest.mark.plan,
  pytest.mark.skipif(_MISSING, reason="needs XLA's compiler for NVIDIA GPUs: make plan"),
]


def make_config(batch_size: int, **model: Any):
  """Returns the tiny run with an encoder worth counting, and without what takes long to compile."""
  config = tiny_run.get_config()
  config.max_instances, config.batch_size = 0, batch_size
  config.model.update(width=256, norm="group", **model)
  config.sharding_rules = ((".*", "replicate"),)
  return config.lock()


def estimate_on(name: str, config: Any) -> Estimate:
  """Returns the estimate of the step, compiled for a topology."""
  topology = chips.parse_topology(name)
  devices = ahead.open_topology(topology)
  lowered = programs.lower("train", ahead.make_program(config, 320, devices), (64, 64))
  compiled, _ = ahead.compile_lowered(lowered, devices[0])
  return estimate_cost("train", config, compiled, topology)


@pytest.fixture(scope="module")
def alone() -> Estimate:
  return estimate_on("h100:1", make_config(16))


def outside_of_decoder(config: Any) -> float:
  """Counts the FLOPs of a step's products by hand, without the decoder's.

  The decoder's folded kernels multiply zeros, too.
  """
  return config.batch_size * sum(
    product.flops * (1 + product.gradients)
    for product in flops.products(config)
    if not product.part.startswith("decoder")
  )


def test_products_of_the_program_are_those_counted_by_hand(alone):
  outside = alone.flops_compiled - alone.parts["decoder"].flops
  assert outside == pytest.approx(outside_of_decoder(make_config(16)), rel=0.03)
  assert alone.seconds["compute"] == alone.flops_compiled / 494.7e12  # float32 in TF32
  assert alone.seconds["hbm"] == alone.hbm_bytes / 3352e9
  assert alone.flops_xla is None  # this compiler does not count


def test_products_and_convolutions_are_calls_of_libraries(alone):
  blocks = make_config(16).model.depth
  # Queries, keys and values at once, two products of attention, its output, two layers: each
  # forward and for both gradients.
  assert alone.libraries["cuBLAS product"] >= 3 * 6 * blocks
  assert alone.libraries["cuDNN convolution"] >= 3
  assert "cuDNN attention" not in alone.libraries
  assert alone.collectives == {}


def test_attention_by_cudnn_is_found_and_its_products_counted():
  config = make_config(16, backend="cudnn", dtype="bfloat16").unlock()
  # In training, cuDNN takes even lengths only.
  config.max_tokens += 1
  config.lock()
  actual = estimate_on("h100:1", config)
  # Forward, and all gradients at once.
  assert actual.libraries["cuDNN attention"] == 2 * config.model.depth
  # The backward kernel computes the scores again: one product more than the six counted by hand.
  again = sum(p.flops for p in flops.products(config) if p.part == "encoder/attention") / 2
  outside = actual.flops_compiled - actual.parts["decoder"].flops
  assert outside == pytest.approx(outside_of_decoder(config) + 16 * again, rel=0.03)


def test_gradients_are_summed_within_hosts_and_between_them(alone):
  config = make_config(16 * 8)
  with count_gradients(config) as count:
    actual = estimate_on("h100:2x4", config)
  (total,) = actual.collectives.values()
  assert list(actual.collectives) == ["all-reduce"]
  # Each once, in float32, and a few losses.
  assert total.bytes == pytest.approx(4 * count(), rel=0.001)
  assert actual.sent_bytes == pytest.approx(2 * 3 / 4 * total.bytes)
  assert actual.network_bytes == pytest.approx(2 * 1 / 2 * total.bytes / 4)
  assert actual.seconds["interconnect"] == actual.sent_bytes / 450e9
  assert actual.seconds["network"] == actual.network_bytes / 50e9
  # A copy of the model for each GPU takes as much as one alone.
  assert actual.memory.arguments == pytest.approx(alone.memory.arguments, rel=0.01)


def test_a_machine_is_a_slice_of_the_mesh():
  devices = ahead.open_topology(chips.parse_topology("h100:2x4"))
  program = ahead.make_program(make_config(8), 320, devices)
  assert program.mesh.devices.shape == (2, 4, 1)
  assert [d.process_index for d in program.mesh.devices.flat] == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
  ("layout", "window", "padding"), [("NHWC", 3, "SAME"), ("NHWC", 2, "VALID"), ("NCHW", 3, "SAME")]
)
def test_convolutions_and_their_gradients_cost_what_xla_counts_of_the_plain_program(
  layout, window, padding
):
  (device,) = ahead.open_topology(chips.parse_topology("a100:1"))

  def loss(image, kernel):
    numbers = (layout, "HWIO", layout)
    made = jax.lax.conv_general_dilated(image, kernel, (1, 1), padding, dimension_numbers=numbers)
    return (made.astype(jnp.float32) ** 2).sum()

  def compiled(at) -> hlo.Module:
    shape = {"NHWC": (8, 30, 30, 64), "NCHW": (8, 64, 30, 30)}[layout]
    inputs = [
      jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(at))
      for dims in (shape, (window, window, 64, 32))
    ]
    lowered = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*inputs)
    return hlo.parse(ahead.compile_lowered(lowered, at)[0].as_text())

  gpu, cpu = compiled(device), compiled(jax.devices("cpu")[0])
  assert products.count_libraries(gpu) == {"cuDNN convolution": 3}
  # On CPUs these are plain convolutions.
  assert costs.product_flops(gpu) == pytest.approx(costs.product_flops(cpu), rel=1e-6)


@pytest.mark.parametrize("name", [n for n, c in chips.CHIPS.items() if isinstance(c, chips.Gpu)])
def test_every_gpu_of_the_table_can_be_compiled_for(name):
  topology = chips.parse_topology(f"{name}:1")
  (device,) = ahead.open_topology(topology)
  at = jax.sharding.SingleDeviceSharding(device)
  factor = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=at)
  lowered = jax.jit(lambda a, b: jax.nn.gelu(a @ b)).lower(factor, factor)
  module = hlo.parse(ahead.compile_lowered(lowered, device)[0].as_text())
  assert costs.product_flops(module) == 2 * 256**3
  assert chips.chip_of(device.device_kind) is topology.chip


def test_a_batch_that_is_too_large_is_told(capsys):
  plan.main([
    "--config", tiny_run.__file__, "--topology", "l4:1", "--batch_per_chip", "1000000",
    "--config.max_instances=0", "--config.model.norm=group", "--search", "0",
  ])  # fmt: skip
  printed = capsys.readouterr().out
  assert "does not fit): arguments" in printed
  assert "compiled without autotuning" in printed
