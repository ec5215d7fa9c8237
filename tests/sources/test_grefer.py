"""gRefCOCO: refs with several annotations, one or none, from files to records; errors."""

import json

import numpy as np
import pytest
import read_batches
import tensorflow_datasets as tfds
from pycocotools.coco import COCO
from refer_layout import HEIGHT, WIDTH, make_generalised

from input_pipeline import records, storage
from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from input_pipeline.proposals import command as instances_command
from input_pipeline.sources import annotated_images, refer
from input_pipeline.tf import builder, record_reader


def _record(reader, split, image_id, images):
  photo = reader.annotated_image(split, image_id, str(images))
  data, pixels = annotated_images.read_image(photo.path, (photo.height, photo.width))
  return annotated_images.make_record(photo, data, records.no_instances(*pixels.shape[:2]))


def test_several_annotations_are_united_and_none_is_an_empty_target(tmp_path):
  layout = make_generalised(tmp_path)
  reader = refer.RefReader("grefcoco_unc", str(layout.root))
  assert reader.splits == {"train": [100], "val": [101], "testA": [102], "testB": [103]}
  both, nothing, one = _record(reader, "val", 101, layout.images).refs
  assert (both.ann_ids, nothing.ann_ids, one.ann_ids) == ((1010, 1011), (), (1011,))
  # 10 x 10 and 12 x 12 pixels, of which 4 x 4 are shared; and 30 x 30 pixels apart from them.
  assert [int(ref.target.sum()) for ref in (both, nothing, one)] == [100 + 144 - 16 + 900, 0, 900]
  assert nothing.target.shape == (HEIGHT, WIDTH)
  assert nothing.sentences == ("the dog",)


def test_a_single_number_is_a_list_of_one(tmp_path):
  layout = make_generalised(tmp_path)
  layout.refs[0].update(ann_id=1000, category_id=47)
  layout.write()
  reader = refer.RefReader("grefcoco_unc", str(layout.root))
  assert reader.rows[0].ann_ids == (1000,)


def test_crowds_are_not_part_of_a_target(tmp_path):
  layout = make_generalised(tmp_path)
  layout.refs[0]["ann_id"] = [1001, 1002]
  layout.write()
  reader = refer.RefReader("grefcoco_unc", str(layout.root))
  ref = _record(reader, "train", 100, layout.images).refs[0]
  assert (ref.ann_ids, int(ref.target.sum())) == ((1001,), 900)
  (line,) = reader.warnings()
  assert "1 ref (ref 0) with crowds" in line


def test_a_ref_to_crowds_only_is_left_out_and_counted(tmp_path):
  layout = make_generalised(tmp_path)
  layout.refs[0]["ann_id"] = [1002]
  layout.write()
  reader = refer.RefReader("grefcoco_unc", str(layout.root))
  assert [ref.ref_id for ref in _record(reader, "train", 100, layout.images).refs] == [1, 2]
  assert reader.more_metadata()["left_out"] == {"refs to crowds only": [0]}
  (line,) = reader.warnings()
  assert "left out refs to crowds only: 1 (ref 0)" in line
  # By its path it is any data set: what a text names is its target.
  layout.refs_path.with_name("refs(unc).json").write_text(json.dumps(layout.refs))
  reader = refer.RefReader("any", str(layout.refs_path.parent), layout=refer.layout_of("unc"))
  ref = _record(reader, "train", 100, layout.images).refs[0]
  assert (ref.ann_ids, ref.target.all()) == ((1002,), True)


def test_annotations_that_cover_nothing_are_still_refused(tmp_path):
  layout = make_generalised(tmp_path)
  thin = [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]]
  for row in layout.instances["annotations"][:2]:
    row["segmentation"] = thin
  layout.write()
  reader = refer.RefReader("grefcoco_unc", str(layout.root))
  with pytest.raises(InputError, match=r"annotation 1000 of ref 0 covers no pixel"):
    _record(reader, "train", 100, layout.images)


def _set(**fields):
  return lambda layout: layout.refs[0].update(fields)


_DAMAGES = {
  "an unknown annotation": (
    _set(ann_id=[1000, 7]),
    r"ref 0: ann_id 7 is not in .*\(this concerns 1 of 12 refs",
  ),
  "one of another photo": (_set(ann_id=[1000, 1011]), r"image_id 100, but its annotation 1011 has"),
  "another category": (_set(category_id=[1, 2]), r"category_id 1, 2, but its annotation 1000 has"),
  "half a number": (_set(ann_id=[1000.5]), r"ann_id is 1000\.5, not an id"),
  "another's id": (_set(ann_id=["cup"]), r"ref 0: ann_id cup is not in"),
  "no list at all": (_set(ann_id=None), r"ann_id is None, not an id"),
  "an empty list": (_set(ann_id=[]), r"ann_id is \[\]; it must be .*\[-1\] for no target"),
  "none and one": (_set(ann_id=[-1, 1000]), r"ann_id is \[-1, 1000\]; it must be distinct"),
  "one twice": (_set(ann_id=[1000, 1000]), r"it must be distinct annotations"),
  "what denies itself": (_set(no_target=True), r"no_target is True, but ann_id is \[1000, 1001\]"),
  "another's split": (_set(split="test"), r"ref 0: split 'test', but grefcoco_unc has train"),
  "a ref twice": (lambda layout: layout.refs.append(layout.refs[1]), r"duplicate ref 1"),
}


@pytest.mark.parametrize("damage", list(_DAMAGES))
def test_a_ref_that_does_not_fit_is_named(tmp_path, damage):
  layout = make_generalised(tmp_path)
  change, message = _DAMAGES[damage]
  change(layout)
  layout.write()
  with pytest.raises(InputError, match=message) as caught:
    refer.RefReader("grefcoco_unc", str(layout.root))
  assert str(layout.refs_path) in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", r"invalid JSON"),
    (b'[{"ref_id": 0', r"invalid JSON"),
    (b"\x80\x02]q\x00.", r"not a list of refs"),  # an empty pickle under the name
    (b"[" * 100_000, r"nested deeper than 100"),
    (b"{}", r"not a list of refs"),
    (b'["ref"]', r"ref number 0: expected a dict, got str"),
  ],
)
def test_a_malformed_refs_file_is_one_line(tmp_path, content, message):
  layout = make_generalised(tmp_path)
  layout.refs_path.write_bytes(content)
  with pytest.raises(InputError, match=message) as caught:
    refer.RefReader("grefcoco_unc", str(layout.root))
  assert "grefs(unc).json" in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["grefcoco", "grefs(unc).json", "instances.json"])
def test_what_is_missing_is_named(tmp_path, missing):
  layout = make_generalised(tmp_path)
  (path,) = tmp_path.rglob(missing)
  path.rename(tmp_path / "elsewhere")
  with pytest.raises(InputError, match=r"docs/guides/datasets\.md"):
    refer.RefReader("grefcoco_unc", str(layout.root))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> str:
  folder = tmp_path_factory.mktemp("grefcoco")
  layout = make_generalised(folder)
  prepare.main(layout.arguments(folder / "data"))
  return str(folder / "data")


def test_records_keep_refs_without_a_target(prepared):
  counts = (storage.read_metadata(prepared, "grefcoco_unc") or {})["counts"]
  assert counts["testB"] == {"records": 1, "refs": 3, "expressions": 3}
  (fields,) = record_reader.read_records(record_reader.Split(prepared, "grefcoco_unc", "testB"))
  assert [ref["ann_ids"] for ref in fields["refs"]] == [[1030, 1031], [], [1031]]
  areas = [int(records.decode_target(ref["target"]).sum()) for ref in fields["refs"]]
  assert areas == [1128, 0, 900]


def test_an_image_without_targets_is_a_record(tmp_path):
  layout = make_generalised(tmp_path)
  layout.refs = [ref for ref in layout.refs if ref["ann_id"] == [-1] or ref["split"] != "val"]
  prepare.main(layout.write().arguments(tmp_path / "data"))
  (fields,) = record_reader.read_records(
    record_reader.Split(str(tmp_path / "data"), "grefcoco_unc", "val")
  )
  assert [ref["ann_ids"] for ref in fields["refs"]] == [[]]


def test_the_loader_gives_empty_targets(prepared):
  tokenizer = SentencePieceTokenizer.train(["both cups", "the dog", "bigger cup"], 300)
  shape = {"image_size": 32, "max_instances": 4, "max_tokens": 8}
  (batch,) = read_batches.evaluation(
    prepared, "grefcoco_unc", "val", tokenizer, batch_size=3, **shape
  )
  assert batch["original_target"].sum((1, 2)).tolist() == [1128, 0, 900]
  assert batch["target"].any((1, 2)).tolist() == [True, False, True]
  for cache in (False, True):
    batches = read_batches.train(
      prepared, "grefcoco_unc", tokenizer, batch_size=6, seed=0, cache=cache, **shape
    )
    # Two epochs of three refs.
    assert (~next(batches)["target"].any((1, 2))).sum() == 2


def test_the_report_leaves_out_refs_without_a_target(prepared, tmp_path, capsys):
  paths = [str(tmp_path / "report.json"), str(tmp_path / "report.html")]
  instances_command.main(["report", "--data_dir", prepared, "--json", paths[0], "--html", paths[1]])
  assert "grefcoco_unc/val" in capsys.readouterr().out
  figures = json.loads((tmp_path / "report.json").read_text())["splits"]["grefcoco_unc/val"]
  assert figures["refs_without_target"] == 1
  assert figures["all"]["refs"] == 2
  # One ref is an instance, the other two of them, of which the larger has 900 of 1128 pixels.
  assert figures["all"]["mIoU"] == pytest.approx((1 + 900 / 1128) / 2)


def test_tfds_builds_it_from_its_manual_folder(tmp_path):
  layout = make_generalised(tmp_path / "manual")
  dataset = builder.ReferringSegmentation(config="grefcoco_unc", data_dir=tmp_path / "data")
  config = tfds.download.DownloadConfig(manual_dir=layout.root.parent)
  dataset.download_and_prepare(download_config=config)
  metadata = storage.read_metadata(str(tmp_path / "data"), "grefcoco_unc") or {}
  assert metadata["counts"]["val"] == {"records": 1, "refs": 3, "expressions": 3}
  assert metadata["leakage"]["val"]["seen"] == 1


def test_real_refs_have_the_unions_that_pycocotools_gives(realdata):
  reader = refer.RefReader("grefcoco_unc", str(realdata / "refer"))
  counts = {split: reader.count(split) for split in reader.splits}
  assert {split: count.refs for split, count in counts.items()} == {"train": 404, "val": 105}
  assert reader.warnings() == []  # nobody has published what to compare with
  reference = COCO(str(realdata / "refer/grefcoco/instances.json"))
  empty = several = 0
  for split, image_ids in reader.splits.items():
    for image_id in image_ids[:25]:
      for ref in _record(reader, split, image_id, realdata / "coco/train2014").refs:
        masks = [reference.annToMask(row) for row in reference.loadAnns(ref.ann_ids)]
        expected = np.any(masks, axis=0) if masks else np.zeros_like(ref.target)
        np.testing.assert_array_equal(ref.target, expected)
        empty, several = empty + (not masks), several + (len(masks) > 1)
  assert empty >= 10
  assert several >= 30


@pytest.mark.slow
def test_real_data_is_prepared(realdata, tmp_path):
  annotations = realdata / "coco/annotations/instances_train2014.json"
  options = {"dataset": "grefcoco_unc", "refer_root": realdata / "refer"}
  options |= {"images": realdata / "coco/train2014", "instances": f"coco:{annotations}"}
  options |= {"data_dir": tmp_path}
  prepare.main([part for name, value in options.items() for part in (f"--{name}", str(value))])
  counts = (storage.read_metadata(str(tmp_path), "grefcoco_unc") or {})["counts"]
  assert (counts["train"]["refs"], counts["val"]["refs"]) == (404, 105)
  stored = record_reader.read_records(record_reader.Split(str(tmp_path), "grefcoco_unc", "val"))
  refs = [ref for fields in stored for ref in fields["refs"]]
  assert sum(not ref["ann_ids"] for ref in refs) == 18
  assert all(records.decode_target(ref["target"]).any() == bool(ref["ann_ids"]) for ref in refs)
