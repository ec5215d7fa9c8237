"""Masks from COCO results files, and the index of large files."""

import collections
import json
import pickle

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from refer_layout import HEIGHT, WIDTH, make_layout, rectangle

from input_pipeline.common.errors import InputError
from input_pipeline.masks.row_index import RowIndex
from input_pipeline.proposers.registry import UnknownImage, check_images, open_proposer
from input_pipeline.proposers.results import ResultsProposer

PHOTO = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def _write(path, rows):
  path.write_text(json.dumps(rows))
  return str(path)


def _row(image_id=1, **fields):
  row = {"image_id": image_id, "category_id": 1, "segmentation": [rectangle(2, 3, 12, 13)]}
  return row | {"score": 0.5} | fields


def _propose(path, image_id=1):
  return ResultsProposer(str(path)).propose([PHOTO], [image_id])[0]


def test_polygons_and_run_lengths_of_either_kind_agree(tmp_path):
  mask = np.zeros((HEIGHT, WIDTH), bool)
  mask[3:13, 2:12] = True
  compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  compressed["counts"] = compressed["counts"].decode()
  flat = mask.ravel(order="F")
  edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))
  counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
  kinds = [
    [rectangle(2, 3, 12, 13)],
    compressed,
    {"size": [HEIGHT, WIDTH], "counts": counts},
  ]
  path = _write(tmp_path / "r.json", [_row(segmentation=kind) for kind in kinds])
  actual = _propose(path)
  assert len(actual.masks) == 3
  for given in actual.masks:
    np.testing.assert_array_equal(given, mask)


def test_ground_truth_written_as_results_comes_back_as_coco_gives_it(tmp_path, realdata):
  file = realdata / "coco/annotations/instances_train2014.json"
  reference = COCO(str(file))
  image_ids = sorted({row["image_id"] for row in reference.anns.values() if not row["iscrowd"]})
  rows = []
  for row in reference.anns.values():
    if not row["iscrowd"]:
      runs = reference.annToRLE(row)
      runs = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
      fields = {"image_id": row["image_id"], "category_id": row["category_id"]}
      rows.append(fields | {"segmentation": runs, "score": 1.0})
  path = _write(tmp_path / "detections.json", rows)
  # pycocotools reads the same.
  assert len(reference.loadRes(path).anns) == len(rows)
  results, coco = open_proposer(f"results:{path}"), open_proposer(f"coco:{file}")
  for image_id in image_ids[::4]:
    size = reference.imgs[image_id]["height"], reference.imgs[image_id]["width"]
    photo = np.zeros((*size, 3), np.uint8)
    (first,), (other,) = (proposer.propose([photo], [image_id]) for proposer in (results, coco))
    np.testing.assert_array_equal(first.masks, other.masks)
    np.testing.assert_array_equal(first.categories, other.categories)
    np.testing.assert_array_equal(first.scores, other.scores)
    assert (first.source, other.source) == ("results", "coco")


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ({"images": [], "annotations": []}, "no detections"),
    ({"detection": [_row()]}, "no detections"),
    ([_row(), {"image": "a.jpg"}, _row(None)], "2 rows without image_id"),
    ([[1, 2]], "results: expected an object, got list"),
    ([_row(1.5)], "it must be an integer"),
    ([_row(segmentation=None)], "image 1: no row has a segmentation, and boxes are not enough"),
    ([_row(segmentation=[[1, 2, 3, 4, 5, 6, 7]])], "image 1: invalid segmentation"),
    ([_row(segmentation={"size": [5, 5], "counts": [25]})], "image 1: invalid .*resized"),
    ([_row(score=None)], "image 1: invalid score None"),
    ([_row(score=float("nan"))], "r.json"),
    ([_row(category_id="cat")], "image 1: category_id 'cat'"),
  ],
)
def test_a_malformed_results_file_is_named(tmp_path, rows, message):
  path = _write(tmp_path / "r.json", rows)
  with pytest.raises(InputError, match=message) as caught:
    _propose(path)
  assert "r.json" in str(caught.value)


def test_a_cut_file_and_a_missing_one_are_named(tmp_path):
  path = tmp_path / "r.json"
  path.write_text(json.dumps([_row(), _row()])[:-20])
  with pytest.raises(InputError, match=r"r\.json: invalid or truncated JSON"):
    _propose(path)
  with pytest.raises(InputError, match=r"gone\.json: No such file"):
    _propose(tmp_path / "gone.json")
  with pytest.raises(InputError, match="missing file"):
    open_proposer("results:")


def test_an_image_without_detections_is_a_separate_error(tmp_path):
  path = _write(tmp_path / "r.json", [_row(1)])
  with pytest.raises(UnknownImage, match=r"no detection of image 2; are"):
    _propose(path, 2)
  with pytest.raises(UnknownImage, match=r"no detection of image 2; are"):
    ResultsProposer(path).find_image("COCO_train2014_000000000002.jpg")


def test_several_files_are_one_set_and_may_share_no_image(tmp_path):
  paths = [_write(tmp_path / f"{n}.json", [_row(n)]) for n in (1, 2)]
  both = ResultsProposer(",".join(paths))
  assert [both.find_image(f"a_{n}.jpg") for n in (1, 2)] == [1, 2]
  assert [len(proposals.masks) for proposals in both.propose([PHOTO, PHOTO], [2, 1])] == [1, 1]
  again = _write(tmp_path / "again.json", [_row(2)])
  with pytest.raises(InputError, match=r"again\.json: image 2 is also in .*2\.json"):
    ResultsProposer(",".join([*paths, again]))


def test_an_image_id_is_the_number_at_the_end_of_the_file_name(tmp_path):
  results = ResultsProposer(_write(tmp_path / "r.json", [_row(25)]))
  assert results.find_image("a/COCO_train2014_000000000025.jpg") == 25
  assert results.find_image("holiday.jpg", 25) == 25
  with pytest.raises(InputError, match="does not end with an image id"):
    results.find_image("holiday.jpg")


def _scores(proposer, paths, ids=None):
  ids = ids or [None] * len(paths)
  found = [proposer.find_image(path, i) for path, i in zip(paths, ids, strict=True)]
  return [float(i.scores[0]) for i in proposer.propose([PHOTO] * len(paths), found)]


def _by_name(names, **fields):
  """One detection for each name; the score of number n is n / 8."""
  return [_row(name, score=n / 8, **fields) for n, name in enumerate(names, 1)]


def test_ids_that_are_stems_of_file_names_find_their_images(tmp_path):
  """As ultralytics writes them; it writes the number where the whole stem is one."""
  names = ["COCO_train2014_000000000100", "kitchen.v2", 7, "photo_1", "12 (copy)"]
  results = ResultsProposer(_write(tmp_path / "r.json", _by_name(names)))
  paths = ["x/photo_1.png", "x/007.jpg", "kitchen.v2.jpeg", "12 (copy).jpg", "000000000100.jpg"]
  assert _scores(results, paths) == [4 / 8, 3 / 8, 2 / 8, 5 / 8, 1 / 8]
  # The numbers that the data set gives to these images mean nothing here, except to the number.
  ids = [12, 7, 100, 100, 1]
  assert _scores(results, paths, ids) == [4 / 8, 3 / 8, 2 / 8, 5 / 8, 1 / 8]
  for other in ("photo_7.png", "COCO_train2014_000000000101.jpg", "kitchen.jpg", "17.jpg"):
    for number in (None, 7):
      with pytest.raises(UnknownImage, match="no detection of"):
        results.find_image(other, number)


def test_rows_with_file_names_are_found_by_them_and_never_those_of_another_image(tmp_path):
  rows = [
    _row(1, score=1 / 8, file_name="clip_a/frame_0.png"),
    _row(2, score=2 / 8, file_name="clip_b/frame_0.png"),
    _row(3, score=3 / 8, file_name="clip_b/frame_1.png"),
  ]
  results = ResultsProposer(_write(tmp_path / "r.json", rows))
  paths = ["/data/clip_b/frame_0.png", "/data/clip_a/frame_0.png", "frame_1.png"]
  assert _scores(results, paths) == [2 / 8, 1 / 8, 3 / 8]
  with pytest.raises(InputError, match=r"frame_0\.png matches both clip_a/.* and clip_b/"):
    results.find_image("frame_0.png")
  with pytest.raises(UnknownImage, match=r"no detection of other\.png"):
    results.find_image("other.png", 3, "")


@pytest.mark.parametrize("written", [100.0, "100", "000000000100"])
def test_an_id_is_the_same_number_however_it_is_written(tmp_path, written):
  results = ResultsProposer(_write(tmp_path / "r.json", [_row(written), _row(101)]))
  assert _scores(results, ["a.jpg"], [100]) == [0.5]
  assert len(results.propose([PHOTO], [100])[0].masks) == 1


@pytest.mark.parametrize("key", ["annotations", "predictions", "results", "detections"])
def test_the_list_may_be_under_a_key(tmp_path, key):
  rows = [_row(100), _row(101, category_id=3)]
  wrapped = _propose(_write(tmp_path / "r.json", {"info": {}, key: rows, "images": []}), 101)
  alone = _propose(_write(tmp_path / "alone.json", rows), 101)
  np.testing.assert_array_equal(wrapped.masks, alone.masks)
  assert wrapped.categories.tolist() == [3]


def test_ids_of_a_file_that_lists_its_images_are_its_own(tmp_path):
  """FiftyOne gives images new numbers: the data set's ids mean other images."""
  images = [
    {"id": 1, "file_name": "COCO_train2014_000000000002.jpg"},
    {"id": 2, "file_name": "b.jpg"},
  ]
  content = {"images": images, "annotations": [_row(1, score=1 / 8), _row(2, score=2 / 8)]}
  results = ResultsProposer(_write(tmp_path / "r.json", content))
  assert _scores(results, ["COCO_train2014_000000000002.jpg"], [2]) == [1 / 8]
  assert _scores(results, ["x/b.jpg"], [9]) == [2 / 8]
  with pytest.raises(UnknownImage):
    results.find_image("COCO_train2014_000000000001.jpg", 1, "")


def test_files_with_the_same_ids_for_other_images_are_one_set(tmp_path):
  """Exports of several subsets count from 0 each."""
  paths = []
  for n, name in enumerate(["train/a.jpg", "val/b.jpg"]):
    content = {"images": [{"id": 0, "file_name": name}], "annotations": [_row(0, score=n / 8)]}
    paths.append(_write(tmp_path / f"{n}.json", content))
  both = ResultsProposer(",".join(paths))
  assert _scores(both, ["b.jpg", "x/a.jpg"]) == [1 / 8, 0]
  again = ResultsProposer(",".join([*paths, _write(tmp_path / "2.json", _by_name(["b"]))]))
  with pytest.raises(InputError, match=r"b\.jpg is in several files"):
    again.find_image("b.jpg")


def test_an_empty_list_is_a_detector_that_found_nothing(tmp_path):
  proposer = open_proposer(f"results:{_write(tmp_path / 'r.json', [])}")
  with pytest.raises(UnknownImage):
    proposer.find_image("a_1.jpg")
  check_images(proposer, [("a_1.jpg", 1, "")], any_known=True)


def test_what_is_left_out_of_detections_or_guessed_is_noted(tmp_path):
  whole, beyond = rectangle(2, 3, 12, 13), rectangle(2, 3, WIDTH + 3, 13)
  rows = [
    _row(segmentation=[whole], category_id=0),
    _row(segmentation=[whole, [1, 2, 3, 4]], score=0.4),
    _row(segmentation=[], score=0.9),
    _row(segmentation=[[1, 2, 3, 4]], score=0.8),
    _row(segmentation=None, score=0.7),
    _row(segmentation=[beyond], score=0.3),
  ]
  for row in rows[1:]:
    row.pop("category_id")
  instances = _propose(_write(tmp_path / "r.json", rows))
  assert instances.scores.tolist() == pytest.approx([0.5, 0.4, 0.3])
  assert [int(mask.sum()) for mask in instances.masks] == [100, 100, 10 * (WIDTH - 2)]
  assert collections.Counter(instances.notes) == {
    "detection with an empty mask left out": 3,
    "part with fewer than three points left out": 1,
    "polygon beyond the border clipped": 1,
    "category 0 read as no category; do the categories start at 0?": 1,
  }


def test_two_images_with_the_same_masks_are_named(tmp_path):
  proposer = open_proposer(f"results:{_write(tmp_path / 'r.json', _by_name(['photo', 'b']))}")
  check_images(proposer, [("x/photo.png", None, ""), ("b.jpg", None, "")], any_known=True)
  with pytest.raises(InputError, match=r"photo\.png and .*photo\.jpg both match image"):
    check_images(
      proposer, [("x/photo.png", 1, ""), ("b.jpg", 2, ""), ("x/photo.jpg", 3, "")], any_known=True
    )
  with pytest.raises(InputError, match=r"for any of the 2 images; .*no detection"):
    check_images(proposer, [("c.jpg", 1, ""), ("d.jpg", 2, "")], any_known=True)
  check_images(proposer, [("c.jpg", 1, ""), ("d.jpg", 2, "")], any_known=False)


def test_rows_are_found_by_their_ids_here_and_in_another_process(tmp_path):
  layout = make_layout(tmp_path)
  index = RowIndex(str(layout.instances_path), {"annotations": "annotations.item"})
  expected = layout.instances["annotations"]
  assert list(index.rows("annotations")) == expected
  for there in (index, pickle.loads(pickle.dumps(index))):
    assert there.row("annotations", 1001) == expected[1]
    assert there.row("annotations", 77) is None
    assert there.of_image("annotations", 101) == expected[3:6]
  assert index.image_ids("annotations") == {100, 101, 102, 103}


def test_a_file_that_changed_has_another_index(tmp_path):
  path = tmp_path / "r.json"
  for number in (1, 2):
    _write(path, [_row(number)])
    assert RowIndex(str(path), {"results": "item"}).image_ids("results") == {number}


def test_two_rows_with_one_id_are_an_error(tmp_path):
  path = _write(tmp_path / "r.json", [{"id": 5}, {"id": 5}])
  with pytest.raises(InputError, match=r"r\.json: `results` has two rows with the id 5"):
    RowIndex(path, {"results": "item"})
