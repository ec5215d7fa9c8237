"""COCO files of any tool: the right rows by id and by name, or an error that says why not."""

import codecs
import gzip
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from input_pipeline.common import untrusted_files, untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.common.image_names import AmbiguousImage, ImageNotFound
from input_pipeline.masks.coco import CocoAnnotations, category_of
from input_pipeline.masks.row_index import RowIndex
from input_pipeline.masks.segmentation import EmptySegmentation
from input_pipeline.proposers.coco import CocoProposer
from input_pipeline.proposers.registry import UnknownImage, check_images, open_proposer

SQUARE = [4, 5, 14, 5, 14, 15, 4, 15]
ENCODINGS = {
  "UTF-8": lambda text: text.encode(),
  "a byte order mark": lambda text: codecs.BOM_UTF8 + text.encode(),
  "UTF-16": lambda text: text.encode("utf-16"),
  "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
  "UTF-16, big end first": lambda text: text.encode("utf-16-be"),
  "gzip": lambda text: gzip.compress(text.encode()),
  "gzip of UTF-16": lambda text: gzip.compress(text.encode("utf-16")),
}


def image(image_id=1, name="a.jpg", **fields):
  return {"id": image_id, "file_name": name, "height": 20, "width": 30} | fields


def annotation(ann_id=1, image_id=1, **fields):
  row = {"id": ann_id, "image_id": image_id, "category_id": 1, "segmentation": [SQUARE]}
  return row | fields


def content(images=None, annotations=None, **fields):
  return {"images": images or [image()], "annotations": annotations or [annotation()]} | fields


@pytest.fixture(params=["a file", "in memory"])
def open_coco(request, tmp_path):
  def opened(given):
    if request.param == "in memory":
      return CocoAnnotations(given)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(given))
    return CocoAnnotations(str(path))

  return opened


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_a_file_is_read_in_any_encoding(tmp_path, encode):
  given = content([image(name="müll/日.jpg")], [annotation(note="“x”" * 20_000), annotation(2)])
  path = tmp_path / "instances.json"
  path.write_bytes(encode(json.dumps(given, ensure_ascii=False)))
  coco = CocoAnnotations(str(path))
  assert coco.find_image("x/müll/日.jpg") == 1
  assert coco.of_image(1) == given["annotations"]
  assert coco.mask(coco.annotation(2) or {}).sum() == 100


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (gzip.compress(b'{"images": []}' * 9, mtime=0)[:-9], "damaged gzip file"),
    (b"PK\3\4....", "a zip archive; unpack it"),
    ("{}".encode("utf-16")[:-1], "invalid utf-16"),
    (b"\xff\xfe\0\xd8", "invalid utf-16"),
    (b"", "not a COCO instances file"),
    (b"PAR1", "invalid or truncated JSON"),
  ],
)
def test_a_damaged_file_is_told(tmp_path, data, message):
  path = tmp_path / "instances.json"
  path.write_bytes(data)
  with pytest.raises(InputError, match=rf"instances\.json.*{message}|truncated JSON"):
    CocoAnnotations(str(path))


IDS = {
  "float": (1.0, 7.0),
  "text": ("1", "7"),
  "padded text": ("000000000001", "07"),
  "number": (1, 7),
}


@pytest.mark.parametrize("of_image", IDS)
@pytest.mark.parametrize("of_annotation", IDS)
def test_an_id_is_the_same_number_however_it_is_written(open_coco, of_image, of_annotation):
  """As pandas writes them: in one section as text, in the other as 1.0."""
  coco = open_coco(
    content([image(IDS[of_image][0])], [annotation(IDS[of_annotation][1], IDS[of_annotation][0])])
  )
  row = coco.annotation(7)
  assert row is not None and (row["id"], row["image_id"]) == (7, 1)
  assert coco.find_image("a.jpg") == coco.only_image() == 1
  assert coco.of_image(1) == [row]
  expected = np.zeros((20, 30), bool)
  expected[5:15, 4:14] = True
  np.testing.assert_array_equal(coco.mask(row), expected)


def test_ids_that_are_text_find_their_rows(open_coco):
  images = [image("photo_1", "photo_1.jpg"), image("1", "other.jpg")]
  rows = [annotation("x", "photo_1"), annotation("y", 1)]
  coco = open_coco(content(images, rows))
  assert coco.find_image("photo_1.jpg") == "photo_1"
  assert [row["id"] for row in coco.of_image("photo_1")] == ["x"]
  assert [row["id"] for row in coco.of_image(1)] == ["y"]
  assert coco.size("photo_1") == (20, 30)


@pytest.mark.parametrize("value", [1.5, True, [], {}, "", 1e300])
def test_ids_of_other_kinds_are_refused(open_coco, value):
  with pytest.raises(InputError, match="it must be an integer or text"):
    open_coco(content(annotations=[annotation(value)]))


@pytest.mark.parametrize("twice", [(1, 1), (1, "1"), (1.0, "01"), ("a", "a")])
def test_two_images_with_an_id_are_named(open_coco, twice):
  images = [image(5, "z.jpg"), *map(image, twice, ("a/one.jpg", "b/two.png"))]
  with pytest.raises(InputError, match=r"`images` has two rows with the id .*1|'a'") as caught:
    open_coco(content(images))
  assert "a/one.jpg and b/two.png" in str(caught.value)


def test_two_annotations_with_an_id_are_named(open_coco):
  rows = [annotation(4, 1), annotation(9, 1), annotation(9, 2)]
  with pytest.raises(
    InputError, match=r"`annotations` has two rows with the id 9 \(.*image 1 .*2\)"
  ):
    open_coco(content(annotations=rows))


@pytest.mark.parametrize("key", ["file_name", "coco_url", "flickr_url", "path"])
def test_an_image_is_found_by_whatever_names_it(open_coco, key):
  row = image(8) | {key: "http://images.cocodataset.org/train2017/000000000008.jpg"}
  if key != "file_name":
    row.pop("file_name")
  coco = open_coco(content([image(), row]))
  assert coco.find_image("/photos/000000000008.jpg") == 8
  assert coco.find_image("COCO_train2014_000000000008.jpg") == 8


def test_folders_tell_images_of_one_name_apart(open_coco):
  names = ["clip_a/frame_0.png", "clip_b/frame_0.png", "clip_b/frame_1.png"]
  coco = open_coco(content([image(n, name) for n, name in enumerate(names, 1)]))
  assert [coco.find_image(f"/data/{name}") for name in names] == [1, 2, 3]
  with pytest.raises(AmbiguousImage, match=r"clip_a/frame_0\.png and clip_b/frame_0\.png"):
    coco.find_image("frame_0.png")
  for other in ("clip_c/frame_0.png", "clip_a/frame_1.png"):
    with pytest.raises(ImageNotFound, match="no image named"):
      coco.find_image(other)
    with pytest.raises(
      InputError, match=r"image 1 is clip_a/frame_0\.png there, but clip_c|clip_a"
    ):
      coco.check_image(1, other)
  coco.check_image(1, "/data/clip_a/frame_0.png")


def test_folders_of_another_computer_do_not_matter_where_names_are_unique(open_coco):
  coco = open_coco(content([image(1, "C:\\export\\a.jpg"), image(2, "images/b.jpg")]))
  assert [coco.find_image(path) for path in ("/photos/a.jpg", "/photos/b.jpg")] == [1, 2]
  coco.check_image(2, "/photos/b.jpg")
  with pytest.raises(InputError, match=r"image 2 is images/b\.jpg there, but /photos/a\.jpg here"):
    coco.check_image(2, "/photos/a.jpg")


def test_one_name_of_two_ids_is_told(open_coco):
  coco = open_coco(content([image(1, "a.jpg"), image(2, "a.jpg")]))
  with pytest.raises(InputError, match=r"images 1 and 2 are both named a\.jpg"):
    coco.find_image("a.jpg")


@settings(max_examples=40, deadline=None)
@given(
  st.permutations(["train/a.jpg", "train/b.jpg", "val/a.jpg", "val/c.jpg", "B.JPG"]),
  st.sampled_from(["{}", "/root/{}", "\\\\host\\{}", "http://h/x/{}?size=9"]),
)
def test_in_whatever_order_a_name_means_one_image_or_an_error(names, spelled):
  coco = CocoAnnotations(content([image(n, name) for n, name in enumerate(names)]))
  for name in names:
    assert coco.find_image(spelled.format(name)) == names.index(name)


def test_nan_is_a_missing_value_where_ever_it_stands(tmp_path):
  given = content(
    [image(1, "NaN, a: NaN.jpg"), image(2, '"\\NaN,Infinity')],
    [annotation(1, area=float("nan")), annotation(2, bbox=[-float("inf"), float("nan"), 3, 4])]
    + [
      annotation(n, area=n / 3, note="NaN" * (n % 50), category_id=float("nan"))
      for n in range(3, 900)
    ],
  )
  path = tmp_path / "instances.json"
  path.write_text(json.dumps(given))
  coco = CocoAnnotations(str(path))
  assert [(coco.image(n) or {})["file_name"] for n in (1, 2)] == [
    "NaN, a: NaN.jpg",
    '"\\NaN,Infinity',
  ]
  assert (coco.annotation(1) or {})["area"] is None
  assert (coco.annotation(2) or {})["bbox"] == [None, None, 3, 4]
  for n in range(3, 900):
    row = coco.annotation(n) or {}
    assert (row["area"], row["note"], row["category_id"]) == (n / 3, "NaN" * (n % 50), None)
  assert category_of(coco.annotation(5) or {}, "") == 0
  assert len(coco.of_image(1)) == 899


@settings(max_examples=60, deadline=None)
@given(
  st.lists(
    st.dictionaries(
      st.text(max_size=6).filter(lambda key: key not in ("id", "image_id")),
      st.one_of(st.text(), st.floats(), st.sampled_from(["NaN", '"', "\\", '\\"NaN']), st.none()),
      max_size=5,
    ),
    max_size=8,
  ),
  st.sampled_from([None, 0, 1]),
  st.sampled_from(["utf-8", "utf-16"]),
)
def test_rows_come_back_as_json_reads_them_with_nan_missing(
  tmp_path_factory, rows, indent, encoding
):
  path = tmp_path_factory.mktemp("rows") / "rows.json"
  text = json.dumps(rows, ensure_ascii=False, indent=indent)
  path.write_bytes(text.encode(encoding, "surrogatepass"))
  try:
    text.encode("utf-8")
  except UnicodeError:
    return
  expected = json.loads(text, parse_constant=lambda word: None)
  assert list(RowIndex(str(path), {"rows": "item"}).rows("rows")) == expected


@pytest.mark.parametrize("after", ["", "Infinity", '"\\\\"'])
def test_nan_may_lie_across_any_border_of_what_is_read_at_once(tmp_path, after):
  for pad in range(16_384 - 60, 16_384, 3 if after else 1):
    value = after or "null"
    path = tmp_path / f"{pad}.json"
    path.write_text(f'[{{"x":"{"a" * (pad - 40)}","y":-Infinity,"z":{value}}},{{"y":NaN}}]')
    rows = list(RowIndex(str(path), {"rows": "item"}).rows("rows"))
    assert rows[0]["y"] is None and rows[1] == {"y": None} and len(rows[0]["x"]) == pad - 40
    assert rows[0]["z"] == (None if after != '"\\\\"' else "\\")


def test_a_long_string_beside_nan_takes_linear_time(tmp_path):
  path = tmp_path / "rows.json"
  path.write_text('[{"x": NaN, "y": "' + "NaN\\\\" * 2_000_000 + '"}]')
  (row,) = RowIndex(str(path), {"rows": "item"}).rows("rows")
  assert row == {"x": None, "y": "NaN\\" * 2_000_000}


def test_a_file_of_any_size_is_indexed_and_an_archive_up_to_a_limit(tmp_path, monkeypatch):
  monkeypatch.setattr(untrusted_json, "MAX_BYTES", 1000)
  monkeypatch.setattr(untrusted_files, "MAX_UNPACKED", 100_000)
  text = json.dumps([{"image_id": n} for n in range(2000)])
  for name, data in (("plain", text.encode()), ("packed", gzip.compress(text.encode()))):
    (tmp_path / name).write_bytes(data)
    assert RowIndex(str(tmp_path / name), {"rows": "item"}).image_ids("rows") == set(range(2000))
  (tmp_path / "bomb").write_bytes(gzip.compress(text.encode() + b" " * 100_000))
  with pytest.raises(InputError, match=r"bomb: exceeds the limit of 100,000 bytes when unpacked"):
    RowIndex(str(tmp_path / "bomb"), {"rows": "item"})


def test_an_index_with_text_ids_goes_to_other_processes(tmp_path):
  path = tmp_path / "rows.json"
  path.write_text(json.dumps([{"image_id": "b"}, {"image_id": 1.0, "n": 1}, {"image_id": 1}]))
  index = pickle.loads(pickle.dumps(RowIndex(str(path), {"rows": "item"})))
  assert index.image_ids("rows") == {"b", 1}
  assert list(index.first_of_images("rows")) == [{"image_id": "b"}, {"image_id": 1, "n": 1}]


RUNS = coco_mask.encode(np.asfortranarray(np.eye(20, 30, dtype=np.uint8)))
RUNS = {"size": [20, 30], "counts": RUNS["counts"].decode()}


@pytest.mark.parametrize(
  ("image_id", "name", "segmentation", "iscrowd", "is_crowd"),
  [
    (100, "COCO_train2014_000000000100.jpg", RUNS, 1, True),
    (100, "train2017/000000000100.jpg", RUNS, 1, True),
    (100, "http://images.cocodataset.org/val2017/000000000100.jpg", RUNS, 1, True),
    (100, "000000000100.jpg", RUNS, 0, False),
    (100, "000000000100.jpg", RUNS, "0", False),
    (100, "000000000100.jpg", RUNS, "1", True),
    (100, "000000000100.jpg", RUNS, True, True),
    (100, "000000000100.jpg", RUNS, None, False),
    # supervision, pycococreator and others: COCO's photos with other ids, or other photos
    (1, "000000000100.jpg", RUNS, 1, False),
    (100, "photo_100.jpg", RUNS, 1, False),
    (100, "100.jpg", RUNS, True, False),
    (100, "000000000100.jpg", [SQUARE], 1, False),
  ],
)
def test_crowds_are_cocos_own(open_coco, image_id, name, segmentation, iscrowd, is_crowd):
  row = annotation(5, image_id, segmentation=segmentation, iscrowd=iscrowd)
  coco = open_coco(content([image(image_id, name)], [row]))
  assert coco.is_crowd(row) == is_crowd
  instances = CocoProposer(content([image(image_id, name)], [row])).propose(
    [np.zeros((20, 30, 3), np.uint8)], [image_id]
  )[0]
  assert len(instances.masks) == (not is_crowd)
  if is_crowd:
    assert instances.notes == ("COCO crowd left out",)
  else:
    kept = ("annotation with iscrowd kept, since it is not one of COCO's crowds",)
    assert instances.notes == (kept if iscrowd in (1, "1") else ())


def test_crowds_of_coco_itself_are_the_ones_left_out(realdata):
  coco = CocoAnnotations(str(realdata / "coco/annotations/instances_train2014.json"))
  rows = list(coco._rows.rows("annotations"))
  crowds = [row["id"] for row in rows if coco.is_crowd(row)]
  assert crowds == [row["id"] for row in rows if row["iscrowd"]] and crowds


def test_annotations_without_a_mask_are_left_out_and_counted_and_the_others_stay():
  rows = [
    annotation(1, segmentation=[[1, 2, 3, 4]]),
    annotation(2, segmentation=[SQUARE, [1, 2, 3, 4]]),
    annotation(3, segmentation=None),
    annotation(4, segmentation=[], bbox=[1, 2, 3, 4]),
    annotation(5, segmentation=[[4, 5, 33, 5, 33, 15, 4, 15]]),
  ]
  proposer = CocoProposer(content(annotations=rows))
  instances = proposer.propose([np.zeros((20, 30, 3), np.uint8)], [1])[0]
  assert [int(mask.sum()) for mask in instances.masks] == [100, 260]
  assert sorted(instances.notes) == [
    "annotation without a mask left out",
    "annotation without a mask left out",
    "annotation without a mask left out",
    "part with fewer than three points left out",
    "polygon beyond the border clipped",
  ]
  with pytest.raises(EmptySegmentation, match="annotation 3 has no mask"):
    proposer._annotations.segmentation(rows[2])


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (
      {"images": [image()], "annotations": [{"id": 1, "image_id": 1, "caption": "cups"}]},
      "captions of whole images and no masks; use instances_",
    ),
    (
      {"images": [image()], "annotations": [{"image_id": 1, "segments_info": []}]},
      "a panoptic file, whose masks are in PNG files",
    ),
    ({"images": [image()]}, "`annotations` is missing or empty"),
    ({"annotations": [annotation()]}, "`images` is missing or empty"),
    ({"images": [image()], "annotations": [{"id": 1}]}, "`annotations` have no image_id"),
    (
      {"images": [{"file_name": "a"}], "annotations": [annotation()]},
      "rows of `images` have no id",
    ),
  ],
)
def test_another_file_of_coco_is_told_as_what_it_is(open_coco, given, message):
  with pytest.raises(InputError, match=message):
    open_coco(given)


def test_results_in_place_of_annotations_are_told(tmp_path):
  path = tmp_path / "detections.json"
  path.write_text(json.dumps([annotation(score=0.5)]))
  with pytest.raises(InputError, match=r"a list, .*use --instances results:.*detections\.json"):
    CocoAnnotations(str(path))


def test_a_turned_photo_is_told_from_a_resized_one():
  proposer = CocoProposer(content())
  with pytest.raises(InputError, match=r"image 1 is 30 x 20, but its file is 20 x 30; .*EXIF"):
    proposer.propose([np.zeros((30, 20, 3), np.uint8)], [1])
  with pytest.raises(InputError, match=r"is 30 x 20, but its file is 60 x 40; .*resized"):
    proposer.propose([np.zeros((40, 60, 3), np.uint8)], [1])


def test_sizes_may_be_floats_or_text(open_coco):
  coco = open_coco(content([image(height=20.0, width="30")]))
  assert coco.size(1) == (20, 30)


def test_a_file_is_for_its_own_photos(tmp_path):
  path = tmp_path / "instances.json"
  path.write_text(json.dumps(content([image(1), image(2, "b.jpg")])))
  proposer = open_proposer(f"coco:{path}")
  check_images(proposer, [("x/a.jpg", 1, ""), ("x/b.jpg", 2, "")], any_known=True)
  with pytest.raises(InputError, match=r"image 1 is a\.jpg there, but x/b\.jpg here"):
    check_images(proposer, [("x/b.jpg", 1, ""), ("x/a.jpg", 2, "")], any_known=True)
  with pytest.raises(UnknownImage, match="no annotation of image 2"):
    proposer.propose([np.zeros((20, 30, 3), np.uint8)], [2])
