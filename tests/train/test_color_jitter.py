"""Color jitter on the device, against its three changes one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mail_jax.train.step import color_jitter, jitter_batch

_GRAY = [0.299, 0.587, 0.114]


def _photos(count: int, low: int, high: int) -> np.ndarray:
  return np.random.default_rng(count).integers(low, high, (count, 16, 24, 3), dtype=np.uint8)


def _change(images: np.ndarray, factors: np.ndarray) -> np.ndarray:
  return np.asarray(jax.jit(color_jitter)(jnp.asarray(images), jnp.asarray(factors)))


def test_jitter_is_brightness_then_contrast_then_saturation():
  images = _photos(5, 60, 180)
  factors = np.random.default_rng(1).uniform(0.6, 1.4, (5, 3)).astype(np.float32)
  changed = _change(images, factors)
  for image, row, ours in zip(images, factors, changed, strict=True):
    brightness, contrast, saturation = row
    expected = image * brightness
    expected = contrast * expected + (1 - contrast) * (expected @ _GRAY).mean()
    expected = saturation * expected + (1 - saturation) * (expected @ _GRAY)[..., None]
    assert np.abs(ours - expected.clip(0, 255)).max() <= 0.51


@pytest.mark.parametrize(
  ("position", "enhance"),
  [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)],
)
def test_each_factor_alone_is_what_pillow_does(position, enhance):
  (image,) = _photos(1, 0, 256)
  factors = np.ones((1, 3), np.float32)
  factors[0, position] = 0.7
  expected = np.asarray(enhance(Image.fromarray(image)).enhance(0.7)).astype(int)
  # Pillow rounds down, and also rounds its gray values.
  assert np.abs(_change(image[None], factors)[0] - expected).max() <= 1


def test_factors_of_one_change_nothing_and_large_ones_stay_within_a_byte():
  images = _photos(2, 0, 256)
  np.testing.assert_array_equal(_change(images, np.ones((2, 3), np.float32)), images)
  bright, dark = _change(images, np.array([[9, 1, 1], [0, 1, 1]], np.float32))
  assert (bright >= images[0]).all() and (bright[images[0] > 29] == 255).all()
  assert not dark.any()


def test_a_batch_without_factors_stays_as_it_is():
  batch = {"image": jnp.asarray(_photos(2, 0, 256))}
  assert jitter_batch(batch) is batch
  changed = jitter_batch(batch | {"jitter_factors": jnp.full((2, 3), 0.5)})
  assert set(changed) == {"image"} and (changed["image"] != batch["image"]).any()
