"""The folded decoder against the plain one, and folding against loops and `jax.image`."""

from collections.abc import Iterator
from typing import Any

import hurry
import jax
import jax.numpy as jnp
import numpy as np
import plain_decoder
import pytest

from mail_jax.models import folding
from mail_jax.models.build import Tree
from mail_jax.models.decoder import Decoder, coordinate_map

GUIDES = 3
FLOAT32 = jnp.dtype("float32")


def draw(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make_decoder(widths: tuple[int, ...] = (8, 4, 4), dtype: str = "float32") -> Decoder:
  return Decoder(widths, dtype=jnp.dtype(dtype), order=(0, 1, 2))


def fold_by_loop(pixels: np.ndarray, tile: int) -> np.ndarray:
  batch, height, width, planes = pixels.shape
  tiles = np.zeros((batch, height // tile, width // tile, planes * tile**2), pixels.dtype)
  for y, x in np.ndindex(*tiles.shape[1:3]):
    part = pixels[:, tile * y : tile * (y + 1), tile * x : tile * (x + 1)]
    tiles[:, y, x] = part.transpose(0, 3, 1, 2).reshape(batch, -1)
  return tiles


def unfold_planes(tiles: np.ndarray, tile: int) -> np.ndarray:
  planes = np.split(tiles, GUIDES, -1)
  return np.concatenate([folding.depth_to_space(jnp.asarray(p), tile) for p in planes], -1)


def run(decoder: Any, variables: Tree, x: np.ndarray, guide: np.ndarray | None) -> Any:
  """Returns logits in tiles, new batch statistics, and gradients of parameters and inputs."""
  folded = isinstance(decoder, Decoder)
  tile = decoder.tile if folded else 2
  cotangent = draw(len(x), *(2 ** len(decoder.widths) * side for side in x.shape[1:3]), seed=1)

  def loss(params, x, guide):
    if folded:
      # Planes 0 and 2 together, plane 1 last.
      guide = jnp.split(guide, GUIDES, -1) if guide is not None else []
      guide = [jnp.concatenate(guide[::2], -1), guide[1]] if guide else []
    logits, updated = decoder.apply(
      {**variables, "params": params}, x, guide, train=True, mutable=["batch_stats"]
    )
    logits = logits if folded else folding.space_to_depth(logits[..., None], tile)
    weight = folding.space_to_depth(jnp.asarray(cotangent)[..., None], tile)
    return (logits * weight).sum(), (logits, updated)

  given = (0, 1) if guide is None else (0, 1, 2)
  if folded and guide is not None:
    guide = fold_by_loop(guide, tile)
  grad = jax.jit(jax.grad(loss, given, has_aux=True), compiler_options=hurry.OPTIONS)
  (params, *inputs), aux = jax.device_get(grad(variables["params"], x, guide))
  if guide is not None:
    inputs[1:] = [unfold_planes(inputs[1], tile) if folded else inputs[1]]
  (logits, stats) = aux
  return params, inputs, (folding.depth_to_space(jnp.asarray(logits), tile), stats)


@pytest.mark.parametrize(
  ("widths", "rows", "cols", "norm", "guided", "tile"),
  [
    ((8, 8, 6, 4, 4), 3, 2, "batch", True, 8),
    ((8, 8, 6, 4, 4), 2, 2, "batch", True, 4),
    ((4, 4, 4, 8), 1, 2, "batch", False, 8),
    ((8, 4, 8), 5, 3, "group", True, 8),
    ((4, 4, 8), 1, 2, "batch", True, 8),
    ((4, 3), 3, 1, "batch", True, 4),
    ((4,), 2, 3, "batch", True, 2),
  ],
)
def test_tiles_are_decoded_as_pixels_are(widths, rows, cols, norm, guided, tile):
  patch = 2 ** len(widths)
  x = draw(2, rows, cols, 7)
  guide = draw(2, rows * patch, cols * patch, GUIDES) if guided else None
  plain, folded = (
    plain_decoder.Decoder(widths, norm),
    Decoder(widths, norm, FLOAT32, (0, 2, 1), tile),
  )
  shapes = jax.eval_shape(plain.init, jax.random.key(0), x, guide)
  leaves, tree = jax.tree.flatten(shapes)
  # Nothing is 0 or 1; variances are positive.
  leaves = [0.3 * np.abs(draw(*leaf.shape, seed=i)) + 0.2 for i, leaf in enumerate(leaves)]
  leaves = [leaf - 0.4 * (leaf.ndim == 4) for leaf in leaves]
  variables = jax.tree.unflatten(tree, leaves)
  expected, actual = run(plain, variables, x, guide), run(folded, variables, x, guide)
  assert jax.tree.structure(expected) == jax.tree.structure(actual)
  for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_new_decoders_have_the_parameters_of_the_plain_one():
  x, guide = draw(1, 2, 2, 5), draw(1, 16, 16, GUIDES)
  plain = jax.jit(plain_decoder.Decoder((8, 4, 4)).init)(jax.random.key(3), x, guide)
  folded = jax.jit(make_decoder().init)(jax.random.key(3), x, [fold_by_loop(guide, 8)])
  assert jax.tree.structure(folded) == jax.tree.structure(plain)
  jax.tree.map(np.testing.assert_array_equal, folded, plain)


def test_evaluation_normalises_with_the_running_statistics():
  x, guide = draw(2, 2, 3, 5), draw(2, 16, 24, GUIDES)
  plain: Any = plain_decoder.Decoder((8, 4, 4))
  folded: Any = make_decoder()
  variables = jax.jit(plain.init)(jax.random.key(3), x, guide)
  stats = jax.tree.map(lambda v: np.abs(draw(*v.shape)) + 0.1, variables["batch_stats"])
  variables = {**variables, "batch_stats": stats}
  expected = jax.jit(plain.apply)(variables, x, guide)[..., None]
  actual = jax.jit(folded.apply)(variables, x, [fold_by_loop(guide, 8)])
  np.testing.assert_allclose(actual, folding.space_to_depth(expected, 8), atol=1e-5)


def arrays(jaxpr: Any) -> Iterator[Any]:
  """Yields the shape and dtype of every array of a program."""
  for equation in jaxpr.eqns:
    yield from (variable.aval for variable in equation.outvars)
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from arrays(inner)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_array_has_a_higher_resolution_than_tiles(dtype):
  batch, rows, cols, patch = 13, 2, 3, 32
  folded = make_decoder((8, 8, 8, 8, 8), dtype)
  x = jnp.zeros((batch, rows, cols, 5))
  guide = [jnp.zeros((batch, rows * 4, cols * 4, GUIDES * 64))]
  shapes = jax.eval_shape(folded.init, jax.random.key(0), x, guide)
  variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)

  def loss(params, x, guide):
    return folded.apply(variables | {"params": params}, x, guide, True, mutable="batch_stats")[
      0
    ].sum()

  jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(variables["params"], x, guide)
  tiles = rows * cols * (patch // 8) ** 2
  seen = [a for a in arrays(jaxpr.jaxpr) if a.ndim == 4 and a.shape[0] == batch]
  assert max(np.prod(a.shape[1:-1]) for a in seen) == tiles
  wide = {a.dtype for a in seen if a.shape[1:3] == (rows * 4, cols * 4) and a.shape[-1] == 8 * 16}
  assert jnp.dtype(dtype) in wide


def test_doubling_a_line_is_bilinear_and_repeats_its_ends():
  # 0, 4 -> 0 (the end), 1 (a quarter of the way), 3, 4 (the end).
  assert (folding.double_line(2) @ [0, 4]).tolist() == [0, 1, 3, 4]
  assert folding.double_line(1).tolist() == [[1], [1]]
  x = draw(5, 3)
  expected = jax.image.resize(jnp.asarray(x), (10, 3), "linear")
  np.testing.assert_allclose(folding.double_line(5) @ x, expected, atol=1e-6)


def test_space_to_depth_puts_each_tile_into_its_cell_and_back():
  x = draw(2, 6, 9, 2)
  tiles = np.asarray(folding.space_to_depth(jnp.asarray(x), 3))
  assert tiles.shape == (2, 2, 3, 18)
  for y, cell_x in np.ndindex(2, 3):
    tile = x[:, 3 * y : 3 * y + 3, 3 * cell_x : 3 * cell_x + 3]
    np.testing.assert_array_equal(tiles[:, y, cell_x], tile.reshape(2, 18))
  np.testing.assert_array_equal(folding.depth_to_space(jnp.asarray(tiles), 3), x)


def test_planes_are_folded_one_after_the_other():
  x = draw(2, 6, 9, 2)
  tiles = folding.fold_planes(jnp.moveaxis(jnp.asarray(x), -1, 1), 3)
  np.testing.assert_array_equal(tiles, fold_by_loop(x, 3))


def test_coordinates_are_the_sides_the_centre_and_the_size_of_each_cell():
  cells = np.asarray(coordinate_map(4, 2))
  assert cells.shape == (4, 2, 8)
  np.testing.assert_allclose(cells[0, 0], [-1, -1, 0, -0.5, -0.5, -0.75, 0.25, 0.5])
  np.testing.assert_allclose(cells[3, 1], [0, 0.5, 1, 1, 0.5, 0.75, 0.25, 0.5])
