"""`train`, `evaluate` and `predict` as users run them, rightly and wrongly."""

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
from input_pipeline.errors import InputError
from mail_jax import evaluate, predict, train
from mail_jax.segmenter import Segmenter

METRICS = ("sentences", "oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9")
METRICS += ("selection_accuracy", "oracle_mIoU")


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What one run of `evaluate` left behind."""

  metrics: dict[str, dict[str, Any]]
  sheet: pathlib.Path
  printed: str


@pytest.fixture(scope="module")
def evaluation(finished_run, shapes_data, tmp_path_factory) -> Evaluation:
  folder, printed = tmp_path_factory.mktemp("evaluation"), io.StringIO()
  command = ["--checkpoint", str(finished_run), "--data_dir", shapes_data]
  command += ["--data", "shapes/val", "--data", "shapes/testC"]
  command += ["--json", str(folder / "new" / "metrics.json")]
  command += ["--overlays", str(folder / "sheet.png"), "--overlay_count", "8"]
  with contextlib.redirect_stdout(printed):
    evaluate.main(command)
  metrics = json.loads((folder / "new" / "metrics.json").read_text())
  return Evaluation(metrics, folder / "sheet.png", printed.getvalue())


def test_evaluate_writes_fractions_of_every_split(evaluation, shapes_data):
  assert list(evaluation.metrics) == ["shapes/val", "shapes/testC"]
  counts = (storage.read_metadata(shapes_data, "shapes") or {})["counts"]
  for name, metrics in evaluation.metrics.items():
    assert set(METRICS) <= set(metrics)
    assert metrics["sentences"] == counts[name.partition("/")[2]]["sentences"]
    assert all(0 <= metrics[key] <= 1 for key in METRICS[1:])
    precisions = [metrics[key] for key in METRICS[3:8]]
    assert precisions == sorted(precisions, reverse=True)
    assert metrics["oracle_mIoU"] > 0.7  # of the simulated detector's best mask


def test_evaluate_prints_percent(evaluation):
  header, *rows = evaluation.printed.splitlines()[1:4]
  for row in rows:
    name, *cells = row.split()
    shown = dict(zip(header.split(), map(float, cells), strict=True))
    for key in METRICS[1:]:
      assert shown[key] == pytest.approx(100 * evaluation.metrics[name][key], abs=0.006)


def test_the_contact_sheet_has_a_cell_a_prediction(evaluation):
  with Image.open(evaluation.sheet) as sheet:
    pixels = np.asarray(sheet.convert("RGB"))
  # 8 cells in rows of 6: pictures of 240 x 240 pixels with three lines of text below each.
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
  """Four photos of 64 x 48 pixels with two annotated objects each, in the current folder."""
  monkeypatch.chdir(tmp_path)
  return refer_layout.make_layout(tmp_path / "refer")


def _predict(run: pathlib.Path, layout: refer_layout.ReferLayout, *more: str) -> list[str]:
  photo = str(layout.image_path(0))
  options = ["--checkpoint", str(run), "--image", photo, "--text", "the left one"]
  return [*options, "--out", "overlay.png", "--mask", "mask.png", *more]


def test_predict_draws_on_the_photo_and_writes_the_mask(finished_run, layout, capsys):
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
  assert f"overlay.png: {(mask == 255).mean():.1%} of the photo" in printed
  assert re.search(r"instance [12] of 2 chosen|no instance was chosen of 2", printed)


def _annotated_masks() -> np.ndarray:
  """The objects of `refer_layout`, the largest first."""
  masks = np.zeros((2, refer_layout.HEIGHT, refer_layout.WIDTH), bool)
  masks[0, 10:40, 30:60] = True
  masks[1, 3:13, 2:12] = masks[1, 9:21, 8:20] = True
  return masks


def test_predict_answers_without_instance_masks(finished_run, layout, capsys):
  predict.main(_predict(finished_run, layout))
  assert "no instance was chosen of 0" in capsys.readouterr().out
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
    ("--image", "refer", r"image refer: Is a directory"),
    ("--image", "cut.jpg", r"image cut\.jpg cannot be decoded.*is the file complete"),
    ("--image", "void.jpg", r"image void\.jpg cannot be decoded: it is empty"),
    ("--image", "text.jpg", r"image text\.jpg cannot be decoded: it is no picture"),
    ("--text", "", r"expression '' is empty; write what to look for"),
    ("--text", " \t", r"expression ' \\t' is empty"),
    ("--checkpoint", "nowhere", r"--checkpoint nowhere: there is no .*give the --workdir"),
    ("--checkpoint", "empty", r"--checkpoint empty: there is no .*give the --workdir"),
    ("--checkpoint", "begun", r"--checkpoint begun: .* holds no checkpoint"),
    ("--checkpoint", "cut.jpg", r"--checkpoint cut\.jpg: there is no"),
    ("--out", "nowhere/o.png", r"nowhere/o\.png: the folder nowhere does not exist"),
    ("--out", "o.xyz", r"o\.xyz: unknown kind of picture '\.xyz'; use \.png"),
    ("--out", "o", r"o: unknown kind of picture ''"),
    ("--mask", "nowhere/m.png", r"nowhere/m\.png: the folder nowhere does not exist"),
    ("--mask", "m.psd", r"m\.psd: unknown kind of picture '\.psd'"),  # can be read, not written
    ("--instances", "detectron", r"--instances detectron: no provider of that name"),
    ("--instances", "coco:nowhere.json", r"nowhere\.json: no such file"),
  ],
)
def test_predict_names_what_is_wrong(finished_run, layout, option, value, message):
  pathlib.Path("empty").mkdir()
  pathlib.Path("begun/checkpoints").mkdir(parents=True)
  pathlib.Path("void.jpg").touch()
  pathlib.Path("text.jpg").write_text("a cup")
  pathlib.Path("cut.jpg").write_bytes(layout.image_path(0).read_bytes()[:-100])
  _refused(predict.main, _predict(finished_run, layout, option, value), message)


def test_predict_says_that_the_annotations_do_not_know_a_photo(finished_run, layout):
  shutil.copy(layout.image_path(0), "holiday.jpg")
  instances = f"coco:{layout.instances_path}"
  command = _predict(finished_run, layout, "--image", "holiday.jpg", "--instances", instances)
  _refused(predict.main, command, r"know no image holiday\.jpg; predict without --instances")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--data_dir", "nowhere"], r"nowhere: shapes is not prepared there; run .*prepare"),
    (["--data", "shapes"], r"--data shapes: write DATASET/SPLIT, such as"),
    (["--data", "shapes/testZ"], r"has no split 'testZ'; it has .*testC"),
    (["--data", "refcoco/val"], r"'refcoco': unknown; the known ones are shapes, refcoco_unc"),
    (["--data", "refcoco_unc/val"], r"refcoco_unc is not prepared there; run .*prepare"),
    (["--checkpoint", "nowhere"], r"--checkpoint nowhere: there is no"),
    (["--checkpoint", "begun"], r"--checkpoint begun: .* holds no checkpoint"),
    (["--overlays", "nowhere/s.png"], r"nowhere/s\.png: the folder nowhere does not exist"),
    (["--overlays", "s.doc"], r"s\.doc: unknown kind of picture"),
    (["--json", "file/m.json"], r"file/m\.json cannot be written"),
  ],
)
def test_evaluate_names_what_is_wrong(
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
    (["--config", "nowhere.py"], r"--config nowhere\.py: no such file; recipes are in configs/"),
    (["--config", "empty.py"], r"--config empty\.py: the file defines no get_config"),
    (["--config.optimiser.lr=1"], r"--config\.optimiser\.lr: unknown key 'optimiser'; there is"),
    (["--config.steps=many"], r"--config\.steps: 'many' is not of type int"),
    (["--config.steps"], r"--config\.steps: overrides are written --config\.KEY=VALUE"),
    (["--config.dataset=refcoco_unc"], r"refcoco_unc is not prepared there; run .*prepare"),
    (["--config.dataset=coco"], r"'coco': unknown; the known ones are shapes, refcoco_unc"),
    (["--config.eval_split=testZ"], r"has no split 'testZ'"),
    (["--config.minutes=5.0"], r"config\.steps, config\.epochs and config\.minutes: set one"),
    (["--config.epochs=2.0"], r"config\.epochs 2: config\.steps is set too"),
    (["--config.image_size=33"], r"image_size 33 is not a multiple of .*patch_size 8"),
    (["--config.optimizer.schedule=linear"], r"schedule 'linear' is not one of cosine"),
    (["--config.mesh.fsdp=7"], r"config\.mesh: data -1 x fsdp 7 does not make \d+ device"),
    (["--config.vocab_size=100"], r"vocab_size 100 is too small"),
  ],
)
def test_train_names_what_is_wrong(shapes_data, tmp_path, monkeypatch, options, message):
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
    ("predict --checkpoint w --image i.jpg --text cup --out o.png", "error: image i.jpg: No such"),
  ],
)
def test_the_command_prints_one_line_and_exits_with_2(command, error, tmp_path, monkeypatch):
  """As a user sees it, without the settings that tests make."""
  monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
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
  (line,) = done.stderr.splitlines()
  assert line.startswith(error)
  assert [path.name for path in tmp_path.rglob("*")] == ["begun", "checkpoints"]
