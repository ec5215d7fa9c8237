"""Annotations without evaluation images, for the training of detectors."""

import contextlib
import gzip
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
from typing import Any

import pytest
from pycocotools.coco import COCO
from refer_layout import SPLITS, ReferLayout, make_layout

from input_pipeline.common.errors import InputError
from input_pipeline.proposals import command
from input_pipeline.proposers import leakage
from input_pipeline.sources import refer

# Of the images 100 to 103 in `refer_layout`, only 100 is in no evaluation split; no refs have 900
# and 901.
CLEAN = {100, 900, 901}


class Inputs:
  """Refs of all four data sets and annotations of six images, on disk; `run` cleans them."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.root = folder / "refer"
    self.annotations = folder / "instances.json"
    self.out = folder / "clean.json"
    self.layouts: dict[str, ReferLayout] = {}
    for name in SPLITS:
      layout = make_layout(folder / name, name)
      layout.root = self.root
      self.layouts[name] = layout.write()
    layout = self.layouts["refcoco_unc"]
    more = [{"id": image_id, "height": 4, "width": 4} for image_id in (900, 901)]
    box = {"bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0, "category_id": 47}
    square = {"segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]], **box}
    self.content: dict[str, Any] = {
      "info": {"description": "six photos", "year": 2014},
      "licenses": [{"id": 1, "name": "ünder own terms"}],
      "images": [more[0], *layout.instances["images"], more[1]],
      "annotations": [{"id": 1, "image_id": 900, **square}, *layout.instances["annotations"]],
      "categories": [{"id": 47, "name": "cup"}, {"id": 48, "name": "fork"}],
      "of_mine": [1.25, None],
    }
    self.write()

  def write(self) -> None:
    self.annotations.write_text(json.dumps(self.content))

  def run(self, *more: str) -> tuple[str, list[str]]:
    """Runs the command; returns its output and warnings, except those about incomplete refs."""
    printed, errors = io.StringIO(), io.StringIO()
    arguments = ["--annotations", str(self.annotations), "--refer_root", str(self.root)]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
      command.main(["clean-split", *arguments, "--out", str(self.out), *more])
    warnings = [line for line in errors.getvalue().splitlines() if "is not complete" not in line]
    return printed.getvalue(), warnings


@pytest.fixture
def inputs(tmp_path) -> Inputs:
  return Inputs(tmp_path)


def _read(path: pathlib.Path) -> COCO:
  """Reads the file as detectors do."""
  with contextlib.redirect_stdout(io.StringIO()):
    return COCO(str(path))


def test_evaluation_images_are_removed_with_their_annotations(inputs):
  inputs.run()
  coco = _read(inputs.out)
  assert set(coco.getImgIds()) == CLEAN
  before = _read(inputs.annotations)
  assert set(coco.getAnnIds()) == set(before.getAnnIds(imgIds=sorted(CLEAN)))
  for row in coco.loadAnns(coco.getAnnIds()):
    (same,) = before.loadAnns(row["id"])
    assert row == same
    if not row["iscrowd"]:
      assert (coco.annToMask(row) == before.annToMask(same)).all()


def test_everything_else_is_kept_as_it_is(inputs):
  inputs.run()
  written = json.loads(inputs.out.read_text())
  assert list(written) == list(inputs.content)
  for key in ("info", "licenses", "categories", "of_mine"):
    assert written[key] == inputs.content[key]
  for key, photo in (("images", "id"), ("annotations", "image_id")):
    assert written[key] == [row for row in inputs.content[key] if row[photo] in CLEAN]


def test_the_output_is_clean_and_the_input_is_not(inputs):
  inputs.run()
  for path, clean in ((inputs.out, True), (inputs.annotations, False)):
    trained_on = leakage.parse(str(path))
    for name in SPLITS:
      reader = refer.RefReader(name, str(inputs.root), str(inputs.annotations))
      for split, image_ids in reader.splits.items():
        finding = leakage.check(trained_on, split, image_ids)
        assert (finding.warning is None) == (clean or split == "train")


@pytest.mark.parametrize("name", list(SPLITS))
def test_every_data_set_counts(inputs, name):
  """Each data set evaluates on an image that the others train on."""
  layout = inputs.layouts[name]
  layout.refs.append({"image_id": 900, "split": "val", "ref_id": 99})
  layout.write()
  inputs.run()
  assert set(_read(inputs.out).getImgIds()) == CLEAN - {900}


@pytest.mark.parametrize(
  "path",
  [
    "refcoco/refs(google).p",
    "refcoco/refs(google).json",
    "grefcoco/grefs(unc).json",
    "grefcoco/grefs(unc).p",
    "refcocog/refs(umd).json",
  ],
)
def test_optional_refs_count_if_they_exist(inputs, path):
  rows = [
    {"image_id": 900.0, "split": "testB", "ann_id": [-1]},
    {"image_id": 901, "split": "train", "ann_id": [1, 2]},
  ]
  (inputs.root / path).parent.mkdir(exist_ok=True)
  data = json.dumps(rows).encode() if path.endswith(".json") else pickle.dumps(rows, protocol=2)
  (inputs.root / path).write_bytes(data)
  inputs.run()
  assert set(_read(inputs.out).getImgIds()) == CLEAN - {900}


@pytest.mark.parametrize("form", ["ids", "refs", "coco", "packed"])
def test_more_images_can_be_excluded(inputs, form):
  content = {
    "ids": [901, 5],
    "refs": {"refs": [{"image_id": 901}]},
    "coco": {"images": [{"id": 901}]},
    "packed": {"refs": [{"image_id": 901}]},
  }[form]
  data = json.dumps(content).encode()
  path = inputs.folder / "more"
  path.write_bytes(gzip.compress(data) if form == "packed" else data)
  (inputs.folder / "others.txt").write_text("900\n")
  inputs.run("--exclude", str(path), "--exclude", str(inputs.folder / "others.txt"))
  assert set(_read(inputs.out).getImgIds()) == {100}


def test_it_prints_what_was_removed(inputs):
  (inputs.folder / "more.txt").write_text("901\n5\n")
  printed, warnings = inputs.run("--exclude", str(inputs.folder / "more.txt"))
  assert warnings == []
  lines = printed.splitlines()
  table = {line.split()[0]: line.split()[1:] for line in lines}
  assert table["refcoco_unc"] == ["3,", "of", "which", "3", "removed"]
  assert table["refcocog_google"] == ["1,", "of", "which", "1", "removed"]
  assert table[str(inputs.folder / "more.txt")] == ["2,", "of", "which", "1", "removed"]
  assert "images: 4 of 6 removed, 2 kept" in lines
  assert "annotations: 9 of 13 removed, 4 kept" in lines
  assert lines[-1] == f"wrote {inputs.out}"


@pytest.mark.parametrize("name", list(SPLITS))
def test_missing_refs_are_an_error_or_a_warning(inputs, name):
  path = inputs.layouts[name].refs_path
  path.unlink()
  with pytest.raises(
    InputError, match=r"no such file.*docs/guides/datasets\.md.*--allow_missing"
  ) as caught:
    inputs.run()
  assert str(caught.value).startswith(str(path))
  assert not inputs.out.exists()
  _, (line,) = inputs.run("--allow_missing")
  assert line.startswith(f"warning: {path}: no such file")
  assert inputs.out.exists()


def test_incomplete_refs_cause_a_warning(inputs, capsys):
  arguments = ["--annotations", str(inputs.annotations), "--refer_root", str(inputs.root)]
  command.main(["clean-split", *arguments, "--out", str(inputs.out)])
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 4
  assert "(val has 2 of 3,811 refs, testA has 2 of 1,975 refs, testB has 2" in lines[0]


_SPELLINGS = {
  "floats": float,
  "texts": str,
  "texts of floats": lambda i: f"{i}.0",
}


@pytest.mark.parametrize("spelling", list(_SPELLINGS))
def test_ids_in_any_spelling_are_the_same_images(inputs, spelling):
  for section, key in (("images", "id"), ("annotations", "image_id")):
    for row in inputs.content[section]:
      row[key] = _SPELLINGS[spelling](row[key])
  inputs.write()
  inputs.run()
  written = json.loads(inputs.out.read_text())
  for section, key in (("images", "id"), ("annotations", "image_id")):
    expected = [row for row in inputs.content[section] if int(float(row[key])) in CLEAN]
    assert written[section] == expected


@pytest.mark.parametrize("key", ["file_name", "coco_url"])
@pytest.mark.parametrize("name", ["COCO_train2014_{:012}.jpg", "{:012}_jpg.rf.{:032x}.jpg"])
def test_images_numbered_anew_are_removed_by_their_names(inputs, key, name):
  numbers = {}
  for new, row in enumerate(inputs.content["images"]):
    numbers[row["id"]] = new
    row.pop("file_name", None)
    row[key] = "http://images.cocodataset.org/train2014/" + name.format(row["id"], new)
    row["id"] = new
  for row in inputs.content["annotations"]:
    row["image_id"] = numbers[row["image_id"]]
  inputs.write()
  _, warnings = inputs.run()
  coco = _read(inputs.out)
  assert set(coco.getImgIds()) == {numbers[image_id] for image_id in CLEAN}
  assert {row["image_id"] for row in coco.dataset["annotations"]} <= set(coco.getImgIds())
  (line,) = warnings
  assert "6 of 6 images have an id other than COCO's" in line


def test_every_copy_of_an_evaluation_image_is_removed(inputs):
  for i in range(3):
    name = f"000000000101_jpg.rf.{i:032x}.jpg"
    inputs.content["images"].append({"id": 7000 + i, "file_name": name})
  inputs.write()
  inputs.run()
  assert not {7000, 7001, 7002} & set(_read(inputs.out).getImgIds())


def test_nothing_to_remove_is_doubted_aloud(inputs):
  for row in inputs.content["images"]:
    row["id"] += 5000
    row["file_name"] = f"{row['id']:012}.jpg"
  for row in inputs.content["annotations"]:
    row["image_id"] += 5000
  inputs.write()
  _, (line,) = inputs.run()
  assert "none of its 6 images is in an evaluation split" in line
  assert set(_read(inputs.out).getImgIds()) == {row["id"] for row in inputs.content["images"]}


def test_two_images_of_one_id_are_refused(inputs):
  for number in (5, 6):
    inputs.content["images"].append({"id": 901, "file_name": f"{number:012}.jpg"})
  inputs.write()
  with pytest.raises(InputError, match=r"image id 901 is used for two images"):
    inputs.run()
  assert not inputs.out.exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gzip"])
def test_annotations_in_any_encoding_are_read(inputs, encoding):
  text = json.dumps(inputs.content, ensure_ascii=False)
  data = gzip.compress(text.encode()) if encoding == "gzip" else text.encode(encoding)
  inputs.annotations.write_bytes(data)
  inputs.run()
  written = json.loads(inputs.out.read_text("utf-8"))
  assert written["licenses"] == inputs.content["licenses"]
  assert {row["id"] for row in written["images"]} == CLEAN


def test_numbers_keep_their_digits(inputs):
  text = json.dumps(inputs.content).replace("1.25", "1.2500000000000000000001")
  inputs.annotations.write_text(text.replace('"area": 4', '"area": NaN', 1))
  inputs.run()
  written = inputs.out.read_text()
  assert "1.2500000000000000000001" in written
  assert '"area": NaN' in written


def _refs(data: bytes):
  return lambda inputs: inputs.layouts["refcocog_umd"].refs_path.write_bytes(data)


def _annotations(data: bytes):
  return lambda inputs: inputs.annotations.write_bytes(data)


def _exclude(data: bytes):
  return lambda inputs: (inputs.folder / "more.json").write_bytes(data)


def _all_evaluated(inputs: Inputs) -> None:
  (inputs.folder / "more.json").write_text("[100, 900, 901]")


def _stray(inputs: Inputs) -> None:
  inputs.content["annotations"][0]["image_id"] = 77
  inputs.write()


_DAMAGES = {
  "refs are not a pickle": (_refs(b"\x80"), r"refs\(umd\)\.p: not a pickle of plain"),
  "refs are a class": (_refs(pickle.dumps(pathlib.Path())), r"refs\(umd\)\.p.*nothing in it was"),
  "refs are a number": (_refs(pickle.dumps(3)), r"refs\(umd\)\.p: not a list of refs"),
  "refs have no split": (_refs(pickle.dumps([{"image_id": 1}])), r"\(KeyError: 'split'\)"),
  "refs have names": (
    _refs(pickle.dumps([{"image_id": "a", "split": "val"}])),
    r"image_id 'a' is not a whole number",
  ),
  "annotations are cut": (_annotations(b'{"images": ['), r"instances\.json: invalid or truncated"),
  "annotations are text": (_annotations(b"\xff\xfe7"), r"instances\.json: invalid utf-16 "),
  "annotations are a list": (_annotations(b"[1]"), r"--annotations .*not a COCO instances file"),
  "annotations lack images": (_annotations(b'{"annotations": []}'), r"\(KeyError: 'images'\)"),
  "an annotation has no photo": (
    _stray,
    r"annotation 1 belongs to image 77.*\(as in 1 annotation\)",
  ),
  "a list is cut": (_exclude(b"[1,"), r"more\.json: not a list of images"),
  "a list is not there": (lambda inputs: None, r"more\.json: No such file"),
  "nothing is left": (_all_evaluated, r"all images would be removed"),
}


@pytest.mark.parametrize("damage", list(_DAMAGES))
def test_a_broken_input_is_one_line_and_nothing_is_written(inputs, damage):
  (inputs.folder / "more.json").write_text("[1]")
  if damage == "a list is not there":
    (inputs.folder / "more.json").unlink()
  breaks, message = _DAMAGES[damage]
  breaks(inputs)
  before = sorted(inputs.folder.rglob("*"))
  with pytest.raises(InputError, match=message) as caught:
    inputs.run("--exclude", str(inputs.folder / "more.json"))
  assert "\n" not in str(caught.value)
  assert sorted(inputs.folder.rglob("*")) == before


@pytest.mark.parametrize("which", ["annotations", "a link", "a list", "refs"])
def test_no_input_is_overwritten(inputs, which):
  more = inputs.folder / "more.json"
  more.write_text("[901]")
  link = inputs.folder / "link.json"
  link.symlink_to(inputs.annotations)
  refs = inputs.layouts["refcoco_unc"].refs_path
  out = {"annotations": inputs.annotations, "a link": link, "a list": more, "refs": refs}[which]
  before = {path: path.read_bytes() for path in (inputs.annotations, more, refs)}
  with pytest.raises(InputError, match=r"--out .*this is an input file; name another one"):
    inputs.run("--exclude", str(more), "--out", str(out))
  assert {path: path.read_bytes() for path in before} == before


def test_an_existing_file_is_kept_when_writing_fails(inputs, monkeypatch):
  inputs.out.write_text("older")

  def full(*paths):
    del paths
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full)
  with pytest.raises(InputError, match=r"clean\.json cannot be written: No space left"):
    inputs.run()
  assert inputs.out.read_text() == "older"


def test_the_command_prints_one_line_and_exits_with_2(tmp_path):
  words = ["clean-split", "--annotations", "a.json", "--refer_root", str(tmp_path), "--out", "o"]
  done = subprocess.run(
    [sys.executable, "-m", "input_pipeline.proposals", *words],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout) == (2, "")
  (line,) = done.stderr.splitlines()
  assert line.startswith(f"error: {tmp_path}/refcoco/refs(unc).p: no such file")


@pytest.mark.slow
def test_real_annotations_lose_all_official_evaluation_images(realdata, tmp_path):
  lists = sorted((realdata / "expressions").glob("refcoco*.json.gz"))
  assert len(lists) == 8
  official: dict[str, set[int]] = {}
  for path in lists:
    content = json.loads(gzip.decompress(path.read_bytes()))
    official[path.name] = {ref["image_id"] for ref in content["refs"]}
  annotations = realdata / "coco/annotations/instances_train2014.json"
  inputs = ["--annotations", str(annotations), "--refer_root", str(realdata / "refer")]
  excluded = [part for path in lists for part in ("--exclude", str(path))]
  command.main(["clean-split", *inputs, *excluded, "--out", str(tmp_path / "clean.json")])
  coco, before = _read(tmp_path / "clean.json"), _read(annotations)
  kept, there = set(coco.getImgIds()), set(before.getImgIds())
  for ids in official.values():
    assert ids & there
    assert not ids & kept
    trained_on = leakage.parse(str(tmp_path / "clean.json"))
    assert leakage.check(trained_on, "val", ids).seen == 0
  # The other removed images are in evaluation splits of the excerpt, such as gRefCOCO's.
  grefs = json.loads((realdata / "refer/grefcoco/grefs(unc).json").read_text())
  own = {ref["image_id"] for ref in grefs if ref["split"] != "train"}
  assert there - kept == there & set.union(own, *official.values())
  assert set(coco.getAnnIds()) == set(before.getAnnIds(imgIds=sorted(kept)))
