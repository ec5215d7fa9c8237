"""The record's encodings: bit planes and targets of any masks survive."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool
from PIL import Image

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import bit_planes


@st.composite
def masks(draw: st.DrawFn) -> Bool[np.ndarray, "k h w"]:
  """Draws up to 64 overlapping masks of any size, 1 x N and N x 1 included."""
  count = draw(st.integers(0, 64))
  height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  return rng.random((count, height, width)) < draw(st.floats(0, 1))


@settings(max_examples=150, deadline=None)
@given(masks())
def test_any_masks_survive_bit_planes_and_png(drawn):
  planes = bit_planes.packbits(drawn)
  read = bit_planes.decode_png(bit_planes.encode_png(planes), height=drawn.shape[1])
  np.testing.assert_array_equal(read, planes)
  np.testing.assert_array_equal(bit_planes.unpackbits(read, len(drawn)), drawn)


@settings(max_examples=50, deadline=None)
@given(masks())
def test_bit_k_of_plane_k_over_16_is_mask_k(drawn):
  planes = bit_planes.packbits(drawn)
  count, height, width = drawn.shape
  assert planes.shape == (max(1, (count + 15) // 16), height, width)
  for number in range(planes.shape[0] * 16):
    bit = planes[number // 16] // 2 ** (number % 16) % 2
    expected = drawn[number] if number < count else np.zeros((height, width))
    np.testing.assert_array_equal(bit, expected)


def test_no_instance_is_one_empty_plane():
  planes = bit_planes.packbits(records.no_instances(5, 7).masks)
  assert planes.shape == (1, 5, 7)
  assert not planes.any()
  assert bit_planes.unpackbits(planes, 0).shape == (0, 5, 7)


def test_planes_are_one_16_bit_grayscale_png_of_stacked_planes():
  drawn = np.zeros((17, 3, 4), bool)
  drawn[0, 0, 0] = drawn[15, 0, 1] = drawn[16, 0, 0] = True
  with Image.open(io.BytesIO(bit_planes.encode_png(bit_planes.packbits(drawn)))) as image:
    assert (image.format, image.mode, image.size) == ("PNG", "I;16", (4, 6))
    assert [image.getpixel(at) for at in ((0, 0), (1, 0), (0, 3))] == [1, 1 << 15, 1]


def test_more_masks_than_bits_is_an_error():
  with pytest.raises(ValueError, match="17 masks"):
    bit_planes.unpackbits(np.zeros((1, 2, 2), np.uint16), 17)


@settings(max_examples=50, deadline=None)
@given(masks().filter(len))
def test_any_target_survives_its_one_bit_png(drawn):
  png = records.encode_target(drawn[0])
  with Image.open(io.BytesIO(png)) as image:
    assert image.mode == "1"
  np.testing.assert_array_equal(records.decode_target(png), drawn[0])


def _record_fields() -> dict:
  drawn = np.zeros((17, 5, 7), bool)
  drawn[3, 1:3, 2:5] = True
  ref = records.Ref(1, (4,), drawn[3], ("the cup",))
  instances = records.Instances(drawn, np.ones(17, np.float32), np.ones(17, np.int32), "own")
  return records.encode_record(records.ImageRecord(b"", 9, "a.jpg", 5, 7, instances, (ref,)))


def _png(mode: str, size: tuple[int, int]) -> bytes:
  file = io.BytesIO()
  Image.new(mode, size).save(file, "PNG")
  return file.getvalue()


def _huge_png() -> bytes:
  """Returns a header of 4,000,000,000 pixels, without the pixels."""
  chunk = b"IHDR" + (65535).to_bytes(4) + (65535).to_bytes(4) + bytes([1, 0, 0, 0, 0])
  return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)


@pytest.mark.parametrize(
  "damaged",
  [
    b"", b"\x89PNG", _png("RGB", (7, 5)), _png("L", (5, 7)), _png("I;16", (7, 4)),
    _png("I;16", (1280, 5)), _huge_png(),
  ],
  ids=["empty", "head", "colours", "turned", "rows", "wide", "huge"],
)  # fmt: skip
@pytest.mark.parametrize("which", ["instances", "target"])
def test_a_record_whose_masks_are_damaged_is_named(damaged, which):
  fields = _record_fields()
  assert records.decode_record(fields).refs[0].target.sum() == 6
  (fields if which == "instances" else fields["refs"][0])[which] = damaged
  with pytest.raises(InputError, match=r"image a\.jpg \(image_id 9\): one of its masks"):
    records.decode_record(fields)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_record_of_any_flipped_bytes_is_a_record_or_an_input_error(data):
  fields = _record_fields()
  where = data.draw(st.sampled_from([fields, fields["refs"][0]]))
  key = "instances" if where is fields else "target"
  content = bytearray(where[key])
  for _ in range(data.draw(st.integers(1, 4))):
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
  where[key] = bytes(content)
  try:
    record = records.decode_record(fields)
  except InputError:
    return
  assert record.instances.masks.shape == (17, 5, 7) and record.refs[0].target.shape == (5, 7)
