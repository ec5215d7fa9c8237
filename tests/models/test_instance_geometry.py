"""Geometry of instance masks on the device, against loops over pixels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.preprocess import bit_planes
from mail_jax.models import appearance, instances
from mail_jax.models.folding import depth_to_space, fold_planes, space_to_depth

SIZE = 24

# Compiling one program takes less time than one for each operation.
boxes = jax.jit(instances.boxes, static_argnums=1)
centre_bytes = jax.jit(appearance.centre_bytes, static_argnums=1)
colour_and_texture = jax.jit(appearance.colour_and_texture)
crop_pixels = jax.jit(appearance.crop_pixels, static_argnums=2)
patch_coverage = jax.jit(instances.patch_coverage, static_argnums=(1, 2, 3))
unpack_planes = jax.jit(instances.unpack_bit_planes, static_argnums=1)
views = jax.jit(instances.views, static_argnums=(2, 3))


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
  """Two examples of five masks of 24 x 20: specks, a single pixel, the full frame, empty."""
  rng = np.random.default_rng(0)
  drawn = np.zeros((2, 5, SIZE, 20), bool)
  drawn[:, 0, 3:17, 2:9] = rng.random((2, 14, 7)) < 0.6
  drawn[:, 1, 5, 19] = True
  drawn[:, 2] = True
  drawn[0, 3, :, 4:6] = drawn[1, 3, 23:, :] = True
  return drawn


@pytest.fixture(scope="module")
def planes(masks) -> np.ndarray:
  return pack(masks)


def pack(masks: np.ndarray) -> np.ndarray:
  return np.stack([bit_planes.packbits(each) for each in masks])


def draw_photo(seed: int, shape: tuple[int, ...] = (2, SIZE, 20, 3)) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def box_by_loop(mask: np.ndarray) -> list[int]:
  inside = [(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
  if not inside:
    return [0, 0, *mask.shape]
  rows, cols = [y for y, _ in inside], [x for _, x in inside]
  return [min(rows), min(cols), max(rows) + 1, max(cols) + 1]


def average_by_loop(image: np.ndarray, box: list[int], bins: int) -> np.ndarray:
  """Averages an image (h, w, c) over the area of each cell of a grid on the box."""
  top, left, bottom, right = box
  tall, wide = (bottom - top) / bins, (right - left) / bins
  result = np.zeros((bins, bins, image.shape[2]))
  for i, j in np.ndindex(bins, bins):
    for y, x in np.ndindex(*image.shape[:2]):
      height = min(top + (i + 1) * tall, y + 1) - max(top + i * tall, y)
      width = min(left + (j + 1) * wide, x + 1) - max(left + j * wide, x)
      result[i, j] += max(0, height) * max(0, width) * image[y, x]
  return result / (tall * wide)


def test_a_frame_is_the_average_over_a_grid_on_the_whole_image(masks, planes):
  _, frames, _ = views(planes, boxes(planes, 5), (7, 4, 4))
  for actual, mask in zip(frames[0], masks[0], strict=True):
    expected = average_by_loop(mask[..., None], [0, 0, *mask.shape], 4)[..., 0]
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("count", [0, 16, 50, 64])
def test_device_and_records_unpack_the_same_bits(count):
  drawn = np.random.default_rng(count).random((2, count, 3, 5)) < 0.5
  planes = pack(drawn)
  np.testing.assert_array_equal(unpack_planes(planes, count), drawn)
  for row, mask in zip(planes, drawn, strict=True):
    np.testing.assert_array_equal(bit_planes.unpackbits(row, count), mask)


@pytest.mark.parametrize("count", [0, 1, 19, 32])
def test_counts_boxes_and_coverage_are_exact_for_any_number_of_instances(count):
  drawn = np.random.default_rng(count).random((2, count, 8, 16)) < 0.1
  planes, target = pack(drawn), np.random.default_rng(9).random((2, 8, 16)) < 0.5
  area, both = jax.jit(instances.areas_and_overlap, static_argnums=1)(planes, count, target)
  np.testing.assert_array_equal(area, drawn.sum((2, 3)))
  np.testing.assert_array_equal(both, (drawn & target[:, None]).sum((2, 3)))
  expected = [[box_by_loop(mask) for mask in example] for example in drawn]
  np.testing.assert_array_equal(boxes(planes, count), np.reshape(expected, (2, count, 4)))
  tiles = drawn.reshape(2, count, 2, 4, 4, 4).mean((3, 5)).reshape(2, count, 8)
  for dtype in (jnp.float32, jnp.bfloat16):
    np.testing.assert_array_equal(patch_coverage(planes, count, 4, dtype), tiles)


def test_coverage_is_the_share_of_each_patch_row_by_row(masks, planes):
  patch = 4
  coverage = np.asarray(patch_coverage(planes, 5, patch))
  assert coverage.shape == (2, 5, 30)
  np.testing.assert_array_equal(views(planes, boxes(planes, 5), (5, 3, patch))[2], coverage)
  for b, k in np.ndindex(2, 5):
    for n in range(30):
      y, x = n // 5 * patch, n % 5 * patch
      expected = sum(masks[b, k, y + i, x + j] for i in range(patch) for j in range(patch)) / 16
      assert coverage[b, k, n] == expected


def test_box_is_the_extent_of_the_mask_and_the_full_frame_for_an_empty_one(masks, planes):
  actual = np.asarray(boxes(planes, 5))
  expected = [[box_by_loop(mask) for mask in example] for example in masks]
  np.testing.assert_array_equal(actual, expected)
  assert actual[0, 4].tolist() == [0, 0, 24, 20]


def test_box_features_are_fractions_of_the_image_around_zero_and_their_waves():
  # A box of 12 x 5 pixels at (6, 10) in an image of 24 x 20: .25, .5, .75, .75 and 1/8 of its area.
  box = np.array([[[6, 10, 18, 15], [0, 0, 24, 20]]], np.float32)
  features = np.asarray(instances.box_features(jnp.asarray(box), 24, 20, octaves=2))[0]
  fractions = np.array([[-0.5, 0, 0.5, 0.5, 0, -0.5], [-1, -1, 1, 1, 1, 1]])
  for actual, linear, area in zip(features, fractions, (1 / 8, 1), strict=True):
    expected = [*linear, np.log(area) / 4 + 1]
    for wave in (np.sin, np.cos):
      expected += [wave(x * np.pi / 2 * octave) for x in linear for octave in (1, 2)]
    np.testing.assert_allclose(actual, 1.5 * np.array(expected), atol=1e-5)


def test_crops_and_frames_are_averages_over_areas(masks, planes):
  box = boxes(planes, 5)
  crops, frames, _ = views(planes, box, (5, 3, 4))
  for b, k in np.ndindex(2, 5):
    image = masks[b, k][..., None].astype(float)
    crop = average_by_loop(image, box_by_loop(masks[b, k]), 5)[..., 0]
    np.testing.assert_allclose(crops[b, k], crop, atol=1e-5)
    frame = average_by_loop(image, [0, 0, SIZE, 20], 3)[..., 0]
    np.testing.assert_allclose(frames[b, k], frame, atol=1e-5)


def test_the_crop_of_a_filled_rectangle_is_full_whatever_its_size(planes):
  crops, _, _ = views(planes, boxes(planes, 5), (16, 12, 4))
  np.testing.assert_allclose(crops[:, 1:4], 1, atol=1e-5)
  np.testing.assert_array_equal(crops[:, 4], 0)


def test_cropped_pixels_are_averages_over_areas(masks, planes):
  photo = draw_photo(1)
  crops = crop_pixels(centre_bytes(photo, jnp.float32), boxes(planes, 5), 4)
  for b, k in np.ndindex(2, 5):
    expected = average_by_loop(photo[b] / 127.5 - 1, box_by_loop(masks[b, k]), 4)
    np.testing.assert_allclose(crops[b, k], expected, atol=1e-5)


def test_chosen_tiles_add_masks_by_their_weights():
  rng = np.random.default_rng(2)
  masks, weights = rng.random((2, 18, 8, 12)) < 0.5, rng.normal(size=(2, 18)).astype(np.float32)
  planes = jnp.asarray(pack(masks))
  expected = sum(weights[:, k, None, None].astype(float) * masks[:, k] for k in range(18))
  tiles = instances.chosen_tiles(planes, jnp.asarray(weights), 4)
  assert tiles.shape == (2, 2, 3, 16)
  np.testing.assert_allclose(depth_to_space(tiles, 4)[..., 0], expected, atol=1e-5)
  # The gradient of a weight is that of the pixels that it covers.
  at = jax.grad(lambda w: (instances.chosen_tiles(planes, w, 4) * tiles).sum())(weights)
  np.testing.assert_allclose(at, np.einsum("bkyx,byx->bk", masks, expected), rtol=1e-4, atol=1e-4)


def test_the_first_slots_hold_the_instances():
  valid = instances.count_valid(jnp.array([0, 2, 5]), 4)
  assert np.asarray(valid).tolist() == [[False] * 4, [True, True, False, False], [True] * 4]


def test_likeness_falls_with_the_distance_to_the_mean_colour_of_the_region(masks):
  rng = np.random.default_rng(3)
  pixels = rng.normal(size=(2, SIZE, 20, 3)).astype(np.float32)
  weights = masks[:, 0] * rng.random((2, SIZE, 20)).astype(np.float32)
  weight_tiles = space_to_depth(jnp.asarray(weights)[..., None], 4)
  tiles = fold_planes(jnp.moveaxis(pixels, -1, 1), 4), weight_tiles
  actual = depth_to_space(instances.likeness(*tiles, sharpness=0.5), 4)
  assert actual.shape == (2, SIZE, 20, 1)
  for b in range(2):
    mean = np.average(pixels[b].reshape(-1, 3), axis=0, weights=weights[b].reshape(-1))
    expected = np.exp(-0.5 * np.linalg.norm(pixels[b] - mean, axis=-1) ** 2)
    np.testing.assert_allclose(actual[b, ..., 0], expected, rtol=1e-4)


def test_nothing_looks_like_an_empty_region():
  pixels = jnp.zeros((2, 4, 5, 3 * 16))
  assert not np.asarray(instances.likeness(pixels, jnp.zeros((2, 4, 5, 16)))).any()


def summarise(photo: np.ndarray, masks: np.ndarray, dtype: Any = jnp.float32):
  area = masks.sum((2, 3)).astype(np.float32)
  return colour_and_texture(centre_bytes(photo, dtype), pack(masks), area)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_colour_and_texture_are_statistics_of_the_pixels_inside(masks, dtype):
  photo = draw_photo(4)
  colour, texture = summarise(photo, masks, dtype)
  for b, k in np.ndindex(2, 5):
    inside = np.argwhere(masks[b, k])
    if not len(inside):
      assert not np.any(colour[b, k]) and not np.any(texture[b, k])
      continue
    pixels = photo[b] / 127.5 - 1
    values = np.array([pixels[y, x] for y, x in inside])
    np.testing.assert_allclose(colour[b, k], values.mean(0), atol=1e-5)
    np.testing.assert_allclose(texture[b, k, :3], 4 * values.std(0), atol=1e-3)
    tensor = np.zeros((2, 2))
    for y, x in inside:
      if 0 < y < SIZE - 1 and 0 < x < 19:
        right, down = pixels[y, x + 1] - pixels[y, x - 1], pixels[y + 1, x] - pixels[y - 1, x]
        tensor += [[right @ right, right @ down], [right @ down, down @ down]]
    low, high = np.linalg.eigvalsh(tensor / len(inside))
    expected = [2 * np.sqrt(max(low, 0)), 2 * np.sqrt(high), 3 * (high - low) / (high + low + 1e-9)]
    np.testing.assert_allclose(texture[b, k, 3:], expected, atol=2e-3)


def test_a_plain_region_has_no_deviation_in_any_dtype():
  photo = np.full((1, 96, 96, 3), (3, 100, 255), np.uint8)
  for dtype in (jnp.float32, jnp.bfloat16):
    colour, texture = summarise(photo, np.ones((1, 1, 96, 96), bool), dtype)
    np.testing.assert_allclose(colour[0, 0], np.array([3, 100, 255]) / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(texture, 0, atol=2e-3)


def test_texture_tells_stripes_of_any_direction_from_dots_and_from_nothing():
  y, x = np.mgrid[:32, :32]
  patterns = {
    "plain": 0 * x,
    "upright": x // 2 % 2,
    "lying": y // 2 % 2,
    "slanted": (x + y) // 2 % 2,
    "dots": (x // 2 % 2) * (y // 2 % 2),
  }
  photo = 127 * np.stack([np.repeat(p[..., None], 3, -1) for p in patterns.values()])
  inside = np.zeros((len(patterns), 1, 32, 32), bool)
  inside[:, :, 4:28, 4:28] = True
  _, texture = summarise(photo.astype(np.uint8), inside)
  actual = dict(zip(patterns, np.asarray(texture)[:, 0, 3:], strict=True))
  assert not actual["plain"].any()
  for stripes in ("upright", "lying", "slanted"):
    low, high, coherence = actual[stripes]
    assert low == pytest.approx(0, abs=1e-3) and high > 1 and coherence == pytest.approx(3)
  low, high, coherence = actual["dots"]
  assert low > 1 and high > 1 and coherence < 1


def test_a_slot_that_is_not_valid_is_cleared_and_the_others_stay():
  drawn = np.random.default_rng(5).random((2, 19, 3, 5)) < 0.5
  valid = np.random.default_rng(6).random((2, 19)) < 0.5
  planes = pack(drawn)
  kept = pack(drawn & valid[:, :, None, None])
  np.testing.assert_array_equal(jax.jit(instances.clear_slots)(planes, valid), kept)


def test_a_slot_is_taken_from_its_plane_and_one_beyond_the_last_is_empty():
  drawn = np.random.default_rng(7).random((4, 32, 3, 5)) < 0.5
  planes = pack(drawn)
  taken = np.asarray(jax.jit(instances.take_slot)(planes, np.array([0, 15, 16, 32])))
  np.testing.assert_array_equal(taken[:3], drawn[[0, 1, 2], [0, 15, 16]])
  assert not taken[3].any()
