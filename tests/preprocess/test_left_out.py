"""Photos of evaluation splits are found wherever they are in training data, and left out."""

import io
import itertools
import pathlib

import mixed_photos
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import image_hashes, left_out, storage
from input_pipeline.common.errors import InputError
from input_pipeline.image_hashes import ImageHash, ImageSet

NAMES = ("one", "two", "three")


def _copies(number: int) -> list[bytes]:
  """Returns files of a photo: as it is, compressed again, resized, and of another format."""
  picture, file = mixed_photos.photo(number), io.BytesIO()
  picture.resize((64, 48), Image.Resampling.LANCZOS).save(file, "JPEG")
  other = io.BytesIO()
  picture.save(other, "PNG")
  recompressed = [mixed_photos.jpeg(number, quality) for quality in (92, 30)]
  return [*recompressed, file.getvalue(), other.getvalue()]


# Hashes of 12 photos, four files of each.
FILES = {
  (number, copy): image_hashes.hash_image(0, data)
  for number in range(12)
  for copy, data in enumerate(_copies(number))
}


def _write(folder: pathlib.Path, name: str, **splits: list[tuple[tuple[int, int], int]]) -> None:
  """Writes hashes as `prepare` does; a split is of (file, its COCO id or -1)."""
  pathlib.Path(storage.dataset_dir(str(folder), name)).mkdir(parents=True, exist_ok=True)
  sets = {}
  for split, files in splits.items():
    rows = [
      ImageHash(100 + n, FILES[file].content, FILES[file].looks)
      for n, (file, _) in enumerate(files)
    ]
    ids = {100 + n: coco_id for n, (_, coco_id) in enumerate(files) if coco_id >= 0}
    sets[split] = ImageSet.of(rows, ids)
  storage.write_hashes(str(folder), name, sets)


def _bits_apart(looks: str, other: str) -> int:
  return bin(int(looks, 16) ^ int(other, 16)).count("1")


# Nobody else's, so that no train split is left out whole.
FILES[(99, 0)] = ImageHash(0, "f" * 16, "5a" * 32)
FILE = st.tuples(st.integers(0, 11), st.integers(0, 3))


@settings(max_examples=60)
@given(
  st.lists(st.lists(st.tuples(FILE, st.integers(-1, 4)), min_size=1, max_size=9), min_size=3,
           max_size=3),
  st.lists(st.lists(st.tuples(FILE, st.integers(-1, 4)), max_size=3), min_size=3, max_size=3),
)  # fmt: skip
def test_a_planted_evaluation_photo_is_found_in_every_train_split_and_none_is_left(
  tmp_path_factory, train, val
):
  folder = tmp_path_factory.mktemp("planted")
  for name, of_train, of_val in zip(NAMES, train, val, strict=True):
    more = {"val": of_val} if of_val else {}
    _write(folder, name, train=[((99, 0), -1), *of_train], **more)
  evaluated = left_out.evaluation_splits(str(folder), NAMES, ("auto",))
  assert sorted(evaluated) == sorted(f"{n}/val" for n, v in zip(NAMES, val, strict=True) if v)
  found = left_out.find(str(folder), NAMES, evaluated)
  judged = [row for of_val in val for row in of_val]
  for name, of_train in zip(NAMES, train, strict=True):
    # The plain rule, photo by photo.
    expected = [
      101 + n
      for n, (file, coco_id) in enumerate(of_train)
      if any(
        coco_id == other_id >= 0
        or FILES[file].content == FILES[other].content
        or _bits_apart(FILES[file].looks, FILES[other].looks) <= image_hashes.MAX_DISTANCE
        for other, other_id in judged
      )
    ]
    planted = {
      101 + n for n, (file, _) in enumerate(of_train) if file[0] in {o[0][0] for o in judged}
    }
    assert planted <= set(expected)
    if not judged:
      assert found == {}
      continue
    assert list(found[name].image_ids) == expected
    assert found[name].images == 1 + len(of_train)
    kept = {f"{name}/train": found[name].kept}
    for images in evaluated.values():
      finding = image_hashes.find_seen(kept, images)
      assert (finding["seen"], finding["similar"]) == (0, 0)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  _write(tmp_path, "one", train=[((0, 0), -1), ((1, 0), 7)], val=[((2, 0), 3)], test=[((3, 0), -1)])
  _write(tmp_path, "two", train=[((2, 1), -1), ((3, 0), -1), ((4, 0), 3)], val=[((5, 0), 7)])
  _write(tmp_path, "three", train=[((6, 0), -1)], val=[((1, 2), -1), ((4, 3), -1)])
  return tmp_path


def _image_ids(folder, names, exclude) -> dict[str, tuple[int, ...]]:
  evaluated = left_out.evaluation_splits(str(folder), names, exclude)
  found = left_out.find(str(folder), names, evaluated)
  return {name: row.image_ids for name, row in found.items()}


def test_exclude_says_whose_photos_are_left_out(folder):
  both = ("one", "two")
  # 100 and 101 of `two` by looks and by bytes, 102 by its COCO id; 101 of `one` by its COCO id.
  assert _image_ids(folder, both, ()) == {}
  assert _image_ids(folder, both, ("one/test",)) == {"one": (), "two": (101,)}
  assert _image_ids(folder, ("one",), ("auto",)) == {}, "a single data set is as it was published"
  assert _image_ids(folder, ("one",), ("auto", "three")) == {"one": (101,)}
  assert _image_ids(folder, ("one", "three"), ("auto",)) == {"one": (101,), "three": ()}


def test_a_data_set_that_is_all_evaluation_photos_is_refused(folder):
  with pytest.raises(InputError, match=r"all 3 images of two/train are in .*leave two out"):
    _image_ids(folder, ("one", "two"), ("auto",))


@pytest.mark.parametrize(
  ("exclude", "message"),
  [
    (("four",), "config.exclude: data set 'four': unknown"),
    (("refcoco_unc",), "config.exclude: --data_dir .*: refcoco_unc is not prepared there"),
    (("one/testB",), r"one has no split 'testB' .*it has .*train"),
  ],
)
def test_data_sets_that_are_not_there_are_named(folder, exclude, message):
  with pytest.raises(InputError, match=message):
    _image_ids(folder, ("one", "two"), exclude)


def test_images_without_hashes_are_no_clean_training_data(folder):
  path = pathlib.Path(storage.dataset_dir(str(folder), "two")) / "image_hashes.safetensors"
  sets = image_hashes.from_bytes(path.read_bytes(), "two")
  assert sets["train"].image_ids is not None
  without_ids = {name: images.take(np.ones(len(images), bool)) for name, images in sets.items()}
  path.write_bytes(image_hashes.to_bytes(without_ids))
  with pytest.raises(InputError, match=r"two/train: .* prepare it again .*config\.exclude=\(\)"):
    _image_ids(folder, ("two",), ("one",))


def test_what_was_left_out_is_told_in_words():
  row = left_out.LeftOut((5, 9), 10, 1, ImageSet.of([], {}))
  noted = left_out.note(("auto",), ["a/val", "a/test", "b/val"], {"a": row}, {"a": (3, 25)})
  assert list(left_out.describe(noted)) == [
    "left out of a/train: 2 of 10 images (3 of 25 refs), which are in a/val|test, b/val"
  ]
  assert left_out.heading(noted) == "" and not left_out.is_off(noted)
  off = left_out.note((), [], {}, {})
  (line,) = left_out.describe(off)
  assert line.startswith("warning: config.exclude=(): images of evaluation splits were not left")
  assert left_out.heading(off).startswith(", trained with images of evaluation splits")
  assert left_out.from_json(noted, "x") == noted and left_out.from_json(None, "x") is None
  assert list(left_out.describe(None)) == [] and left_out.heading(None) == ""


@pytest.mark.parametrize(
  "damage", [7, [], {}, {"exclude": 1}, {"exclude": ["auto"], "datasets": 3}]
)
def test_a_note_of_something_else_is_refused(damage):
  with pytest.raises(InputError, match="run: what was left out of training cannot be read"):
    left_out.from_json(damage, "run")


def test_copies_are_found_as_pair_by_pair():
  keys = list(itertools.product(range(4), range(4)))
  images = ImageSet.of(
    [ImageHash(n, FILES[k].content, FILES[k].looks) for n, k in enumerate(keys)], {}
  )
  others = ImageSet.of([ImageHash(0, FILES[0, 0].content, FILES[0, 0].looks)], {})
  same, alike = image_hashes.find_copies(images, others)
  assert [k for k, x in zip(keys, same, strict=True) if x] == [(0, 0)]
  assert [k for k, x in zip(keys, alike, strict=True) if x] == [(0, 1), (0, 2), (0, 3)]
