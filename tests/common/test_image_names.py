"""Which image a name means: the longest end of its path decides, in any spelling."""

import os
import pathlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.common.image_names import (
  AmbiguousImage,
  ImageFolder,
  ImageNames,
  ImageNotFound,
  coco_number,
  name_of_row,
  same_image,
)


def folder(root: pathlib.Path, *paths: str) -> ImageFolder:
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).touch()
  return ImageFolder(str(root))


@pytest.mark.parametrize(
  ("name", "file"),
  [
    ("a.png", "x/a.png"),
    ("somewhere/x/a.png", "x/a.png"),
    ("C:\\Users\\me\\x\\a.png", "x/a.png"),
    ("..\\x\\a.png", "x/a.png"),
    ("./x//a.png", "x/a.png"),
    ("https://bucket.example/x/a.png?token=1#top", "x/a.png"),
    ("https://bucket.example/two%20words.jpg?X-Token=1", "two words.jpg"),
    ("http://bucket[]/x/a.png?token=1", "x/a.png"),
    ("two%20words.jpg", "two words.jpg"),
    ("100%.jpg", "100%.jpg"),
    ("what?.jpg", "what?.jpg"),
    ("/data/local-files/?d=x/a.png", "x/a.png"),
    ("/data/local-files/?d=x%2Fa.png", "x/a.png"),
    ("IMG_7.JPG", "img_7.jpg"),
    ("X/A.PNG", "x/a.png"),
    (unicodedata.normalize("NFC", "Käse.jpg"), unicodedata.normalize("NFD", "Käse.jpg")),
    (unicodedata.normalize("NFD", "Öl.jpg"), unicodedata.normalize("NFC", "Öl.jpg")),
    ("/data/upload/1/0123abcd-my_trip_2.jpg", "trips/my trip (2).jpg"),
    ("0123abcd-Kse.jpg", None),
    ("/data/upload/3/0123abcd-kept.jpg", "trips/0123abcd-kept.jpg"),
    ("COCO_train2014_000000000009.jpg", "train2017/000000000009.jpg"),
    ("http://images.cocodataset.org/val2017/000000000012.jpg", "COCO_val2014_000000000012.jpg"),
  ],
)
def test_names_of_tools_are_found(tmp_path, name, file):
  paths = (
    "x/a.png",
    "two words.jpg",
    "100%.jpg",
    "what?.jpg",
    "img_7.jpg",
    unicodedata.normalize("NFD", "Käse.jpg"),
    unicodedata.normalize("NFC", "Öl.jpg"),
    "trips/my trip (2).jpg",
    "trips/0123abcd-kept.jpg",
    "train2017/000000000009.jpg",
    "COCO_val2014_000000000012.jpg",
  )
  there = folder(tmp_path, *paths)
  if file is None:
    with pytest.raises(ImageNotFound):
      there.find(name)
  else:
    assert there.find(name) == file


def test_the_longest_common_end_decides(tmp_path):
  there = folder(tmp_path, "x/1/a.png", "x/2/a.png", "y/2/a.png", "b.png", "y/b.png")
  assert there.find("1/a.png") == "x/1/a.png"
  assert there.find("y/2/a.png") == "y/2/a.png"
  # The whole path is there.
  assert there.find("b.png") == "b.png"
  for name in ("a.png", "2/a.png"):
    with pytest.raises(AmbiguousImage, match=r"x/.*a\.png and [xy]/2/a\.png; add its folder to"):
      there.find(name)


def test_another_folder_is_another_image(tmp_path):
  there = folder(tmp_path, "clip_b/frame_0.png", "train2017/000000000001.jpg")
  with pytest.raises(ImageNotFound, match=r"there is clip_b/frame_0\.png.*--images .*/clip_b"):
    there.find("clip_a/frame_0.png")
  # Own data in COCO's layout: its numbers are not COCO's.
  with pytest.raises(ImageNotFound):
    there.find("val2017/000000000001.jpg")
  assert not same_image("clip_a/frame_0.png", "clip_b/frame_0.png")
  assert not same_image("val2017/000000000001.jpg", "train2017/000000000001.jpg")


def test_exact_spelling_comes_first(tmp_path):
  there = folder(tmp_path, "A.png", "a.png", "c d.png", "c%20d.png", "e.PNG", "E.png")
  assert [there.find(name) for name in ("A.png", "a.png")] == ["A.png", "a.png"]
  assert [there.find(name) for name in ("c%20d.png", "c d.png")] == ["c%20d.png", "c d.png"]
  with pytest.raises(AmbiguousImage, match=r"E\.png and e\.PNG.*rename"):
    there.find("e.png")


def test_a_missing_image_has_a_hint(tmp_path):
  with pytest.raises(ImageNotFound, match=r"named trip\.png; did you mean trip\.jpg"):
    folder(tmp_path, "trip.jpg", "other.jpg").find("trip.png")
  with pytest.raises(ImageNotFound, match=r"the most similar name is other\.jpg"):
    ImageFolder(str(tmp_path)).find("others.jpg")
  with pytest.raises(ImageNotFound):
    ImageFolder(str(tmp_path)).find("..")


def test_links_are_followed_and_give_a_file_several_names(tmp_path):
  outside = tmp_path / "outside"
  folder(outside, "deep/a.png")
  (root := tmp_path / "images").mkdir()
  (root / "linked").symlink_to(outside)
  (root / "again").symlink_to(outside)
  (root / "circle").symlink_to(root)
  (outside / "back").symlink_to(root)
  there = ImageFolder(str(root))
  assert there.find("a.png").endswith("deep/a.png")
  assert there.find("linked/deep/a.png") == "linked/deep/a.png"
  assert there.find("again/deep/a.png") == "again/deep/a.png"


_NAMES = st.text("ab1_ (ä%.", min_size=1, max_size=4).map(lambda text: f"{text}.png")
_FOLDERS = st.lists(st.sampled_from(["x", "y", "Z"]), max_size=2)
_PATHS = st.builds(lambda folders, name: "/".join([*folders, name]), _FOLDERS, _NAMES)
_SPELLINGS = (
  str,
  lambda path: "https://example.org/" + path.replace("%", "%25").replace(" ", "%20") + "?t=1",
  lambda path: "C:\\data\\" + path.replace("%", "%25").replace("/", "\\"),
  lambda path: unicodedata.normalize("NFD", path),
  str.swapcase,
)


@given(st.lists(_PATHS, min_size=1, max_size=8, unique=True), st.data())
def test_a_name_means_its_own_image_or_is_refused(paths, data):
  path = data.draw(st.sampled_from(paths))
  spelled = data.draw(st.sampled_from(_SPELLINGS))(path)
  expected = path if path == spelled else _only_equal(path, paths)
  try:
    assert ImageNames(paths, "here").find(spelled) in expected
  except AmbiguousImage:
    assert len(expected) > 1 and path != spelled
  assert same_image(path, spelled)


def _only_equal(path: str, paths: list[str]) -> list[str]:
  """Returns the paths that are equal to people: after decoding, in any case."""

  def plain(text: str) -> str:
    import urllib.parse

    return unicodedata.normalize("NFC", urllib.parse.unquote(text)).casefold()

  return [other for other in paths if plain(other) == plain(path)]


def test_numbers_of_coco():
  for name in (
    "COCO_train2014_000000000100.jpg",
    "val2017/000000000100.jpg",
    "http://images.cocodataset.org/train2017/000000000100.jpg",
    "images\\000000000100.JPG",
    "000000000100_jpg.rf.0a1b2c3d4e5f.jpg",
    "COCO_train2014_000000000100_16.jpg",
    "0123abcd-COCO_val2014_000000000100.jpg",
  ):
    assert coco_number(name) == 100, name
  for name in ("100.jpg", "frame_000000000100.jpg", "0000000000100.jpg", "000000000100", ""):
    assert coco_number(name) is None, name


def test_the_name_in_a_row():
  url = "http://images.cocodataset.org/train2017/000000000009.jpg"
  assert name_of_row({"file_name": "a.jpg", "coco_url": url}) == "a.jpg"
  assert name_of_row({"file_name": None, "coco_url": url}) == url
  assert name_of_row({"path": "/x/b.jpg", "id": 3}) == "/x/b.jpg"
  assert name_of_row({"id": 3, "file_name": 4}) is None


def test_same_image_is_symmetric():
  pairs = [
    ("frame_0.png", "clip_a/frame_0.png"),
    ("COCO_val2014_000000000009.jpg", "val2017/000000000009.jpg"),
    ("0123abcd-my_trip_2.jpg", "my trip (2).jpg"),
    ("IMG_1.JPG", "img_1.jpg"),
  ]
  for a, b in pairs:
    assert same_image(a, b) and same_image(b, a), (a, b)
  assert not same_image("a.png", "b.png")
  assert not same_image("", "")
  assert os.path.sep == "/" or same_image("x\\a.png", "x/a.png")
