"""Images of every format: the right pixels, or an `InputError` that names the file."""

import io
import os
import struct
import zlib

import numpy as np
import own_process
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError


def _file(image: Image.Image, kind: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def _flat(colour: tuple[int, ...], mode: str, size: tuple[int, int] = (32, 16)) -> Image.Image:
  return Image.new(mode, size, colour)


def _decoded(data: bytes) -> np.ndarray:
  return preprocess.decode_image(data, "photo").astype(int)


def chunk(name: bytes, content: bytes) -> bytes:
  """Returns a PNG chunk with its length and checksum."""
  return (
    struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
  )


def png(width: int, height: int, *chunks: bytes, colour: int = 0, bits: int = 8) -> bytes:
  """Returns a PNG of those chunks between its header and its end."""
  head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
  return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def test_adobes_cmyk_jpegs_are_not_negatives():
  """Photoshop inverts CMYK in JPEGs, and so do all other writers, with its marker or without."""
  plain = _file(_flat((64, 0, 0, 0), "CMYK"), "JPEG", quality=95)
  assert b"Adobe" in plain  # Pillow writes it as Adobe does
  light = _decoded(plain)
  assert np.abs(light - [191, 255, 255]).max() <= 6
  at = plain.index(b"\xff\xee")
  bare = plain[:at] + plain[at + 2 + int.from_bytes(plain[at + 2 : at + 4]) :]
  assert b"Adobe" not in bare
  np.testing.assert_array_equal(_decoded(bare), light)


def test_transparent_pixels_are_composited_on_white():
  image = Image.fromarray(np.full((4, 4, 4), (200, 100, 0, 255), np.uint8))
  image.putpixel((1, 2), (200, 100, 0, 0))
  image.putpixel((3, 3), (0, 0, 0, 127))
  for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
    pixels = _decoded(_file(image, kind, **options))
    assert pixels[2, 1].tolist() == [255, 255, 255], kind
    assert np.abs(pixels[3, 3] - 128).max() <= 1, kind
    assert pixels[0, 0].tolist() == [200, 100, 0], kind


def test_gray_with_alpha_and_a_transparent_colour():
  gray = Image.new("LA", (3, 2), (90, 255))
  gray.putpixel((0, 0), (90, 0))
  pixels = _decoded(_file(gray, "PNG"))
  assert pixels[0, 0].tolist() == [255] * 3 and pixels[1, 1].tolist() == [90] * 3
  # tRNS of a PNG without alpha: one colour is transparent.
  rows = b"".join(b"\0" + bytes([10, 20, 30] * 2) for _ in range(2))
  data = png(
    2,
    2,
    chunk(b"tRNS", struct.pack(">HHH", 10, 20, 30)),
    chunk(b"IDAT", zlib.compress(rows)),
    colour=2,
  )
  assert (_decoded(data) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palettes_with_a_transparent_entry(kind):
  image = Image.new("P", (3, 2), 1)
  image.putpalette([255, 0, 0, 0, 0, 255])
  image.putpixel((0, 0), 0)
  pixels = _decoded(_file(image, kind, transparency=0))
  assert pixels[0, 0].tolist() == [255, 255, 255]
  assert pixels[1, 2].tolist() == [0, 0, 255]


def test_palettes_with_an_alpha_for_each_entry():
  image = Image.new("P", (2, 1), 1)
  image.putpalette([255, 0, 0, 0, 0, 255])
  image.putpixel((0, 0), 0)
  pixels = _decoded(_file(image, "PNG", transparency=bytes([128, 255])))
  assert np.abs(pixels[0] - [[255, 127, 127], [0, 0, 255]]).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit_is_black_and_white(kind):
  drawn = np.random.default_rng(0).random((9, 13)) < 0.5
  pixels = _decoded(_file(Image.fromarray(drawn), kind))
  np.testing.assert_array_equal(pixels, np.repeat(drawn[..., None] * 255, 3, 2))


def test_16_bit_channels_keep_the_upper_eight_bits():
  values = np.random.default_rng(0).integers(0, 65536, (5, 4, 3))
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
  pixels = _decoded(png(4, 5, chunk(b"IDAT", zlib.compress(rows)), colour=2, bits=16))
  np.testing.assert_array_equal(pixels, values >> 8)
  gray = values[..., 0].astype(np.uint16)
  for kind in ("PNG", "TIFF"):
    pixels = _decoded(_file(Image.fromarray(gray), kind))
    np.testing.assert_array_equal(pixels, np.repeat(gray[..., None] >> 8, 3, 2))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_frames_is_read(kind):
  first, second = _flat((200, 30, 40), "RGB"), _flat((0, 0, 250), "RGB")
  data = _file(
    first,
    kind,
    save_all=True,
    append_images=[second],
    **({"lossless": True} if kind == "WEBP" else {}),
  )
  with Image.open(io.BytesIO(data)) as image:
    assert getattr(image, "n_frames", 1) == 2
  assert np.abs(_decoded(data) - [200, 30, 40]).max() <= (4 if kind == "MPO" else 1)


def test_floating_point_and_32_bit_tiffs_name_the_way_out():
  with pytest.raises(InputError, match=r"image photo cannot be decoded.*floating point.*8 bits"):
    _decoded(_file(Image.new("F", (4, 3), 0.5), "TIFF"))
  with pytest.raises(InputError, match=r"image photo cannot be decoded.*32-bit integers.*8 or 16"):
    _decoded(_file(Image.new("I", (4, 3), 1 << 20), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_of_any_format_are_upright(kind, orientation):
  corners = np.zeros((32, 48, 3), np.uint8)  # one corner each: red, green, blue, black
  corners[:16, :24, 0] = corners[:16, 24:, 1] = corners[16:, :24, 2] = 255
  # The pixels that a camera in this orientation writes: EXIF's table, in NumPy.
  turn = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = Image.fromarray(np.ascontiguousarray(turn(corners)))
  options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
  upright = _decoded(_file(stored, kind, exif=exif, **options))
  assert upright.shape == corners.shape
  assert np.abs(upright - corners).mean() < (6 if kind == "JPEG" else 1e-9)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_an_image_truncated_anywhere_is_refused_by_name(kind):
  data = _file(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)), kind
  )
  # Some formats end with bytes that are not pixels.
  for cut in np.linspace(0, 0.9 * len(data), 40, dtype=int):
    try:
      pixels = preprocess.decode_image(data[:cut], "folder/a.jpg")
    except InputError as error:
      assert "folder/a.jpg" in str(error)
    else:
      assert pixels.shape == (40, 30, 3) and kind == "TIFF", (
        cut
      )  # whose directory may follow the pixels


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_flipped_bytes_give_pixels_or_an_input_error(data):
  kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]))
  content = bytearray(_file(Image.linear_gradient("L").resize((20, 16)).convert("RGB"), kind))
  for _ in range(data.draw(st.integers(1, 6))):
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
  try:
    pixels = preprocess.decode_image(bytes(content), "folder/a.jpg", max_pixels=1 << 20)
  except InputError as error:
    assert "folder/a.jpg" in str(error)
  else:
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def test_files_that_are_not_images_are_named(tmp_path):
  text, empty, pipe = tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "c.jpg"
  text.write_text("<html>404</html>")
  empty.write_bytes(b"")
  os.mkfifo(pipe)
  for path, words in (
    (text, "not an image in a known format"),
    (empty, "is empty"),
    (tmp_path, "directory"),
    (
      pipe,
      "not a regular file but a pipe",
    ),  # without a writer: opened as a file it would block forever
    (tmp_path / "d.jpg", "No such file"),
    ("a\0.jpg", "not a valid file name"),
  ):
    with pytest.raises(InputError, match=f"image.*{words}"):
      preprocess.open_image(path)


def test_an_unreadable_image_is_named(tmp_path):
  if os.geteuid() == 0:
    pytest.skip("root may read everything")
  path = tmp_path / "a.jpg"
  path.write_bytes(b"x")
  path.chmod(0)
  with pytest.raises(InputError, match=r"a\.jpg: Permission denied"):
    preprocess.open_image(path)


def test_formats_that_start_programs_are_refused():
  script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
  with Image.open(io.BytesIO(script)) as image:
    assert image.format == "EPS"  # which Pillow passes to Ghostscript
  with pytest.raises(InputError, match="not an image in a known format"):
    preprocess.decode_image(script, "a.eps")


def _zeros(megabytes: int) -> bytes:
  squeeze = zlib.compressobj(9)
  part = bytes(1 << 20)
  return b"".join([*(squeeze.compress(part) for _ in range(megabytes)), squeeze.flush()])


def _bombs() -> dict[str, bytes]:
  zeros = _zeros(400)
  pixel = chunk(b"IDAT", zlib.compress(b"\0\0"))
  return {
    "20_000_squared.png": png(20_000, 20_000, chunk(b"IDAT", zeros)),
    "60_000_squared.png": png(60_000, 60_000, chunk(b"IDAT", zeros)),
    "all_bits.png": png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", zeros)),
    "rgba_16.png": png(15_000, 15_000, chunk(b"IDAT", zeros), colour=6, bits=16),
    "ztxt.png": png(1, 1, chunk(b"zTXt", b"Comment\0\0" + zeros), pixel),
    "itxt.png": png(1, 1, chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros), pixel),
    "iccp.png": png(1, 1, chunk(b"iCCP", b"icc\0\0" + zeros), pixel),
    "many_ztxt.png": png(1, 1, *[chunk(b"zTXt", b"Comment\0\0" + _zeros(1))] * 300, pixel),
    "gif.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + bytes(6)
    + b"," + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\2\2\x4c\1\0;",
    "bmp.bmp": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 50_000, 50_000, 1, 8, 1, 45, 0, 0, 0, 0),
    "ppm.ppm": b"P6 60000 60000 255\n" + bytes(99),
  }  # fmt: skip


_OPEN = """
import sys, time
from own_process import peak_kilobytes
from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
for path in sys.argv[1:]:
  start, refused = time.perf_counter(), ""
  try:
    preprocess.open_image(path)
  except InputError as error:
    refused = str(error)
  print(time.perf_counter() - start, peak_kilobytes(), refused)
"""
# Their image is a pixel; reading it is fine as long as the compressed metadata is not unpacked.
_READ_OR_REFUSED = ("ztxt.png", "itxt.png", "iccp.png", "many_ztxt.png")


def test_a_bomb_is_refused_in_a_second_and_200_mb(tmp_path):
  """Each in its own process, whose whole memory is counted.

  Python, NumPy and Pillow take 40 to 60 MB of it.
  """
  for name, content in _bombs().items():
    path = tmp_path / name
    path.write_bytes(content)
    printed = own_process.run(_OPEN, str(path))
    seconds, kilobytes, refused = printed.strip("\n").split(" ", 2)
    assert name in _READ_OR_REFUSED or name in refused, name
    assert float(seconds) < 1 and int(kilobytes) < 200_000, (name, seconds, kilobytes)
