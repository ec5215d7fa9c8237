"""Analytic operation counts against those of the traced program and of XLA."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import plain_decoder
import pytest
import tiny_model
from ml_collections import ConfigDict

from mail_jax.config import recipe
from mail_jax.distributed import sharding
from mail_jax.hardware import flops
from mail_jax.train.program import build_program

VOCAB = 50


def make_config(kind: str) -> ConfigDict:
  """A model wide enough for its products to dominate, and small enough to trace in a second."""
  config = recipe("base", "paper" if kind in ("paper", "no selection") else "instance")
  config.update(image_size=64, max_instances=5, max_tokens=7, batch_size=128, decode_every=2)
  config.model.update(width=512, depth=1, heads=4, mlp_ratio=3.5, decoder_widths=(48, 24, 16, 8, 8))
  if kind == "bimodal":
    config.max_instances = 0
  if kind == "no selection":
    config.model.selection = "none"
  if kind == "multiway":
    config.model.update(experts="multiway", patch_size=16, decoder_widths=(24, 16, 8, 8))
  if kind == "frozen":
    config.optimizer.lr_scale = (("^(encoder|image|text)", 0.0), (".*", 1.0))
  if kind == "half frozen":
    config.model.depth = 2
    config.optimizer.lr_scale = (("^encoder/block00", 0.0), (".*", 1.0))
  if kind == "generalised":
    config.model.update(selection="multi", no_target=True)
  if kind == "plain tokens":
    config.model.update(appearance=False, neighbours=False, image_path=False, norm="group")
    config.grad_accum_steps = 2
  return config


@functools.cache
def traced(kind: str) -> Any:
  """Returns the jaxpr of the training step; compiles nothing."""
  program = build_program(make_config(kind), VOCAB, sharding.make_mesh(devices=jax.devices()[:1]))
  rate = jax.ShapeDtypeStruct((), jnp.float32)
  return program.step.trace(program.shapes, program.batch, rate)


def count_decoder(kind: str, batch: int, train: bool) -> float:
  """Counts the operations of the plain decoder, which multiplies no zeros."""
  config = make_config(kind)
  model, masked = config.model, config.max_instances > 0
  side, mask = config.image_size // model.patch_size, model.mask_path and masked
  guides = 3 * model.image_path + mask + (mask and model.image_path)
  decoder = plain_decoder.Decoder(tuple(model.decoder_widths), model.norm)
  x = jnp.zeros((batch, side, side, model.width * (1 + masked) + 8))
  guide = jnp.zeros((batch, config.image_size, config.image_size, guides)) if guides else None
  shapes = jax.eval_shape(decoder.init, jax.random.key(0), x, guide)
  variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)

  def loss(params, x):
    given = variables | {"params": params}
    return decoder.apply(given, x, guide, train, mutable=["batch_stats"])[0].sum()

  function = jax.grad(loss, (0, 1)) if train else loss
  return count_products(jax.make_jaxpr(function)(variables["params"], x).jaxpr, "")


def count_products(jaxpr: Any, without: str = "decoder") -> float:
  """Counts the operations of all products in a jaxpr, those of loops for every iteration.

  Args:
    jaxpr: a program.
    without: part of the model that does not count.
  """
  total = 0.0
  for equation in jaxpr.eqns:
    if without and without in str(equation.source_info.name_stack):
      continue
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
      total += 2 * math.prod(result) * math.prod(left[i] for i in contracted)
    elif equation.primitive.name == "conv_general_dilated":
      total += count_convolution(equation)
    times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        total += times * count_products(inner, without)
  return total


def count_convolution(equation: Any) -> float:
  """Counts the taps that fall on the input, one by one."""
  params, (data, kernel) = equation.params, (v.aval.shape for v in equation.invars)
  numbers, result = params["dimension_numbers"], equation.outvars[0].aval.shape
  taps = 1
  for axis in (0, 1):
    size = data[numbers.lhs_spec[2 + axis]]
    stride, spread = params["window_strides"][axis], params["lhs_dilation"][axis]
    before, reach = params["padding"][axis][0], params["rhs_dilation"][axis]
    taps *= sum(
      0 <= (at := i * stride + j * reach - before) <= (size - 1) * spread and at % spread == 0
      for i in range(result[numbers.out_spec[2 + axis]])
      for j in range(kernel[numbers.rhs_spec[2 + axis]])
    )
  batch, width = result[numbers.out_spec[0]], result[numbers.out_spec[1]]
  return 2.0 * taps * batch * width * kernel[numbers.rhs_spec[1]]


@pytest.mark.parametrize(
  "kind",
  ["instance", "paper", "bimodal", "plain tokens", "generalised", "frozen", "half frozen"],
)
def test_a_step_has_the_products_that_we_count(kind):
  counted = count_products(traced(kind).jaxpr.jaxpr) + count_decoder(kind, 64, True)
  assert flops.train_step_flops(make_config(kind)) == pytest.approx(counted, rel=1e-9)


def test_a_multiway_step_has_the_same_products_but_for_the_text_in_the_last_block():
  """Nothing reads what the last block makes of the text, so that has no gradient."""
  config = make_config("multiway")
  counted = count_products(traced("multiway").jaxpr.jaxpr) + count_decoder("multiway", 64, True)
  width, hidden = config.model.width, config.model.width * config.model.mlp_ratio
  unread = config.batch_size * 2 * config.max_tokens * (width**2 + 2 * width * hidden)
  assert flops.train_step_flops(config) == pytest.approx(counted + 2 * unread, rel=1e-9)


def test_what_training_does_not_need_is_not_counted():
  # Without a selection JAX still traces the scores, which the compiler drops.
  config = make_config("no selection")
  counted = count_products(traced("no selection").jaxpr.jaxpr)
  counted += count_decoder("no selection", 64, True)
  unneeded = sum(p.flops for p in flops.products(config) if p.gradients < 0) * config.batch_size
  assert 0 < unneeded < 0.02 * counted
  assert flops.train_step_flops(config) < counted <= flops.train_step_flops(config) + unneeded


@pytest.mark.parametrize("kind", ["instance", "paper", "bimodal"])
def test_xla_counts_at_most_a_tenth_more(kind):
  """Of this small model; most of it are zeros that the decoder's convolutions of tiles multiply."""
  costs = traced(kind).lower().cost_analysis()
  assert 1 <= costs["flops"] / flops.train_step_flops(make_config(kind)) < 1.1


@pytest.mark.parametrize("kind", ["instance", "no selection", "plain tokens", "multiway"])
def test_a_forward_pass_has_the_products_that_we_count(kind):
  config = make_config(kind)
  model = tiny_model.make(config, VOCAB)
  variables = tiny_model.shapes(config, VOCAB)
  inputs = tiny_model.make_inputs(config, 3)
  jaxpr = jax.make_jaxpr(lambda v, i: model.apply(v, **i))(variables, inputs)
  counted = count_products(jaxpr.jaxpr) + count_decoder(kind, 3, False)
  assert 3 * flops.forward_flops(config) == pytest.approx(counted, rel=1e-9)


def test_a_step_grows_with_the_batch_and_decodes_one_of_so_many():
  config = make_config("instance")
  single = flops.train_step_flops(config)
  config.batch_size *= 3
  assert flops.train_step_flops(config) == pytest.approx(3 * single)
  decoded = sum(p.flops * (1 + p.gradients) for p in flops.products(config) if p.decoded)
  config.decode_every = 1
  grown = flops.train_step_flops(config) - 3 * single
  assert grown == pytest.approx(decoded * config.batch_size / 2)


def test_shares_are_those_of_the_whole():
  shares = flops.shares(make_config("instance"))
  assert list(shares) == ["image", "mask", "encoder", "selection", "decoder"]
  assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
  ("size", "parameters"), [("vit_b", 85e6), ("vit_l", 302e6), ("vit_h", 630e6)]
)
def test_an_encoder_takes_two_operations_a_parameter_and_token(size, parameters):
  """Compares with 6 N D plus attention to 262 tokens; N is the parameter count of the ViT paper."""
  config = recipe("scale", size)
  encoder = sum(p.flops for p in flops.products(config) if p.part.startswith("encoder"))
  tokens = 1 + 15 * 15 + 16 + 20
  assert 1.0 < encoder / (2 * parameters * tokens) < 1.1
