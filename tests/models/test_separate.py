"""Blocks for each modality by itself: who sees whom, and what may not matter."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import bit_planes
from mail_jax.export.forward import without_loop
from mail_jax.models.encoder import Block, block_name, stack_blocks
from mail_jax.models.parameters import path_name
from mail_jax.models.separate import MODALITIES

Tree = Any
DEPTH, SEPARATE = 3, 2


def make_config(**model: Any) -> ConfigDict:
  return tiny_model.make_config(depth=DEPTH, separate_blocks=SEPARATE, **model)


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
  return tiny_model.random_variables(make_config())


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
  return tiny_model.make_inputs(make_config())


def look_inside(variables: Tree, inputs: Tree, **model: Any) -> tuple[Tree, Tree]:
  """What the modules of the model give, by their paths, and the output; the separate stacks give three arrays."""
  network = tiny_model.make(make_config(**model))
  output, seen = jax.jit(
    lambda variables, inputs: network.apply(
      variables,
      **inputs,
      capture_intermediates=lambda module, name: len(module.path) == 1 and name == "__call__",
      mutable=["intermediates"],
    )
  )(variables, inputs)
  return {
    name: calls["__call__"][0] for name, calls in seen["intermediates"].items() if calls
  }, output


@pytest.fixture(scope="module")
def seen(variables, inputs) -> tuple[Tree, Tree]:
  return look_inside(variables, inputs)


def change(inputs: dict[str, np.ndarray], field: str) -> dict[str, np.ndarray]:
  """The same inputs with other values of one modality, and as many tokens."""
  changed = {
    "image": {"image": 255 - inputs["image"]},
    # The first bits of the planes are instances; what is true of one slot is then true of another.
    "mask": {"planes": np.roll(inputs["planes"], 5, axis=2)},
    "text": {"tokens": inputs["tokens"] % 7 + 3},
  }
  return inputs | changed[field]


@pytest.mark.parametrize("field", ["mask", "text"])
def test_no_modality_sees_another_before_the_joint_blocks(variables, inputs, seen, field):
  # The image is not among them: a mask's token has the image inside the mask.
  before, output = seen
  after, other = look_inside(variables, change(inputs, field))
  for name, one, two in zip(MODALITIES, before["separate"], after["separate"], strict=True):
    if name == field:
      assert np.abs(one - two).max() > 0.1
    else:
      np.testing.assert_array_equal(one, two, err_msg=name)
  assert np.abs(before["encoder"][:, :17] - after["encoder"][:, :17]).max() > 0.03
  assert not np.allclose(output.selection_logits, other.selection_logits, atol=1e-2)


def test_without_the_image_in_their_tokens_masks_do_not_see_it_either(variables, inputs):
  bare = tiny_model.random_variables(make_config(appearance=False))
  before, _ = look_inside(bare, inputs, appearance=False)
  after, _ = look_inside(bare, change(inputs, "image"), appearance=False)
  image, *others = zip(before["separate"], after["separate"], strict=True)
  assert np.abs(image[0] - image[1]).max() > 0.1
  for one, two in others:
    np.testing.assert_array_equal(one, two)


def test_each_stack_is_its_blocks_on_the_tokens_that_count(variables, inputs, seen):
  """The first example, cut to its lengths, through blocks that are called one after the other."""
  stages, _ = seen
  counts = {
    "image": np.ones(17, bool),
    "mask": inputs["valid"][0],
    "text": np.arange(6) < inputs["num_tokens"][0],
  }
  apply = jax.jit(Block(2, dtype=jnp.dtype("float32")).apply)
  for index, (name, after) in enumerate(zip(MODALITIES, stages["separate"], strict=True)):
    assert not counts[name].all() or name == "image"
    x = (stages[name] + variables["params"]["type"][index])[0, counts[name]][None]
    for i in range(SEPARATE):
      params = variables["params"]["separate"][name][block_name(i)]
      x = apply({"params": params}, x, jnp.array([x.shape[1]]))
    np.testing.assert_allclose(after[0, counts[name]], x[0], atol=1e-4, err_msg=name)


def test_padding_of_no_modality_changes_anything(variables, inputs, seen):
  other = {name: value.copy() for name, value in inputs.items()}
  padding = np.arange(6) >= inputs["num_tokens"][:, None]
  other["tokens"][padding] = other["tokens"][padding] % 7 + 3
  # In the slots that hold no instance: others, of every pixel.
  void = np.broadcast_to(~inputs["valid"][:, :, None, None], (*inputs["valid"].shape, 32, 32))
  other["planes"] ^= np.stack([bit_planes.packbits(masks) for masks in void])
  assert (other["planes"] != inputs["planes"]).any()
  _, output = look_inside(variables, other)
  jax.tree.map(np.testing.assert_array_equal, output, seen[1])


def test_an_example_without_an_instance_is_finite(variables, inputs):
  nothing = inputs | {"valid": np.zeros_like(inputs["valid"])}
  stages, output = look_inside(variables, nothing)
  assert all(np.isfinite(x).all() for x in stages["separate"])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(output))
  assert not output.rho.any()


def test_there_is_no_stack_for_masks_where_there_are_no_slots():
  config = tiny_model.make_config(slots=0, depth=2, separate_blocks=1)
  assert set(tiny_model.shapes(config)["params"]["separate"]) == {"image", "text"}
  inputs = tiny_model.make_inputs(config)
  output = tiny_model.run(config, tiny_model.random_variables(config), inputs)
  assert np.isfinite(output.logits).all()


def test_parameters_are_those_of_so_many_blocks_and_none_of_them_by_default(variables):
  params = variables["params"]
  assert set(params["encoder"]) == {"block02", "norm"}
  for name in ("image", "mask", "text"):
    assert set(params["separate"][name]) == {"block00", "block01"}
  joint = tiny_model.shapes(tiny_model.make_config(depth=DEPTH))["params"]
  assert "separate" not in joint
  assert set(joint["encoder"]) == {"block00", "block01", "block02", "norm"}


def test_a_loop_and_a_padded_sequence_change_nothing(variables, inputs, seen):
  flat = {
    path_name(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
  }
  params: dict[str, Any] = {}
  for name, value in stack_blocks(flat).items():
    *parents, last = name.split("/")
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  looped = variables | {"params": params}
  config = make_config(scan=True, pad_to_multiple_of=8, remat="block")
  shapes = jax.tree.map(lambda x: x.shape, tiny_model.shapes(config)["params"])
  assert jax.tree.map(np.shape, params) == shapes
  found = tiny_model.run(config, looped, inputs)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, seen[1])
  # And back, as formats without loops want them.
  plain, back = without_loop(config, looped)
  assert not plain.model.scan
  jax.tree.map(np.testing.assert_array_equal, back["params"], variables["params"])


@pytest.mark.parametrize("count", [-1, 3])
def test_some_blocks_must_be_joint(count):
  with pytest.raises(InputError, match=rf"separate_blocks is {count}; .*below model\.depth 3"):
    tiny_model.shapes(tiny_model.make_config(depth=DEPTH, separate_blocks=count))
