"""Masks from COCO results files, and the index of large files."""

import json
import pickle

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from refer_layout import HEIGHT, WIDTH, make_layout, rectangle

from input_pipeline.common.errors import InputError
from input_pipeline.masks.row_index import RowIndex
from input_pipeline.proposers.registry import UnknownImage, open_proposer
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
    ([], "no detections"),
    ({"images": [], "annotations": []}, "no detections"),
    ([[1, 2]], "results contains a list, expected an object"),
    ([_row(1.5)], "ids must be integers"),
    ([_row(segmentation=None)], "image 1: a row without a segmentation; boxes are not enough"),
    ([_row(segmentation=[[1, 2, 3]])], "image 1: invalid segmentation"),
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
  with pytest.raises(UnknownImage, match=r"no detection of image 2; .*--allow_empty"):
    _propose(path, 2)


def test_several_files_are_one_set_and_may_share_no_image(tmp_path):
  paths = [_write(tmp_path / f"{n}.json", [_row(n)]) for n in (1, 2)]
  both = ResultsProposer(",".join(paths))
  assert both.image_ids() == {1, 2}
  assert [len(proposals.masks) for proposals in both.propose([PHOTO, PHOTO], [2, 1])] == [1, 1]
  again = _write(tmp_path / "again.json", [_row(2)])
  with pytest.raises(InputError, match=r"again\.json: image 2 is also in .*2\.json"):
    ResultsProposer(",".join([*paths, again]))


def test_an_image_id_is_the_number_at_the_end_of_the_file_name(tmp_path):
  results = ResultsProposer(_write(tmp_path / "r.json", [_row(1)]))
  assert results.image_id("a/COCO_train2014_000000000025.jpg") == 25
  with pytest.raises(InputError, match="does not end with an image id"):
    results.image_id("holiday.jpg")


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
