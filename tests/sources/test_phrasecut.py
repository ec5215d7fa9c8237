"""PhraseCut: targets by the toolkit's pixel rule, records, and errors."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from phrasecut_layout import HEIGHT, WIDTH, make_layout
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from input_pipeline import records, storage
from input_pipeline.common.errors import InputError
from input_pipeline.masks import segmentation
from input_pipeline.prepare import command as prepare
from input_pipeline.sources import annotated_images, phrasecut
from input_pipeline.tf import builder, record_reader

points = st.tuples(st.floats(-5, WIDTH + 5), st.floats(-5, HEIGHT + 5))
polygons = st.lists(st.lists(points.map(list), max_size=6), max_size=3)


def by_the_toolkit(shapes: list) -> np.ndarray:
  """Rasterises by definition: integer coordinates, outline and inside, summed over polygons."""
  total = np.zeros((HEIGHT, WIDTH), int)
  for shape in shapes:
    if len(shape) >= 2:
      alone = Image.new("L", (WIDTH, HEIGHT))
      whole = [(int(x), int(y)) for x, y in shape]
      ImageDraw.Draw(alone).polygon(whole, outline=1, fill=1)
      total += np.asarray(alone)
  return total > 0


@given(polygons)
def test_polygons_cover_what_the_toolkit_says(shapes):
  actual = segmentation.decode_phrasecut(shapes, HEIGHT, WIDTH)
  np.testing.assert_array_equal(actual, by_the_toolkit(shapes))


@given(st.integers(0, 30), st.integers(0, 20), st.integers(1, 30), st.integers(1, 20))
def test_a_rectangle_has_its_outline_which_cocos_rule_cuts_in_half(left, top, width, height):
  right, bottom = left + width, top + height
  corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
  actual = segmentation.decode_phrasecut([corners], HEIGHT, WIDTH)
  expected = np.zeros((HEIGHT, WIDTH), bool)
  expected[top : bottom + 1, left : right + 1] = True
  np.testing.assert_array_equal(actual, expected)
  runs = coco_mask.frPyObjects([np.ravel(corners).tolist()], HEIGHT, WIDTH)
  coco = coco_mask.decode(coco_mask.merge(runs)).astype(bool)
  assert int(coco.sum()) == width * height
  assert actual[coco].all()


@pytest.mark.parametrize(
  "shapes", ["polygon", None, [3], [[3]], [[[1]]], [[[1, "x"]]], [[[1, float("nan")]]]]
)
def test_malformed_polygons_are_refused(shapes):
  with pytest.raises(ValueError, match=r"is not a (list|point)"):
    segmentation.decode_phrasecut(shapes, HEIGHT, WIDTH)


def _records(data_dir, split):
  return list(record_reader.read_records(record_reader.Split(str(data_dir), "phrasecut", split)))


def test_records_have_the_image_the_phrases_and_the_union_of_the_instances(tmp_path, capsys):
  layout = make_layout(tmp_path)
  prepare.main(layout.arguments(tmp_path / "out"))
  printed = capsys.readouterr()
  rows = [line.split() for line in printed.out.splitlines()]
  assert ["miniv", "2", "4", "4"] in rows
  assert "phrases: train 4 of 310,816; val 4 of 19,495" in printed.err
  stored = {fields["image_id"]: fields for fields in _records(tmp_path / "out", "val")}
  assert sorted(stored) == [2002, 2003]
  fields = stored[2003]
  assert fields["image"] == (layout.images / "2003.jpg").read_bytes()
  assert (fields["file_name"], fields["height"], fields["width"]) == ("2003.jpg", HEIGHT, WIDTH)
  for ref, task in zip(fields["refs"], layout.tasks["val"][2:], strict=True):
    expected = by_the_toolkit([shape for instance in task["Polygons"] for shape in instance])
    np.testing.assert_array_equal(records.decode_target(ref["target"]), expected)
    assert (ref["ann_ids"], ref["sentences"]) == (task["ann_ids"], [task["phrase"]])
  # The number of a task in its file.
  assert [ref["ref_id"] for ref in fields["refs"]] == [2, 3]
  assert [ref["normalised"] for ref in fields["refs"]] == [["two white cups"], ["cup on table"]]


def test_only_existing_splits_are_prepared(tmp_path):
  layout = make_layout(tmp_path)
  for split in ("train", "test"):
    (layout.folder / f"refer_{split}.json").unlink()
  prepare.main(layout.arguments(tmp_path / "out"))
  metadata = storage.read_metadata(str(tmp_path / "out"), "phrasecut") or {}
  assert set(metadata["counts"]) == {"val", "miniv"}


def test_the_toolkits_rule_and_not_cocos_makes_the_target(tmp_path):
  layout = make_layout(tmp_path)
  reader = phrasecut.PhraseCutReader(str(layout.root))
  photo = reader.annotated_image("train", 2000, str(layout.images))
  data, _ = annotated_images.read_image(photo.path, (HEIGHT, WIDTH))
  record = annotated_images.make_record(photo, data, records.no_instances(HEIGHT, WIDTH))
  # 10 x 10 and 12 x 12 pixels with their outlines, of which 4 x 4 are shared.
  assert int(record.refs[0].target[:22, :22].sum()) == 100 + 144 - 16


_CHANGES = {
  "nothing": lambda image: image,
  "in VG_100K_2": lambda image: _move(image, image.parent / "VG_100K_2" / image.name),
  "in capitals": lambda image: _move(image, image.with_suffix(".JPG")),
  "to the number of another": lambda image: _move(image, image.with_name("2999.jpg")),
  "turned": lambda image: Image.open(image).rotate(90, expand=True).save(image),
  "scaled": lambda image: Image.open(image).resize((2 * WIDTH, 2 * HEIGHT)).save(image),
}


def _move(image, to):
  to.parent.mkdir(exist_ok=True)
  image.rename(to)


@pytest.mark.parametrize("change", list(_CHANGES))
def test_an_image_is_found_as_it_is_or_not_at_all(tmp_path, change):
  layout = make_layout(tmp_path)
  before = (layout.images / "2003.jpg").read_bytes()
  _CHANGES[change](layout.images / "2003.jpg")
  image = phrasecut.PhraseCutReader(str(layout.root)).annotated_image(
    "val", 2003, str(layout.images)
  )
  make = annotated_images.RecordMaker("none")
  if change in ("to the number of another", "turned", "scaled"):
    with pytest.raises(InputError, match=r"2003\.jpg"):
      make({"images": [vars(image)]})
    return
  (fields,) = make({"images": [vars(image)]}).records
  assert fields["image"] == before
  for ref, task in zip(fields["refs"], layout.tasks["val"][2:], strict=True):
    expected = by_the_toolkit([shape for instance in task["Polygons"] for shape in instance])
    np.testing.assert_array_equal(records.decode_target(ref["target"]), expected)


def test_masks_that_are_looked_up_are_those_of_visual_genomes_ids(tmp_path):
  layout = make_layout(tmp_path)
  box = [float(value) for value in (2, 3, 12, 3, 12, 13, 2, 13)]
  rows = [
    {"image_id": n, "category_id": 9, "segmentation": [box], "score": 0.5}
    for n in range(2000, 2008)
  ]
  path = tmp_path / "detections.json"
  path.write_text(json.dumps(rows))
  prepare.main(layout.arguments(tmp_path / "out", "--instances", f"results:{path}"))
  assert all(len(fields["instance_score"]) == 1 for fields in _records(tmp_path / "out", "val"))
  path = tmp_path / "of_coco.json"
  path.write_text(json.dumps([row | {"image_id": row["image_id"] - 1500} for row in rows]))
  with pytest.raises(InputError, match=r"no masks for any of the 8 images"):
    prepare.main(layout.arguments(tmp_path / "other", "--instances", f"results:{path}"))


def test_masks_that_are_found_by_cocos_ids_are_refused(tmp_path):
  layout = make_layout(tmp_path)
  with pytest.raises(InputError, match=r"--instances coco:x\.json: .*Visual Genome's; use a"):
    prepare.main(layout.arguments(tmp_path / "out", "--instances", "coco:x.json"))


def test_felzenszwalbs_regions_need_no_ids(tmp_path):
  pytest.importorskip("skimage")
  layout = make_layout(tmp_path)
  prepare.main(layout.arguments(tmp_path / "out", "--instances", "felzenszwalb"))
  assert {fields["instances_from"] for fields in _records(tmp_path / "out", "test")} == {
    "felzenszwalb"
  }


def test_a_detector_has_seen_the_images_that_are_cocos(tmp_path):
  layout = make_layout(tmp_path)
  box = [float(value) for value in (2, 3, 12, 3, 12, 13, 2, 13)]
  path, seen = tmp_path / "detections.json", tmp_path / "seen.txt"
  path.write_text(
    json.dumps(
      [
        {"image_id": n, "category_id": 0, "segmentation": [box], "score": 0.5}
        for n in range(2000, 2008)
      ]
    )
  )
  seen.write_text("501\n2002\n")  # COCO's name of 2003; and a photo of COCO's that is not 2002 here
  for what, split, count in ((str(seen), "val", 1), (str(seen), "test", 0), ("coco", "test", 1)):
    prepare.main(
      layout.arguments(
        tmp_path / "out", "--instances", f"results:{path}", "--trained_on", what, "--overwrite"
      )
    )
    metadata = storage.read_metadata(str(tmp_path / "out"), "phrasecut") or {}
    finding = metadata["leakage"][split]
    assert finding["seen"] == count
    assert (finding["warning"] is not None) == bool(count)
  assert "COCO, which contains 1 of its 2 images" in finding["warning"]


def test_tfds_builds_it_from_its_manual_folder(tmp_path):
  layout = make_layout(tmp_path / "manual")
  layout.root.rename(tmp_path / "manual/refer")
  dataset = builder.ReferringSegmentation(config="phrasecut", data_dir=tmp_path / "data")
  config = tfds.download.DownloadConfig(manual_dir=tmp_path / "manual")
  dataset.download_and_prepare(download_config=config)
  metadata = storage.read_metadata(str(tmp_path / "data"), "phrasecut") or {}
  assert metadata["counts"]["test"] == {"records": 2, "refs": 4, "expressions": 4}
  assert metadata["instances"] == {"from": "none", "trained_on": "nothing"}


def _task(**fields):
  return lambda layout: layout.tasks["val"][1].update(fields)


def _image(**fields):
  return lambda layout: layout.image_data[2].update(fields)


def _repeat(layout):
  layout.tasks["val"].append(layout.tasks["val"][1])


_OUTSIDE = [[[[200, 200], [210, 200], [210, 210]]]]
_DAMAGES = {
  "no image": (_task(image_id=None), r"refer_val\.json, task number 1 \(2002__1\): image_id is N"),
  "no name": (_task(task_id=None), r"task number 1 \(None\): task_id is None"),
  "an unknown image": (_task(image_id=7), r"image_data_split\.json: image 7 is not in it \(1 of 9"),
  "no polygons": (_task(Polygons=[]), r"task number 1 .*: no Polygons; refer_input files"),
  "damaged polygons": (
    _task(Polygons=[[3]]),
    r"refer_val\.json: instance 0 of ref 1 has an invalid",
  ),
  "nothing inside": (_task(Polygons=_OUTSIDE), r"instance 0 of ref 1 covers no pixel"),
  "text for an id": (_task(ann_ids=["a"]), r"ann_ids is \['a'\], not a list of integers"),
  "an empty phrase": (_task(phrase=" "), r"task number 1 .*: the phrase is empty or not a string"),
  "a number for a phrase": (
    _task(phrase=3),
    r"task number 1 .*: the phrase is empty or not a string",
  ),
  "a task twice": (_repeat, r"task number 4 \(2002__1\): duplicate task"),
  "no tasks": (lambda layout: layout.tasks["val"].clear(), r"refer_val\.json: no tasks"),
  "no size": (_image(height=None), r"image 2002: height is None, not a number of pixels"),
  "text for COCO's id": (_image(coco_id="7"), r"image 2002: coco_id is '7'"),
  "another size": (_image(height=HEIGHT + 1), r"2002\.jpg is 64 x 48 pixels, but .* for 64 x 49"),
}


@pytest.mark.parametrize("damage", list(_DAMAGES))
def test_wrong_input_is_one_line_and_leaves_nothing(tmp_path, damage):
  layout = make_layout(tmp_path)
  change, message = _DAMAGES[damage]
  change(layout)
  layout.write()
  with pytest.raises(InputError, match=message) as caught:
    prepare.main(layout.arguments(tmp_path / "out"))
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["VGPhraseCut_v0", "image_data_split.json", "images"])
def test_what_is_missing_is_named(tmp_path, missing):
  layout = make_layout(tmp_path)
  (path,) = tmp_path.rglob(missing)
  path.rename(tmp_path / "elsewhere")
  with pytest.raises(InputError, match=r"docs/guides/datasets\.md"):
    prepare.main(layout.arguments(tmp_path / "out"))


def test_a_file_that_is_not_json_is_named(tmp_path):
  layout = make_layout(tmp_path)
  (layout.folder / "refer_val.json").write_text('[{"task_id": ')
  with pytest.raises(InputError, match=r"refer_val\.json: invalid or truncated JSON"):
    prepare.main(layout.arguments(tmp_path / "out"))


def test_it_has_no_annotations_of_cocos(tmp_path, capsys):
  layout = make_layout(tmp_path)
  with pytest.raises(SystemExit):
    prepare.main(layout.arguments(tmp_path / "out", "--annotations", "instances.json"))
  assert "--annotations cannot be used with --dataset phrasecut" in capsys.readouterr().err
