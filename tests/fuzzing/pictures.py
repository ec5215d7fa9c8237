"""Images: pixels of the size in the header, or an `InputError` that names the image."""

import io
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from input_pipeline import image_hashes, preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.custom import image_files

COVERED = ("input_pipeline/preprocess/images.py", "input_pipeline/custom/image_files.py")
MAX_BYTES = 4096
_MAX_PIXELS = 1 << 20

_KINDS = (
  ("PNG", ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
  ("JPEG", ("RGB", "L", "CMYK")),
  ("GIF", ("P", "L")),
  ("BMP", ("RGB", "1")),
  ("TIFF", ("RGB", "CMYK", "F", "I;16", "LAB")),
  ("WEBP", ("RGB", "RGBA")),
  ("PPM", ("RGB", "L")),
)


def _image(mode: str) -> Image.Image:
  pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
  if mode == "I;16":
    return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
  if mode == "LAB":
    return Image.frombytes("LAB", (9, 6), pixels.tobytes())
  return Image.fromarray(pixels).convert(mode)


def seeds(realdata: pathlib.Path) -> Iterator[bytes]:
  """Yields images of every format and mode, rotated, animated, with tables; and small real ones."""
  for kind, modes in _KINDS:
    for mode in modes:
      file = io.BytesIO()
      _image(mode).save(file, kind)
      yield file.getvalue()
  exif = Image.Exif()
  exif[0x0112] = 6
  for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
    file = io.BytesIO()
    _image("RGB").save(file, kind, exif=exif.tobytes())
    yield file.getvalue()
  for kind in ("GIF", "WEBP", "PNG", "TIFF"):
    file = io.BytesIO()
    _image("RGB").save(file, kind, save_all=True, append_images=[_image("L").convert("RGB")])
    yield file.getvalue()
  for path in sorted(realdata.glob("coco/train2014/*.jpg"))[::60]:
    with Image.open(path) as image:
      image.thumbnail((40, 40))
      file = io.BytesIO()
      image.save(file, "JPEG", quality=70)
      yield file.getvalue()


def one_input(data: bytes) -> None:
  """Decodes the image as stored and upright, and as a record would store it, and hashes it."""
  try:
    stored = preprocess.decode_image(data, "a.jpg", upright=False, max_pixels=_MAX_PIXELS)
    upright = preprocess.decode_image(data, "a.jpg", max_pixels=_MAX_PIXELS)
    assert sorted(stored.shape) == sorted(upright.shape)
    assert stored.dtype == upright.dtype == np.uint8 and stored.shape[2] == 3
    kept, pixels = image_files.stored_upright(data, "a.jpg")
    assert (pixels == upright).all()
    assert (preprocess.decode_image(kept, "kept") == upright).all()
    assert len(image_hashes.hash_looks(kept)) in (0, 64)
  except InputError as error:
    assert "a.jpg" in str(error)
