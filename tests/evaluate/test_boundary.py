"""Boundary IoU, against SciPy's erosion of padded masks and Python's own rounding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from benchmarks import boundary as benchmark
from mail_jax.evaluate import boundary, protocols
from mail_jax.evaluate.segmentation import count, summarise
from mail_jax.models.mail import Output

Pair = tuple[np.ndarray, np.ndarray]
CANVAS = (128, 192)
ROWS = 25


def distance(height: int, width: int) -> int:
  """Returns the distance as the authors' code does."""
  return max(1, round(0.02 * np.sqrt(height**2 + width**2)))


def erode(mask: np.ndarray, times: int) -> np.ndarray:
  padded = np.pad(mask, 1)
  return ndimage.binary_erosion(padded, np.ones((3, 3)), iterations=times)[1:-1, 1:-1]


def boundary_of(mask: np.ndarray) -> np.ndarray:
  return mask & ~erode(mask, distance(*mask.shape))


def expected(pair: Pair) -> tuple[int, int]:
  a, b = (boundary_of(mask) for mask in pair)
  return int((a & b).sum()), int((a | b).sum())


@jax.jit
def measure(logits: jax.Array, truth: jax.Array, size: jax.Array) -> dict[str, jax.Array]:
  """Counts for a model that predicts at the size of the image: no logit is resized."""
  none = jnp.zeros((len(logits), 1))
  output = Output(
    logits[..., None], none[:, :0], none, jnp.zeros((len(logits), 1, 1, 1), jnp.uint16)
  )
  protocol = protocols.Protocol(
    "given", lambda tiles, truth, size: (tiles[..., 0] > 0, truth), boundary=True
  )
  return count(output, {"original_target": truth, "original_size": size}, 0, protocol)


def counted(pairs: list[Pair], canvas: tuple[int, int] = CANVAS) -> dict[str, np.ndarray]:
  """Returns the counts of (predicted, true) pairs, in batches on a canvas, the last one padded."""
  found = []
  for start in range(0, len(pairs), ROWS):
    masks, size = np.zeros((2, ROWS, *canvas), bool), np.ones((ROWS, 2), np.int32)
    for row, pair in enumerate(pairs[start : start + ROWS]):
      size[row] = pair[0].shape
      masks[:, row, : size[row, 0], : size[row, 1]] = pair
    logits = np.where(masks[0], 1, -1).astype(np.float32)
    found.append(jax.device_get(measure(logits, masks[1], size)))
  return {name: np.concatenate([f[name] for f in found])[: len(pairs)] for name in found[0]}


def pairs_of(found: dict[str, np.ndarray]) -> list[tuple[int, int]]:
  return list(
    zip(found["boundary_intersection"].tolist(), found["boundary_union"].tolist(), strict=True)
  )


def draw(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
  """Draws noise of random scale, from single pixels to blobs at the border, with holes."""
  noise = ndimage.gaussian_filter(rng.normal(size=(height, width)), rng.choice([0, 1, 3, 8, 20]))
  return noise > np.quantile(noise, rng.choice([0.02, 0.1, 0.5, 0.9]))


def test_pixels_of_500_random_pairs_are_those_of_scipy():
  rng, pairs = np.random.default_rng(0), []
  for number in range(500):
    height, width = int(rng.integers(1, 129)), int(rng.integers(1, 193))
    true = draw(rng, height, width)
    near = true ^ (draw(rng, height, width) & (rng.random() < 0.5))
    pairs.append((near if number % 2 else draw(rng, height, width), true))
  shapes = {pair[0].shape for pair in pairs}
  assert {height < width for height, width in shapes} == {True, False}
  assert {distance(*shape) for shape in shapes} == {1, 2, 3, 4}
  actual = counted(pairs)
  assert pairs_of(actual) == [expected(pair) for pair in pairs]
  assert actual["intersection"].tolist() == [int((a & b).sum()) for a, b in pairs]
  assert actual["union"].tolist() == [int((a | b).sum()) for a, b in pairs]


@pytest.mark.parametrize("canvas", [(72, 203), (5, 220)])
def test_every_distance_erodes_like_as_many_steps_of_scipy(canvas):
  rng, most = np.random.default_rng(1), 34
  masks = np.stack([draw(rng, *canvas) for _ in range(2 * most)]).reshape(most, 2, *canvas)
  masks[:, 0] = True
  masks[:, 0, canvas[0] // 2, 100] = False
  distances = np.arange(1, most + 1)
  eroded = jax.jit(lambda masks, d: boundary.erode(boundary.pack(masks), d, most))(masks, distances)
  target = np.stack([[erode(m, d) for m in pair] for pair, d in zip(masks, distances, strict=True)])
  np.testing.assert_array_equal(eroded, boundary.pack(jnp.asarray(target)))
  # Between the border and the hole of 72 rows something is left; of 5 rows little is.
  assert target[20, 0].any() == (canvas[0] > 50) and target[0].any()


def test_the_distance_is_two_percent_of_the_diagonal_rounded_as_python_rounds():
  rng = np.random.default_rng(2)
  sizes = rng.integers(1, 3000, (4000, 2)).tolist()
  # 3, 4, 5 times n: at every odd multiple of 25 the distance is halfway between two pixels.
  sizes += [[15 * n, 20 * n] for n in range(1, 150)] + [[480, 640], [96, 96], [1, 1]]
  halves = [math.hypot(*size) / 50 % 1 == 0.5 for size in sizes]
  assert sum(halves) > 70
  most = boundary.farthest_on(3000, 3000)
  actual = boundary.find_distance(jnp.array(sizes), most).tolist()
  assert actual == [distance(*size) for size in sizes]
  assert actual[-3:] == [16, 3, 1]
  assert all(distance(*size) <= boundary.farthest_on(*size) for size in sizes)
  assert boundary.farthest_on(3000, 3000) == distance(3000, 3000)


def square(*edges: int) -> np.ndarray:
  """Returns a mask of 100 x 120 pixels, with boundaries of 3 pixels; edges: top to right."""
  mask = np.zeros((100, 120), bool)
  mask[edges[0] : edges[1], edges[2] : edges[3]] = True
  return mask


FRAME = 100 * 120 - 94 * 114
HOLE = square(20, 80, 30, 90) & ~square(45, 55, 55, 65)


@pytest.mark.parametrize(
  ("mask", "pixels"),
  [
    (square(20, 80, 30, 90), 60**2 - 54**2),
    (square(0, 100, 0, 120), FRAME),  # the border of the photo is contour, not that of the canvas
    (square(0, 30, 90, 120), 30**2 - 24**2),
    (HOLE, 60**2 - 54**2 + 16**2 - 10**2),
    (square(50, 56, 10, 100), 6 * 90),  # thinner than twice the distance: boundary all over
    (square(50, 57, 10, 100), 7 * 90 - 84),
    (square(99, 100, 119, 120), 1),
    (square(0, 0, 0, 0), 0),
  ],
)
def test_boundaries_have_as_many_pixels_as_counted_by_hand(mask, pixels):
  actual = counted([(mask, mask), (square(0, 0, 0, 0), mask)])
  assert pairs_of(actual) == [(pixels, pixels), (0, pixels)]
  assert pixels == boundary_of(mask).sum()


def score(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
  found = dict(summarise(counted([(predicted, true)])))
  return {name: found[name] for name in ("mIoU", "boundary_mIoU")}


def test_perfect_predictions_score_one_also_for_an_empty_target():
  empty = square(0, 0, 0, 0)
  for mask in (HOLE, square(0, 100, 0, 120), square(5, 6, 5, 6), empty):
    assert score(mask, mask) == {"mIoU": 1, "boundary_mIoU": 1}
  for pair in ((HOLE, empty), (empty, HOLE)):
    assert score(*pair) == {"mIoU": 0, "boundary_mIoU": 0}


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_a_mask_that_is_shifted_or_grown_loses_more_along_its_outline(shift):
  mask = square(20, 80, 30, 90)
  for other in (np.roll(mask, shift, 1), ndimage.binary_dilation(mask, iterations=shift)):
    actual = score(other, mask)
    assert 0 < actual["boundary_mIoU"] < actual["mIoU"] - 0.03


def test_the_mean_is_of_the_ratios():
  zero = np.zeros(3)
  columns = {"intersection": zero, "union": zero, "selected_iou": zero, "oracle_iou": zero}
  pair = {"boundary_intersection": np.array([1, 0, 0]), "boundary_union": np.array([4, 0, 9])}
  assert dict(summarise(columns | pair))["boundary_mIoU"] == pytest.approx((0.25 + 1 + 0) / 3)
  assert "boundary_mIoU" not in dict(summarise(columns))


def test_the_canvas_changes_no_count():
  rng = np.random.default_rng(3)
  pairs = [(draw(rng, 60, 90), draw(rng, 60, 90)) for _ in range(5)]
  first = counted(pairs, (60, 90))
  pairs += [(draw(rng, 128, 192), draw(rng, 128, 192))]
  actual = counted(pairs, (128, 256))
  for name, values in first.items():
    np.testing.assert_array_equal(actual[name][:5], values)


def test_the_protocols_of_papers_have_no_boundary():
  truth = jnp.ones((1, 64, 64), bool)
  none = jnp.zeros((1, 1))
  output = Output(jnp.ones((1, 8, 8, 1)), none[:, :0], none, jnp.zeros((1, 1, 8, 8), jnp.uint16))
  batch = {"original_target": truth, "original_size": jnp.array([[64, 64]])}
  keys = {
    name: count(output, batch, 0, protocol).keys() for name, protocol in protocols.PROTOCOLS.items()
  }
  assert keys["original"] - keys["cris"] == {"boundary_intersection", "boundary_union"}
  assert keys["lavt"] == keys["cris"]


def test_the_benchmark_stretches_targets_and_nothing_else():
  target = np.zeros((2, 64, 64), bool)
  target[0, 10:20, :15] = target[1, 0, 0] = True
  sizes = np.array([[20, 30], [1, 1]], np.int32)
  batch = {"original_target": target, "original_size": sizes, "index": np.arange(2)}
  actual = benchmark.stretch(batch, 100, 90)
  assert actual["original_size"].tolist() == [[100, 90]] * 2 and actual["index"] is batch["index"]
  expected = np.zeros((2, 128, 128), bool)
  expected[0, 50:100, :45] = expected[1, :100, :90] = True
  np.testing.assert_array_equal(actual["original_target"], expected)
