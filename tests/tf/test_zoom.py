"""Scale jitter: pixels by brute force, and what it must not lose."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.tf import zoom

SIZE = 24
numbers = st.lists(st.integers(0, 999).map(lambda n: n / 1000), min_size=3, max_size=3)


def make_sample(seed: int, box: tuple[int, int, int, int]) -> dict:
  rng = np.random.default_rng(seed)
  target = np.zeros((SIZE, SIZE), bool)
  top, left, height, width = box
  target[top : top + height, left : left + width] = True
  return {
    "image": rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8),
    "instances": rng.integers(0, 1 << 16, (2, SIZE, SIZE), np.uint16),
    "target": target,
    "ref_id": 7,
  }


def run(sample, drawn, scale, text="the cup") -> dict:
  tensors = {name: tf.constant(value) for name, value in sample.items()}
  tensors["expression"] = tf.constant(text)
  out = zoom.zoom(tensors, tf.constant(drawn, tf.float32), scale)
  return {name: value.numpy() for name, value in out.items()}


boxes = st.tuples(
  st.integers(0, SIZE - 1), st.integers(0, SIZE - 1), st.integers(1, SIZE), st.integers(1, SIZE)
).map(lambda b: (b[0], b[1], min(b[2], SIZE - b[0]), min(b[3], SIZE - b[1])))


@given(boxes, numbers, st.sampled_from((0.4, 0.9, 1.0, 1.5)), st.sampled_from((0.0, 0.3, 0.8)))
def test_the_target_stays_whole_and_in_its_third(box, drawn, low, more):
  target = make_sample(0, box)["target"]
  window = zoom.draw_window(
    tf.constant(target), tf.constant(False), tf.constant(drawn, tf.float32), (low, low + more)
  )
  start, side = window[0].numpy(), window[1].numpy()
  for axis, (first, length) in enumerate(zip(box[:2], box[2:], strict=True)):
    first, last = first / SIZE, (first + length) / SIZE
    assert start[axis] <= first + 1e-5 and last <= start[axis] + side + 1e-5
    before, after = (first + last) / 2, ((first + last) / 2 - start[axis]) / side
    third = min(int(3 * before), 2)
    assert third / 3 - 1e-4 <= after <= (third + 1) / 3 + 1e-4
    # No border beyond an image that could fill the frame, and none of it lost to padding.
    outside = max(-start[axis], start[axis] + side - 1, 0)
    assert outside <= max(side - 1, 0) + 1e-5
  assert side >= 1 / (low + more) - 1e-5


def loses_nothing(start: float, side: float, first: float, last: float) -> bool:
  """Whether a window has the target, in its third, and no more padding than it must."""
  third, slack = min(int((first + last) / 2 * 3), 2), 6e-4
  before, after = third / 3, (third + 1) / 3
  return (
    start <= first + slack
    and last <= start + side + slack
    and before - slack <= ((first + last) / 2 - start) / side <= after + slack
    and (start >= -slack or start + side >= 1 - slack)
    and (start + side <= 1 + slack or start <= slack)
  )


@pytest.mark.parametrize("scale", [(0.5, 0.8), (1.2, 1.6), (0.9, 1.1)])
@pytest.mark.parametrize("box", [(4, 9, 5, 6), (0, 17, 12, 7), (11, 2, 2, 3), (8, 0, 3, 24)])
def test_a_window_is_anywhere_that_loses_nothing(box, scale):
  target = make_sample(0, box)["target"]

  def draw(*drawn):
    numbers = tf.constant(drawn, tf.float32)
    start, side = zoom.draw_window(tf.constant(target), tf.constant(False), numbers, scale)
    return start.numpy(), side.numpy()

  longest = max(box[2:]) / SIZE
  for drawn in (0.0, 0.3, 0.8):
    (low, side), (high, _), (middle, _) = (draw(drawn, n, n) for n in (0.0, 1.0, 0.5))
    factor = scale[0] + drawn * (scale[1] - scale[0])
    at = np.arange(-3000, 3000) / 1000
    spans = []
    for first, length in zip(box[:2], box[2:], strict=True):
      first, last = first / SIZE, (first + length) / SIZE
      wide = max(1 / factor, longest)
      spans.append([s for s in at if loses_nothing(s, wide, first, last)])
    if all(spans):
      assert side == pytest.approx(max(1 / factor, longest), abs=1e-5)
      np.testing.assert_allclose(low, [span[0] for span in spans], atol=3e-3)
      np.testing.assert_allclose(high, [span[-1] for span in spans], atol=3e-3)
      np.testing.assert_allclose(middle, (low + high) / 2, atol=1e-5)
    else:
      assert side == 1 and not low.any()


@pytest.mark.parametrize("scale", [(0.5, 0.5), (1.6, 1.6), (0.8, 1.3)])
@pytest.mark.parametrize("seed", range(4))
def test_masks_are_those_of_the_nearest_pixels(seed, scale):
  rng = np.random.default_rng(seed)
  sample = make_sample(seed, (4 + seed, 9, 5, 6))
  drawn = rng.random(3).astype(np.float32)
  start, side = zoom.draw_window(
    tf.constant(sample["target"]), tf.constant(False), tf.constant(drawn), scale
  )
  actual = run(sample, drawn, scale)
  expected = np.zeros_like(sample["instances"])
  target = np.zeros_like(sample["target"])
  for i in range(SIZE):
    for j in range(SIZE):
      y, x = (
        int(np.floor(np.float32(s + side.numpy() * (k + 0.5) / SIZE) * SIZE))
        for s, k in zip(start.numpy(), (i, j), strict=True)
      )
      if 0 <= y < SIZE and 0 <= x < SIZE:
        expected[:, i, j], target[i, j] = sample["instances"][:, y, x], sample["target"][y, x]
  assert (actual["instances"] != expected).mean() < 0.05  # Rounding, half way between pixels.
  assert (actual["target"] != target).mean() < 0.05
  assert actual["target"].any() and actual["ref_id"] == 7


def test_photo_and_masks_are_zoomed_alike():
  """The photo is white in the target and black elsewhere."""
  for seed in range(20):
    rng = np.random.default_rng(seed)
    sample = make_sample(seed, (*rng.integers(0, 12, 2), *rng.integers(4, 12, 2)))
    white = np.where(sample["target"], 255, 0).astype(np.uint8)
    out = run(sample | {"image": np.repeat(white[..., None], 3, -1)}, rng.random(3), (0.6, 1.6))
    image = out["image"][..., 0]
    inner = out["target"].copy()
    for axis in (0, 1):
      inner &= np.roll(out["target"], 1, axis) & np.roll(out["target"], -1, axis)
    assert (image[inner] > 120).all()


def test_grey_surrounds_what_is_zoomed_out():
  out = run(make_sample(0, (8, 8, 8, 8)), (0.0, 0.5, 0.5), (0.5, 0.5))
  grey = (out["image"] == 128).all(-1)
  assert 0.6 < grey.mean() < 0.8
  assert not out["instances"][:, grey].any() and not out["target"][grey].any()


def test_a_scale_of_one_changes_nothing():
  sample = make_sample(1, (3, 4, 5, 6))
  out = run(sample, (0.5, 0.5, 0.5), (1.0, 1.0))
  for name, value in sample.items():
    np.testing.assert_array_equal(out[name], value)


@pytest.mark.parametrize(
  ("text", "may_crop"),
  [
    ("the cup", True),
    ("leftmost cup", True),
    ("Second cup from the left", False),
    ("2nd cup", False),
    ("the middle one", False),
    ("man between them", False),
    ("phone in hand", True),
  ],
)
def test_where_an_expression_counts_nothing_is_cropped(text, may_crop):
  sample = make_sample(2, (10, 10, 2, 2))
  out = run(sample, (0.5, 0.5, 0.5), (2.0, 2.0), text)
  changed = (out["image"] != sample["image"]).any()
  assert changed == may_crop


def test_an_image_without_a_target_is_not_cropped():
  sample = make_sample(3, (0, 0, 0, 0))
  out = run(sample, (0.5, 0.5, 0.5), (2.0, 2.0))
  np.testing.assert_array_equal(out["image"], sample["image"])
