"""Text, image and mask preparation."""

import io
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError

_SIDE_WORDS = ("left", "right", "leftmost", "right-most", "lefthand", "right-hand", "Left", "RIGHT")
_OTHER_WORDS = (
  "bright",
  "upright",
  "leftover",
  "alright",
  "copyright",
  "the",
  "cup",
  "of",
  ",",
  "-",
)
_phrases = st.lists(st.sampled_from(_SIDE_WORDS + _OTHER_WORDS)).map(" ".join)


def _file(image: Image.Image, kind: str, **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def _photo(height: int, width: int, seed: int = 0) -> np.ndarray:
  coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
  return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
  ("raw", "normal"),
  [
    ("  The LEFT\tcup \n", "the left cup"),
    ("\uff46\uff55\uff4c\uff4c width", "full width"),
    ("cafe\u0301", "café"),
    ("zero\u200bwidth \x00nul", "zerowidth nul"),
    ("half \ud800 a pair", "half a pair"),
    ("İstanbul", "i̇stanbul"),
    ("👍🏽 man", "👍🏽 man"),
  ],
)
def test_text_has_one_normal_form(raw, normal):
  assert preprocess.normalise_text(raw) == normal


@given(st.text())
def test_normal_text_is_normal_lower_case_and_stays_as_it_is(text):
  try:
    normal = preprocess.normalise_text(text)
  except InputError:
    return
  assert preprocess.normalise_text(normal) == normal
  assert unicodedata.is_normalized("NFKC", normal)
  assert normal == normal.lower() == " ".join(normal.split())
  assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs") for char in normal)
  normal.encode()


@pytest.mark.parametrize("text", ["", "  \n", "\x00", "\u200b"])
def test_empty_text_is_refused_by_name(text):
  with pytest.raises(InputError, match=re.escape(repr(text))):
    preprocess.normalise_text(text)


@pytest.mark.parametrize(
  ("text", "mirrored"),
  [
    ("the leftmost cup", "the rightmost cup"),
    ("man on right, left hand up", "man on left, right hand up"),
    ("right-hand side of the left-most one", "left-hand side of the right-most one"),
    ("topleft donut", "topright donut"),
    ("lefty rightie leftest", "righty rightie rightest"),
    ("the girl's left's", "the girl's right's"),
    ("Left, LEFT", "Right, RIGHT"),
    ("rightside lefthanded", "leftside righthanded"),
  ],
)
def test_left_and_right_are_exchanged(text, mirrored):
  assert preprocess.exchange_left_right(text) == mirrored


@pytest.mark.parametrize(
  "word", ["bright", "upright", "leftover", "alright", "copyright", "brightest", "cleft", "leftist"]
)
def test_words_that_only_contain_left_or_right_stay(word):
  assert preprocess.exchange_left_right(f"a {word} thing") == f"a {word} thing"


@given(st.one_of(st.text(), _phrases))
def test_exchanging_twice_gives_the_text_back(text):
  assert preprocess.exchange_left_right(preprocess.exchange_left_right(text)) == text


@given(_phrases)
def test_exchange_agrees_with_word_by_word_replacement(text):
  def mirrored(word: str) -> str:
    if word not in _SIDE_WORDS:
      return word
    lower = word.lower()
    other = lower.replace("left", "*").replace("right", "left").replace("*", "right")
    return other.upper() if word.isupper() else other.title() if word.istitle() else other

  expected = " ".join(mirrored(word) for word in text.split(" "))
  assert preprocess.exchange_left_right(text) == expected


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "LA", "1"])
def test_images_of_every_mode_become_rgb(mode):
  image = Image.fromarray(_photo(20, 30)).convert(mode)
  kind = "JPEG" if mode in ("RGB", "L", "CMYK") else "PNG"
  data = _file(image, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
  decoded = preprocess.decode_image(data, "photo")
  assert decoded.shape == (20, 30, 3)
  # JPEG changes every pixel a little.
  difference = decoded.astype(int) - np.array(image.convert("RGB"))
  assert np.abs(difference).mean() <= (4 if kind == "JPEG" else 0)


def test_16_bit_gray_keeps_its_high_byte():
  gray = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
  decoded = preprocess.decode_image(_file(Image.fromarray(gray), "PNG"), "scan")
  np.testing.assert_array_equal(decoded, np.repeat((gray // 256).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize("cut", [0, 10, 300])
def test_an_incomplete_image_is_refused_by_name(cut):
  data = _file(Image.fromarray(_photo(40, 50)), "JPEG")[:cut]
  with pytest.raises(InputError, match=r"COCO_1\.jpg"):
    preprocess.decode_image(data, "COCO_1.jpg")


def test_an_image_of_the_right_size_is_unchanged():
  photo = _photo(32, 32)
  np.testing.assert_array_equal(preprocess.resize_image(photo, 32), photo)


def test_shrinking_averages_what_it_drops():
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[:, ::2] = 255
  inner = preprocess.resize_image(stripes, 16)[2:-2, 2:-2]
  assert np.abs(inner.astype(int) - 127).max() <= 2


@given(st.integers(1, 300), st.integers(1, 120))
def test_nearest_takes_the_pixel_under_the_centre_of_the_output_pixel(length, size):
  indices = preprocess.nearest_indices(length, size)
  edges = np.arange(length + 1) * 2 * size  # in units of 1 / (2 * size) source pixels.
  for i, index in enumerate(indices):
    assert edges[index] <= (2 * i + 1) * length < edges[index + 1]


def test_planes_are_resized_one_by_one_and_keep_all_bits():
  planes = np.random.default_rng(0).integers(0, 1 << 16, (3, 21, 34), dtype=np.uint16)
  resized = preprocess.resize_planes(planes, 16)
  for plane, small in zip(planes, resized, strict=True):
    for y in range(16):
      for x in range(16):
        assert small[y, x] == plane[int((y + 0.5) * 21 / 16), int((x + 0.5) * 34 / 16)]
