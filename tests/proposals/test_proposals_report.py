"""`python -m input_pipeline.proposals report`: its table, its page, and its errors."""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import subprocess
import sys

import half_records
import html_pages
import numpy as np
import pytest
import tiny_run
from random_records import (
  SIZES,
  best_by_pycocotools,
  make_record,
)

from input_pipeline import records, storage
from input_pipeline.common.errors import InputError
from input_pipeline.proposals import command, report
from input_pipeline.proposals.oracle import OracleMetrics, match_refs
from input_pipeline.proposals.report import Gallery
from input_pipeline.tf import record_reader

RECALLS = ("R@8", "R@16", "R@32", "R@64")


def test_stored_records_are_what_was_written(tmp_path):
  half_records.write(str(tmp_path))
  assert record_reader.split_sizes(str(tmp_path), half_records.NAME) == {
    "testA": 9,
    "train": 9,
    "val": 9,
  }
  read = list(
    record_reader.read_records(record_reader.Split(str(tmp_path), half_records.NAME, "val"))
  )
  assert sorted(fields["image_id"] for fields in read) == list(range(1, 10))
  for fields in read:
    expected = half_records.RECORDS[fields["image_id"] - 1]
    stored = records.encode_record(expected)
    assert fields.keys() == stored.keys()
    assert fields["refs"] == stored["refs"]
    actual = records.decode_record(fields)
    np.testing.assert_array_equal(actual.instances.masks, expected.instances.masks)
    np.testing.assert_array_equal(actual.instances.scores, expected.instances.scores)
    for ref, other in zip(actual.refs, expected.refs, strict=True):
      np.testing.assert_array_equal(ref.target, other.target)
      assert (ref.ref_id, ref.ann_ids) == (other.ref_id, other.ann_ids)
      assert ref.sentences == other.sentences
    assert (actual.image, actual.file_name) == (expected.image, expected.file_name)
    assert (actual.height, actual.width) == (expected.height, expected.width)


def test_a_damaged_file_of_records_is_named(tmp_path):
  half_records.write(str(tmp_path))
  (path,) = tmp_path.rglob("*-val.tfrecord-*")
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(
    InputError, match=r"refcoco_unc/val: record \d+ of .*: the file ends early; prepare"
  ):
    list(record_reader.read_records(record_reader.Split(str(tmp_path), half_records.NAME, "val")))


@dataclasses.dataclass(frozen=True)
class Report:
  """The outputs of one run."""

  data_dir: str
  folder: pathlib.Path
  printed: str
  written: dict
  page: str


def _run(data_dir: str, folder: pathlib.Path, *more: str) -> Report:
  paths = [str(folder / "report.json"), str(folder / "report.html")]
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    command.main(["report", "--data_dir", data_dir, "--json", paths[0], "--html", paths[1], *more])
  written, page = (pathlib.Path(path).read_text(encoding="utf-8") for path in paths)
  return Report(data_dir, folder, printed.getvalue(), json.loads(written), page)


@pytest.fixture(scope="module")
def shapes_report(shapes_data, tmp_path_factory) -> Report:
  return _run(shapes_data, tmp_path_factory.mktemp("report"))


def test_the_table_the_json_and_the_page_agree(shapes_report):
  splits = shapes_report.written["splits"]
  assert sorted(splits) == [f"shapes/{s}" for s in ("testA", "testB", "testC", "train", "val")]
  lines = iter(shapes_report.printed.splitlines()[1:])
  cells = html_pages.Parsed(shapes_report.page).texts["td"]
  for name, figures in splits.items():
    for group in ("all", *SIZES):
      label, *values = next(lines).split()
      assert label == (name if group == "all" else group)
      row = figures[group]
      shares = [row[key] for key in ("mIoU", "P@0.5", "P@0.75", "P@0.9", *RECALLS)]
      expected = [str(row["refs"]), *("-" if x is None else f"{100 * x:.2f}" for x in shares)]
      if group == "all":
        counts = figures["images"], figures["images_without_instances"]
        expected += [str(counts[0]), f"{figures['instances_per_image']:.1f}", str(counts[1]), "-"]
      assert values == expected
      assert cells[: len(values)] == values
      del cells[: len(values)]
  assert not cells
  for name, row in (storage.read_metadata(shapes_report.data_dir, "shapes") or {})[
    "counts"
  ].items():
    actual = splits[f"shapes/{name}"]
    assert (actual["images"], actual["all"]["refs"]) == (row["records"], row["refs"])
    assert sum(actual[size]["refs"] for size in SIZES) == row["refs"]


def test_all_three_say_that_it_is_an_upper_bound_and_where_masks_came_from(shapes_report):
  sentence = "the upper bound of any method that only selects an instance"
  assert sentence in shapes_report.written["oracle"]
  assert shapes_report.printed.count(sentence) == shapes_report.page.count(sentence) == 1
  origin = shapes_report.written["splits"]["shapes/val"]["origins"][0]
  text = f"from {origin['instances_from']}, trained on {origin['instances_trained_on']} (72 images)"
  assert f"shapes: masks {text}" in shapes_report.printed
  assert f"shapes: masks {text}" in shapes_report.page


def test_the_page_shows_the_worst_of_all_images(shapes_report):
  ious = [
    min(iou for iou, _ in best_by_pycocotools(records.decode_record(fields)))
    for split in record_reader.split_sizes(shapes_report.data_dir, "shapes")
    for fields in record_reader.read_records(
      record_reader.Split(shapes_report.data_dir, "shapes", split)
    )
  ]
  worst, random = shapes_report.page.split("<h2>")[1:]
  assert (worst[:15], random[:16]) == ("50 worst images", "50 random images")
  shown = re.findall(r"<strong>IoU ([\d.]+)</strong>", worst)
  assert shown == [f"{iou:.2f}" for iou in sorted(ious)[:50]]
  assert shown[0] < shown[-1] < f"{max(ious):.2f}"
  assert random.count("<figure>") == random.count("<strong>IoU ") == 50


def test_the_page_needs_nothing_but_itself_and_allows_nothing_else(shapes_report):
  assert html_pages.check_needs_nothing(shapes_report.page) == [(480, 480)] * 100


def test_untrusted_text_is_escaped():
  masks = np.ones((1, 20, 30), bool)
  sentence = "</li><script>alert('x')</script> & \"<img src=x onerror=y>\""
  record = make_record(1, masks, masks, sentence, source="<b>me</b>")
  record = dataclasses.replace(record, file_name='"><script src=x>')
  fields, metrics, gallery = records.encode_record(record), OracleMetrics(), Gallery()
  metrics.add(record.instances, match_refs(record))
  gallery.add("<i>a</i>/b", fields, match_refs(record))
  page = report.page({"<i>a</i>/b": metrics.metrics()}, gallery.worst(), gallery.random())
  parsed = html_pages.Parsed(page)
  tags = [tag for tag, _ in parsed.tags]
  assert not {"script", "b", "i"} & set(tags)
  assert tags.count("img") == 2
  assert all(a["src"].startswith("data:") for tag, a in parsed.tags if tag == "img")
  assert parsed.texts["li"] == [sentence] * 2
  assert [a["alt"][:16] for tag, a in parsed.tags if tag == "img"] == ['"><script src=x>'] * 2


@pytest.mark.slow
def test_the_same_data_gives_the_same_page(shapes_report):
  assert _run(shapes_report.data_dir, shapes_report.folder) == shapes_report


@pytest.mark.slow
def test_all_prepared_data_sets_are_reported_unless_names_are_given(shapes_data, tmp_path, capsys):
  half_records.write(str(tmp_path))
  (tmp_path / storage.BUILDER_NAME / "shapes").symlink_to(
    pathlib.Path(shapes_data) / storage.BUILDER_NAME / "shapes"
  )

  def reported(*more: str) -> set[str]:
    command.main(["report", "--data_dir", str(tmp_path), *more])
    printed = capsys.readouterr().out
    return {name for name in storage.CONFIGS if f"\n{name}/val" in printed}

  assert reported() == {"shapes", "refcoco_unc"}
  assert reported("--dataset", "refcoco_unc") == {"refcoco_unc"}
  assert reported("--dataset", "refcoco_unc", "shapes") == {"shapes", "refcoco_unc"}


def test_the_time_per_image_is_shown_if_it_was_measured(tmp_path, capsys):
  half_records.write(str(tmp_path))
  assert storage.read_timing(str(tmp_path), half_records.NAME) == {}
  timing = pathlib.Path(storage.dataset_dir(str(tmp_path), half_records.NAME)) / "timing.json"
  timing.write_text('{"val": 0.25}')
  assert storage.read_timing(str(tmp_path), half_records.NAME) == {"val": 0.25}
  command.main(["report", "--data_dir", str(tmp_path), "--json", str(tmp_path / "r.json")])
  ends = {
    line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if line
  }
  assert (ends["refcoco_unc/val"], ends["refcoco_unc/train"]) == ("0.250", "-")
  splits = json.loads((tmp_path / "r.json").read_text())["splits"]
  assert splits["refcoco_unc/val"]["seconds_per_image"] == 0.25
  assert splits["refcoco_unc/train"]["seconds_per_image"] is None
  timing.write_text('["val"]')
  with pytest.raises(InputError, match=r"timing\.json cannot be read .*--overwrite"):
    storage.read_timing(str(tmp_path), half_records.NAME)


def test_an_image_that_cannot_be_drawn_is_named_and_the_metrics_are_written(tmp_path, capsys):
  half_records.write(str(tmp_path))  # one picture of testA is cut short
  with pytest.raises(InputError, match=r"image picture_6\.png cannot be decoded"):
    paths = ["--json", str(tmp_path / "report.json"), "--html", str(tmp_path / "report.html")]
    command.main(["report", "--data_dir", str(tmp_path), *paths])
  assert "refcoco_unc/testA" in capsys.readouterr().out
  assert "refcoco_unc/testA" in json.loads((tmp_path / "report.json").read_text())["splits"]
  assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (
      ["--data_dir", "nowhere"],
      r"--data_dir nowhere: no data set is prepared there; run .*prepare",
    ),
    (["--dataset", "refcoco"], r"'refcoco': unknown; known: shapes, refcoco_unc"),
    (
      ["--dataset", "shapes", "refcoco_unc"],
      r"--dataset refcoco_unc: not prepared in .*, which has shapes",
    ),
    (["--json", "nowhere/r.json"], r"nowhere/r\.json: the folder nowhere does not exist"),
    (["--html", "nowhere/r.html"], r"nowhere/r\.html: the folder nowhere does not exist"),
    (["--html", "folder"], r"folder is a folder; name a file in it"),
    (["--json", "file/r.json"], r"file/r\.json: the folder file does not exist"),
  ],
)
def test_errors_are_reported_before_the_work(shapes_data, tmp_path, monkeypatch, options, message):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(report, "measure", None)
  pathlib.Path("folder").mkdir()
  pathlib.Path("file").touch()
  with pytest.raises(InputError, match=message) as caught:
    command.main(["report", "--data_dir", shapes_data, *options])
  assert "\n" not in str(caught.value)
  assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_the_command_prints_one_line_and_exits_with_2(tmp_path, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(tiny_run.CHECKOUT))
  done = subprocess.run(
    [sys.executable, "-m", "input_pipeline.proposals", "report", "--data_dir", "nowhere"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout) == (2, "")
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: --data_dir nowhere: ")
