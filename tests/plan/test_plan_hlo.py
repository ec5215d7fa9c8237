"""Parsing of compiled programs, against numbers of JAX and counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from mail_jax.plan import costs, hlo

LOOP = """HloModule m

%cond (c: (u32[], f32[4])) -> pred[] {
  %limit = u32[]{:T(128)} constant(9)
  %c = (u32[]{:T(128)}, f32[4]{0}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (b: (u32[], f32[4])) -> (u32[], f32[4]) {
  %b = (u32[]{:T(128)}, f32[4]{0}) parameter(0)
  %two = u32[] constant(2)
  %i = u32[]{:T(128)} get-tuple-element(%b), index=0
  %copied = u32[]{:T(128)S(6)} copy(%i)
  %next = u32[] add(%copied, %two)
  %x = f32[4]{0} get-tuple-element(%b), index=1
  %y = f32[4]{0} sine(%x)
  ROOT %out = (u32[], f32[4]{0}) tuple(%next, %y)
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %start = u32[] constant(1)
  %carried = (u32[], f32[4]{0}) tuple(%start, %p)
  %loop = (u32[], f32[4]{0}) while(%carried), condition=%cond, body=%body
  ROOT %result = f32[4]{0} get-tuple-element(%loop), index=1
}
"""


def _times(text: str, opcode: str) -> list[int]:
  return [times for i, times in hlo.parse(text).walk() if i.opcode == opcode]


def test_a_loop_goes_round_as_often_as_its_counter_says():
  assert _times(LOOP, "sine") == [4]  # 1, 3, 5, 7


@pytest.mark.parametrize(
  ("old", "new", "rounds"),
  [
    ("direction=LT", "direction=LE", 5),
    ("constant(9)", "constant(1)", 0),
    ("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}', 7),
    # What cannot be known counts once.
    ("direction=LT", "direction=NE", None),
    ("%limit = u32[]{:T(128)} constant(9)", "%limit = u32[] partition-id()", None),
    ("add(%copied, %two)", "multiply(%copied, %two)", None),
  ],
)
def test_trip_counts_are_known_or_computed_or_unknown(old, new, rounds):
  assert old in LOOP
  module = hlo.parse(LOOP.replace(old, new))
  loop = module.computations["main"]["loop"]
  assert hlo.trip_count(module, loop) == rounds
  assert [n for i, n in module.walk() if i.opcode == "sine"] == [rounds or 1]


def test_a_compiled_scan_runs_its_body_as_often_as_it_is_long():
  def scanned(x):
    return jax.lax.scan(lambda y, _: (jnp.tanh(y @ y), None), x, length=6)[0]

  compiled = jax.jit(scanned).lower(jnp.zeros((16, 16))).compile()
  module = hlo.parse(compiled.as_text())
  once = 2 * 16**3
  assert costs.product_flops(module) == 6 * once
  # XLA counts one round; with the others it is what we count, but for the elements.
  assert costs.flops_of_further_iterations(module) == 5 * once


@pytest.mark.parametrize(
  ("text", "dims", "space", "size", "stored"),
  [
    ("f32[8,240,2,5]{0,3,2,1:T(8,128)}", (8, 240, 2, 5), 0, 76_800, 128 * 240 * 2 * 8 * 4),
    ("bf16[16,100]{1,0:T(8,128)(2,1)S(1)}", (16, 100), 1, 3200, 16 * 128 * 2),
    ("f32[300]{0:T(256)}", (300,), 0, 1200, 2048),
    ("pred[3,5]{1,0}", (3, 5), 0, 15, 15),
    ("u32[]{:T(128)S(6)}", (), 6, 4, 4),
    ("s4[7]{0}", (7,), 0, 4, 4),
    ("f8e4m3fn[10]{0}", (10,), 0, 10, 10),
    ("c64[2]{0}", (2,), 0, 16, 16),
    ("token[]", (), 0, 0, 0),
  ],
)
def test_shapes_have_a_size_and_one_with_padding(text, dims, space, size, stored):
  module = hlo.parse(
    f"ENTRY %main () -> {text.partition('{')[0]} {{\n  ROOT %x = {text} parameter(0)\n}}\n"
  )
  (shape,) = module.roots["main"].shapes
  assert (shape.dims, shape.space, shape.bytes, shape.bytes_stored) == (dims, space, size, stored)


def test_text_that_is_not_a_program_is_rejected():
  with pytest.raises(ValueError, match="no ENTRY computation"):
    hlo.parse("module @jit_f {}")


@pytest.mark.parametrize(
  ("line", "data", "kernel", "flops"),
  [
    # 3 x 3 taps on 15 x 15, those beyond the edge left out; as a loop over all of them counts.
    (
      "f32[2,15,15,16] convolution(%x, %k), window={size=3x3 pad=1_1x1_1}, "
      "dim_labels=b01f_01io->b01f",
      "f32[2,15,15,8]", "f32[3,3,8,16]", 2 * 2 * 8 * 16 * 43**2,
    ),
    # A matrix product, as a TPU has it.
    ("f32[6,9] convolution(%x, %k), dim_labels=bf_io->bf", "f32[6,5]", "f32[5,9]", 2 * 6 * 5 * 9),
    # Every second place of 8: taps at 0 and 1.
    (
      "f32[1,4,3] convolution(%x, %k), window={size=2 stride=2}, dim_labels=b0f_0io->b0f",
      "f32[1,8,2]", "f32[2,2,3]", 2 * 2 * 3 * 8,
    ),
    # The gradient of it: zeros between the numbers are not operations.
    (
      "f32[1,8,2] convolution(%x, %k), window={size=2 pad=1_1 lhs_dilate=2}, "
      "dim_labels=b0f_0io->b0f",
      "f32[1,4,3]", "f32[2,3,2]", 2 * 3 * 2 * 8,
    ),
    (
      "f32[4,5,7] dot(%x, %k), lhs_batch_dims={0}, lhs_contracting_dims={2}, "
      "rhs_contracting_dims={1}",
      "f32[4,5,6]", "f32[4,6,7]", 2 * 4 * 5 * 6 * 7,
    ),
  ],
)  # fmt: skip
def test_products_are_counted_by_their_taps(line, data, kernel, flops):
  lines = f"  %x = {data} parameter(0)\n  %k = {kernel} parameter(1)\n  ROOT %y = {line}\n"
  module = hlo.parse(f"ENTRY %main () -> f32[] {{\n{lines}}}\n")
  assert costs.product_flops(module) == flops


def test_products_are_those_that_xla_counts():
  def step(kernel, x, w):
    y = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.sum((y.reshape(-1, 6) @ w) ** 2)

  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3, 3, 4, 6), (2, 9, 9, 4), (6, 5))]
  compiled = jax.jit(jax.grad(step, argnums=(0, 1, 2))).lower(*shapes).compile()
  ours = costs.product_flops(hlo.parse(compiled.as_text()))
  forward = 2 * 2 * 4 * 6 * 25**2 + 2 * 162 * 6 * 5
  assert ours == 3 * forward
  assert ours <= compiled.cost_analysis()["flops"] < 1.1 * ours


def test_traffic_counts_arrays_in_hbm_and_parts_as_parts():
  module = hlo.parse("""%take (t: f32[100,8], i: s32[]) -> f32[1,8] {
  %t = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %row = f32[1,8]{1,0} dynamic-slice(%t, %i, %i), dynamic_slice_sizes={1,8}
}

ENTRY %main (table: f32[100,8], i: s32[]) -> f32[1,8] {
  %table = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %fast = (f32[100,8]{1,0:S(1)}, f32[100,8]{1,0}, u32[]{:S(2)}) copy-start(%table)
  %there = f32[100,8]{1,0:S(1)} copy-done(%fast)
  %sine = f32[100,8]{1,0:S(1)} sine(%there)
  %sum = f32[100,8]{1,0} add(%sine, %there)
  ROOT %row = f32[1,8]{1,0} fusion(%sum, %i), kind=kLoop, calls=%take
}
""")
  whole, row, index = 3200, 32, 4
  assert costs.memory_bytes(module) == whole + whole + (row + index + row)


def test_traffic_is_what_xla_counts_where_all_is_in_one_memory():
  def step(x, w):
    return jnp.tanh(x @ w).sum(0), w * 2

  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 32), (32, 128))]
  compiled = jax.jit(step).lower(*shapes).compile()
  module = hlo.parse(compiled.as_text())
  assert costs.memory_bytes(module) == pytest.approx(
    compiled.cost_analysis()["bytes accessed"], rel=0.02
  )
