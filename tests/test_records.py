"""The record's own encodings: bit planes and targets survive, whatever the masks."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool
from PIL import Image

from input_pipeline import records


@st.composite
def masks(draw: st.DrawFn) -> Bool[np.ndarray, "k h w"]:
  """Up to 64 overlapping masks of any size, 1 x N and N x 1 included."""
  count = draw(st.integers(0, 64))
  height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  return rng.random((count, height, width)) < draw(st.floats(0, 1))


@settings(max_examples=150, deadline=None)
@given(masks())
def test_any_masks_survive_bit_planes_and_png(drawn):
  planes = records.pack_planes(drawn)
  read = records.decode_planes(records.encode_planes(planes), height=drawn.shape[1])
  np.testing.assert_array_equal(read, planes)
  np.testing.assert_array_equal(records.unpack_planes(read, len(drawn)), drawn)


@settings(max_examples=50, deadline=None)
@given(masks())
def test_bit_k_of_plane_k_over_16_is_mask_k(drawn):
  planes = records.pack_planes(drawn)
  count, height, width = drawn.shape
  assert planes.shape == (max(1, (count + 15) // 16), height, width)
  for number in range(planes.shape[0] * 16):
    bit = planes[number // 16] // 2 ** (number % 16) % 2
    expected = drawn[number] if number < count else np.zeros((height, width))
    np.testing.assert_array_equal(bit, expected)


def test_no_instance_is_one_empty_plane():
  planes = records.pack_planes(records.no_instances(5, 7).masks)
  assert planes.shape == (1, 5, 7)
  assert not planes.any()
  assert records.unpack_planes(planes, 0).shape == (0, 5, 7)


def test_planes_are_one_16_bit_grayscale_png_of_stacked_planes():
  drawn = np.zeros((17, 3, 4), bool)
  drawn[0, 0, 0] = drawn[15, 0, 1] = drawn[16, 0, 0] = True
  with Image.open(io.BytesIO(records.encode_planes(records.pack_planes(drawn)))) as image:
    assert (image.format, image.mode, image.size) == ("PNG", "I;16", (4, 6))
    assert [image.getpixel(at) for at in ((0, 0), (1, 0), (0, 3))] == [1, 1 << 15, 1]


def test_more_masks_than_bits_is_an_error():
  with pytest.raises(ValueError, match="17 masks"):
    records.unpack_planes(np.zeros((1, 2, 2), np.uint16), 17)


@settings(max_examples=50, deadline=None)
@given(masks().filter(len))
def test_any_target_survives_its_one_bit_png(drawn):
  png = records.encode_target(drawn[0])
  with Image.open(io.BytesIO(png)) as image:
    assert image.mode == "1"
  np.testing.assert_array_equal(records.decode_target(png), drawn[0])
