"""`train`, `evaluate` and `predict` as users run them, with valid and invalid input."""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import refer_layout
import tiny_run
from PIL import Image

from input_pipeline import storage
from input_pipeline.common.errors import InputError
from input_pipeline.tf import builder
from mail_jax.evaluate import command as evaluate
from mail_jax.evaluate import runner
from mail_jax.export import load
from mail_jax.predict import command as predict
from mail_jax.predict.segmenter import Segmenter
from mail_jax.train import command as train

COUNTS = ("expressions", "refs")
METRICS = ("oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9")
METRICS += ("selection_accuracy", "selected_mIoU", "oracle_mIoU", "text_cut", "boundary_mIoU")


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The output of one run of `evaluate`."""

  metrics: dict[str, dict[str, Any]]
  rows: list[dict[str, Any]]
  sheet: pathlib.Path
  printed: str


@pytest.fixture(scope="module")
def evaluation(finished_run, shapes_data, tmp_path_factory) -> Evaluation:
  folder, printed = tmp_path_factory.mktemp("evaluation"), io.StringIO()
  command = ["--checkpoint", str(finished_run), "--data_dir", shapes_data]
  command += ["--data", "shapes/val", "--data", "shapes/testC"]
  command += ["--json", str(folder / "new" / "metrics.json")]
  command += ["--per_expression", str(folder / "new" / "rows.jsonl")]
  command += ["--overlays", str(folder / "sheet.png"), "--overlay_count", "8"]
  with contextlib.redirect_stdout(printed):
    evaluate.main(command)
  metrics = json.loads((folder / "new" / "metrics.json").read_text())
  rows = (folder / "new" / "rows.jsonl").read_text().splitlines()
  return Evaluation(
    metrics, [json.loads(row) for row in rows], folder / "sheet.png", printed.getvalue()
  )


def test_evaluate_writes_fractions_of_every_split(evaluation, shapes_data):
  assert list(evaluation.metrics) == ["shapes/val", "shapes/testC"]
  counts = (storage.read_metadata(shapes_data, "shapes") or {})["counts"]
  for name, metrics in evaluation.metrics.items():
    assert {*COUNTS, *METRICS} <= set(metrics)
    of_split = counts[name.partition("/")[2]]
    assert metrics["expressions"] == of_split["expressions"] and metrics["refs"] == of_split["refs"]
    assert all(0 <= metrics[key] <= 1 for key in METRICS)
    precisions = [metrics[key] for key in METRICS[2:7]]
    assert precisions == sorted(precisions, reverse=True)
    assert metrics["oracle_mIoU"] > 0.7  # of the simulated detector's best mask


def test_evaluate_prints_percent(evaluation):
  header, *rows = evaluation.printed.splitlines()[1:4]
  for row in rows:
    name, *cells = row.split()
    shown = dict(zip(header.split(), map(float, cells), strict=True))
    for key in COUNTS:
      assert shown[key] == evaluation.metrics[name][key]
    for key in METRICS:
      assert shown[key] == pytest.approx(100 * evaluation.metrics[name][key], abs=0.006)
  assert max(map(len, evaluation.printed.splitlines())) < 160


def by_hand(rows: list[dict[str, Any]]) -> dict[str, float]:
  """Returns the metrics of rows, computed in a loop."""
  iou = [row["intersection"] / row["union"] if row["union"] else 1 for row in rows]
  can = [row for row in rows if row["oracle_iou"] > 0.5]
  found = {f"P@0.{x}": sum(value >= x / 10 for value in iou) / len(rows) for x in range(5, 10)}
  return found | {
    "expressions": len(rows),
    "refs": len({row["ref_id"] for row in rows}),
    "oIoU": sum(row["intersection"] for row in rows) / sum(row["union"] for row in rows),
    "mIoU": sum(iou) / len(rows),
    "boundary_mIoU": sum(
      row["boundary_intersection"] / row["boundary_union"] if row["boundary_union"] else 1
      for row in rows
    )
    / len(rows),
    "selection_accuracy": sum(row["selected_iou"] > 0.5 for row in can) / max(1, len(can)),
    "selected_mIoU": sum(row["selected_iou"] for row in rows) / len(rows),
    "oracle_mIoU": sum(row["oracle_iou"] for row in rows) / len(rows),
    "text_cut": sum(row["cut"] for row in rows) / len(rows),
  }


SIZES = {"small": (1, 1024), "medium": (1024, 9216), "large": (9216, 10**9)}
LENGTHS = {"1-2": (1, 3), "3-5": (3, 6), "6-10": (6, 11), "11+": (11, 10**9)}


@pytest.mark.parametrize("name", ["shapes/val", "shapes/testC"])
def test_rows_of_expressions_determine_all_metrics(evaluation, name):
  rows, metrics = [r for r in evaluation.rows if r["data"] == name], evaluation.metrics[name]
  actual = {key: metrics[key] for key in (*COUNTS, *METRICS)}
  assert actual == pytest.approx(by_hand(rows), abs=1e-12)
  for breakdown, field, kinds in (("by_size", "area", SIZES), ("by_words", "words", LENGTHS)):
    groups = {
      kind: [row for row in rows if least <= row[field] < limit]
      for kind, (least, limit) in kinds.items()
    }
    groups = {kind: group for kind, group in groups.items() if group}
    assert metrics[breakdown].keys() == groups.keys()
    for kind, group in groups.items():
      assert metrics[breakdown][kind] == pytest.approx(by_hand(group), abs=1e-12)
  assert len(metrics["by_words"]) > 2  # the objects of generated scenes are all small


def test_rows_are_the_expressions_of_the_data_in_order(evaluation, shapes_data):
  remaining = iter(evaluation.rows)
  for name in evaluation.metrics:
    dataset, _, split = name.partition("/")
    records = builder.open_dataset(shapes_data, dataset).as_dataset(split=split)
    index = 0
    for record in records:
      refs = record["refs"]
      for ref_id, texts, target in zip(
        refs["ref_id"], refs["sentences"], refs["target"], strict=True
      ):
        for number, text in enumerate(texts):
          row = next(remaining)
          assert (row["data"], row["index"], row["protocol"]) == (name, index, "original")
          assert row["image_id"] == int(record["image_id"]) and row["ref_id"] == int(ref_id)
          assert (row["expression_index"], row["expression"]) == (number, text.numpy().decode())
          assert row["words"] == len(row["expression"].split())
          pixels = np.asarray(Image.open(io.BytesIO(target.numpy())))
          assert (row["height"], row["width"], row["area"]) == (*pixels.shape, (pixels > 0).sum())
          index += 1
  assert next(remaining, None) is None


def test_the_json_names_what_was_measured(evaluation, finished_run, shapes_data):
  prints = {name: metrics["fingerprints"] for name, metrics in evaluation.metrics.items()}
  model = load.load(str(finished_run))
  for name, measured in evaluation.metrics.items():
    assert measured["protocol"] == "original" and measured["step"] == model.step
    assert measured["instances"]["from"] == "shapes"
    split = name.partition("/")[2]
    assert prints[name]["data"] == storage.fingerprint_split(shapes_data, "shapes", split)
    assert prints[name]["model"] == model.fingerprint()
    assert prints[name]["config"] == load.fingerprint_config(model.config)


def test_a_second_table_has_groups_of_expressions(evaluation):
  lines = evaluation.printed.splitlines()
  for name, metrics in evaluation.metrics.items():
    for breakdown in ("by_size", "by_words"):
      for kind, found in metrics[breakdown].items():
        (line,) = (line for line in lines if line.split()[:2] == [name, kind])
        sentences, overall = line.split()[2:4]
        assert int(sentences) == found["expressions"]
        assert float(overall) == pytest.approx(100 * found["oIoU"], abs=0.006)


def test_a_data_set_means_all_its_splits_except_train(shapes_data):
  tests = ["shapes/val", "shapes/testA", "shapes/testB", "shapes/testC"]
  assert runner.find_splits(shapes_data, ["shapes"]) == tests
  again = ["shapes/testB", "shapes", "shapes/train"]
  splits = runner.find_splits(shapes_data, again)
  assert splits == ["shapes/testB", "shapes/val", "shapes/testA", "shapes/testC", "shapes/train"]


def test_a_protocol_of_another_paper_is_named_wherever_its_numbers_are(
  evaluation, finished_run, shapes_data, tmp_path, capsys
):
  command = ["--checkpoint", str(finished_run), "--data_dir", shapes_data, "--data", "shapes/val"]
  out, rows = tmp_path / "m.json", tmp_path / "r.jsonl"
  command += ["--protocol", "lavt", "--json", str(out), "--per_expression", str(rows)]
  evaluate.main(command)
  assert "protocol lavt" in capsys.readouterr().out.splitlines()[0]
  metrics = json.loads(out.read_text())["shapes/val"]
  theirs = [json.loads(row) for row in rows.read_text().splitlines()]
  assert metrics["protocol"] == "lavt" and {row["protocol"] for row in theirs} == {"lavt"}
  ours = [row for row in evaluation.rows if row["data"] == "shapes/val"]
  for key in ("expression", "area", "height", "selected", "selected_iou"):
    assert [row[key] for row in theirs] == [row[key] for row in ours]
  # The same pixels, at 480 x 480 instead of 96 x 96.
  unions = np.array([[row["union"] for row in rows] for rows in (theirs, ours)], float)
  assert unions[0].sum() == pytest.approx(25 * unions[1].sum(), rel=0.05)


def test_the_contact_sheet_has_a_cell_per_prediction(evaluation):
  with Image.open(evaluation.sheet) as sheet:
    pixels = np.asarray(sheet.convert("RGB"))
  # 8 cells in rows of 6: images of 240 x 240 pixels with three lines of text below each.
  columns, rows = 6, 2
  assert pixels.shape[1] == columns * 250 + 10
  cell = (pixels.shape[0] - 10) // rows
  filled = [
    (pixels[10 + row * cell :, 10 + column * 250 :][:240, :240] != 255).mean() > 0.9
    for row in range(rows)
    for column in range(columns)
  ]
  assert filled == [True] * 8 + [False] * 4
  assert (pixels[250:cell, 10:250] < 128).any()  # a caption


@pytest.fixture
def layout(tmp_path, monkeypatch) -> refer_layout.ReferLayout:
  """Writes four images of 64 x 48 pixels, two objects each, to the current folder."""
  monkeypatch.chdir(tmp_path)
  return refer_layout.make_layout(tmp_path / "refer")


def _predict(run: pathlib.Path, layout: refer_layout.ReferLayout, *more: str) -> list[str]:
  photo = str(layout.image_path(0))
  options = ["--checkpoint", str(run), "--image", photo, "--text", "the left one"]
  return [*options, "--out", "overlay.png", "--mask", "mask.png", *more]


def test_predict_draws_on_the_image_and_writes_the_mask(finished_run, layout, capsys):
  predict.main(_predict(finished_run, layout, "--instances", f"coco:{layout.instances_path}"))
  photo, overlay, mask = (
    np.asarray(Image.open(path)) for path in (layout.image_path(0), "overlay.png", "mask.png")
  )
  assert overlay.shape == photo.shape == (refer_layout.HEIGHT, refer_layout.WIDTH, 3)
  assert mask.shape == photo.shape[:2]
  assert set(np.unique(mask)) <= {0, 255}
  masks = _annotated_masks()
  result = Segmenter.load(str(finished_run))(photo, "the left one", masks)
  np.testing.assert_array_equal(mask == 255, result.mask)
  np.testing.assert_array_equal(overlay, result.overlay())
  printed = capsys.readouterr().out
  assert f"overlay.png: {(mask == 255).mean():.1%} of the image" in printed
  assert re.search(r"instance [12] of 2 selected|none of 2 instances selected", printed)


def _annotated_masks() -> np.ndarray:
  """Returns the objects of `refer_layout`, the largest first."""
  masks = np.zeros((2, refer_layout.HEIGHT, refer_layout.WIDTH), bool)
  masks[0, 10:40, 30:60] = True
  masks[1, 3:13, 2:12] = masks[1, 9:21, 8:20] = True
  return masks


def test_predict_works_without_instance_masks(finished_run, layout, capsys):
  predict.main(_predict(finished_run, layout))
  assert "none of 0 instances selected" in capsys.readouterr().out
  with Image.open("mask.png") as mask:
    assert mask.size == (refer_layout.WIDTH, refer_layout.HEIGHT)


def _refused(main, arguments: list[str], message: str) -> None:
  """Asserts that a command refuses its input, and neither writes nor removes a file."""
  before = sorted(pathlib.Path().rglob("*"))
  with pytest.raises(InputError, match=message) as caught:
    main(arguments)
  assert "\n" not in str(caught.value)
  assert sorted(pathlib.Path().rglob("*")) == before


@pytest.mark.parametrize(
  ("option", "value", "message"),
  [
    ("--image", "nowhere.jpg", r"image nowhere\.jpg: No such file"),
    ("--image", "refer", r"--out overlay\.png: for several images or expressions this is a folder"),
    ("--image", "cut.jpg", r"image cut\.jpg cannot be decoded.*is the file complete"),
    ("--image", "void.jpg", r"image void\.jpg is empty"),
    ("--image", "text.jpg", r"image text\.jpg is not an image in a known"),
    ("--text", "", r"expression '' is empty; write what to look for"),
    ("--text", " \t", r"expression ' \\t' is empty"),
    ("--checkpoint", "nowhere", r"--checkpoint nowhere: there is no .*give the --workdir"),
    ("--checkpoint", "empty", r"--checkpoint empty: there is no .*give the --workdir"),
    ("--checkpoint", "begun", r"--checkpoint begun: .* has no checkpoint"),
    ("--checkpoint", "cut.jpg", r"--checkpoint cut\.jpg: there is no"),
    ("--out", "nowhere/o.png", r"nowhere/o\.png: the folder nowhere does not exist"),
    ("--out", "o.xyz", r"o\.xyz: unknown image format '\.xyz'; use \.png"),
    ("--out", "o", r"o: unknown image format ''"),
    ("--mask", "nowhere/m.png", r"nowhere/m\.png: the folder nowhere does not exist"),
    ("--mask", "m.psd", r"m\.psd: unknown image format '\.psd'"),  # can be read, not written
    ("--instances", "detectron", r"--instances detectron: unknown proposer"),
    ("--instances", "coco:nowhere.json", r"nowhere\.json: no such file"),
  ],
)
def test_predict_names_invalid_input(finished_run, layout, option, value, message):
  pathlib.Path("empty").mkdir()
  pathlib.Path("begun/checkpoints").mkdir(parents=True)
  pathlib.Path("void.jpg").touch()
  pathlib.Path("text.jpg").write_text("a cup")
  pathlib.Path("cut.jpg").write_bytes(layout.image_path(0).read_bytes()[:-100])
  _refused(predict.main, _predict(finished_run, layout, option, value), message)


def test_predict_reports_an_image_that_the_annotations_lack(finished_run, layout):
  shutil.copy(layout.image_path(0), "holiday.jpg")
  instances = f"coco:{layout.instances_path}"
  command = _predict(finished_run, layout, "--image", "holiday.jpg", "--instances", instances)
  _refused(predict.main, command, r"no image named holiday\.jpg; predict without --instances")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--data_dir", "nowhere"], r"nowhere: shapes is not prepared there; run .*prepare"),
    (["--data", "shapes/"], r"--data shapes/: write DATASET or DATASET/SPLIT, such as"),
    (["--data", "/val"], r"--data /val: write DATASET or DATASET/SPLIT, such as"),
    (["--data", "refcoco"], r"'refcoco': unknown; known: shapes, refcoco_unc"),
    (["--data", "shapes/testZ"], r"has no split 'testZ'; it has .*testC"),
    (["--data", "refcoco/val"], r"'refcoco': unknown; known: shapes, refcoco_unc"),
    (["--data", "refcoco_unc/val"], r"refcoco_unc is not prepared there; run .*prepare"),
    (["--checkpoint", "nowhere"], r"--checkpoint nowhere: there is no"),
    (["--checkpoint", "begun"], r"--checkpoint begun: .* has no checkpoint"),
    (["--overlays", "nowhere/s.png"], r"nowhere/s\.png: the folder nowhere does not exist"),
    (["--overlays", "s.doc"], r"s\.doc: unknown image format"),
    (["--json", "file/m.json"], r"file/m\.json cannot be written"),
    (["--per_expression", "file/r.jsonl"], r"file/r\.jsonl cannot be written"),
  ],
)
def test_evaluate_names_invalid_input(
  finished_run, shapes_data, tmp_path, monkeypatch, options, message
):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("begun/checkpoints").mkdir(parents=True)
  pathlib.Path("file").touch()
  command = ["--checkpoint", str(finished_run), "--data_dir", shapes_data, "--json", "m.json"]
  _refused(evaluate.main, [*command, "--data", "shapes/val", *options], message)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--data_dir", "nowhere"], r"nowhere: shapes is not prepared there; run .*prepare"),
    (
      ["--config", "nowhere.py"],
      r"--config nowhere\.py: not a file and not a recipe of mail_jax; the recipes are demo, ",
    ),
    (["--config", "empty.py"], r"--config empty\.py: the file defines no get_config"),
    (
      ["--config.optimiser.lr=1"],
      r"--config\.optimiser\.lr: unknown key 'optimiser'; the keys are",
    ),
    (["--config.steps=many"], r"--config\.steps: 'many' is not of type int"),
    (["--config.steps"], r"--config\.steps: overrides are written --config\.KEY=VALUE"),
    (["--config.dataset=refcoco_unc"], r"refcoco_unc is not prepared there; run .*prepare"),
    (["--config.dataset=coco"], r"'coco': unknown; known: shapes, refcoco_unc"),
    (["--config.eval_split=testZ"], r"has no split 'testZ'"),
    (["--config.minutes=5.0"], r"config\.steps, config\.epochs and config\.minutes: set one"),
    (["--config.epochs=2.0"], r"config\.epochs 2: config\.steps is set too"),
    (["--config.image_size=33"], r"image_size 33 is not a multiple of .*patch_size 8"),
    (["--config.optimizer.schedule=linear"], r"schedule 'linear' is not one of cosine"),
    (["--config.mesh.fsdp=7"], r"config\.mesh: data -1 x fsdp 7 is not \d+, the number of device"),
    (["--config.vocab_size=100"], r"vocab_size 100 is too small"),
  ],
)
def test_train_names_invalid_input(shapes_data, tmp_path, monkeypatch, options, message):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("empty.py").touch()
  _refused(train.main, tiny_run.arguments(shapes_data, pathlib.Path("run"), *options), message)


@pytest.mark.parametrize(
  ("command", "error"),
  [
    ("train --config RECIPE --data_dir nowhere --workdir run", "error: --data_dir nowhere: shapes"),
    (
      "evaluate --checkpoint begun --data_dir d --data shapes/val",
      "error: --checkpoint begun: ",
    ),
    ("report begun --out nowhere/r.html", "error: nowhere/r.html: the folder nowhere does not"),
    ("predict --checkpoint w --image i.jpg --text cup --out o.png", "error: image i.jpg: No such"),
  ],
)
def test_the_command_prints_one_line_and_exits_with_2(command, error, tmp_path, monkeypatch):
  """In a process of its own, without the settings of tests."""
  for name in ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("PYTHONPATH", str(tiny_run.CHECKOUT))
  (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
  words = command.replace("RECIPE", tiny_run.__file__).split()
  done = subprocess.run(
    [sys.executable, "-m", f"mail_jax.{words[0]}", *words[1:]],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stdout == ""
  # On a slow machine others say what takes long.
  (line,) = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]
  assert line.startswith(error)
  assert [path.name for path in tmp_path.rglob("*")] == ["begun", "checkpoints"]
