"""Damaged images: one line each, or skipped, counted and listed."""

import json

import pytest
from refer_layout import make_layout, rectangle

from input_pipeline import storage
from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare

# The layout has one image per split: 100 train, 101 val, 102 testA, 103 testB.


def _results(layout, image_ids=(100, 101, 102, 103), **changes):
  """Writes results of one detection per image; returns the option that names them."""
  rows = [
    {"image_id": n, "category_id": 47, "segmentation": [rectangle(2, 3, 12, 13)], "score": 0.5}
    | (changes if n == 102 else {})
    for n in image_ids
  ]
  path = layout.root / "detections.json"
  path.write_text(json.dumps(rows))
  return f"results:{path}"


def _cut_photo(layout):
  photo = layout.image_path(2)
  photo.write_bytes(photo.read_bytes()[:-100])
  return _results(layout)


def _no_photo(layout):
  layout.image_path(2).unlink()
  return _results(layout)


def _wrong_size(layout):
  return _results(layout, segmentation={"size": [5, 5], "counts": [20, 5]})


def _strange_category(layout):
  layout.instances["categories"] = [{"id": 47, "name": "cup"}]
  layout.write()
  return _results(layout, category_id=3)


def _not_annotated(layout):
  return _results(layout, (100, 101, 103))


def _ground_truth_lacks_one(layout):
  rows = [row for row in layout.instances["annotations"] if row["image_id"] != 102]
  path = layout.root / "others.json"
  path.write_text(json.dumps(layout.instances | {"annotations": rows}))
  return f"coco:{path}"


def _ground_truth_of_no_category(layout):
  rows = [
    row | ({"category_id": 3} if row["image_id"] == 102 else {})
    for row in layout.instances["annotations"]
  ]
  path = layout.root / "others.json"
  content = layout.instances | {"annotations": rows, "categories": [{"id": 47, "name": "cup"}]}
  path.write_text(json.dumps(content))
  return f"coco:{path}"


_BROKEN = {
  _cut_photo: r"000000000102\.jpg cannot be decoded",
  _no_photo: r"no image named COCO_train2014_000000000102\.jpg",
  _wrong_size: r"detections\.json, image 102: invalid segmentation",
  _strange_category: r"image 102 has category 3, which is not in .*instances\.json",
  _not_annotated: r"detections\.json: no detection of image 102",
  _ground_truth_lacks_one: r"others\.json: no annotation of image 102",
  _ground_truth_of_no_category: r"annotation 1020 has category 3, .*not in the file's list",
}


@pytest.mark.parametrize("breaking", list(_BROKEN))
def test_a_damaged_image_is_one_line_or_skipped_counted_and_listed(tmp_path, breaking, capsys):
  layout = make_layout(tmp_path)
  arguments = layout.arguments(tmp_path / "data", "--instances", breaking(layout))
  with pytest.raises(InputError, match=_BROKEN[breaking]):
    prepare.main(arguments)
  assert not (tmp_path / "data").exists()
  # Its own split would be empty, which TFDS does not allow: image 102 joins train.
  for ref in layout.refs:
    ref["split"] = "train" if ref["image_id"] < 103 else "val"
  layout.write()
  prepare.main([*arguments, "--on_error", "skip"])
  metadata = storage.read_metadata(str(tmp_path / "data"), "refcoco_unc")
  assert metadata is not None
  assert metadata["counts"]["train"]["records"] == 2
  ((image_id, reason),) = metadata["skipped"]["train"]
  assert image_id == 102
  assert "\n" not in capsys.readouterr().out.partition("  102: ")[2].rstrip()
  assert reason


def test_a_split_without_intact_images_is_named(tmp_path):
  layout = make_layout(tmp_path)
  spec = _cut_photo(layout)
  with pytest.raises(InputError, match=r"testA: every image was skipped"):
    prepare.main(layout.arguments(tmp_path / "data", "--instances", spec, "--on_error", "skip"))
  assert not (tmp_path / "data").exists()


def test_an_image_without_detections_may_be_empty_and_is_counted(tmp_path, capsys):
  layout = make_layout(tmp_path)
  spec = _not_annotated(layout)
  prepare.main(layout.arguments(tmp_path / "data", "--instances", spec, "--allow_empty"))
  metadata = storage.read_metadata(str(tmp_path / "data"), "refcoco_unc")
  assert metadata is not None
  assert metadata["counts"]["testA"]["records"] == 1
  assert not metadata["skipped"]
  assert metadata["notes"] == {"testA": {"instances: image without masks in the file": 1}}
  assert "testA: instances: image without masks in the file (1)" in capsys.readouterr().out


def test_results_for_another_data_set_are_reported_at_once(tmp_path):
  layout = make_layout(tmp_path)
  spec = _results(layout, (7, 8))
  with pytest.raises(InputError, match=r"no masks for any of the 4 images; .*of another data set"):
    prepare.main(layout.arguments(tmp_path / "data", "--instances", spec, "--on_error", "skip"))


def test_results_with_other_categories_need_their_list(tmp_path):
  layout = make_layout(tmp_path)
  spec = _strange_category(layout)
  other = tmp_path / "list.json"
  content = layout.instances | {"categories": [{"id": 3, "name": "car"}, {"id": 47, "name": "cup"}]}
  other.write_text(json.dumps(content))
  arguments = layout.arguments(tmp_path / "data", "--instances", spec)
  prepare.main([*arguments, "--categories", str(other)])
  assert storage.read_metadata(str(tmp_path / "data"), "refcoco_unc")
