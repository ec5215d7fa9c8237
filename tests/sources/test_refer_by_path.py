"""Data sets in the refer layout by their path: RRSIS-D, RefClef, Ref-ZOM, R-RefCOCO and others."""

import json
import pathlib
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from refer_layout import HEIGHT, WIDTH, make_layout

from input_pipeline import records, storage
from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare
from input_pipeline.sources import annotated_images, readers, refer
from input_pipeline.tf import record_reader
from mail_jax.evaluate import dataset_metrics


def block(left: int, top: int, width: int = 6, height: int = 5) -> np.ndarray:
  mask = np.zeros((HEIGHT, WIDTH), bool)
  mask[top : top + height, left : left + width] = True
  return mask


def run_lengths(mask: np.ndarray) -> dict:
  runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return runs | {"counts": runs["counts"].decode()}


def photo(path: pathlib.Path, seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  Image.fromarray(pixels).save(path)


def make(
  folder: pathlib.Path, names: list[str], objects: dict, refs: list[dict], split_by: str = "unc"
) -> pathlib.Path:
  """Writes a data set.

  Args:
    folder: gets `data/` and `photos/`.
    names: of the images, whose ids count from 1.
    objects: id of an annotation -> id of its image, and its segmentation.
    refs: with a text in `text`.
    split_by: in the name of the file.
  """
  data = folder / "data"
  data.mkdir(parents=True, exist_ok=True)
  images = [
    {"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH}
    for i, name in enumerate(names, 1)
  ]
  annotations = [
    {"id": i, "image_id": image_id, "category_id": 1, "segmentation": segmentation}
    for i, (image_id, segmentation) in objects.items()
  ]
  content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
  (data / "instances.json").write_text(json.dumps(content))
  rows = []
  for i, fields in enumerate(refs):
    texts = fields.pop("texts", ["the red one"])
    sentences = [{"raw": text, "sent": text, "sent_id": 10 * i + n} for n, text in enumerate(texts)]
    for sentence, exist in zip(sentences, fields.pop("exist", ()), strict=False):
      sentence["exist"] = exist
    rows.append({"ref_id": i, "sentences": sentences, "split": "train"} | fields)
  (data / f"refs({split_by}).p").write_bytes(pickle.dumps(rows, 2))
  for i, name in enumerate(names):
    photo(folder / "photos" / pathlib.PureWindowsPath(name).name, i)
  return data


def open_data(data: pathlib.Path, split_by: str = "unc") -> refer.RefReader:
  reader = readers.open_reader(f"refer:{data}:{split_by}", "", name="mine")
  assert isinstance(reader, refer.RefReader)
  return reader


def targets(reader: refer.RefReader, split: str, image_id: int, images: pathlib.Path, **options):
  """Returns ref id -> its target and ids of its annotations, as records store them."""
  task = {"images": [vars(reader.annotated_image(split, image_id, str(images)))]}
  (fields,) = annotated_images.RecordMaker("none", **options)(task).records
  return {
    ref["ref_id"]: (records.decode_target(ref["target"]), list(ref["ann_ids"]))
    for ref in fields["refs"]
  }


def test_rrsisd_has_lists_of_run_lengths_and_photos_of_its_own(tmp_path):
  parts = [block(2, 3), block(5, 6), block(30, 20)]
  objects = {0: (1, [run_lengths(part) for part in parts]), 1: (2, [run_lengths(block(1, 1))])}
  refs = [{"image_id": 1, "ann_id": 0}, {"image_id": 2, "ann_id": 1, "split": "test"}]
  data = make(tmp_path, ["00011.jpg", "00012.jpg"], objects, refs)
  reader = open_data(data)
  assert reader.splits == {"test": [2], "train": [1]}
  assert reader.coco_ids() == {"test": {}, "train": {}}
  assert reader.warnings() == []
  (target, ann_ids) = targets(reader, "train", 1, tmp_path / "photos")[0]
  np.testing.assert_array_equal(target, np.logical_or.reduce(parts))
  assert ann_ids == [0]


def test_a_photo_of_another_size_is_an_error_or_left_out(tmp_path):
  """Some photos of RRSIS-D have 800 x 801 pixels and annotations for 800 x 800."""
  objects = {i: (i, [run_lengths(block(i, 1))]) for i in (1, 2)}
  data = make(tmp_path, ["a.png", "b.png"], objects, [{"image_id": i, "ann_id": i} for i in (1, 2)])
  photo(tmp_path / "photos/b.png", 1, (HEIGHT + 1, WIDTH))
  images = [open_data(data).annotated_image("train", i, str(tmp_path / "photos")) for i in (1, 2)]
  task = {"images": [vars(image) for image in images]}
  with pytest.raises(InputError, match=r"b\.png is 64 x 49 pixels, but .* 64 x 48; .*--on_error"):
    annotated_images.RecordMaker("none")(task)
  result = annotated_images.RecordMaker("none", skip=True)(task)
  assert [fields["image_id"] for fields in result.records] == [1]
  assert [row.image_id for row in result.skipped] == [2]


def test_refclef_has_text_ids_and_splits_of_its_own(tmp_path):
  masks = {"8756_1": block(3, 4), "8756_2": block(20, 9)}
  objects = {name: (1, [run_lengths(mask)]) for name, mask in masks.items()}
  refs = [
    {"image_id": 1, "ann_id": name, "split": split, "category_id": 1}
    for name, split in zip(masks, ("testAB", "testC"), strict=True)
  ]
  data = make(tmp_path, ["8756.jpg"], objects, refs, "berkeley")
  reader = open_data(data, "berkeley")
  assert reader.splits == {"testAB": [1], "testC": [1]}
  ids = []
  for ref_id, (name, split) in enumerate(zip(masks, reader.splits, strict=True)):
    target, ann_ids = targets(reader, split, 1, tmp_path / "photos")[ref_id]
    np.testing.assert_array_equal(target, masks[name])
    ids += ann_ids
  assert len(set(ids)) == 2 and all(0 <= i < 2**63 for i in ids)
  assert reader.coco_ids() == {"testAB": {}, "testC": {}}


def _ref_zom(tmp_path) -> tuple[pathlib.Path, dict[int, np.ndarray]]:
  names = ["COCO_train2014_000000000030.jpg", "COCO_val2014_000000000031.jpg"]
  objects = {i: (1, [run_lengths(block(10 * i, 4))]) for i in range(3)}
  refs = [
    {"image_id": 1, "ann_id": [0, 2], "source": "many", "split": "test"},
    {"image_id": 1, "ann_id": [1], "source": "zero", "split": "test"},
    {"image_id": 1, "ann_id": 1, "source": "one", "split": "test"},
    {"image_id": 2, "ann_id": [0], "source": "zero", "split": "test"},
  ]
  nothing = np.zeros((HEIGHT, WIDTH), bool)
  return make(tmp_path, names, objects, refs, "final"), {
    0: block(0, 4) | block(20, 4), 1: nothing, 2: block(10, 4), 3: nothing,
  }  # fmt: skip


def test_ref_zom_has_several_targets_and_none_whatever_it_names(tmp_path):
  data, expected = _ref_zom(tmp_path)
  reader = open_data(data, "final")
  actual = {
    i: row
    for image in (1, 2)
    for i, row in targets(reader, "test", image, tmp_path / "photos").items()
  }
  assert {i: ids for i, (_, ids) in actual.items()} == {0: [0, 2], 1: [], 2: [1], 3: []}
  for ref_id, (target, _) in actual.items():
    np.testing.assert_array_equal(target, expected[ref_id])
  assert reader.coco_ids() == {"test": {1: 30, 2: 31}}
  assert reader.more_metadata() == {"no_targets": {"test": 2}}


def test_prepare_gives_it_a_name_and_says_what_it_left_out(tmp_path, capsys):
  data, _ = _ref_zom(tmp_path)
  rows = pickle.loads((data / "refs(final).p").read_bytes())
  rows[2]["sentences"].append({"raw": " ", "sent": ""})
  rows.append(rows[3] | {"ref_id": 9, "sentences": []})
  (data / "refs(final).p").write_bytes(pickle.dumps(rows, 5))
  data = data.rename(tmp_path / "ref-zom")
  elsewhere = tmp_path / "elsewhere.jpg"
  (tmp_path / "photos/COCO_train2014_000000000030.jpg").rename(elsewhere)
  (tmp_path / "photos/000000000030.jpg").symlink_to(elsewhere)
  options = ["--images", str(tmp_path / "photos"), "--instances", "none"]
  prepare.main(["--dataset", f"refer:{data}:final", *options, "--data_dir", str(tmp_path / "out")])
  printed = capsys.readouterr()
  assert "left out refs without sentences: 1 (ref 9)" in printed.err
  assert "left out empty sentences: 1 (ref 2)" in printed.err
  assert "1 image is outside the folder" in printed.err
  assert f"000000000030.jpg -> {elsewhere}" in printed.err
  assert "is not the complete published" not in printed.err
  metadata = storage.read_metadata(str(tmp_path / "out"), "ref_zom_final") or {}
  assert metadata["counts"] == {"test": {"records": 2, "refs": 4, "expressions": 4}}
  assert metadata["left_out"] == {"refs without sentences": [9], "empty sentences": [2]}
  assert metadata["no_targets"] == {"test": 2}
  assert metadata["instances"]["trained_on"] == "nothing"
  stored = record_reader.read_records(
    record_reader.Split(str(tmp_path / "out"), "ref_zom_final", "test")
  )
  assert [len(fields["refs"]) for fields in stored] == [3, 1]


def test_r_refcoco_has_sentences_without_a_target(tmp_path):
  refs = [
    {"image_id": 1, "ann_id": 5, "texts": ["cup", "blue cup", "mug"], "exist": [True, False, True]},
    {"image_id": 1, "ann_id": 6, "texts": ["the dog"], "exist": [False]},
  ]
  objects = {5: (1, [run_lengths(block(8, 8))]), 6: (1, [run_lengths(block(30, 8))])}
  data = make(tmp_path, ["COCO_train2014_000000000030.jpg"], objects, refs)
  reader = open_data(data)
  assert [(row.ref_id, row.sentences) for row in reader.rows] == [
    (-1, ("blue cup",)),
    (0, ("cup", "mug")),
    (1, ("the dog",)),
  ]
  (line,) = reader.warnings()
  assert (
    "1 ref (ref 0) with sentences both with and without a target" in line and "-1 - ref_id" in line
  )
  actual = targets(reader, "train", 1, tmp_path / "photos")
  assert {i: int(target.sum()) for i, (target, _) in actual.items()} == {-1: 0, 0: 30, 1: 0}


def test_expressions_without_a_target_are_judged_by_grefcocos_metrics_in_any_data_set():
  rows = {key: np.array(values) for key, values in {
    "intersection": [20, 0], "union": [40, 0], "area": [30, 0],
  }.items()}  # fmt: skip
  metrics = dataset_metrics.summarise("ref_zom_final", rows)
  assert metrics["gIoU"] == pytest.approx((0.5 + 1) / 2)
  assert metrics["N-acc"] == metrics["T-acc"] == 1
  with_targets = {key: values[:1] for key, values in rows.items()}
  assert dataset_metrics.summarise("ref_zom_final", with_targets) == {}


def _two_objects(tmp_path, **fields) -> pathlib.Path:
  objects = {5: (1, [run_lengths(block(8, 8))]), 6: (1, [run_lengths(block(30, 8))])}
  refs = [{"image_id": 1, "ann_id": i, "category_id": 1} | fields for i in (5, 6)]
  return make(tmp_path, ["COCO_train2014_000000000030.jpg"], objects, refs)


def test_another_category_than_the_annotations_is_said(tmp_path):
  reader = open_data(_two_objects(tmp_path, category_id=4))
  (line,) = reader.warnings()
  assert "2 refs (ref 0, 1) with a category_id other than" in line
  # What is no number says nothing.
  assert open_data(_two_objects(tmp_path, category_id="ship")).warnings() == []


def test_an_annotation_of_another_image_is_an_error(tmp_path):
  data = _two_objects(tmp_path, image_id=1)
  content = json.loads((data / "instances.json").read_text())
  content["images"].append(content["images"][0] | {"id": 2, "file_name": "b.jpg"})
  content["annotations"][1]["image_id"] = 2
  (data / "instances.json").write_text(json.dumps(content))
  with pytest.raises(InputError, match=r"ref 1: image_id 1, but its annotation 6 has 2"):
    open_data(data)


def test_one_ref_with_an_invalid_target_goes_and_the_others_stay(tmp_path):
  data = _two_objects(tmp_path)
  content = json.loads((data / "instances.json").read_text())
  content["annotations"][0]["segmentation"] = [[1.0, 2.0, 30.0, 4.0]]
  (data / "instances.json").write_text(json.dumps(content))
  image = open_data(data).annotated_image("train", 1, str(tmp_path / "photos"))
  with pytest.raises(InputError, match=r"annotation 5 of ref 0 has no mask"):
    annotated_images.RecordMaker("none")({"images": [vars(image)]})
  result = annotated_images.RecordMaker("none", skip=True)({"images": [vars(image)]})
  assert [ref["ref_id"] for ref in result.records[0]["refs"]] == [1]
  assert [note for note in result.notes if "ref left out: " in note and "ref 0" in note]
  # Without the other there is nothing to keep the image for.
  image.refs.pop()
  result = annotated_images.RecordMaker("none", skip=True)({"images": [vars(image)]})
  assert (result.records, [row.image_id for row in result.skipped]) == ([], [1])


def test_masks_of_another_data_set_with_the_same_ids_are_refused(tmp_path):
  data = _two_objects(tmp_path)
  other = _two_objects(tmp_path / "other")
  content = json.loads((other / "instances.json").read_text())
  content["images"][0]["file_name"] = "COCO_train2014_000000000031.jpg"
  (other / "instances.json").write_text(json.dumps(content))
  options = ["--images", str(tmp_path / "photos"), "--data_dir", str(tmp_path / "out")]
  with pytest.raises(InputError, match=r"000000000031\.jpg there, but .*000000000030\.jpg here"):
    prepare.main(
      ["--dataset", f"refer:{data}:unc", *options, "--instances", f"coco:{other}/instances.json"]
    )
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["refcoco"], r"'refcoco' is not one of .*; did you mean refcoco_unc\?"),
    (["refcocog"], r"did you mean refcocog_umd or refcocog_google\?"),
    (["rrsisd_unc", "--refer_root", "R"], r"give other data sets by path: .*refer:R/rrsisd:unc"),
    (["refcoco_google"], r"--dataset refer:FOLDER/refcoco:google"),
    (["refer:D:unc", "--refer_root", "R"], r"--refer_root cannot be used with --dataset refer:D"),
    (["refcoco_unc", "--name", "x"], r"--name cannot be used with --dataset refcoco_unc"),
  ],
)
def test_names_that_mean_nothing_are_told_what_does(capsys, arguments, message):
  with pytest.raises(SystemExit):
    prepare.main(["--dataset", *arguments, "--data_dir", "out"])
  assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_paths_that_mean_nothing_are_told_what_is_there(tmp_path):
  data = _two_objects(tmp_path)
  options = ["--images", str(tmp_path / "photos"), "--instances", "none", "--data_dir", "out"]
  for dataset, message in (
    (f"refer:{data}", r"expected refer:FOLDER:SPLITBY .*found refs\(unc\)\.p"),
    (f"refer:{data}:google", r"refs\(google\)\.p: no such file \(found refs\(unc\)\.p\)"),
    (f"refer:{tmp_path / 'none'}:unc", r"none: no such folder"),
    (f"refer:{tmp_path / 'refcoco'}:unc", r"refcoco_unc is the name of a known data set"),
  ):
    with pytest.raises(InputError, match=message):
      prepare.main(["--dataset", dataset, *options])


@pytest.mark.parametrize(
  ("dataset", "name"),
  [
    ("refer:refer/rrsisd:unc", "rrsisd_unc"),
    ("refer:/data/ref-zom/:final", "ref_zom_final"),
    ("refer:C:\\data\\refclef:berkeley", None),
  ],
)
def test_the_default_name_is_the_folders_and_the_splits(dataset, name):
  folder, split_by = refer.parse_path(dataset)
  assert dataset == f"refer:{folder}:{split_by}"
  assert name is None or refer.default_name(dataset) == name


def test_two_files_of_refs_are_said(tmp_path):
  data = _two_objects(tmp_path)
  (data / "refs(unc).json").write_text("[]")
  (line,) = open_data(data).warnings()
  assert "refs(unc).json not read, since " in line and "refs(unc).p exists as well" in line


def test_evaluate_knows_what_refcoco_is_called_here(tmp_path):
  error = storage.not_prepared(str(tmp_path), "refcoco")
  assert str(error).endswith("; did you mean refcoco_unc?")


_NAME = "COCO_train2014_000000000100.jpg"
RENAMED = {
  "as in 2017": lambda folder: (folder / _NAME).rename(folder / "000000000100.jpg"),
  "in capitals": lambda folder: (folder / _NAME).rename(folder / _NAME.upper()),
  "in a folder": lambda folder: (
    (folder / "train2014").mkdir() or (folder / _NAME).rename(folder / "train2014" / _NAME)
  ),
  "to another photo's name": lambda folder: (folder / _NAME).rename(folder / "holiday.jpg"),
  "to another number": lambda folder: (folder / _NAME).rename(folder / "000000000999.jpg"),
  "turned": lambda folder: _save(folder, lambda image: image.rotate(90, expand=True)),
  "scaled": lambda folder: _save(folder, lambda image: image.resize((2 * WIDTH, 2 * HEIGHT))),
}


def _save(folder: pathlib.Path, change) -> None:
  changed = change(Image.open(folder / _NAME))
  changed.save(folder / _NAME)


@settings(max_examples=25, deadline=None)
@given(
  st.sampled_from([None, *RENAMED]),
  st.sampled_from([None, "ann ids", "image ids", "segmentations"]),
  st.sampled_from(["refcoco_unc", "path"]),
)
def test_whatever_is_renamed_turned_or_swapped_no_other_mask_comes(
  tmp_path_factory, renamed, swapped, how
):
  layout = make_layout(tmp_path_factory.mktemp("layout"))
  expected = {0: [(2, 3, 12, 13), (8, 9, 20, 21)], 1: [(30, 10, 60, 40)]}
  first, second = layout.instances["annotations"][0], layout.instances["annotations"][3]
  if swapped == "ann ids":  # of an object in each of two images
    first["id"], second["id"] = second["id"], first["id"]
  elif swapped == "image ids":
    first["image_id"], second["image_id"] = second["image_id"], first["image_id"]
  elif swapped == "segmentations":  # which nothing can tell: both are objects of their images
    other = layout.instances["annotations"][1]
    first["segmentation"], other["segmentation"] = other["segmentation"], first["segmentation"]
    expected = {0: expected[1], 1: expected[0]}
  layout.write()
  if renamed:
    RENAMED[renamed](layout.images)
  bad = swapped in ("ann ids", "image ids") or renamed in (
    "to another photo's name", "to another number", "turned", "scaled",
  )  # fmt: skip
  try:
    if how == "path":
      reader = open_data(layout.root / "refcoco")
    else:
      reader = refer.RefReader(how, str(layout.root))
    actual = targets(reader, "train", 100, layout.images)
  except InputError as error:
    assert bad, error
    return
  assert not bad
  for ref_id, boxes in expected.items():
    union = np.zeros((HEIGHT, WIDTH), bool)
    for left, top, right, bottom in boxes:
      union[top:bottom, left:right] = True
    np.testing.assert_array_equal(actual[ref_id][0], union)
