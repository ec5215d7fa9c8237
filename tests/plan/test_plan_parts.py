"""Cycles, and the parts that instructions belong to, in lines of programs with known sums."""

import pytest

from mail_jax.plan import costs, hlo, parts


def _estimate(cycles: int) -> str:
  return f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}","is_mask":false}}}}'


def _named(path: str) -> str:
  return f'metadata={{op_name="{path}" stack_frame_id=3}}'


def _module(*lines: str, before: str = "") -> hlo.Module:
  body = "\n".join(f"  {line}" for line in lines)
  return hlo.parse(f"HloModule m\n\n{before}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n")


def _cycles(module: hlo.Module) -> int:
  return sum(work.cycles for _, work in costs.kernels(module))


def _parts(module: hlo.Module) -> dict[str, int]:
  return {part: work.cycles for part, work in parts.by_part(module).items()}


FUSED = f"""%inside (x: f32[8,16], y: f32[16,32]) -> f32[8,32] {{
  %x = f32[8,16]{{1,0}} parameter(0)
  %y = f32[16,32]{{1,0}} parameter(1)
  ROOT %z = f32[8,32]{{1,0}} dot(%x, %y), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, \
{_named("jit(train_step)/jvp(MaIL)/MaIL._encode/encoder/block00/qkv/dot_general")}, {_estimate(7)}
}}
"""
PRODUCT = 2.0 * 8 * 16 * 32


def test_a_fusion_counts_once_and_so_does_its_product():
  module = _module(
    "%p = f32[8,16]{1,0} parameter(0)",
    "%w = f32[16,32]{1,0} parameter(1)",
    f"%f = f32[8,32]{{1,0}} fusion(%p, %w), kind=kOutput, calls=%inside, {_estimate(100)}",
    f"ROOT %g = f32[8,32]{{1,0}} sine(%f), {_estimate(20)}",
    before=FUSED,
  )
  works = {instruction.name: work for instruction, work in costs.kernels(module)}
  assert works["f"] == costs.Work(100, PRODUCT, 4 * (8 * 16 + 16 * 32 + 8 * 32))
  assert works["g"] == costs.Work(20, 0.0, 2 * 4 * 8 * 32)


def test_a_loop_counts_as_often_as_it_goes_round_and_not_itself():
  before = f"""%cond (c: (s32[], f32[8])) -> pred[] {{
  %c = (s32[], f32[8]{{0}}) parameter(0)
  ROOT %less = pred[] custom-call(%c), {_estimate(1000)}
}}

%body (b: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %b = (s32[], f32[8]{{0}}) parameter(0)
  %x = f32[8]{{0}} get-tuple-element(%b), index=1
  %y = f32[8]{{0}} sine(%x), {_estimate(30)}
  ROOT %out = (s32[], f32[8]{{0}}) tuple(%b, %y)
}}
"""
  module = _module(
    "%p = (s32[], f32[8]{0}) parameter(0)",
    "%loop = (s32[], f32[8]{0}) while(%p), condition=%cond, body=%body, "
    'backend_config={"known_trip_count":{"n":"12"},"estimated_cycles":"5"}',
    f"ROOT %r = f32[8]{{0}} cosine(%loop), {_estimate(4)}",
    before=before,
  )
  assert _cycles(module) == 12 * 30 + 4


def test_an_asynchronous_pair_counts_once():
  before = f"""%moved (q: f32[8]) -> f32[8] {{
  %q = f32[8]{{0}} parameter(0)
  ROOT %s = f32[8]{{0}} sine(%q), {_estimate(50)}
}}
"""
  module = _module(
    "%p = f32[8]{0} parameter(0)",
    f"%a = ((f32[8]{{0}}), f32[8]{{0}}, s32[]) async-start(%p), calls=%moved, {_estimate(50)}",
    f"%b = f32[8]{{0}} async-done(%a), calls=%moved, {_estimate(50)}",
    "%c = (f32[8]{0:S(1)}, f32[8]{0}, u32[]) copy-start(%b), " + _estimate(6),
    "ROOT %d = f32[8]{0:S(1)} copy-done(%c), " + _estimate(6),
    before=before,
  )
  assert _cycles(module) == 50 + 6


STEP = "jit(train_step)/"


@pytest.mark.parametrize(
  ("path", "part"),
  [
    (STEP + "transpose(jvp(MaIL))/MaIL._decode/decoder/stage3/conv_general_dilated", "decoder"),
    (STEP + "jvp(MaIL)/MaIL._decode/exp", "decoder"),
    (STEP + "jvp(MaIL)/MaIL._encode/encoder/block07/mlp_in/dot_general", "encoder"),
    (STEP + "jvp(MaIL)/MaIL._embed_masks/mask/groups/dot_general", "masks"),
    (STEP + "transpose(jvp(MaIL))/selection/score_in/dot_general", "masks"),
    (STEP + "jvp(MaIL)/bkyx,jx->bkyj/dot_general", "masks"),
    ("jit(measure)/MaIL/and", "masks"),
    (STEP + "jvp(MaIL)/image/patches/dot_general", "embeddings"),
    (STEP + "transpose(jvp(MaIL))/text/words/scatter-add", "embeddings"),
    (STEP + "jvp()/reduce_sum", "loss"),
    (STEP + "augmentation/jit(_uniform)/shift_right_logical", "augmentation"),
    (STEP + "optimizer/add", "optimizer and average"),
    (STEP + "sharding_constraint", "optimizer and average"),
    ("jit(measure)/byh,bhx->byx/dot_general", "other"),
    ("convert.25", "unattributed"),
    ("state.variables['params']['encoder']['block00']['qkv']['kernel']", "unattributed"),
  ],
)
def test_a_path_tells_the_part(path, part):
  assert parts.part_of(path) == part


def test_what_the_compiler_adds_belongs_to_its_only_neighbours():
  encoder = _named(STEP + "jvp(MaIL)/MaIL._encode/encoder/block00/add")
  decoder = _named(STEP + "jvp(MaIL)/MaIL._decode/decoder/stage0/add")
  module = _module(
    "%p = f32[8]{0} parameter(0), " + _named("batch['image']"),
    f"%first = f32[8]{{0}} sine(%p), {encoder}, {_estimate(1)}",
    # Between two of the encoder, through one that costs nothing; and the same with a name.
    f"%inner = f32[8]{{0}} copy(%first), {_estimate(10)}",
    "%same = f32[8]{0} bitcast(%inner)",
    f"%second = f32[8]{{0}} cosine(%same), {encoder}, {_estimate(2)}",
    f"%named = f32[8]{{0}} convert(%second), {_named('convert.25')}, {_estimate(20)}",
    f"%third = f32[8]{{0}} sine(%named), {encoder}, {_estimate(3)}",
    # Between the encoder and the decoder.
    f"%border = f32[8]{{0}} copy(%third), {_estimate(100)}",
    f"%fourth = f32[8]{{0}} sine(%border), {decoder}, {_estimate(4)}",
    # Only its user is known: it reads a parameter.
    f"%weight = f32[8]{{0}} copy(%p), {_estimate(40)}",
    f"ROOT %fifth = f32[8]{{0}} add(%weight, %fourth), {decoder}, {_estimate(5)}",
  )
  assert _parts(module) == {
    "decoder": 4 + 5 + 40, "encoder": 1 + 10 + 2 + 20 + 3, "unattributed": 100,
  }  # fmt: skip


def test_an_update_fused_with_the_product_of_its_gradient_belongs_to_the_product():
  module = _module(
    "%p = f32[8,16]{1,0} parameter(0)",
    "%w = f32[16,32]{1,0} parameter(1)",
    "ROOT %f = f32[8,32]{1,0} fusion(%p, %w), kind=kOutput, calls=%inside, "
    f"{_named(STEP + 'optimizer/add')}, {_estimate(100)}",
    before=FUSED,
  )
  work = parts.by_part(module)
  assert {part: (w.cycles, w.flops) for part, w in work.items()} == {"encoder": (100, PRODUCT)}
