"""Leakage: images that a detector has seen are found, counted, named and reported."""

import contextlib
import gzip
import hashlib
import io
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refer_layout import ReferLayout, make_layout

from input_pipeline import records, storage
from input_pipeline.common import fingerprint
from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare
from input_pipeline.proposers import image_lists, leakage
from input_pipeline.tf import builder
from mail_jax.evaluate import command as evaluate

VAL = [100, 200, 300]
IDS = st.frozensets(st.integers(0, 600_000), max_size=40)


def _list(tmp_path: pathlib.Path, ids: list[Any], name: str = "trained.json") -> str:
  path = tmp_path / name
  path.write_text(json.dumps(ids))
  return str(path)


def test_one_planted_image_is_found_and_named(tmp_path):
  trained_on = leakage.parse(_list(tmp_path, [1, 2, 200, 4]))
  finding = leakage.check(trained_on, "val", VAL)
  assert (finding.images, finding.seen, finding.leaks) == (3, 1, True)
  assert finding.warning is not None
  assert "on 1 of its 3 images (image 200)" in finding.warning
  assert "clean-split" in finding.warning


def test_a_clean_list_gives_no_alarm(tmp_path):
  trained_on = leakage.parse(_list(tmp_path, [1, 2, 20, 3000]))
  for split in ("train", "val", "testA", "testB", "test"):
    assert leakage.check(trained_on, split, VAL) == leakage.Finding(3, 0, None)


@given(IDS, IDS)
def test_exactly_the_common_images_are_counted(trained, evaluated):
  finding = leakage.check(leakage.TrainedOn("list", trained), "testA", sorted(evaluated))
  common = [image_id for image_id in evaluated if image_id in trained]
  assert finding.seen == len(common)
  assert finding.leaks == (finding.warning is not None) == bool(common)
  if common:
    named = re.search(r"images? ([\d, ]+)", finding.warning or "")
    assert named is not None
    assert set(map(int, named[1].split(", "))) <= set(common)


@given(st.sampled_from(sorted(leakage.TRAINED_ON)), IDS)
def test_training_on_training_images_is_not_leakage(word, ids):
  assert leakage.check(leakage.parse(word), "train", ids).warning is None
  finding = leakage.check(leakage.TrainedOn("list", ids), "train", ids)
  assert (finding.seen, finding.warning, finding.leaks) == (len(ids), None, False)


@pytest.mark.parametrize(
  ("word", "seen", "leaks", "warning"),
  [
    ("unknown", None, None, r"is unknown.*--trained_on"),
    ("nothing", 0, False, None),
    ("ground-truth", 3, True, r"the annotations themselves, an oracle"),
    ("coco", 3, True, r"trained on COCO.*all of its images.*clean-split"),
    ("other", 0, False, None),
  ],
)
def test_each_word_says_what_was_seen(word, seen, leaks, warning):
  trained_on = leakage.parse(word)
  assert (trained_on.text, trained_on.image_ids) == (word, None)
  finding = leakage.check(trained_on, "testB", VAL)
  assert (finding.images, finding.seen, finding.leaks) == (3, seen, leaks)
  if warning is None:
    assert finding.warning is None
  else:
    assert re.search(warning, finding.warning or "")
    assert "\n" not in (finding.warning or "")


def test_every_word_is_tried():
  assert set(leakage.TRAINED_ON) == {"unknown", "nothing", "ground-truth", "coco", "other"}


_FORMS = {
  "ids.json": "[100, 7]",
  "coco.json": json.dumps({"images": [{"id": 7}, {"id": 100}], "annotations": []}),
  "refs.json": json.dumps({"n": 3, "refs": [{"image_id": i} for i in (7, 100, 7)]}),
  "rows.json": json.dumps([{"image_id": 7, "ann_id": [1]}, {"image_id": 100}]),
  "ids.txt": "000000000007\n\n100\r\n",
  "marked.txt": "\ufeff7\n100",
  "floats.json": "[100.0, 7]",
  "texts.json": '["100", "7.0"]',
  "names.json": '["COCO_val2014_000000000100.jpg", "train2017/000000000007.jpg"]',
  "stems.json": '[{"image_id": "000000000100"}, {"image_id": "7"}]',
  "images.json": json.dumps([{"id": 3, "file_name": f"{i:012}.jpg"} for i in (7, 100)]),
  "renumbered.json": json.dumps(
    {
      "annotations": [{"id": 7, "image_id": 8, "area": float("nan")}],
      "images": [
        {"id": 8, "file_name": "images/COCO_train2014_000000000007.jpg"},
        {"id": 9, "file_name": "000000000100_jpg.rf.0123456789abcdef0123456789abcdef.jpg"},
        {"id": 7, "file_name": "000000000100_jpg.rf.1123456789abcdef0123456789abcdef.jpg"},
      ],
    }
  ),
  "lvis.json": json.dumps(
    {
      "images": [
        {"id": i, "coco_url": f"http://images.cocodataset.org/train2017/{i:012}.jpg"}
        for i in (7, 100)
      ],
      "annotations": [],
    }
  ),
  "with_others.json": json.dumps(
    {
      "images": [
        {"id": 1, "file_name": "COCO_train2014_000000000007.jpg"},
        {"id": 2, "file_name": "my photo.jpg"},
        {"id": 100},
      ]
    }
  ),
  "twice.json": json.dumps(
    {
      "images": [
        {"id": 7, "file_name": "COCO_train2014_000000000007.jpg"},
        {"id": 100},
        {"id": 100, "file_name": "b.png"},
      ]
    }
  ),
  "train2017.txt": "./images/train2017/000000000100.jpg\nimages\\train2017\\000000000007.jpg\n",
  "refs_names.txt": "COCO_train2014_000000000100_3.jpg\nCOCO_train2014_000000000007_12.jpg",
  "with_others.txt": "mine/a.jpg\n000000000100.jpg\n7",
}


@pytest.mark.parametrize("form", ["plain", "packed", "utf-16"])
@pytest.mark.parametrize("name", list(_FORMS))
def test_a_list_is_read_in_every_format(name, form, tmp_path):
  path = tmp_path / name
  data = _FORMS[name].encode()
  if form == "packed":
    data = gzip.compress(data)
  if form == "utf-16":
    data = _FORMS[name].removeprefix("\ufeff").encode("utf-16")
  path.write_bytes(data)
  trained_on = leakage.parse(str(path))
  assert trained_on.image_ids == {7, 100}
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  assert trained_on.text == f"{name}, 2 images (sha256 {digest[:16]})"


@pytest.mark.parametrize(
  ("name", "note"),
  [
    (
      "renumbered.json",
      r"3 of 3 images have an id other than COCO's \(8 is images/COCO_train2014",
    ),
    ("with_others.json", r"1 of 3 images do not have a COCO name \(my photo\.jpg\) and are not"),
    ("with_others.txt", r"1 of 3 images do not have a COCO name \(mine/a\.jpg\)"),
    ("coco.json", None),
    ("lvis.json", None),
    ("train2017.txt", None),
    ("floats.json", None),
  ],
)
def test_ids_that_are_not_taken_as_they_are_are_told(name, note, tmp_path, capsys):
  path = tmp_path / name
  path.write_text(_FORMS[name])
  image_lists.read_ids(str(path))
  told = capsys.readouterr().err.splitlines()
  if note is None:
    assert told == []
  else:
    assert re.search(note, "".join(told))
    assert all(line.startswith(f"warning: {path}: ") for line in told)


def test_ids_beside_names_that_are_not_cocos_are_doubted_aloud(tmp_path, capsys):
  rows = [{"id": i, "file_name": f"{i}.jpg"} for i in (7, 100)]
  assert image_lists.read_ids(_list(tmp_path, rows)) == {7, 100}
  (line,) = capsys.readouterr().err.splitlines()
  assert "2 of 2 images do not have a COCO name (7.jpg); their ids are read" in line
  assert "--trained_on other" in line


@given(
  st.lists(st.integers(0, 10**12 - 1), min_size=1, max_size=8, unique=True),
  st.permutations(range(8)),
  st.sampled_from([int, float, str, lambda i: f"{i}.0"]),
  st.sampled_from(
    ["{:012}.jpg", "COCO_train2014_{:012}.jpg", "C:\\coco\\{:012}.png", "a/{:012}.JPG"]
  ),
)
def test_a_file_numbered_anew_names_the_same_images(tmp_path_factory, numbers, ids, kind, names):
  path = tmp_path_factory.mktemp("list") / "trained.json"
  rows = [
    {"id": kind(i), "file_name": names.format(number)}
    for i, number in zip(ids, numbers, strict=False)
  ]
  path.write_text(json.dumps({"images": rows}))
  with contextlib.redirect_stderr(io.StringIO()):
    assert image_lists.read_ids(str(path)) == set(numbers)


_GZIP = gzip.compress(
  b"[1, 2]" * 99, mtime=0
)  # without the time: every test process must give the cases the same names


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", r"the list of images is empty"),
    (b"[]", r"the list of images is empty"),
    (b'{"images": []}', r"the list of images is empty"),
    (b"[1, 2", r"not a list of images \(the file: "),
    (b'{"annotations": []}', r"not a list of images \(ValueError: it has no list of `im"),
    (b'{"images": [{"file_name": "a"}]}', r"not a list of images \(KeyError: 'id'"),
    (b'{"images": 3}', r"not a list of images \(ValueError: it has no list of `im"),
    (b'{"refs": [{"ref_id": 1}]}', r"not a list of images \(KeyError: 'image_id'"),
    (b"[1, true]", r"True is not an image id"),
    (b'["a"]', r"'a' is neither an image id nor a COCO name"),
    (b'[{"image_id": "a"}]', r"'a' is not an image id"),
    (b'[{"image_id": 101.5}]', r"101\.5 is not an image id"),
    (b'[{"image_id": null, "file_name": "000000000009.jpg"}]', r"None is not an image id"),
    (b'{"images": [{"id": 1}], "annotations": [{"id"', r"truncated JSON; is the file complete"),
    (b"[1.5]", r"1\.5 is not an image id"),
    (b"[[1]]", r"\[1\] is not an image id"),
    (b"-1\n", r"'-1' is neither an image id nor a COCO name"),
    (b"1\nmy photo.jpg", r"not a list of images \(ValueError: 'my photo.jpg' is neither.*per line"),
    (b"[" * 100_000, r"not a list of images \(the file: nested deeper"),
    (b"\xff\xfe1\x00\x00", r"invalid utf-16 .*is the file complete"),
    (_GZIP[:-9], r"damaged gzip file.*is it complete"),
    (_GZIP[:12] + b"\xff\xff" + _GZIP[14:], r"damaged gzip file"),
    (_GZIP + b"tail", r"damaged gzip file"),
  ],
)
def test_a_broken_list_is_one_line_that_names_the_file(data, message, tmp_path):
  path = tmp_path / "broken.json"
  path.write_bytes(data)
  with pytest.raises(InputError, match=message) as caught:
    leakage.parse(str(path))
  assert str(caught.value).startswith(f"{path}: ")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["COCO", "imagenet", "nowhere.json", "", "."])
def test_an_unknown_word_is_refused_with_the_known_ones(what):
  with pytest.raises(InputError, match=r"--trained_on .*neither a file") as caught:
    leakage.parse(what)
  assert all(word in str(caught.value) for word in leakage.TRAINED_ON)


@pytest.mark.parametrize("name", ["val", "testA", "testB"])
def test_images_of_official_splits_are_found(name, realdata):
  """The annotations of the excerpt contain some images of each official split."""
  official = json.loads(
    gzip.decompress((realdata / f"expressions/refcoco_{name}.json.gz").read_bytes())
  )
  photos = sorted({ref["image_id"] for ref in official["refs"]})
  annotations = realdata / "coco/annotations/instances_train2014.json"
  there = {row["id"] for row in json.loads(annotations.read_text())["images"]}
  expected = sum(photo in there for photo in photos)
  assert expected > 0
  finding = leakage.check(leakage.parse(str(annotations)), name, photos)
  assert (finding.images, finding.seen) == (len(photos), expected)


class Detector:
  """The class of `--instances test_leakage.Detector`: proposes the left half of every image."""

  def __init__(self, argument: str):
    if argument:
      self.trained_on = argument

  def propose(self, images, image_ids) -> list[records.Instances]:
    del image_ids
    found = []
    for image in images:
      mask = np.zeros((1, *image.shape[:2]), bool)
      mask[:, :, : image.shape[1] // 2] = True
      found.append(records.Instances(mask, np.ones(1, np.float32), np.ones(1, np.int32), "halves"))
    return found


def _prepare(
  layout: ReferLayout, data_dir: pathlib.Path, instances: str, *more: str
) -> tuple[dict[str, Any], list[str]]:
  """Runs `prepare`; returns metadata and warnings, except the one about incomplete data."""
  errors = io.StringIO()
  with contextlib.redirect_stderr(errors):
    prepare.main(layout.arguments(data_dir, "--instances", instances, *more))
  metadata = storage.read_metadata(str(data_dir), layout.dataset)
  assert metadata is not None
  lines = [line for line in errors.getvalue().splitlines() if line.startswith("warning: ")]
  return metadata, [line for line in lines if "is not the complete" not in line]


def test_prepare_names_the_only_image_that_was_seen(tmp_path):
  layout = make_layout(tmp_path)  # photos 100 to 103: train, val, testA, testB
  trained = _list(tmp_path, [100, 102, 9])
  data_dir = tmp_path / "data"
  metadata, warnings = _prepare(layout, data_dir, "test_leakage.Detector", "--trained_on", trained)
  (line,) = warnings
  assert line.startswith("warning: testA: ")
  assert "on 1 of its 1 image (image 102)" in line
  assert metadata["leakage"] == {
    "train": {"images": 1, "seen": 1, "warning": None},
    "val": {"images": 1, "seen": 0, "warning": None},
    "testA": {"images": 1, "seen": 1, "warning": line.removeprefix("warning: testA: ")},
    "testB": {"images": 1, "seen": 0, "warning": None},
  }
  text = f"trained.json, 3 images (sha256 {fingerprint.of_file(trained)})"
  assert metadata["instances"] == {"from": "test_leakage.Detector", "trained_on": text}
  dataset = builder.open_dataset(str(data_dir), layout.dataset).as_dataset(split="val")
  (fields,) = list(dataset)
  assert fields["instances_trained_on"].numpy().decode() == text


@pytest.mark.parametrize(
  ("instances", "trained_on", "text", "warnings"),
  [
    ("test_leakage.Detector", None, "unknown", 1),
    ("test_leakage.Detector", "coco", "coco", 1),
    ("test_leakage.Detector", "other", "other", 0),
    ("test_leakage.Detector:other", None, "other", 0),
    ("test_leakage.Detector:other", "coco", "coco", 1),
    ("none", None, "nothing", 0),
  ],
)
def test_prepare_warns_once_for_all_evaluation_splits(
  tmp_path, instances, trained_on, text, warnings
):
  declaration = [] if trained_on is None else ["--trained_on", trained_on]
  metadata, lines = _prepare(make_layout(tmp_path), tmp_path / "data", instances, *declaration)
  assert metadata["instances"] == {"from": instances.partition(":")[0], "trained_on": text}
  assert len(lines) == warnings
  assert all(line.startswith("warning: val, testA, testB: ") for line in lines)
  assert metadata["leakage"]["train"]["warning"] is None


def test_annotations_as_instances_are_called_an_oracle(tmp_path):
  layout = make_layout(tmp_path)
  oracle = f"coco:{layout.instances_path}"
  metadata, (line,) = _prepare(layout, tmp_path / "data", oracle)
  assert "an oracle" in line
  assert metadata["instances"] == {"from": "coco", "trained_on": "ground-truth"}


@pytest.mark.parametrize(
  ("instances", "trained_on", "message"),
  [
    ("coco:{annotations}", "other", r"these instances are not from a detector but `ground-truth`"),
    ("none", "coco", r"these instances are not from a detector but `nothing`"),
    ("test_leakage.Detector", "imagenet", r"--trained_on imagenet: neither a file nor"),
    ("test_leakage.Detector:imagenet", None, r"Detector\.trained_on is 'imagenet'.*--trained_on"),
  ],
)
def test_prepare_refuses_contradictions(tmp_path, instances, trained_on, message):
  layout = make_layout(tmp_path)
  instances = instances.format(annotations=layout.instances_path)
  declaration = [] if trained_on is None else ["--trained_on", trained_on]
  with pytest.raises(InputError, match=message):
    prepare.main(layout.arguments(tmp_path / "data", "--instances", instances, *declaration))
  assert not (tmp_path / "data").exists()


def test_a_list_is_told_to_be_of_no_use_without_a_detector(tmp_path):
  trained = _list(tmp_path, [101])
  data_dir = tmp_path / "data"
  metadata, (line,) = _prepare(make_layout(tmp_path), data_dir, "none", "--trained_on", trained)
  assert line.startswith("warning: --trained_on trained.json, 1 image (sha256 ")
  assert line.endswith("ignored, since these instances are not from a detector")
  assert metadata["instances"] == {"from": "none", "trained_on": "nothing"}
  assert metadata["leakage"]["val"] == {"images": 1, "seen": 0, "warning": None}


def test_another_word_or_list_is_another_data_set(tmp_path):
  layout, trained = make_layout(tmp_path), _list(tmp_path, [9])
  arguments = layout.arguments(tmp_path / "data", "--instances", "test_leakage.Detector")
  prepare.main([*arguments, "--trained_on", trained])
  prepare.main([*arguments, "--trained_on", trained])
  with pytest.raises(
    InputError, match=r"trained_on was trained\.json .*and is now as the proposer"
  ):
    prepare.main(arguments)
  _list(tmp_path, [9, 101])
  with pytest.raises(InputError, match=r"trained_on was trained\.json \(sha256"):
    prepare.main([*arguments, "--trained_on", trained])


def test_generated_scenes_never_warn(shapes_data):
  metadata = storage.read_metadata(shapes_data, "shapes") or {}
  assert metadata["instances"] == {"from": "shapes", "trained_on": "nothing"}
  assert metadata["leakage"]["testC"] == {"images": 12, "seen": 0, "warning": None}
  for known in (metadata, {}):
    for split in ("train", "val", "testC"):
      assert leakage.of_split(known, "shapes", split)["warning"] is None


def _evaluate(run: pathlib.Path, data_dir: pathlib.Path, *splits: str) -> tuple[Any, list[str]]:
  """Runs `evaluate`; returns its JSON and the lines printed below the table."""
  printed, out = io.StringIO(), data_dir.parent / "metrics.json"
  command = ["--checkpoint", str(run), "--data_dir", str(data_dir), "--json", str(out)]
  with contextlib.redirect_stdout(printed):
    evaluate.main([*command, *(f"--data=refcoco_unc/{split}" for split in splits)])
  lines = printed.getvalue().splitlines()
  assert lines[-1] == f"wrote {out}"
  assert [line.split()[0] for line in lines[2 : 2 + len(splits)]] == [
    f"refcoco_unc/{split}" for split in splits
  ]
  below = lines[2 + len(splits) : -1]
  return json.loads(out.read_text()), below[: below.index("")]  # then the kinds of sentences


def test_evaluate_reports_leakage_below_its_table(finished_run, tmp_path):
  layout, data_dir = make_layout(tmp_path), tmp_path / "data"
  metadata, _ = _prepare(layout, data_dir, "test_leakage.Detector", "--trained_on", "coco")
  report, below = _evaluate(finished_run, data_dir, "train", "val", "testB")
  sentence = metadata["leakage"]["val"]["warning"]
  assert below == [f"warning: refcoco_unc/val, refcoco_unc/testB: {sentence}"]
  common = {"from": "test_leakage.Detector", "trained_on": "coco", "seen": 1}
  assert report["refcoco_unc/val"]["instances"] == {**common, "warning": sentence}
  assert report["refcoco_unc/train"]["instances"] == {**common, "warning": None}
  assert report["refcoco_unc/val"]["expressions"] == 3


def test_evaluate_reports_nothing_for_a_clean_detector(finished_run, tmp_path):
  layout, data_dir = make_layout(tmp_path), tmp_path / "data"
  _prepare(layout, data_dir, "test_leakage.Detector", "--trained_on", _list(tmp_path, [100]))
  report, below = _evaluate(finished_run, data_dir, "val")
  assert below == []
  assert report["refcoco_unc/val"]["instances"]["seen"] == 0


def test_data_without_provenance_is_unknown(finished_run, tmp_path):
  layout, data_dir = make_layout(tmp_path), tmp_path / "data"
  _prepare(layout, data_dir, "none")
  path = pathlib.Path(storage.dataset_dir(str(data_dir), "refcoco_unc")) / "metadata.json"
  metadata = json.loads(path.read_text())
  del metadata["leakage"], metadata["instances"]
  path.write_text(json.dumps(metadata))
  report, below = _evaluate(finished_run, data_dir, "testA")
  (line,) = below
  assert re.match(r"warning: refcoco_unc/testA: .* is unknown.*--trained_on", line)
  assert report["refcoco_unc/testA"]["instances"] == {
    "from": "unknown",
    "trained_on": "unknown",
    "seen": None,
    "warning": line.partition("testA: ")[2],
  }


def test_an_unreadable_list_names_its_path(tmp_path):
  with pytest.raises(InputError, match=r"nowhere\.json: No such file"):
    image_lists.read_ids(str(tmp_path / "nowhere.json"))
