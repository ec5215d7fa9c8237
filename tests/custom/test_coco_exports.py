"""COCO files as tools write them: the right masks and names, or what is left out and why."""

import gzip
import json
import zipfile

import numpy as np
import pytest
from custom_files import HEIGHT, WIDTH
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters import coco, label_studio
from input_pipeline.custom.converters.collect import Export, Options
from input_pipeline.masks.segmentation import decode_segmentation

SQUARE = [2, 3, 12, 3, 12, 13, 2, 13]
TRIANGLE = [15, 3, 25, 3, 25, 13]
CATEGORY = Options(("category",))


def content_of(*annotations, image=(), **fields):
  """Returns a COCO file of one image; annotations are numbered from 1."""
  row = {"id": 4, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
  base = {"image_id": 4, "category_id": 1, "caption": "the cup", "segmentation": [SQUARE]}
  return {
    "images": [row | dict(image)],
    "annotations": [{"id": n} | base | row for n, row in enumerate(annotations, 1)],
    "categories": [{"id": 1, "name": "mug"}],
    **fields,
  }


DEFAULT = Options()


def read(content, options=DEFAULT):
  return coco.read_content(content, "x.json", options, Export())


def pixels(mask, size=(HEIGHT, WIDTH)):
  return decode_segmentation(mask.get("polygons", mask.get("rle")), *size)


def decode(*polygons, size=(HEIGHT, WIDTH)):
  """Returns the union of polygons by pycocotools."""
  return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(list(polygons), *size))) > 0


def runs_of(mask):
  """Returns a mask as pycocotools' run lengths."""
  runs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
  return {"size": list(mask.shape), "counts": runs["counts"].decode()}


def lengths_of(mask):
  """Returns a mask as run lengths in a list."""
  flat = np.r_[0, mask.ravel("F"), 2]
  return {"size": list(mask.shape), "counts": np.diff(np.r_[0, np.flatnonzero(np.diff(flat))])}


def noted(export):
  return dict(export.noted)


_POINTS = np.reshape(SQUARE, (-1, 2)).tolist()
_RUNS = runs_of(decode(SQUARE))
_OTHER = runs_of(decode(TRIANGLE))


@pytest.mark.parametrize(
  ("segmentation", "polygons", "notes"),
  [
    (SQUARE, [SQUARE], {}),
    ([list(map(float, SQUARE))], [SQUARE], {}),
    (_POINTS, [SQUARE], {}),
    ([_POINTS], [SQUARE], {}),
    ([SQUARE, TRIANGLE], [SQUARE, TRIANGLE], {}),
    (_RUNS, [SQUARE], {}),
    ([_RUNS], [SQUARE], {}),
    ([_RUNS, _OTHER], [SQUARE, TRIANGLE], {}),
    ([SQUARE, _OTHER], [SQUARE, TRIANGLE], {}),
    (_RUNS | {"counts": str(_RUNS["counts"].encode())}, [SQUARE], {}),
    ([SQUARE, [3, 4, 20, 4]], [SQUARE], {"part with fewer than three points left out": 1}),
    ([SQUARE, [], None], [SQUARE], {"empty part left out": 2}),
    (
      [[*SQUARE[:2], 12, 0, 32, 10]],
      [[2, 3, 12, 0, 32, 10]],
      {"polygon beyond the border clipped": 1},
    ),
  ],
)
def test_every_dialect_of_a_segmentation_gives_its_pixels(segmentation, polygons, notes):
  (region,) = (export := read(content_of({"segmentation": segmentation}))).regions
  assert np.array_equal(pixels(region.mask), decode(*polygons))
  assert noted(export) == notes
  assert region.size == (HEIGHT, WIDTH) and region.upright is None


@pytest.mark.parametrize(
  ("segmentation", "message"),
  [
    ([[HEIGHT * WIDTH - 35, 10, 5, 5, 5, 5, 5]], "looks like run lengths"),
    ([[HEIGHT * WIDTH - 5, 5, 0]], "looks like run lengths"),
    ([[0.1, 0.2, 0.5, 0.2, 0.5, 0.9]], "fractions of the sides"),
    ([[-0.01, 0.2, 1.02, 0.2, 0.5, 0.9]], "fractions of the sides"),
    (runs_of(decode(SQUARE).T), r"size \[30, 20\], but the image has \[20, 30\]"),
    ([[2, 3, 60, 3, 60, 40]], "the image at another size"),
    ([[5, 5, 5, 5, 5, 5]], "mask covers no pixel"),
    ([[2, 3, 12, 3, None, 13]], "not a list of numbers"),
    (runs_of(np.zeros((HEIGHT, WIDTH), bool)), "mask covers no pixel"),
    ("polygon", "expected a list of polygons"),
  ],
)
def test_an_invalid_segmentation_is_left_out_with_its_reason_and_its_annotation(
  segmentation, message
):
  good = {"caption": "good"}
  export = read(content_of({"id": 77, "segmentation": segmentation}, good))
  assert [region.texts for region in export.regions] == [("good",)]
  (line,) = export.report()
  assert line.startswith("skipped: ") and line.endswith("(1: annotation 77)")
  with pytest.raises(InputError, match=rf"^x\.json: no annotation is left; skipped: .*{message}"):
    read(content_of({"segmentation": segmentation}))


@pytest.mark.parametrize("segmentation", [None, [], [[]], {}, [None], ""])
def test_a_box_without_a_mask_is_counted_or_becomes_one(segmentation):
  row = {"segmentation": segmentation, "bbox": [2, 3, 10, 4.0]}
  export = read(content_of(row, {}))
  assert dict(export.skipped) == {"box without a mask (use --boxes to convert it)": 1}
  box, _ = read(content_of(row, {}), Options(boxes=True)).regions
  assert np.array_equal(pixels(box.mask), decode([2, 3, 12, 3, 12, 7, 2, 7]))
  export = read(content_of({"segmentation": segmentation}, {}))
  assert dict(export.skipped) == {"no mask": 1}


def test_a_rectangle_of_coco_annotator_is_a_box():
  """It writes `isbbox` and a polygon of the corners."""
  row = {"isbbox": True, "bbox": [2, 3, 10, 10]}
  assert dict(read(content_of(row, {})).skipped).popitem()[0].startswith("box without a mask")
  box, _ = read(content_of(row, {}), Options(boxes=True)).regions
  assert np.array_equal(pixels(box.mask), decode(SQUARE))


@pytest.mark.parametrize(
  ("image_id", "reference", "expected"),
  [(4.0, 4, 4), ("4", 4, 4), (4, "4", 4), (4, 4.0, 4), ("a", "a", None), (-1, -1, None)],
)
def test_ids_are_the_same_however_they_are_written(image_id, reference, expected):
  content = content_of({"image_id": reference, "category_id": 1.0}, image={"id": image_id})
  (region,) = read(content, CATEGORY).regions
  assert (region.image, region.image_id, region.category) == ("a.png", expected, 1)
  assert region.texts == ("mug",)


def test_an_id_of_two_images_is_refused_with_both_names():
  content = content_of({})
  content["images"].append(content["images"][0] | {"id": "4", "file_name": "b.png"})
  with pytest.raises(InputError, match=r"image id 4 is used for both a\.png and b\.png"):
    read(content)
  content["images"][1]["file_name"] = "a.png"
  assert len(read(content).regions) == 1


def test_a_duplicate_annotation_is_read_once():
  content = content_of({"id": 7}, {"id": 7}, {"id": "7", "caption": "another"})
  export = read(content)
  assert [region.texts for region in export.regions] == [("the cup",), ("another",)]
  assert list(export.report()) == [
    "skipped: duplicate annotation (1: annotation 7)",
    "note: id shared by different annotations; all are read (1: annotation 7)",
  ]


def test_an_id_of_two_categories_is_refused_where_names_are_expressions():
  content = content_of({}, categories=[{"id": 1, "name": "mug"}, {"id": 1.0, "name": "cup"}])
  assert len(read(content).regions) == 1
  with pytest.raises(InputError, match="category id 1 is used for both mug and cup"):
    read(content, CATEGORY)


@pytest.mark.parametrize(
  ("row", "options", "texts"),
  [
    ({"metadata": {"expression": "the cup"}}, Options(), ("the cup",)),
    ({"attributes": {"Expression": "the cup"}}, Options(), ("the cup",)),
    ({"Referring-Expression": "the cup"}, Options(), ("the cup",)),
    ({"attributes": {"who": "Ann", "what": "cup"}}, Options(("What",)), ("cup",)),
    ({"one": "cup", "metadata": {"two": "mug"}}, Options(("one", "two")), ("cup", "mug")),
    ({"metadata": None, "attributes": ["x"], "text": "cup"}, Options(), ("cup",)),
  ],
)
def test_expressions_are_found_under_any_spelling_of_a_key(row, options, texts):
  (region,) = read(content_of({"caption": None} | row), options).regions
  assert region.texts == texts


def test_texts_that_are_not_read_are_named():
  export = read(content_of({"description": "seen by Ann"}))
  assert export.regions[0].texts == ("the cup",)
  note = "text under description not read; --text caption --text description reads both"
  assert list(export.report()) == [f"note: {note} (1: annotation 1)"]


def test_the_error_names_keys_at_every_level():
  row = {"caption": "", "attributes": {"colour": "red"}, "metadata": {"note": "x"}}
  with pytest.raises(InputError, match="under attributes: colour, and under metadata: note"):
    read(content_of(row))


@pytest.mark.parametrize(
  ("image", "name"),
  [
    ({"file_name": None, "coco_url": "http://x.org/train2017/000000000004.jpg"}, None),
    ({"file_name": "", "path": "/datasets/x/b.jpg"}, "/datasets/x/b.jpg"),
    ({"file_name": "C:\\photos\\b.jpg"}, "C:\\photos\\b.jpg"),
  ],
)
def test_an_image_without_a_file_name_has_a_url_or_a_path(image, name):
  (region,) = read(content_of({}, image=image)).regions
  assert region.image == (name or image["coco_url"])


def test_an_image_without_any_name_or_row_is_counted():
  export = read(content_of({}, {"image_id": "a.png"}, {"image_id": 4.5}))
  reason = "annotation of an image that is not in the file"
  places = "annotation 2, image_id 'a.png', annotation 3, image_id 4.5"
  assert list(export.report()) == [f"skipped: {reason} (2: {places})"]
  content = content_of({}, {"image_id": 5})
  content["images"].append({"id": 5, "height": 2, "width": 2})
  assert dict(read(content).skipped) == {"annotation of an image without a file name": 1}


def test_a_size_of_zero_is_unknown():
  """coco-annotator writes it; run lengths have a size of their own."""
  rows = [{}, {"segmentation": _RUNS}, {"segmentation": [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]}]
  export = read(content_of(*rows, image={"height": 0, "width": 0}))
  polygon, runs = export.regions
  assert (polygon.size, runs.size) == (None, (HEIGHT, WIDTH))
  assert np.array_equal(pixels(polygon.mask), decode(SQUARE))
  assert np.array_equal(pixels(runs.mask), decode(SQUARE))
  assert "fractions of the sides" in next(iter(export.skipped))


@pytest.mark.parametrize(
  ("file_name", "image_id", "segmentation", "crowd"),
  [
    ("COCO_train2014_000000000004.jpg", 4, _RUNS, True),
    ("000000000004.jpg", "4", _RUNS, True),
    ("000000000004.jpg", 4, [SQUARE], False),
    ("000000000009.jpg", 4, _RUNS, False),
    ("a.png", 4, _RUNS, False),
  ],
)
def test_only_coco_s_own_crowds_are_crowds(file_name, image_id, segmentation, crowd):
  row = {"segmentation": segmentation, "iscrowd": 1, "image_id": image_id}
  content = content_of(row | {"caption": ""}, {}, image={"file_name": file_name, "id": image_id})
  content["annotations"][1]["image_id"] = image_id
  export = read(content)
  assert [region.crowd for region in export.regions] == [crowd, False]
  assert noted(export) == ({"crowd not used as an instance": 1} if crowd else {})
  # Somebody refers to it, so it is an object.
  content["annotations"][0]["caption"] = "the cups"
  assert not read(content).regions[0].crowd
  assert read(content, CATEGORY).regions[0].crowd == crowd


def test_a_category_without_a_number_is_noted():
  export = read(content_of({"category_id": "mug"}, {"category_id": -1}))
  assert [region.category for region in export.regions] == [0, 0]
  assert noted(export) == {"category id is not a number; written as 0": 2}


_WITHOUT_MASK = {"image_id": 4, "caption": "a table"}


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (content_of() | {"annotations": [_WITHOUT_MASK]}, "COCO's captions"),
    (content_of() | {"annotations": [{"image_id": 4, "segments_info": []}]}, "COCO's panoptic"),
    (content_of(), "`annotations` is empty"),
    ([{"image_id": 4, "segmentation": _RUNS, "score": 1}], "a list of detections"),
    ([{"id": 1, "data": {"image": "a.png"}}], "--from label-studio"),
    ({"images": []}, "needs the lists `images` and `annotations`"),
  ],
)
def test_a_file_of_another_kind_is_named(content, message):
  with pytest.raises(InputError, match=message):
    read(content)


@pytest.mark.parametrize(
  "encode",
  [
    lambda text: text.encode("utf-8-sig"),
    lambda text: text.encode("utf-16"),
    lambda text: gzip.compress(text.encode()),
    lambda text: text.replace('"area": 1', '"area": NaN').encode(),
    lambda text: text.replace('"area": 1', '"area": -Infinity').encode(),
  ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_files_of_any_encoding_are_read(tmp_path, encode, zipped):
  data = encode(json.dumps(content_of({"caption": "die Tüte", "area": 1})))
  path = tmp_path / "export"
  path.write_bytes(data)
  if zipped and not data.startswith(b"\x1f\x8b"):
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
      archive.writestr("annotations/instances_default.json", data)
  (region,) = coco.read(str(path), Options()).regions
  assert region.texts == ("die Tüte",)


@pytest.fixture
def export_zip(tmp_path):
  def write(*members):
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w") as archive:
      for name in members:
        archive.writestr(name, json.dumps(content_of({})) if "json" in name else b"")
    return str(path)

  return write


def test_a_zip_is_read_without_unpacking_and_says_that_its_images_are_not(export_zip, tmp_path):
  path = export_zip(
    *("deep/x.json", "images/a.png", "images/b.JPG", "__MACOSX/._x.json", "../../y.json")
  )
  export = coco.read(path, Options())
  assert len(export.regions) == 1
  assert list(export.report()) == [
    "note: images in the zip are not read; unpack it and set --images (2)"
  ]
  assert [file.name for file in tmp_path.iterdir()] == ["export.zip"]


@pytest.mark.parametrize(
  ("members", "message"),
  [
    (["a.png"], "contains no JSON file"),
    (
      ["train/a.json", "valid/b.json"],
      r"2 JSON files \(train/a\.json, valid/b\.json\); .*unpack it",
    ),
  ],
)
def test_a_zip_without_or_with_several_files_is_refused(export_zip, members, message):
  with pytest.raises(InputError, match=message):
    coco.read(export_zip(*members), Options())


def test_a_damaged_zip_is_one_line(export_zip):
  path = export_zip("a.json")
  with open(path, "r+b") as file:
    file.seek(60)
    file.write(b"@@@@")
  with pytest.raises(InputError, match=r"a\.json: damaged in the zip"):
    coco.read(path, Options())
  with open(path, "r+b") as file:
    file.truncate(70)
  with pytest.raises(InputError, match="damaged zip"):
    coco.read(path, Options())


# A sound annotation, changed as tools and people change it: the right mask, or it is left out.

_CHANGES = ("none", "scaled", "turned", "swapped size", "shares", "points swapped")


def _change(name, mask, polygon, height, width):
  """Returns a segmentation, the declared size, and the mask if it still is right."""
  runs = runs_of(mask)
  if name == "scaled":
    big = np.kron(mask, np.ones((2, 2), bool))
    return runs_of(big), (height, width), None
  if name == "turned":
    return runs_of(mask.T), (height, width), None if height != width else mask.T
  if name == "swapped size":
    return runs | {"size": [width, height]}, (height, width), None
  if name == "shares":
    return (
      [[c / (height if k % 2 else width) for k, c in enumerate(polygon)]],
      (height, width),
      None,
    )
  if name == "points swapped":
    return [polygon[::-1]], (height, width), None
  return runs, (height, width), mask


@given(data=st.data())
def test_a_changed_annotation_gives_its_own_mask_or_none(data):
  height, width = data.draw(st.integers(8, 40)), data.draw(st.integers(8, 40))
  if height == width:
    width += 1
  left, top = data.draw(st.integers(1, width - 4)), data.draw(st.integers(1, height - 4))
  right, bottom = data.draw(st.integers(left + 2, width)), data.draw(st.integers(top + 2, height))
  mask = np.zeros((height, width), bool)
  mask[top:bottom, left:right] = True
  polygon = [left, top, right, top, right, bottom, left, bottom]
  change = data.draw(st.sampled_from(_CHANGES[:-1]))
  segmentation, size, expected = _change(change, mask, polygon, height, width)
  content = content_of({"segmentation": segmentation}, image={"height": size[0], "width": size[1]})
  try:
    (region,) = read(content).regions
  except InputError:
    assert expected is None
  else:
    assert expected is not None
    assert np.array_equal(pixels(region.mask, size), expected)


_DIALECTS = {
  "run lengths": runs_of,
  "list of lengths": lambda mask: (
    lengths_of(mask) | {"counts": lengths_of(mask)["counts"].tolist()}
  ),
  "list of one": lambda mask: [runs_of(mask)],
  "text of bytes": lambda mask: runs_of(mask) | {"counts": str(runs_of(mask)["counts"].encode())},
  "halves": lambda mask: [runs_of(mask & half(mask)), runs_of(mask & ~half(mask))],
}


def half(mask):
  left = np.zeros_like(mask)
  left[:, : mask.shape[1] // 2] = True
  return left


@given(
  seed=st.integers(0, 2**32 - 1),
  size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
  dialects=st.lists(st.sampled_from(sorted(_DIALECTS)), min_size=1, max_size=5),
  ids=st.sampled_from([int, float, str]),
  shuffle=st.randoms(),
)
def test_masks_come_back_in_any_dialect_under_their_own_images(seed, size, dialects, ids, shuffle):
  masks = np.random.default_rng(seed).random((len(dialects), *size)) < 0.5
  masks[:, 0, 0] = True
  images = [
    {"id": n, "file_name": f"{n}.png", "height": size[0], "width": size[1]}
    for n in range(len(masks))
  ]
  rows = [
    {"id": n, "image_id": ids(n), "caption": f"object {n}", "segmentation": _DIALECTS[name](mask)}
    for n, (name, mask) in enumerate(zip(dialects, masks, strict=True))
  ]
  shuffle.shuffle(images)
  shuffle.shuffle(rows)
  export = read({"images": images, "annotations": rows})
  assert not export.skipped
  assert len(export.regions) == len(masks)
  for region in export.regions:
    number = int(region.image.removesuffix(".png"))
    assert region.texts == (f"object {number}",) and region.image_id == number
    assert np.array_equal(pixels(region.mask, size), masks[number])


def test_label_studio_s_coco_is_for_upright_images(tmp_path):
  path = tmp_path / "result.json"
  path.write_text(json.dumps(content_of({})))
  (region,) = label_studio.read(str(path), CATEGORY).regions
  assert region.upright is True and region.texts == ("mug",)
