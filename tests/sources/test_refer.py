"""The RefCOCO family: targets, records, and errors."""

import copy
import os
import pathlib
import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from refer_layout import HEIGHT, WIDTH, make_layout, rectangle

from input_pipeline import records
from input_pipeline.common import untrusted_pickle
from input_pipeline.common.errors import InputError
from input_pipeline.masks.coco import CocoAnnotations
from input_pipeline.masks.segmentation import decode_segmentation
from input_pipeline.proposers import coco
from input_pipeline.proposers.registry import open_proposer
from input_pipeline.proposers.selection import Selection
from input_pipeline.sources import annotated_images, refer

rectangles = st.builds(
  lambda left, top, width, height: (left, top, left + width, top + height),
  *(st.integers(0, 20) for _ in range(2)),
  *(st.integers(1, 20) for _ in range(2)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(rectangles, min_size=1, max_size=4))
def test_overlapping_polygons_count_once(boxes):
  assume(set(boxes) != {(0, 0, 1, 1)})  # taken for shares of the sides
  union = np.zeros((HEIGHT, WIDTH), bool)
  for left, top, right, bottom in boxes:
    union[top:bottom, left:right] = True
  target = decode_segmentation([rectangle(*box) for box in boxes], HEIGHT, WIDTH)
  np.testing.assert_array_equal(target, union)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(2, 40), min_size=6, max_size=6), min_size=1, max_size=3))
def test_polygons_cover_what_pycocotools_says_of_each(triangles):
  each = coco_mask.decode(coco_mask.frPyObjects(triangles, HEIGHT, WIDTH))
  target = decode_segmentation(triangles, HEIGHT, WIDTH)
  np.testing.assert_array_equal(target, each.any(axis=2))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12))
def test_run_lengths_compressed_or_not_give_the_mask(seed, height, width):
  mask = np.random.default_rng(seed).random((height, width)) < 0.5
  counts, current = [0], False
  for pixel in mask.T.ravel().tolist():  # Columns first, beginning with a run of zeros.
    if pixel != current:
      counts.append(0)
      current = pixel
    counts[-1] += 1
  runs = {"counts": counts, "size": [height, width]}
  np.testing.assert_array_equal(decode_segmentation(runs, height, width), mask)
  compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  np.testing.assert_array_equal(decode_segmentation(compressed, height, width), mask)
  as_json = {**compressed, "counts": compressed["counts"].decode()}
  np.testing.assert_array_equal(decode_segmentation(as_json, height, width), mask)


@pytest.mark.parametrize(
  "segmentation",
  [
    [],
    [[1.0, 2.0, 3.0, 4.0]],
    [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]],
    {"counts": [4], "size": [2, 2]},
    {"counts": [5], "size": [HEIGHT, WIDTH]},
    "polygon",
    None,
  ],
)
def test_an_invalid_segmentation_names_its_annotation(tmp_path, segmentation):
  layout = make_layout(tmp_path)
  layout.instances["annotations"][0]["segmentation"] = segmentation
  layout.write()
  annotations = CocoAnnotations(str(layout.instances_path))
  with pytest.raises(InputError, match=r"instances\.json: annotation 1000 has (no|an invalid)"):
    annotations.mask(annotations.annotation(1000) or {})


@pytest.mark.parametrize("counts", ["", "0", "T1", b"T1"])
def test_run_lengths_that_do_not_cover_the_image_are_refused(counts):
  """Pycocotools would decode them and leave the other pixels uninitialised."""
  with pytest.raises(ValueError, match=r"cover \d+ of 3072 pixels"):
    decode_segmentation({"size": [HEIGHT, WIDTH], "counts": counts}, HEIGHT, WIDTH)


def _record(reader, split, image_id, layout):
  photo = reader.annotated_image(split, image_id, str(layout.images))
  data, pixels = annotated_images.read_image(photo.path, (photo.height, photo.width))
  return annotated_images.make_record(photo, data, records.no_instances(*pixels.shape[:2]))


def test_a_record_has_the_image_its_refs_of_the_split_and_raw_expressions(tmp_path):
  layout = make_layout(tmp_path)
  reader = refer.RefReader("refcoco_unc", str(layout.root))
  assert reader.splits == {"train": [100], "val": [101], "testA": [102], "testB": [103]}
  record = _record(reader, "train", 100, layout)
  assert record.image == layout.image_path(0).read_bytes()
  assert (record.file_name, record.height, record.width) == (
    "COCO_train2014_000000000100.jpg",
    HEIGHT,
    WIDTH,
  )
  assert [ref.sentences for ref in record.refs] == [("The LEFT one ", "cup"), ("bigger cup",)]
  assert [ref.ann_ids for ref in record.refs] == [(1000,), (1001,)]
  # 10 x 10 and 12 x 12 pixels, of which 4 x 4 are shared.
  assert [int(ref.target.sum()) for ref in record.refs] == [100 + 144 - 16, 900]


def test_an_image_in_two_splits_is_a_record_in_each(tmp_path):
  layout = make_layout(tmp_path, "refcocog_google")
  layout.refs[1]["split"] = "val"
  layout.write()
  reader = refer.RefReader("refcocog_google", str(layout.root))
  assert reader.splits == {"train": [100], "val": [100, 101]}
  for split, ref_id in (("train", 0), ("val", 1)):
    record = _record(reader, split, 100, layout)
    assert [ref.ref_id for ref in record.refs] == [ref_id]


def _set(**fields):
  return lambda layout: layout.refs[0].update(fields)


def _sentence(**fields):
  return lambda layout: layout.refs[0]["sentences"][1].update(fields)


def _annotation(**fields):
  return lambda layout: layout.instances["annotations"][0].update(fields)


def _duplicate(layout):
  layout.refs.append(copy.deepcopy(layout.refs[0]))


def _drop_image(layout):
  del layout.instances["images"][0]


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (
      _set(ann_id=7),
      r"ref 0: ann_id 7 is not in .*instances\.json \(this concerns 1 of 8 refs.*--annotations",
    ),
    (_set(ann_id=[1000, 1001]), r"ref 0: ann_id is \[1000, 1001\].*gRefCOCO"),
    (_set(ann_id=1010), r"ref 0: image_id 100, but its annotation 1010 has 101"),
    (_set(category_id=1), r"ref 0: category_id 1, but its annotation 1000 has 47"),
    (_set(split="test"), r"ref 0: split 'test', but refcoco_unc has train, val, testA, testB"),
    (_set(split=["val"]), r"ref 0: split \['val'\], but refcoco_unc has"),
    (_set(ref_id=2**63), r"ref number 0: ref_id is 9223372036854775808, not"),
    (_set(category_id=[[47] * 99] * 99), r"ref 0: category_id is \[\[47, 47,.{,300}$"),
    (_set(sentences="cup"), r"ref 0: sentences is 'cup', not a list"),
    (_set(image_id="one"), r"ref 0: image_id is 'one', not an integer"),
    (_set(sentences=["cup"]), r"ref 0, sentence 0: expected a dict, got str"),
    (_sentence(raw=3), r"ref 0, sentence 1 \(sent_id 1\): 3 is not a string"),
    (_annotation(category_id=2), r"ref 0: category_id 47, but its annotation 1000 has 2"),
    (_duplicate, r"duplicate ref 0"),
    (_drop_image, r"ref 0: image 100 is not in .*instances\.json"),
    (lambda layout: layout.refs.insert(0, "ref"), r"ref number 0: expected a dict, got str"),
    (lambda layout: layout.refs.clear(), r"refs\(unc\)\.p: not a list of refs"),
  ],
)
def test_refs_that_do_not_fit_are_named(tmp_path, damage, message):
  layout = make_layout(tmp_path)
  damage(layout)
  layout.write()
  with pytest.raises(InputError, match=message) as caught:
    refer.RefReader("refcoco_unc", str(layout.root))
  assert str(layout.refs_path) in str(caught.value)


@pytest.mark.parametrize("missing", ["refer", "refcoco", "refs(unc).p", "instances.json"])
def test_missing_folders_and_files_are_named(tmp_path, missing):
  layout = make_layout(tmp_path)
  (found,) = [path for path in (tmp_path).rglob(missing) if "train2014" not in path.parts]
  found.rename(tmp_path / "elsewhere")
  with pytest.raises(InputError, match=r"docs/guides/datasets\.md") as caught:
    refer.RefReader("refcoco_unc", str(layout.root))
  assert str(layout.root) in str(caught.value)


def test_complete_refs_of_another_data_set_are_recognised(tmp_path, monkeypatch):
  layout = make_layout(tmp_path, "refcoco+_unc")
  tiny = dict.fromkeys(("train", "val", "testA", "testB"), refer.Published(2, 3))
  plus = refer.LAYOUTS["refcoco+_unc"]
  monkeypatch.setitem(
    refer.LAYOUTS, "refcoco+_unc", refer.Layout(plus.folder, plus.refs_file, tiny)
  )
  assert refer.RefReader("refcoco+_unc", str(layout.root)).warnings() == []
  (layout.root / "refcoco+").rename(layout.root / "refcoco")
  with pytest.raises(InputError, match=r"the refs of refcoco\+_unc, not of refcoco_unc"):
    refer.RefReader("refcoco_unc", str(layout.root))


def test_incomplete_data_is_one_plain_warning(tmp_path):
  layout = make_layout(tmp_path)
  (warning,) = refer.RefReader("refcoco_unc", str(layout.root)).warnings()
  assert "\n" not in warning
  assert "testA 2 / 3 of 1,975 / 5,657" in warning


def test_published_counts_are_those_of_the_papers():
  published = {
    name: [(split.refs, split.expressions) for split in (layout.splits or {}).values() if split]
    for name, layout in refer.LAYOUTS.items()
  }
  assert published["grefcoco_unc"] == []
  assert published["refcoco_unc"][0] == (42404, 120624)
  assert sum(expressions for _, expressions in published["refcoco_unc"]) == 142_210
  assert sum(expressions for _, expressions in published["refcoco+_unc"]) == 141_564
  # Both splits of RefCOCOg have the same refs and expressions.
  for index, total in enumerate((49_822, 95_010)):
    assert sum(split[index] for split in published["refcocog_umd"]) == total
    assert sum(split[index] for split in published["refcocog_google"]) == total


class _Malicious:
  def __init__(self, marker: pathlib.Path):
    self.marker = marker

  def __reduce__(self):
    return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_runs_nothing(tmp_path, protocol):
  marker, path = tmp_path / "marker", tmp_path / "refs(unc).p"
  path.write_bytes(pickle.dumps([{"ref_id": _Malicious(marker)}], protocol))
  with pytest.raises(InputError, match=r"nothing in it was executed"):
    untrusted_pickle.load(str(path))
  assert not marker.exists()
  pickle.loads(path.read_bytes())  # It would have.
  assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"refs", b"\x80\x02", b"\xff" * 50, b"cposix\nsystem\n."])
def test_an_invalid_pickle_is_an_input_error(tmp_path, content):
  path = tmp_path / "refs(unc).p"
  path.write_bytes(content)
  with pytest.raises(InputError, match=r"not a pickle of plain lists"):
    untrusted_pickle.load(str(path))


@pytest.mark.parametrize("stored", ["café".encode(), "café".encode("latin-1")])
def test_byte_strings_of_python_2_become_text(tmp_path, stored):
  path = tmp_path / "refs(unc).p"
  path.write_bytes(b"\x80\x02]U" + bytes([len(stored)]) + stored + b"a.")
  assert untrusted_pickle.load(str(path)) == ["café"]


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-200])


def _not_an_image(path):
  path.write_bytes(b"<html>Not Found</html>")


def _resize(path):
  Image.new("RGB", (WIDTH, HEIGHT + 1)).save(path)


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (pathlib.Path.unlink, r"No such file.*--images"),
    (_truncate, r"cannot be decoded"),
    (_not_an_image, r"not an image in a known format"),
    (_resize, r"64 x 49 pixels, but its annotations are for 64 x 48"),
  ],
)
def test_an_invalid_image_is_named(tmp_path, damage, message):
  layout = make_layout(tmp_path)
  reader = refer.RefReader("refcoco_unc", str(layout.root))
  damage(layout.image_path(1))
  with pytest.raises(InputError, match=message) as caught:
    _record(reader, "val", 101, layout)
  assert "COCO_train2014_000000000101.jpg" in str(caught.value)


def test_coco_proposals_are_largest_first_without_crowds(tmp_path):
  layout = make_layout(tmp_path)
  photo = [np.zeros((HEIGHT, WIDTH, 3), np.uint8)]
  (proposals,) = open_proposer(f"coco:{layout.instances_path}").propose(photo, [100])
  assert proposals.masks.sum(axis=(1, 2)).tolist() == [900, 100 + 144 - 16]
  assert proposals.categories.tolist() == [47, 47]
  assert proposals.scores.tolist() == [1.0, 1.0]
  one = Selection(max_instances=1)
  (clipped,) = open_proposer(f"coco:{layout.instances_path}", one).propose(photo, [100])
  np.testing.assert_array_equal(clipped.masks, proposals.masks[:1])


def test_coco_proposals_find_an_image_by_its_name(tmp_path):
  proposer = coco.CocoProposer(str(make_layout(tmp_path).instances_path))
  assert proposer.find_image("some/folder/COCO_train2014_000000000102.jpg") == 102
  with pytest.raises(InputError, match=r"no image named holiday\.jpg"):
    proposer.find_image("holiday.jpg")


def test_coco_proposals_refuse_an_image_of_another_size(tmp_path):
  proposer = coco.CocoProposer(str(make_layout(tmp_path).instances_path))
  with pytest.raises(InputError, match=r"image 100 is 64 x 48, but its file is 48 x 64"):
    proposer.propose([np.zeros((WIDTH, HEIGHT, 3), np.uint8)], [100])


@pytest.mark.parametrize("spec", ["cocoa:x", "", "detectron"])
def test_an_unknown_proposer_lists_the_known_ones(spec):
  with pytest.raises(InputError, match=r"use one of coco, .*, none"):
    open_proposer(spec)


def test_none_proposes_nothing():
  (proposals,) = open_proposer("none").propose([np.zeros((4, 5, 3), np.uint8)], [1])
  np.testing.assert_array_equal(proposals.masks, np.zeros((0, 4, 5), bool))
  assert proposals.source == records.no_instances(4, 5).source == "none"


@pytest.mark.parametrize("dataset", [name for name in refer.LAYOUTS if name[0] == "r"])
def test_real_refs_have_the_masks_that_pycocotools_gives(dataset, realdata):
  annotations = str(realdata / "coco/annotations/instances_train2014.json")
  # The official zips hold an instances.json for both splits of RefCOCOg; this excerpt does not.
  given = annotations if dataset == "refcocog_google" else None
  reader = refer.RefReader(dataset, str(realdata / "refer"), given)
  reference = COCO(annotations)
  proposer = coco.CocoProposer(annotations)
  for split, image_ids in reader.splits.items():
    for image_id in image_ids[:12]:
      photo = reader.annotated_image(split, image_id, str(realdata / "coco/train2014"))
      data, pixels = annotated_images.read_image(photo.path, (photo.height, photo.width))
      record = annotated_images.make_record(photo, data, proposer.propose([pixels], [image_id])[0])
      for ref in record.refs:
        expected = reference.annToMask(reference.loadAnns(ref.ann_ids)[0]).astype(bool)
        np.testing.assert_array_equal(ref.target, expected)
        same = (record.instances.masks == expected).all(axis=(1, 2))
        assert same.any()
