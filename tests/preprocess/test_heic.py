"""HEIC images, which pillow-heif adds to Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.custom import image_files

pytestmark = pytest.mark.extras


def encode(pixels: np.ndarray, orientation: int = 1) -> bytes:
  heif = pytest.importorskip("pillow_heif")
  heif.register_heif_opener()
  exif, buffer = Image.Exif(), io.BytesIO()
  exif[0x0112] = orientation
  Image.fromarray(pixels).save(buffer, format="HEIF", quality=100, exif=exif.tobytes())
  return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_read_upright_and_stored_as_png(tmp_path, orientation):
  rng = np.random.default_rng(0)
  pixels = np.kron(rng.integers(0, 255, (4, 6, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
  data = encode(pixels, orientation)
  jpeg, exif = io.BytesIO(), Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(pixels).save(jpeg, format="JPEG", quality=100, exif=exif)
  expected = preprocess.open_image(jpeg.getvalue())
  actual = preprocess.open_image(data)
  assert actual.shape == expected.shape
  assert np.abs(actual.astype(int) - expected).mean() < 10
  path = tmp_path / "a.heic"
  path.write_bytes(data)
  assert image_files.read_header(str(path)).size == expected.shape[:2]
  stored, stored_pixels = image_files.stored_upright(data, str(path))
  np.testing.assert_array_equal(stored_pixels, actual)
  with Image.open(io.BytesIO(stored)) as image:
    assert image.format == "PNG"
    np.testing.assert_array_equal(np.asarray(image), actual)
