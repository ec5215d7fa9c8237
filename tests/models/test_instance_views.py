"""Which views of its mask an instance's token has, and that nothing tells it the others."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mail_jax.models.embeddings import InstanceEmbedding

SIDE, WIDTH = 24, 8
GROUPS = {"box", "pixels", "colour", "texture"}


def embedding(**options: Any) -> InstanceEmbedding:
  return InstanceEmbedding(WIDTH, neighbours=False, dtype=jnp.dtype("float32"), **options)


def parameters(module: InstanceEmbedding, inputs: tuple[Any, ...]) -> dict[str, Any]:
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def inputs() -> tuple[np.ndarray, np.ndarray]:
  """Two masks with one box, one area, and one average in every 2 x 2 pixels; and a photo of one colour."""
  masks = np.zeros((1, 2, SIDE, SIDE), bool)
  masks[:, :, 4:12, 6:14] = True
  masks[0, 0, 6, 8] = masks[0, 1, 7, 9] = False
  return masks, np.full((1, SIDE, SIDE, 3), 0.3, np.float32)


@pytest.mark.parametrize(("views", "alike"), [("both", False), ("crop", False), ("frame", True)])
def test_a_frame_does_not_tell_what_only_the_crop_shows(inputs, views, alike):
  # 12 cells of 2 x 2 pixels on the frame, and 16 of half a pixel in the box.
  module = embedding(views=views)
  params = parameters(module, inputs)
  of_masks = {"both": {"crop", "frame"}}.get(views, {views})
  assert set(params) == GROUPS | of_masks | {"project", "norm"}
  first, second = jax.jit(module.apply)({"params": params}, *inputs)[0]
  assert np.allclose(first, second, atol=1e-4) == alike


def test_a_crop_alone_is_both_with_a_frame_that_says_nothing(inputs):
  both = embedding()
  params = parameters(both, inputs)
  params["frame"] = jax.tree.map(np.zeros_like, params["frame"])
  expected = jax.jit(both.apply)({"params": params}, *inputs)
  # The sum of six groups is divided by the root of six, and that of five by that of five.
  alone = {k: v for k, v in params.items() if k != "frame"}
  for name in GROUPS | {"crop"}:
    alone[name] = jax.tree.map(lambda x: x * np.sqrt(5 / 6, dtype=np.float32), params[name])
  found = jax.jit(embedding(views="crop").apply)({"params": alone}, *inputs)
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_pixels_on_the_frame_are_the_photo_where_the_mask_is():
  rng = np.random.default_rng(2)
  masks = rng.random((1, 3, SIDE, SIDE)) < 0.3
  masks[:, :, :5], masks[..., 15:] = False, False  # the boxes are not the image
  pixels = rng.normal(size=(1, SIDE, SIDE, 3)).astype(np.float32)
  module = embedding(views="frame")
  params = parameters(module, (masks, pixels))
  params = {name: jax.tree.map(np.zeros_like, part) for name, part in params.items()} | {
    name: params[name] for name in ("pixels", "project", "norm")
  }
  found = jax.jit(module.apply)({"params": params}, masks, pixels)[0]
  for mask, token in zip(masks[0], found, strict=True):
    cells = pixels[0].reshape(6, 4, 6, 4, 3).mean((1, 3))
    inside = mask.reshape(6, 4, 6, 4).mean((1, 3))
    seen = 2 * (cells * inside[..., None]).reshape(-1)
    hidden = (seen @ params["pixels"]["kernel"] + params["pixels"]["bias"]) / np.sqrt(5)
    x = np.asarray(jax.nn.gelu(hidden)) @ params["project"]["kernel"] + params["project"]["bias"]
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    np.testing.assert_allclose(
      token, x * params["norm"]["scale"] + params["norm"]["bias"], atol=1e-3
    )
