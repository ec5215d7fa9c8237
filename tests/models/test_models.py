"""The whole model: which inputs change its output, which do not, and invalid options."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import bit_planes
from mail_jax.config import recipe
from mail_jax.export import formats
from mail_jax.models import build
from mail_jax.models.build import make_model, path_name
from mail_jax.models.mail import IN_DTYPE, Output

Inputs = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def config() -> ConfigDict:
  return tiny_model.make_config()


@pytest.fixture(scope="module")
def variables(config) -> dict[str, Any]:
  return tiny_model.random_variables(config)


@pytest.fixture(scope="module")
def inputs(config) -> Inputs:
  return tiny_model.make_inputs(config)


@pytest.fixture(scope="module")
def output(config, variables, inputs) -> Output:
  return tiny_model.run(config, variables, inputs)


def check_output(output: Output, inputs: Inputs, config: ConfigDict) -> None:
  """Checks the shapes and ranges of an `Output`."""
  count, slots, size = len(inputs["image"]), config.max_instances, config.image_size
  assert output.logits.shape == (count, size, size)
  assert output.logits.dtype == np.float32
  assert output.rho.shape == (count, slots)
  assert output.selection_logits.shape == (count, slots + 1)
  assert output.planes.shape == (count, bit_planes.num_planes(slots), size, size)
  assert all(np.isfinite(array).all() for array in jax.tree.leaves(output))
  assert (output.rho > -1e-6).all()
  assert (output.rho < 1 + 1e-6).all()
  assert not output.rho[~inputs["valid"]].any()


def same(left: Output, right: Output, atol: float = 1e-5) -> bool:
  return jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=atol), left, right))


def test_instance_preset_gives_a_logit_a_pixel_and_a_weight_a_slot(config, inputs, output):
  check_output(output, inputs, config)
  # Hard: one slot, or none of them.
  np.testing.assert_allclose(np.sort(output.rho)[:, :-1], 0, atol=1e-6)
  best = output.selection_logits.argmax(1)
  for rho, slot in zip(output.rho, best, strict=True):
    np.testing.assert_allclose(rho, np.arange(len(rho)) == slot, atol=1e-6)


def test_masks_seen_are_those_of_the_slots_that_hold_an_instance(inputs, output):
  for planes, valid, seen in zip(inputs["planes"], inputs["valid"], output.planes, strict=True):
    stored = bit_planes.unpackbits(planes, len(valid))
    np.testing.assert_array_equal(seen, bit_planes.packbits(stored & valid[:, None, None]))


def test_paper_preset_selects_softly_and_its_text_padding_and_void_slots_change_nothing():
  config = tiny_model.make_config("paper")
  variables, inputs = tiny_model.random_variables(config), tiny_model.make_inputs(config)
  output = tiny_model.run(config, variables, inputs)
  check_output(output, inputs, config)
  exponents = np.exp(output.selection_logits.astype(float))
  weights = exponents / exponents.sum(1, keepdims=True)
  np.testing.assert_allclose(output.rho, weights[:, :-1], atol=1e-6)
  assert (output.rho[inputs["valid"]] > 0).all()
  changed = with_other_void_slots(with_other_padding(inputs, config), config)
  assert same(output, tiny_model.run(config, variables, changed))


def test_without_slots_there_are_no_mask_tokens_and_no_mask_parameters():
  config = tiny_model.make_config(slots=0)
  variables, inputs = tiny_model.random_variables(config), tiny_model.make_inputs(config)
  assert not {"mask", "selection", "mask_gain"} & set(variables["params"])
  output = tiny_model.run(config, variables, inputs)
  check_output(output, inputs, config)
  # Its planes must not matter.
  inputs["planes"] = ~inputs["planes"]
  assert same(output, tiny_model.run(config, variables, inputs))


def test_bfloat16_runs_with_float32_parameters_and_logits_near_those_of_float32(
  variables, inputs, output
):
  half = tiny_model.make_config(dtype="bfloat16")
  dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(tiny_model.shapes(half))}
  assert dtypes == {"float32"}
  actual = tiny_model.run(half, variables, inputs)
  check_output(actual, inputs, half)
  assert actual.selection_logits.dtype == np.float32
  np.testing.assert_allclose(actual.selection_logits, output.selection_logits, atol=0.1, rtol=0.1)
  assert not np.array_equal(actual.selection_logits, output.selection_logits)


def with_other_padding(inputs: Inputs, config: ConfigDict) -> Inputs:
  """Returns inputs with other word pieces in the padding."""
  padding = np.arange(config.max_tokens) >= inputs["num_tokens"][:, None]
  assert padding.any()
  return inputs | {"tokens": np.where(padding, inputs["tokens"] % 7 + 3, inputs["tokens"])}


def with_other_void_slots(inputs: Inputs, config: ConfigDict) -> Inputs:
  """Returns inputs with every bit of the slots without an instance flipped."""
  void = np.zeros((*inputs["valid"].shape, 1, 1), bool) | ~inputs["valid"][:, :, None, None]
  assert void.any()
  side = config.image_size
  flip = np.broadcast_to(void, (*inputs["valid"].shape, side, side))
  return inputs | {
    "planes": inputs["planes"] ^ np.stack([bit_planes.packbits(mask) for mask in flip])
  }


def test_what_stands_behind_the_expression_changes_nothing(config, variables, inputs, output):
  assert same(output, tiny_model.run(config, variables, with_other_padding(inputs, config)), 0)


def test_planes_of_slots_without_an_instance_change_nothing(config, variables, inputs, output):
  assert same(output, tiny_model.run(config, variables, with_other_void_slots(inputs, config)), 0)


def test_more_room_for_words_and_instances_changes_nothing(config, variables, inputs, output):
  wide = tiny_model.make_config(slots=tiny_model.SLOTS + 15)
  wide.max_tokens = config.max_tokens + 3
  params = tiny_model.random_variables(wide)["params"]
  position = (
    params["text"]["position"].at[: config.max_tokens].set(variables["params"]["text"]["position"])
  )
  text = variables["params"]["text"] | {"position": position}
  inputs = inputs | {
    "tokens": np.pad(inputs["tokens"], ((0, 0), (0, 3)), constant_values=4),
    "planes": np.pad(inputs["planes"], ((0, 0), (0, 1), (0, 0), (0, 0)), constant_values=999),
    "valid": np.pad(inputs["valid"], ((0, 0), (0, 15))),
  }
  actual = tiny_model.run(
    wide, variables | {"params": variables["params"] | {"text": text}}, inputs
  )
  slots = config.max_instances
  np.testing.assert_allclose(actual.logits, output.logits, atol=1e-5)
  np.testing.assert_allclose(actual.rho[:, :slots], output.rho, atol=1e-5)
  assert not actual.rho[:, slots:].any()
  np.testing.assert_allclose(
    actual.selection_logits[:, [*range(slots), -1]], output.selection_logits, atol=1e-5
  )


def test_order_of_the_instances_changes_the_order_of_their_weights_and_no_pixel(
  config, variables, inputs, output
):
  order = np.random.default_rng(3).permutation(config.max_instances)
  planes = [
    bit_planes.packbits(bit_planes.unpackbits(p, len(order))[order]) for p in inputs["planes"]
  ]
  shuffled = inputs | {"planes": np.stack(planes), "valid": inputs["valid"][:, order]}
  actual = tiny_model.run(config, variables, shuffled)
  np.testing.assert_allclose(actual.logits, output.logits, atol=1e-5)
  np.testing.assert_allclose(actual.rho, output.rho[:, order], atol=1e-5)
  np.testing.assert_allclose(
    actual.selection_logits, output.selection_logits[:, [*order, -1]], atol=1e-5
  )


def test_examples_of_a_batch_do_not_see_each_other(config, variables, inputs, output):
  other = tiny_model.make_inputs(config, seed=1)
  mixed = {name: np.concatenate([inputs[name][:1], other[name][1:]]) for name in inputs}
  actual = tiny_model.run(config, variables, mixed)
  assert same(*(jax.tree.map(lambda a: a[:1], whole) for whole in (output, actual)))
  assert not np.allclose(actual.logits[1:], output.logits[1:], atol=1e-2)


def test_decoding_every_second_example_leaves_out_the_logits_of_the_others(config, variables):
  inputs = tiny_model.make_inputs(config, count=4)
  whole = tiny_model.run(config, variables, inputs)
  half = jax.jit(tiny_model.make(config).apply, static_argnames="decode_every")(
    variables, **inputs, decode_every=2
  )
  np.testing.assert_allclose(half.logits, whole.logits[::2], atol=1e-5)
  for name in ("rho", "selection_logits", "planes"):
    np.testing.assert_allclose(getattr(half, name), getattr(whole, name), atol=1e-5)


def test_what_is_meant_is_decoded_whatever_is_chosen(config, variables, inputs, output):
  slots = config.max_instances
  chosen = np.argmax(output.selection_logits, 1)
  apply = jax.jit(tiny_model.make(config).apply)
  again = apply(variables, **inputs, target_instance=chosen)
  np.testing.assert_allclose(again.logits, output.logits, atol=1e-5)
  other = np.array(
    [
      next(k for k in np.flatnonzero(v) if k != c)
      for v, c in zip(inputs["valid"], chosen, strict=True)
    ]
  )
  forced = apply(variables, **inputs, target_instance=other)
  np.testing.assert_allclose(forced.rho, np.eye(slots)[other], atol=1e-6)
  np.testing.assert_allclose(forced.selection_logits, output.selection_logits, atol=1e-5)
  assert np.abs(forced.logits - output.logits).max(axis=(1, 2)).min() > 0.1


@pytest.mark.parametrize("field", ["image", "word", "instance"])
def test_each_modality_matters(config, variables, inputs, output, field):
  changed = {name: value.copy() for name, value in inputs.items()}
  if field == "image":
    changed["image"][:, :16] = 255 - changed["image"][:, :16]
  elif field == "word":
    changed["tokens"][:, 1] = changed["tokens"][:, 1] % 7 + 8
  else:
    changed["planes"][:, :, 4:12, 8:20] ^= 0xFFFF
  actual = tiny_model.run(config, variables, changed)
  for before, after in zip(output.selection_logits, actual.selection_logits, strict=True):
    assert not np.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("preset", ["paper", pytest.param("instance", marks=pytest.mark.slow)])
def test_what_is_read_in_the_dtype_alone_may_be_given_in_it(preset):
  config = tiny_model.make_config(preset, dtype="bfloat16")
  variables, inputs = tiny_model.random_variables(config), tiny_model.make_inputs(config)
  expected = tiny_model.run(config, variables, inputs)

  def changes(wanted) -> bool:
    params = jax.tree_util.tree_map_with_path(
      lambda path, x: x.astype(jnp.bfloat16) if wanted(path_name(path)) else x, variables["params"]
    )
    actual = tiny_model.run(config, variables | {"params": params}, inputs)
    return not same(actual, expected, atol=1e-5)

  names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])]
  # No kernel is left out: all others need their precision.
  others = [name for name in names if name.endswith("kernel") and not IN_DTYPE.match(name)]
  assert others
  assert not changes(IN_DTYPE.match)
  for kernel in others:
    assert changes(kernel.__eq__), kernel


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"mask_tokens": "stacked", "selection": "soft"},
  ],
)
def test_a_program_holds_the_weights_and_takes_any_number_of_examples(options):
  """Like exported models; nothing is compiled."""
  config = tiny_model.make_config(**options)
  variables = jax.device_get(tiny_model.random_variables(config))
  run = formats.make_forward(tiny_model.make(config))
  specs = build.input_specs(config, jax.export.symbolic_shape("b")[0])
  exported = jax.export.export(jax.jit(lambda *inputs: run(variables, *inputs)))(*specs.values())
  shapes = {str(x.shape) for x in exported.out_avals}
  assert shapes == {"(b, 32, 32)", f"(b, {tiny_model.SLOTS + 1})"}


@pytest.mark.parametrize(
  "recipe", [recipe("base"), recipe("demo", "paper"), recipe("refcoco_small")]
)
def test_recipes_make_models_with_a_logit_a_pixel(recipe):
  model = make_model(recipe, recipe.vocab_size)
  inputs = tiny_model.make_inputs(recipe, 2)
  shapes = jax.eval_shape(model.init_with_output, jax.random.key(0), **inputs)[0]
  logits = jax.eval_shape(lambda output: output.logits, shapes)
  assert logits.shape == (2, recipe.image_size, recipe.image_size)
  assert shapes.selection_logits.shape == (2, recipe.max_instances + 1)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"decoder_widths": (8, 8)}, r"model\.decoder_widths has 2 stages; model\.patch_size 8"),
    ({"patch_size": 12}, r"image_size 32 is not a multiple of config\.model\.patch_size 12"),
    ({"heads": 3}, r"model\.width 16 is not a multiple of model\.heads 3"),
    ({"mask_tokens": "boxes"}, r"model\.mask_tokens 'boxes' is not one of instance, stacked"),
    ({"pad_to_multiple_of": 0}, r"model\.pad_to_multiple_of is 0; it must be at least 1"),
    ({"selection": "first"}, r"model\.selection 'first' is not one of soft, hard, multi, none"),
    ({"backend": "flash"}, r"model\.backend 'flash' is not one of auto, xla, cudnn, tpu"),
    ({"norm": "layer"}, r"model\.norm 'layer' is not one of batch, group"),
    ({"dtype": "float31"}, r"config\.model\.dtype 'float31'"),
  ],
)
def test_what_cannot_be_built_is_refused_by_name(inputs, change, message):
  with pytest.raises(InputError, match=message):
    jax.eval_shape(
      tiny_model.make(tiny_model.make_config(**change)).init, jax.random.key(0), **inputs
    )
