"""The decoder's resampling, against loops and `jax.image`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mail_jax.models import decoder

upsample2 = jax.jit(decoder.upsample2)
guide_pyramid = jax.jit(decoder.guide_pyramid, static_argnums=1)


def draw(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_upsampling_is_bilinear_up_to_the_edges():
  x = draw(2, 5, 3, 4)
  expected = jax.image.resize(jnp.asarray(x), (2, 10, 6, 4), "linear")
  np.testing.assert_allclose(upsample2(x), expected, atol=1e-6)


def test_upsampling_repeats_the_edge_and_mixes_three_to_one():
  # 0, 4 -> 0 (edge), 1 (a quarter of the way), 3, 4 (edge); the same along both axes.
  x = jnp.array([[0.0, 4.0], [0.0, 4.0]])[None, :, :, None]
  rows = np.asarray(upsample2(x))[0, :, :, 0]
  np.testing.assert_array_equal(rows, [[0, 1, 3, 4]] * 4)
  cols = np.asarray(upsample2(x.swapaxes(1, 2)))[0, :, :, 0]
  np.testing.assert_array_equal(cols.T, [[0, 1, 3, 4]] * 4)


def test_one_pixel_upsamples_to_itself():
  assert upsample2(jnp.full((1, 1, 1, 2), 7.0)).tolist() == [[[[7.0, 7.0]] * 2] * 2]


def test_space_to_depth_puts_each_tile_into_its_cell_and_back():
  x = draw(2, 6, 9, 2)
  tiles = np.asarray(decoder.space_to_depth(jnp.asarray(x), 3))
  assert tiles.shape == (2, 2, 3, 18)
  for y, cell_x in np.ndindex(2, 3):
    tile = x[:, 3 * y : 3 * y + 3, 3 * cell_x : 3 * cell_x + 3]
    np.testing.assert_array_equal(tiles[:, y, cell_x], tile.reshape(2, 18))
  np.testing.assert_array_equal(decoder.depth_to_space(jnp.asarray(tiles), 3), x)


def test_depth_to_space_is_undone_by_space_to_depth():
  x = draw(1, 2, 3, 8)
  pixels = decoder.depth_to_space(jnp.asarray(x), 2)
  assert pixels.shape == (1, 4, 6, 2)
  np.testing.assert_array_equal(decoder.space_to_depth(pixels, 2), x)


@pytest.mark.parametrize("stages", [1, 3])
def test_each_stage_gets_the_guide_averaged_to_its_resolution_and_the_last_its_pixels(stages):
  patch = 2**stages
  guide = draw(2, 3 * patch, 2 * patch, 3)
  levels = guide_pyramid(guide, stages)
  assert len(levels) == stages
  for i, level in enumerate(levels[:-1]):
    tile = patch // 2**i
    rows, cols = guide.shape[1] // tile, guide.shape[2] // tile
    assert level.shape == (2, rows, cols, 3)
    for y, x in np.ndindex(rows, cols):
      pixels = guide[:, tile * y : tile * (y + 1), tile * x : tile * (x + 1)]
      np.testing.assert_allclose(level[:, y, x], pixels.mean((1, 2), dtype=float), atol=1e-6)
  assert levels[-1].shape == (2, guide.shape[1] // 2, guide.shape[2] // 2, 12)
  np.testing.assert_array_equal(decoder.depth_to_space(levels[-1], 2), guide)


def test_coordinates_are_the_sides_the_centre_and_the_size_of_each_cell():
  cells = np.asarray(decoder.coordinate_map(4, 2))
  assert cells.shape == (4, 2, 8)
  np.testing.assert_allclose(cells[0, 0], [-1, -1, 0, -0.5, -0.5, -0.75, 0.25, 0.5])
  np.testing.assert_allclose(cells[3, 1], [0, 0.5, 1, 1, 0.5, 0.75, 0.25, 0.5])


def test_the_last_convolution_commutes_with_upsampling():
  """So the decoder applies it before the last doubling."""
  x, kernel = draw(1, 3, 4, 6), draw(6, 1)
  before = upsample2(x @ kernel)
  after = np.asarray(upsample2(x)) @ kernel
  np.testing.assert_allclose(before, after, atol=1e-5)
