"""The optimizer against optax's AdamW; its rules on the real parameters; the schedules' ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_model

from input_pipeline.common.errors import InputError
from mail_jax.config import load_config
from mail_jax.distributed import sharding
from mail_jax.models.build import path_name
from mail_jax.models.rules import by_rule
from mail_jax.pretrained.vilt_names import rows
from mail_jax.train.optim import (
  check_rules,
  freeze,
  learning_rate,
  make_optimizer,
  make_optimizer_from,
  warmup_problem,
)
from mail_jax.train.program import build_program

EVERYTHING = ((".*", 1.0),)
SETTINGS = {"clip": 1.0, "b1": 0.9, "b2": 0.98, "weight_decay": 0.1}


def draw(seed: int, scale: float = 1.0) -> dict:
  rng = np.random.default_rng(seed)
  shapes = {"kernel": (3, 2), "bias": (2,), "words": (5,)}
  leaves = {k: jnp.asarray(scale * rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
  return {"encoder": {"kernel": leaves["kernel"], "bias": leaves["bias"]}, "words": leaves["words"]}


def one_step(optimizer, params: dict, grads: dict) -> dict:
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  return jax.tree.map(lambda p, u: p + 1e-2 * u, params, updates)


def test_with_constant_rules_it_is_optax_adamw_with_clipping():
  ours = make_optimizer(**SETTINGS, lr_scale=EVERYTHING, decay_rules=EVERYTHING)
  rates = [0.01, 0.02, 0.03, 0.02, 0.01]
  theirs = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(lambda step: jnp.array(rates)[step], b1=0.9, b2=0.98, weight_decay=0.1),
  )
  params = expected = draw(0)
  state, their_state = ours.init(params), theirs.init(expected)
  update, their_update = jax.jit(ours.update), jax.jit(theirs.update)
  for step, rate in enumerate(rates):
    grads = draw(step + 1, scale=0.01 if step == 2 else 1.0)  # one of them is not clipped
    updates, state = update(grads, state, params)
    params = jax.tree.map(lambda p, u, rate=rate: p + rate * u, params, updates)
    updates, their_state = their_update(grads, their_state, expected)
    expected = optax.apply_updates(expected, updates)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), params, expected
    )
  assert abs(params["words"] - draw(0)["words"]).max() > 0.01


def test_first_matching_rule_scales_and_zero_freezes():
  rules = (("^encoder/bias$", 0.0), ("^encoder", 0.5), (".*", 1.0))
  params, grads = draw(0), draw(1)
  scaled = make_optimizer(**SETTINGS, lr_scale=rules, decay_rules=EVERYTHING)
  plain = make_optimizer(**SETTINGS, lr_scale=EVERYTHING, decay_rules=EVERYTHING)
  actual, full = one_step(scaled, params, grads), one_step(plain, params, grads)
  np.testing.assert_array_equal(actual["encoder"]["bias"], params["encoder"]["bias"])
  np.testing.assert_array_equal(actual["words"], full["words"])
  halfway = (params["encoder"]["kernel"] + full["encoder"]["kernel"]) / 2
  np.testing.assert_allclose(actual["encoder"]["kernel"], halfway, atol=1e-7)


def test_what_is_frozen_has_no_state():
  rules = (("^encoder", 0.0), (".*", 1.0))
  params, grads = draw(0), draw(1)
  optimizer = make_optimizer(**SETTINGS, lr_scale=rules, decay_rules=EVERYTHING)
  state = optimizer.init(params)
  assert sorted(x.size for x in jax.tree.leaves(state)) == [1, 5, 5]
  updates, _ = optimizer.update(grads, state, params)
  assert not any(u.any() for u in jax.tree.leaves(updates["encoder"])) and updates["words"].any()


def test_what_is_frozen_has_no_gradient_and_changes_nothing_else():
  """Counts the products of a step, of which each frozen kernel's gradient was one."""
  config = tiny_model.make_config(depth=2)
  config.batch_size = 2
  rules = config.optimizer.lr_scale
  mesh = sharding.make_mesh(devices=jax.devices()[:1])

  def products(lr_scale) -> int:
    config.optimizer.lr_scale = lr_scale
    program = build_program(config, tiny_model.VOCAB, mesh)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    traced = program.step.trace(program.shapes, program.batch, rate)
    return str(traced.jaxpr).count("dot_general[")

  assert products((("^encoder.*kernel$", 0.0), *rules)) == products(rules) - 2 * 4
  # The embeddings of image and text, and what leads to them.
  everything = (("^(encoder|image|text|type)", 0.0), *rules)
  assert products(everything) < products(rules) - 2 * 4


def test_a_step_leaves_what_is_frozen_as_it_was():
  params = tiny_model.random_variables(tiny_model.make_config())["params"]
  rules = (("^encoder", 0.0), (".*", 1.0))
  gradients = jax.grad(lambda p: sum((x**2).sum() for x in jax.tree.leaves(freeze(p, rules))))(
    params
  )
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert bool(leaf.any()) != path_name(path).startswith("encoder")


@pytest.mark.parametrize("preset", ["instance", "paper"])
def test_only_kernels_and_word_embeddings_decay_under_the_base_rules_and_the_decoder_is_faster(
  preset,
):
  config = tiny_model.make_config(preset)
  # The real names with one number each: rules only see names.
  params = jax.tree.map(lambda _: jnp.ones(()), tiny_model.shapes(config)["params"])
  optimizer = make_optimizer_from(config)
  still = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(still, optimizer.init(params), params)
  decayed = set()
  for path, update in jax.tree_util.tree_leaves_with_path(updates):
    faster = 4 if path_name(path).startswith(("decoder/", "mask_gain")) else 1
    expected = -config.optimizer.weight_decay * faster if update.any() else 0
    np.testing.assert_allclose(update, expected, rtol=1e-6)
    decayed |= {path_name(path)} if update.any() else set()
  names = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
  assert decayed == {n for n in names if n.split("/")[-1] == "kernel"} | {"text/words/embedding"}
  spared = {name.split("/")[-1] for name in names - decayed}
  assert spared >= {"bias", "scale", "position", "cls", "type"}


@pytest.mark.parametrize("key", ["lr_scale", "decay_rules"])
def test_parameter_that_no_rule_names_is_an_error_that_names_it(key):
  rules = {"lr_scale": EVERYTHING, "decay_rules": EVERYTHING} | {key: (("kernel", 1.0),)}
  with pytest.raises(
    InputError, match=rf"config\.optimizer\.{key}: no rule matches 'encoder/bias'"
  ):
    one_step(make_optimizer(**SETTINGS, **rules), draw(0), draw(1))


@pytest.mark.parametrize(
  ("schedule", "halfway"), [("cosine", 0.5), ("polynomial", 0.5**0.9), ("constant", 1.0)]
)
def test_schedule_warms_up_to_the_peak_and_ends_at_its_share(schedule, halfway):
  def rate(step):
    settings = {"lr": 2.0, "warmup_steps": 10, "final": 0.1, "power": 0.9}
    return learning_rate(step, 110, schedule=schedule, **settings)

  np.testing.assert_allclose([rate(step) for step in range(10)], 0.2 * np.arange(1, 11))
  assert rate(10) == 2.0
  np.testing.assert_allclose(rate(60), 2.0 * (0.1 + 0.9 * halfway))
  np.testing.assert_allclose(rate(110), 2.0 if schedule == "constant" else 0.2)
  assert rate(500) == rate(110)
  after = [rate(step) for step in range(10, 111)]
  assert after == sorted(after, reverse=True)


def test_schedule_without_warm_up_begins_at_the_peak():
  assert learning_rate(0, 10, lr=3.0, warmup_steps=0, schedule="cosine") == 3.0


def test_schedule_stays_at_the_peak_while_the_number_of_steps_is_not_known():
  rates = [learning_rate(step, 0, lr=3.0, warmup_steps=3, schedule="cosine") for step in range(99)]
  assert rates[:3] == [1.0, 2.0, 3.0]
  assert set(rates[3:]) == {3.0}


def test_unknown_schedule_is_named():
  with pytest.raises(InputError, match=r"config\.optimizer\.schedule 'step' is not one of cosine"):
    learning_rate(5, 10, lr=1.0, warmup_steps=5, schedule="step")


@pytest.mark.parametrize("argument", ["unc", "umd", "unc,large"])
@pytest.mark.parametrize("scan", [False, True])
def test_what_vilts_checkpoint_gives_learns_at_the_plain_rate_and_the_rest_faster(argument, scan):
  config = load_config(f"configs/refcoco.py:{argument}", [f"model.scan={scan}"])
  narrow = tiny_model.make_config(scan=scan)
  shapes = tiny_model.shapes(narrow)["params"]
  rates = by_rule(shapes, config.optimizer.lr_scale, "optimizer.lr_scale")
  rates = {path_name(path): rate for path, rate in jax.tree_util.tree_leaves_with_path(rates)}
  # Independently: the table of names by which a checkpoint is converted.
  given = {
    row.ours.replace("block00", "blocks" if scan else "block00") for row in rows(1, is_hf=True)
  }
  assert given < rates.keys()
  new = {rate for name, rate in rates.items() if name not in given}
  assert {rates[name] for name in given} == {1.0}
  assert len(new) == 1 and new.pop() * config.optimizer.lr <= 1e-3 * (1 + 1e-9)


@pytest.mark.parametrize("key", ["lr_scale", "decay_rules"])
@pytest.mark.parametrize(
  ("rules", "message"),
  [
    (
      (("^backbone", 0.0), (".*", 1.0)),
      r"'\^backbone' matches no parameter; the parts are decoder, encoder, image, mask, mask_gain, "
      r"selection, text, type",
    ),
    (("^encoder", 0.0), r"rule 1 is '\^encoder', not a pair \(regex, value\)"),
    ((("(", 1.0), (".*", 1.0)), r"'\(' is not a regular expression \(missing \)"),
    ((("*", 1.0), (".*", 1.0)), r"'\*' is not a regular expression"),
    (((".*", 1.0), ("^encoder", 0.0)), r"'\^encoder' decides nothing, for earlier rules"),
    ((("^encoder", 1.0),), "no rule matches 'decoder/"),
    (((".*", "fast"),), r"the value of '\.\*' is 'fast', not a factor >= 0"),
    (((".*", -1.0),), r"the value of '\.\*' is -1\.0, not a factor >= 0"),
    (((7, 1.0),), "7 is not a regular expression"),
  ],
)
def test_rules_that_decide_nothing_are_refused_by_name(key, rules, message):
  config = tiny_model.make_config()
  config.optimizer[key] = rules
  with pytest.raises(InputError, match=rf"config\.optimizer\.{key}: {message}"):
    check_rules(config, tiny_model.shapes(config)["params"])


def test_a_last_rule_for_everything_may_have_nothing_left():
  config = tiny_model.make_config()
  config.optimizer.lr_scale = (("^decoder", 4.0), ("^(?!decoder)", 1.0), (".*", 0.0))
  check_rules(config, tiny_model.shapes(config)["params"])


@pytest.mark.parametrize(
  ("warmup", "steps", "said"),
  [(300, 20, "ends at 6.7% of its peak; set it to 2 or so"), (20, 20, "100.0%"), (19, 20, "")],
)
def test_a_warm_up_that_is_not_shorter_than_the_run_is_told(warmup, steps, said):
  config = tiny_model.make_config()
  config.optimizer.warmup_steps = warmup
  told = warmup_problem(config, steps)
  assert said in told and bool(said) == bool(told)
  assert warmup_problem(config, 0) == ""
