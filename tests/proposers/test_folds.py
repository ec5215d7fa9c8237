"""Masks of a detector that is cross-fitted on train: each photo gets those of one without it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refer_layout import HEIGHT, WIDTH, make_layout, rectangle

from input_pipeline import records, storage
from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare
from input_pipeline.proposals import command as proposals
from input_pipeline.proposers import folds
from input_pipeline.tf import record_reader

PHOTOS = (100, 101, 102, 103)


@pytest.fixture
def layout(tmp_path):
  """Three photos of train, one of testB; each detector finds a rectangle of its own height."""
  layout = make_layout(tmp_path)
  for ref in layout.refs:
    ref["split"] = "testB" if ref["image_id"] == 103 else "train"
  layout.write()
  for height, name in enumerate(("1", "2", "all"), 5):
    row = {"category_id": 47, "segmentation": [rectangle(2, 3, 12, 3 + height)], "score": 0.5}
    rows = [row | {"image_id": i} for i in PHOTOS]
    (layout.root / f"found_{name}.json").write_text(json.dumps(rows))
    seen = [i for i in (100, 101, 102) if name == "all" or 1 + i % 2 != int(name)]
    (layout.root / f"seen_{name}.json").write_text(json.dumps(seen))
  return layout


def run(layout, *more, instances="found_{fold}.json"):
  prepare.main(
    [*layout.arguments(layout.root / "data"), "--instances", f"results:{layout.root}/{instances}"]
    + [str(word) for word in more]
  )


def heights(layout, split):
  """Returns the height of the mask of each photo."""
  read = record_reader.read_records(
    record_reader.Split(str(layout.root / "data"), "refcoco_unc", split)
  )
  found = {}
  for fields in read:
    record = records.decode_record(fields)
    assert record.instances.masks.shape == (1, HEIGHT, WIDTH)
    found[record.image_id] = int(record.instances.masks[0].any(1).sum())
  return found


def test_a_photo_of_train_gets_the_masks_of_its_fold_and_others_those_of_all(layout):
  run(layout, "--folds", 2, "--trained_on", f"{layout.root}/seen_{{fold}}.json")
  assert heights(layout, "train") == {100: 5, 101: 6, 102: 5}
  assert heights(layout, "testB") == {103: 7}
  metadata = storage.read_metadata(str(layout.root / "data"), "refcoco_unc") or {}
  assert metadata["instances"]["folds"] == 2
  assert metadata["instances"]["trained_on"].startswith("seen_all.json, 3 images")
  assert metadata["leakage"]["train"] == {"images": 3, "seen": 0, "warning": None}
  assert metadata["leakage"]["testB"] == {"images": 1, "seen": 0, "warning": None}
  assert metadata["arguments"]["folds"] == 2
  assert metadata["arguments"]["instances"].count("sha256") == 3
  for record in record_reader.read_records(
    record_reader.Split(str(layout.root / "data"), "refcoco_unc", "train")
  ):
    assert record["instances_trained_on"].startswith(f"seen_{1 + record['image_id'] % 2}.json")


def test_a_detector_that_has_seen_its_own_fold_is_refused(layout):
  (layout.root / "seen_2.json").write_text("[100, 101]")
  with pytest.raises(InputError, match=r"detector of fold 2 was trained on 1 of the 1 images"):
    run(layout, "--folds", 2, "--trained_on", f"{layout.root}/seen_{{fold}}.json")
  with pytest.raises(InputError, match=r"detector of fold 1 was trained on 2 of the 2 .* to coco"):
    run(layout, "--folds", 2, "--trained_on", "coco")
  assert not (layout.root / "data").exists()


def test_without_a_declaration_it_is_unknown_what_was_seen(layout):
  run(layout, "--folds", 2)
  metadata = storage.read_metadata(str(layout.root / "data"), "refcoco_unc") or {}
  assert metadata["leakage"]["train"]["seen"] is None


@pytest.mark.parametrize(
  ("words", "instances", "message"),
  [
    (("--folds", 1), "found_{fold}.json", r"--folds 1: must be at least 2"),
    (("--folds", 2), "found_1.json", r"--folds 2: --instances .* 1 to 2 and all, such as"),
    ((), "found_{fold}.json", r"--instances .*: \{fold\} needs --folds N"),
    (("--folds", 3), "found_{fold}.json", r"found_3\.json"),
    (("--trained_on", "x_{fold}.json"), "found_1.json", r"--trained_on x_.* needs --folds"),
  ],
)
def test_folds_and_the_names_of_files_belong_together(layout, words, instances, message):
  with pytest.raises(InputError, match=message) as caught:
    run(layout, *words, instances=instances)
  assert "\n" not in str(caught.value)


def test_clean_split_writes_what_each_detector_may_see(layout, capsys):
  out = layout.root / "clean_{fold}.json"
  words = ["clean-split", "--annotations", str(layout.instances_path), "--allow_missing"]
  words += ["--refer_root", str(layout.root), "--out", str(out), "--folds", "2"]
  proposals.main(words)
  assert capsys.readouterr().out.count("wrote ") == 3
  kept = {}
  for name in folds.names(2):
    content = json.loads((layout.root / f"clean_{name}.json").read_text())
    kept[name] = {row["id"] for row in content["images"]}
    assert {row["image_id"] for row in content["annotations"]} <= kept[name]
  assert kept == {"1": {101}, "2": {100, 102}, "all": {100, 101, 102}}
  with pytest.raises(InputError, match=r"--out .*clean.json must name a file for each fold"):
    proposals.main([*words[:-3], str(layout.root / "clean.json"), "--folds", "2"])


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=50), st.integers(2, 9))
def test_folds_are_a_partition_that_other_data_sets_share(ids, count):
  coco = {"train": dict(enumerate(ids))}
  for n, image_id in enumerate(ids):
    fold = folds.fold_of("train", n, coco, count)
    assert fold in folds.names(count)[:-1]
    assert fold == folds.fold_of("train", image_id, {"train": {image_id: image_id}}, count)
    assert folds.fold_of("val", n, coco, count) == "all"
    assert folds.fold_of("train", n, coco, None) == folds.fold_of("val", n, coco, None) == ""
  sizes = np.bincount([int(folds.name_of(i, count)) - 1 for i in range(900)], minlength=count)
  assert np.ptp(sizes) <= 1
