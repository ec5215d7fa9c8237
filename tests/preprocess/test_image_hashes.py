"""Copies are found by COCO's id, by bytes and by looks; other images are not."""

import hashlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from input_pipeline import image_hashes
from input_pipeline.common.errors import InputError
from input_pipeline.image_hashes import ImageHash, ImageSet


def _photo(seed: int, size: tuple[int, int] = (480, 640)) -> Image.Image:
  """Returns smooth random colours with shapes, which look like no other."""
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
  return coarse.resize(size[::-1], Image.Resampling.BICUBIC)


def _jpeg(image: Image.Image, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, "JPEG", **{"quality": 90, **options})
  return file.getvalue()


def _png(image: Image.Image) -> bytes:
  file = io.BytesIO()
  image.save(file, "PNG")
  return file.getvalue()


def _turned(image: Image.Image) -> bytes:
  """Returns the photo as a phone stores it: sideways, with the way up in its EXIF."""
  exif = Image.Exif()
  exif[0x0112] = 6
  return _jpeg(image.transpose(Image.Transpose.ROTATE_90), exif=exif)


_COPIES = {
  "compressed again": lambda image: _jpeg(image, quality=30),
  "PNG": _png,
  "half": lambda image: _jpeg(image.resize((image.width // 2, image.height // 2))),
  "squashed": lambda image: _jpeg(image.resize((640, 640))),
  "cropped": lambda image: _jpeg(
    image.crop((4, 3, image.width - 4, image.height - 3))  # about 1 % of each side
  ),
  "brighter": lambda image: _jpeg(ImageEnhance.Brightness(image).enhance(1.15)),
  "grey": lambda image: _jpeg(image.convert("L")),
  "turned by EXIF": _turned,
}


def _distance(data: bytes, other: bytes) -> int:
  """Counts differing bits, one by one."""
  looks = [int(image_hashes.hash_looks(x), 16) for x in (data, other)]
  return bin(looks[0] ^ looks[1]).count("1")


@pytest.mark.parametrize("copy", list(_COPIES))
def test_a_copy_looks_the_same(copy):
  photo = _photo(1)
  assert _distance(_jpeg(photo), _COPIES[copy](photo)) <= image_hashes.MAX_DISTANCE


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_two_photos_do_not(seed, other):
  if seed != other:
    assert _distance(_jpeg(_photo(seed)), _jpeg(_photo(other))) > image_hashes.MAX_DISTANCE


@pytest.mark.slow
def test_real_photos_and_their_copies_are_far_from_the_limit(realdata):
  paths = sorted((realdata / "coco/train2014").glob("*.jpg"))
  photos = [path.read_bytes() for path in paths]
  looks = image_hashes.as_words([image_hashes.hash_looks(photo) for photo in photos])
  for number in range(len(photos)):
    others = np.delete(looks, number, axis=0)
    _, (distance,) = image_hashes.nearest(looks[number : number + 1], others)
    assert distance >= image_hashes.MAX_DISTANCE + 40
  for copy in _COPIES.values():
    made = [copy(Image.open(io.BytesIO(photo)).convert("RGB")) for photo in photos[::8]]
    words = image_hashes.as_words([image_hashes.hash_looks(data) for data in made])
    index, distance = image_hashes.nearest(words, looks)
    assert index.tolist() == list(range(0, len(photos), 8))
    assert distance.max() <= image_hashes.MAX_DISTANCE


@pytest.mark.parametrize(
  ("mode", "form"),
  [("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("CMYK", "JPEG"), ("RGB", "WEBP")],
)
def test_a_copy_in_another_mode_looks_the_same(mode, form):
  photo, file = _photo(2, (96, 128)), io.BytesIO()
  if mode == "I;16":
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(file, form)
  else:
    photo.convert(mode).save(file, form)
  assert _distance(_jpeg(photo), file.getvalue()) <= image_hashes.MAX_DISTANCE


def test_damaged_exif_data_stop_no_hash():
  photo = _photo(4, (96, 128))
  whole = _turned(photo)
  start = whole.index(b"Exif") + 6
  damaged = whole[:start] + b"XX" + whole[start + 2 :]
  upright = photo.transpose(Image.Transpose.ROTATE_90)
  assert _distance(damaged, _jpeg(upright)) <= image_hashes.MAX_DISTANCE


def test_plain_pictures_have_no_looks():
  for color in ((0, 0, 0), (255, 255, 255), (90, 120, 30)):
    assert image_hashes.hash_looks(_png(Image.new("RGB", (64, 48), color))) == ""


def test_the_content_is_that_of_the_bytes():
  data = _jpeg(_photo(3))
  hashed = image_hashes.hash_image(5, data, looks=False)
  assert hashed == ImageHash(5, hashlib.sha256(data).hexdigest()[:16], "")


_LOOKS = st.lists(st.integers(0, 2**256 - 1), max_size=6)


@given(_LOOKS, _LOOKS)
def test_the_nearest_is_that_of_counting_bits(looks, others):
  words = [
    image_hashes.as_words([f"{x:064x}" if x else "" for x in part]) for part in (looks, others)
  ]
  index, distance = image_hashes.nearest(*words)
  there = {i: other for i, other in enumerate(others) if other}
  for row, look in enumerate(looks):
    if not look or not there:
      assert (index[row], distance[row]) == (-1, 256)
      continue
    expected = {i: bin(look ^ other).count("1") for i, other in there.items()}
    assert distance[row] == min(expected.values()) == expected[int(index[row])]


def _set(*rows: tuple[int | None, bytes]) -> ImageSet:
  """Returns a set of images, given as their COCO id and their file."""
  hashes = [image_hashes.hash_image(number, data) for number, (_, data) in enumerate(rows)]
  return ImageSet.of(hashes, {i: row[0] for i, row in enumerate(rows) if row[0] is not None})


def test_images_are_seen_by_id_by_bytes_and_by_looks():
  photos = [_photo(seed) for seed in range(6)]
  trained = {
    "refcoco_unc/train": _set((7, _jpeg(photos[0])), (8, _jpeg(photos[1]))),
    "mine/train": _set((None, _jpeg(photos[2])), (None, _png(photos[3]))),
  }
  images = _set(
    (7, _jpeg(photos[4])),  # the id alone
    (None, _jpeg(photos[1])),  # the same bytes
    (None, _jpeg(photos[3], quality=40)),  # a copy
    (9, _jpeg(photos[5])),
  )
  finding = image_hashes.find_seen(trained, images)
  assert finding == {
    "images": 4,
    "seen": 2,
    "similar": 1,
    "from": ["refcoco_unc/train", "mine/train"],
  }
  assert image_hashes.find_seen({"mine/train": trained["mine/train"]}, images)["seen"] == 0
  assert image_hashes.find_seen({}, images)["from"] == []


def test_images_without_a_coco_id_are_not_the_same():
  assert image_hashes.find_seen(
    {"a/train": _set((None, _jpeg(_photo(1))))}, _set((None, _jpeg(_photo(2))))
  ) == {"images": 1, "seen": 0, "similar": 0, "from": []}


def test_sets_are_stored_and_joined():
  first = _set((7, _jpeg(_photo(0))), (None, _jpeg(_photo(1))))
  second = _set((7, _jpeg(_photo(0))), (9, _jpeg(_photo(2))))
  joined = image_hashes.union({"a/train": first}, None, {"a/train": second, "b+c/train": second})
  assert joined is not None
  assert (len(joined["a/train"]), len(joined["b+c/train"])) == (3, 2)
  stored = image_hashes.from_bytes(image_hashes.to_bytes(joined), "f")
  assert {name: vars(images).keys() for name, images in stored.items()} == {
    name: vars(images).keys() for name, images in joined.items()
  }
  for name, images in joined.items():
    for field, value in vars(images).items():
      np.testing.assert_array_equal(getattr(stored[name], field), value)
  assert image_hashes.union(None, None) is None


@given(st.data())
def test_a_damaged_file_is_one_line_or_whole(data):
  whole = image_hashes.to_bytes({"a/train": _set((7, _jpeg(_photo(0, (48, 64)))))})
  position = data.draw(st.integers(0, len(whole) - 1))
  damaged = bytearray(whole)
  damaged[position] ^= data.draw(st.integers(1, 255))
  try:
    for images in image_hashes.from_bytes(bytes(damaged), "f").values():
      assert images.looks.shape == (len(images.contents), 4)
  except InputError as error:
    assert str(error).startswith("f: ") and "\n" not in str(error)
