"""Noise on instance masks: morphology by scipy, geometry by brute force, and what it must keep."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import interpolate, ndimage

from input_pipeline.masks import noise
from input_pipeline.preprocess import bit_planes

SIZE = 40


def make_masks(seed: int, count: int, size: int = SIZE) -> np.ndarray:
  """Returns blobs, some of which overlap, lie at the border or are empty."""
  rng = np.random.default_rng(seed)
  smooth = ndimage.gaussian_filter(rng.standard_normal((count, size, size)), (0, 4, 4))
  masks = np.zeros((count, size, size), bool)
  for mask, field in zip(masks, smooth, strict=True):
    top, left = rng.integers(0, size - 4, 2)
    box = slice(top, top + rng.integers(2, 25)), slice(left, left + rng.integers(2, 25))
    mask[box] = field[box] > np.quantile(field[box], 0.2)
  masks[rng.random(count) < 0.1] = False
  return masks


def noised(masks, most, strength, seed=0):
  planes = bit_planes.packbits(masks)
  before = planes.copy()
  rng = np.random.default_rng(seed)
  planes_after, count = noise.add_noise(planes, len(masks), most, strength, rng)
  np.testing.assert_array_equal(planes, before)  # The cache's memory.
  return bit_planes.unpackbits(planes_after, count), planes_after


@pytest.fixture
def only(monkeypatch):
  """Switches all errors off but those named."""

  def switch(**values):
    for name in ("SHIFT", "STRETCH", "OUTLINE", "CUT", "MERGE", "DUPLICATE", "MISS"):
      monkeypatch.setattr(noise, name, float(values.get(name, 0.0)))

  return switch


@given(st.integers(0, 999), st.integers(0, 40), st.integers(1, 48), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_masks_are_at_most_as_many_as_allowed_not_empty_and_nothing_else_is_in_the_planes(
  seed, count, most, strength
):
  masks = make_masks(seed, count)
  found, planes = noised(masks, most, max(strength, 1) / 20, seed)
  assert len(found) <= min(most, 2 * count)
  assert found.any((1, 2)).all()
  assert planes.shape == bit_planes.packbits(masks).shape and planes.dtype == np.uint16
  held = bit_planes.packbits(found)
  np.testing.assert_array_equal(held, planes[: len(held)])
  assert not planes[len(held) :].any()


@given(st.integers(0, 999), st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_without_strength_or_errors_masks_stay_as_they_are(seed, count):
  masks = make_masks(seed, count)
  np.testing.assert_array_equal(noised(masks, 64, 0.0)[0], masks)


def test_masks_that_no_error_meets_are_kept_in_their_order(only):
  only()
  masks = make_masks(1, 30)
  np.testing.assert_array_equal(noised(masks, 64, 1.0)[0], masks[masks.any((1, 2))])
  np.testing.assert_array_equal(noised(masks[:9], 5, 1.0)[0], masks[:5][masks[:5].any((1, 2))])


def test_the_same_numbers_make_the_same_errors_and_others_make_others():
  masks = make_masks(2, 12)
  np.testing.assert_array_equal(noised(masks, 16, 0.7, 5)[1], noised(masks, 16, 0.7, 5)[1])
  assert (noised(masks, 16, 0.7, 5)[1] != noised(masks, 16, 0.7, 6)[1]).any()


def by_loop(masks, most, strength, seed):
  """Returns the masks with their errors, one after the other and pixel by pixel."""
  numbers = np.random.default_rng(seed).random((2, len(masks), 28), np.float32)
  exists = [k for k in range(len(masks)) if masks[k].any()]
  found = [k for k in exists if numbers[0, k, 0] >= strength * noise.MISS]
  twice = [k for k in found if numbers[0, k, 1] < strength * noise.DUPLICATE]
  made = []
  for again, k in [*((0, k) for k in found), *((1, k) for k in twice)][:most]:
    chosen, drawn = [k], numbers[again, k]
    if drawn[2] < strength * noise.MERGE and len(exists) > 1:
      chosen.append(min((j for j in exists if j != k), key=lambda j: distance(masks[j], masks[k])))
    mask = distorted(masks[chosen].any(0), drawn[3:], strength)
    made += [mask] if mask.any() else []
  return np.array(made).reshape(-1, *masks.shape[1:])


def ends(mask: np.ndarray) -> list[tuple[int, int]]:
  """Returns where a mask begins and ends, along the rows and along the columns."""
  return [(int(at.min()), int(at.max()) + 1) for at in np.nonzero(mask)]


def distance(one: np.ndarray, other: np.ndarray) -> float:
  """Returns the distance of the centres of two masks' boxes."""
  return np.hypot(*(sum(a) / 2 - sum(b) / 2 for a, b in zip(ends(one), ends(other), strict=True)))


def distorted(mask: np.ndarray, drawn: np.ndarray, strength: float) -> np.ndarray:
  size, box = len(mask), ends(mask)
  radius = int(drawn[4] * strength * noise.OUTLINE * min(b - a for a, b in box) + 0.5)
  sources, spans = [], []
  for (low, high), shift, stretch in zip(box, drawn[:2], drawn[2:4], strict=True):
    moved = (low + high) / 2 + (2 * shift - 1) * strength * noise.SHIFT * (high - low)
    factor = math.exp((2 * stretch - 1) * strength * noise.STRETCH)
    half = (high - low) * factor / 2
    first = max(math.floor(moved - half) - radius, 0) if low > 0 else 0
    last = min(math.ceil(moved + half) + radius, size) if high < size else size
    at = [math.floor((i + 0.5 - moved) / factor + (low + high) / 2) for i in range(size)]
    sources.append([min(max(i, 0), size - 1) for i in at])
    spans.append((first, last))
  shown = np.array([[mask[i, j] for j in sources[1]] for i in sources[0]])
  around = np.pad(shown, radius, mode="edge")
  grid = interpolate.RegularGridInterpolator((np.arange(4), np.arange(4)), drawn[9:].reshape(4, 4))
  places = [np.linspace(0, 3, last - first) for first, last in spans]
  levels = (drawn[5] + grid(tuple(np.meshgrid(*places, indexing="ij")))) / 2
  result = np.zeros_like(mask)
  for i in range(*spans[0]):
    for j in range(*spans[1]):
      share = around[i : i + 2 * radius + 1, j : j + 2 * radius + 1].mean()
      result[i, j] = share > levels[i - spans[0][0], j - spans[1][0]] if radius else shown[i, j]
  if drawn[6] < strength * noise.CUT:
    (top, bottom), (left, right) = spans
    side, depth = int(4 * drawn[7]), drawn[8] * noise.CUT_DEPTH
    tall, wide = int(depth * (bottom - top)), int(depth * (right - left))
    cuts = [(top, top + tall), (bottom - tall, bottom), (left, left + wide), (right - wide, right)]
    (result if side < 2 else result.T)[slice(*cuts[side])] = False
  return result


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_errors_are_those_of_a_loop_over_pixels(only, strength):
  only(SHIFT=0.2, STRETCH=0.4, OUTLINE=0.3, CUT=0.4, MERGE=0.3, DUPLICATE=0.4, MISS=0.2)
  wrong = pixels = 0
  for seed in range(6):
    masks = make_masks(seed, 8)
    actual, expected = noised(masks, 11, strength, seed)[0], by_loop(masks, 11, strength, seed)
    assert len(actual) == len(expected)
    wrong += (actual != expected).sum()
    pixels += (actual | expected).sum()
  assert wrong < 0.002 * pixels  # Rounding.


@pytest.mark.parametrize("radius", [1, 2, 5])
def test_the_outline_moves_as_by_scipy(radius):
  window = np.ones((2 * radius + 1,) * 2)
  for mask in make_masks(3, 6):
    margin = np.pad(mask, radius, mode="edge")
    dilated = ndimage.binary_dilation(mask, window)
    eroded = ndimage.binary_erosion(mask, window, border_value=1)
    np.testing.assert_array_equal(noise.move_outline(margin, radius, 0.0), dilated)
    np.testing.assert_array_equal(noise.move_outline(margin, radius, 0.9999), eroded)
    median = ndimage.median_filter(mask.astype(np.uint8), 2 * radius + 1, mode="nearest") > 0
    np.testing.assert_array_equal(noise.move_outline(margin, radius, 0.5), median)


def test_a_level_of_each_pixel_is_its_own_rank():
  mask, rng = make_masks(4, 1)[0], np.random.default_rng(0)
  level = rng.random(mask.shape)
  covered = ndimage.uniform_filter(mask.astype(float), 5, mode="nearest")
  actual = noise.move_outline(np.pad(mask, 2, mode="edge"), 2, level)
  clear = abs(covered - level) > 1e-9
  np.testing.assert_array_equal(actual[clear], (covered > level)[clear])


def test_a_box_is_moved_and_stretched_by_no_more_than_allowed(only):
  only(SHIFT=0.2, STRETCH=0.3)
  mask = np.zeros((1, 100, 100), bool)
  mask[0, 30:70, 35:55] = True
  tops, sides = [], []
  for seed in range(300):
    (found,), _ = noised(mask, 1, 0.5, seed)
    rows, columns = (np.flatnonzero(found.any(axis)) for axis in (1, 0))
    assert found.sum() == len(rows) * len(columns)
    tops.append((rows[0] + rows[-1] + 1) / 2 - 50)
    sides.append(len(columns) / 20)
  assert 3.4 < max(map(abs, tops)) <= 4.5  # 0.5 x 0.2 x 40 pixels, and rounding
  assert abs(np.mean(tops)) < 0.5
  assert 0.8 <= min(sides) < 0.92 and 1.1 < max(sides) <= 1.2


def test_an_object_cut_off_by_the_image_is_not_moved_away_from_its_edge(only):
  only(SHIFT=0.3)
  mask = np.zeros((1, 60, 60), bool)
  mask[0, 20:40, :20] = True
  for seed in range(50):
    (found,), _ = noised(mask, 1, 1.0, seed)
    assert found[:, 0].any()


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_masks_are_missed_found_twice_merged_and_cut_as_often_as_said(only, strength):
  masks = np.zeros((16, 64, 64), bool)
  for k, mask in enumerate(masks):
    mask[16 * (k // 4) + 2 : 16 * (k // 4) + 12, 16 * (k % 4) + 2 : 16 * (k % 4) + 12] = True

  def total(measure, **errors):
    only(**errors)
    found = [measure(noised(masks, 64, strength, seed)[0]) for seed in range(200)]
    return sum(found) / (200 * 16)

  tolerance = 3 * np.sqrt(0.25 / 3200)
  assert total(len, MISS=0.4) == pytest.approx(1 - 0.4 * strength, abs=tolerance)
  merged = total(lambda found: (found.sum((1, 2)) == 200).sum(), MERGE=0.4)
  assert merged == pytest.approx(0.4 * strength, abs=tolerance)
  cut = total(lambda found: (found.sum((1, 2)) < 100).sum(), CUT=0.4)
  assert 0.25 * strength < cut <= 0.4 * strength + tolerance  # Some cuts remove nothing.


def test_second_finds_come_last_and_have_errors_of_their_own(only):
  only(DUPLICATE=1.0, SHIFT=0.3)
  masks = make_masks(6, 5)
  masks = masks[masks.any((1, 2))]
  found, _ = noised(masks, 16, 1.0)
  assert len(found) == 2 * len(masks)
  for k, mask in enumerate(masks):
    for other in (found[k], found[k + len(masks)]):
      assert (other & mask).any()
  assert any((a != b).any() for a, b in zip(found, found[len(masks) :], strict=False))
  assert len(noised(masks, len(masks), 1.0)[0]) == len(masks)


def test_a_stronger_noise_makes_worse_masks():
  masks = make_masks(7, 16, 96)
  masks = masks[masks.any((1, 2))]

  def quality(strength):
    ious = []
    for seed in range(10):
      found, _ = noised(masks, 16, strength, seed)
      both = (found[:, None] & masks).sum((2, 3))
      either = (found[:, None] | masks).sum((2, 3))
      ious.append((both / either).max(0).mean())
    return np.mean(ious)

  assert 1 > quality(0.1) > quality(0.4) > quality(1.0) > 0.5
