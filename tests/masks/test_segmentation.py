"""Untrusted segmentations: the right mask or an error; C code only gets checked input."""

import math
import time

import numpy as np
import own_process
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_masks import plain_decode, plain_lengths
from pycocotools import mask as coco_mask

from input_pipeline.masks.segmentation import decode_phrasecut, decode_segmentation

SIZE = (6, 7)


def agrees(counts, expected: np.ndarray | None, size: tuple[int, int] = SIZE) -> None:
  segmentation = {"size": list(size), "counts": counts}
  if expected is None:
    with pytest.raises(ValueError):
      decode_segmentation(segmentation, *size)
  else:
    np.testing.assert_array_equal(decode_segmentation(segmentation, *size), expected)


@settings(deadline=None)
@given(st.lists(st.integers(-2, 60), max_size=8), st.booleans())
def test_lists_of_run_lengths_give_what_numpy_says(lengths, completed):
  if completed and (rest := math.prod(SIZE) - sum(lengths)) >= 0:
    lengths = [*lengths, rest]
  agrees(lengths, plain_decode(lengths, *SIZE))


_characters = st.integers(48, 111).map(lambda code: bytes([code]))


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=12), st.lists(_characters, max_size=8).map(b"".join)))
def test_strings_of_any_bytes_give_what_a_plain_reader_says(text):
  lengths = plain_lengths(text)
  expected = None if lengths is None else plain_decode(lengths, *SIZE)
  agrees(text, expected)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_strings_of_pycocotools_give_the_mask(seed, height, width, share):
  mask = np.random.default_rng(seed).random((height, width)) < share
  text = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
  assert plain_lengths(text) is not None
  agrees(text, mask, (height, width))
  agrees(text.decode(), mask, (height, width))
  # One character is changed: either the mask of the changed lengths, or an error.
  place = seed % len(text)
  damaged = text[:place] + bytes([48 + seed % 64]) + text[place + 1 :]
  lengths = plain_lengths(damaged)
  agrees(
    damaged, None if lengths is None else plain_decode(lengths, height, width), (height, width)
  )


@pytest.mark.parametrize(
  "counts",
  [
    [42.0],
    [True],
    ["42"],
    [[42]],
    [None],
    [10**30],
    [-1, 43],
    [2**62] * 4 + [42],  # added up in 64 bits they come round to 42
    [2**32 + 42],
    [0] * 200 + [42],
    42,
    None,
    {"0": 42},
    "é",
    "\ud800",
    "Z1\0",
    "o" * 1_000_000,  # a number of five million bits
    "0" * 1_000_000,
    b"oooooo1",
    "o",
  ],
  ids=lambda counts: f"{counts!r:.16}",
)
def test_invalid_run_lengths_are_refused_at_once(counts):
  start = time.perf_counter()
  agrees(counts, None)
  assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("size", [[7, 6], [6], [6, 7, 1], None, "67", 6, [6, math.nan], {}])
def test_run_lengths_of_another_size_are_refused(size):
  with pytest.raises(ValueError, match="run lengths have size"):
    decode_segmentation({"size": size, "counts": [42]}, *SIZE)


@pytest.mark.parametrize(
  "segmentation",
  [
    {"size": [2**31, 2**31], "counts": [2**62]},
    {"size": [2**31, 2**31], "counts": "0"},
    [[0.0, 0.0, 9.0, 0.0, 9.0, 9.0]],
  ],
)
@pytest.mark.parametrize("size", [(2**31, 2**31), (100_000, 100_000), (0, 5), (-4, -4)])
def test_images_of_absurd_sizes_are_refused_before_memory_is_allocated(segmentation, size):
  with pytest.raises(ValueError, match="invalid image size"):
    decode_segmentation(segmentation, *size)
  with pytest.raises(ValueError, match="invalid image size"):
    decode_phrasecut([[[0, 0], [9, 0], [9, 9]]], *size)


_far = st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e18, 2**31, 10**400, 4e8])


@settings(deadline=None)
@given(st.lists(st.integers(0, 7), min_size=6, max_size=6), st.integers(0, 5), _far)
def test_a_point_far_outside_is_refused(polygon, place, far):
  with pytest.raises(ValueError, match=r"not a list of numbers|far outside"):
    decode_segmentation([[*polygon[:place], far, *polygon[place + 1 :]]], *SIZE)
  points = [list(pair) for pair in zip(polygon[::2], polygon[1::2], strict=True)]
  points[place // 2][place % 2] = far
  with pytest.raises(ValueError, match="is not a point"):
    decode_phrasecut([points], *SIZE)


@pytest.mark.parametrize(
  "polygon",
  ["123456", {str(i): i for i in range(6)}, [None] * 6, ["1"] * 6, [[1, 2, 3]] * 6, [1j] * 6],
)
def test_a_malformed_polygon_is_refused(polygon):
  with pytest.raises(ValueError, match=r"not a list of numbers|`size` and `counts`|not a point"):
    decode_segmentation([polygon], *SIZE)


def test_a_polygon_of_thousands_of_points_gives_its_disc():
  turn = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
  circle = np.stack([200 + 150 * np.cos(turn), 180 + 150 * np.sin(turn)], 1).ravel().tolist()
  y, x = np.mgrid[:400, :400] + 0.5
  disc = (x - 200) ** 2 + (y - 180) ** 2 < 150**2
  mask = decode_segmentation([circle], 400, 400)
  assert np.count_nonzero(mask ^ disc) < 0.005 * np.count_nonzero(disc)


_MEMORY = """
import time
from own_process import peak_kilobytes
from input_pipeline.masks.segmentation import decode_segmentation
before, start = peak_kilobytes(), time.perf_counter()
far = [[0.0, 0.0, 640.0, 480.0] * 25_000]
many = [[0.0, 0.0, 0.0, 0.0, 1.0, 1.0]] * 200_000
for polygons in (far, many):
  try:
    decode_segmentation(polygons, 480, 640)
  except ValueError as error:
    print(error)
print(peak_kilobytes() - before, time.perf_counter() - start)
"""


def test_polygons_with_long_edges_are_refused_in_a_second_and_little_memory():
  far, many, used = own_process.run(_MEMORY).splitlines()
  assert "edges exceed 1,000,000 pixels" in far and "200,000 polygons" in many
  kilobytes, seconds = map(float, used.split())
  assert kilobytes < 100_000 and seconds < 1
