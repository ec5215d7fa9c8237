"""`evaluate --predictions`: the command, and that our own predictions get our own metrics."""

import json
import pathlib
from typing import Any

import custom_files
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare
from mail_jax.evaluate import boundary, per_expression
from mail_jax.evaluate import command as evaluate
from mail_jax.predict import command as predict
from mail_jax.report import command as report

EXPORTED = pathlib.Path(__file__).parents[1] / "data" / "exported_1"
SIZES = ((20, 30), (30, 20), (64, 48), (33, 33))
BOX = {"polygons": [[2, 3, 12, 3, 12, 13, 2, 13]]}
CORNER = {"polygons": [[14, 1, 19, 1, 19, 9, 14, 9]]}


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> pathlib.Path:
  """Returns a folder with mine.jsonl, and its records in data: 4 photos, 8 refs, 12 expressions."""
  folder = tmp_path_factory.mktemp("pets")
  lines = []
  for number, size in enumerate(SIZES):
    name = f"photos/{number}.png"
    custom_files.write_photo(folder / name, size, seed=number)
    common = {"image": name, "split": "val", "instances": [BOX | {"score": 0.5}, CORNER]}
    lines.append(common | {"sentences": [f"the box {number}", "Left  box"], "target": BOX})
    target = None if number == 2 else CORNER
    lines.append(common | {"sentences": ["the corner"], "target": target, "ref_id": 70 + number})
  custom_files.write_lines(folder / "mine.jsonl", *lines)
  prepare.main(
    ["--dataset", f"jsonl:{folder / 'mine.jsonl'}", "--data_dir", str(folder / "data"),
     "--instances", "custom", "--trained_on", "nothing"]
  )  # fmt: skip
  return folder


def judge(pets: pathlib.Path, path: pathlib.Path, *more: str) -> None:
  data = ["--data_dir", str(pets / "data"), "--data", "mine/val"]
  evaluate.main(["--predictions", str(path), *data, *more])


def write_masks(pets: pathlib.Path, path: pathlib.Path) -> np.ndarray:
  """Writes noise for every expression; returns the sums of intersections and of unions."""
  entries, sums = [], np.zeros(2, int)
  for number, text in enumerate((pets / "mine.jsonl").read_text().splitlines(), 1):
    line = json.loads(text)
    size = SIZES[(number - 1) // 2]
    target = np.zeros(size, bool)
    if line["target"] is not None:
      x0, y0, _, _, x1, y1, *_ = line["target"]["polygons"][0]
      target[y0:y1, x0:x1] = True
    for which in range(len(line["sentences"])):
      mask = np.random.default_rng(10 * number + which).random(size) < 0.3
      runs: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
      runs["counts"] = runs["counts"].decode()
      ref = {"ref_id": line.get("ref_id", number), "expression_index": which}
      entries.append(ref | {"segmentation": runs})
      sums += (mask & target).sum(), (mask | target).sum()
  path.write_text(json.dumps(entries))
  return sums


def test_the_command_writes_metrics_rows_and_json(pets, tmp_path, capsys):
  intersection, union = write_masks(pets, tmp_path / "masks.json")
  more = ("--json", str(tmp_path / "m.json"), "--per_expression", str(tmp_path / "rows.jsonl"))
  judge(pets, tmp_path / "masks.json", *more)
  printed = capsys.readouterr().out
  assert f"{tmp_path}/masks.json; percent" in printed and "N-acc" in printed
  metrics = json.loads((tmp_path / "m.json").read_text())["mine/val"]
  assert metrics["oIoU"] == intersection / union
  assert (metrics["expressions"], metrics["refs"], metrics["no_targets"]) == (12, 8, 1)
  assert metrics["protocol"] == "original" and metrics["predictions"].endswith("masks.json")
  assert {*metrics["fingerprints"]} == {"data", "predictions"}
  assert not {"oracle_mIoU", "selection_accuracy", "text_cut"} & metrics.keys()
  rows = per_expression.read(tmp_path / "rows.jsonl")
  assert sum(row["union"] for row in rows) == union and [r["index"] for r in rows] == [*range(12)]
  judge(pets, tmp_path / "masks.json", "--protocol", "deris", *more)
  assert "masks.json, protocol deris; percent" in capsys.readouterr().out
  (row, *_) = per_expression.read(tmp_path / "rows.jsonl")
  assert row["protocol"] == "deris" and row["area"] == 100 and row["union"] > 10_000


def test_the_command_names_what_is_wrong(pets, tmp_path):
  (tmp_path / "none.json").write_text("[]")
  with pytest.raises(InputError, match=r"none\.json: has no predictions"):
    judge(pets, tmp_path / "none.json")
  write_masks(pets, tmp_path / "masks.json")
  with pytest.raises(InputError, match=r"mine .* has no split 'test'; it has val"):
    judge(pets, tmp_path / "masks.json", "--data", "mine/test")
  entries = json.loads((tmp_path / "masks.json").read_text())[3:]
  (tmp_path / "masks.json").write_text(json.dumps(entries))
  with pytest.raises(InputError, match=r"3 of 12 expressions have no prediction: mine/val, ref 1"):
    judge(pets, tmp_path / "masks.json")


@pytest.mark.slow
def test_our_predictions_have_the_metrics_of_our_evaluation(pets, tmp_path, capsys):
  ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
  data = ["--data_dir", str(pets / "data"), "--data", "mine/val"]
  model = ["--checkpoint", str(EXPORTED)]
  evaluate.main([*model, *data, "--per_expression", str(ours)])
  predict.main([*model, "--pairs", str(pets / "mine.jsonl"), "--out", str(tmp_path / "out")])
  judge(pets, tmp_path / "out", "--per_expression", str(theirs))
  a, b = (per_expression.read(path) for path in (ours, theirs))
  shared = [*per_expression.FIELDS, "boundary_intersection", "boundary_union"]
  assert [[row[key] for key in shared] for row in a] == [[row[key] for key in shared] for row in b]
  assert any(row["intersection"] for row in a), "the model predicts nothing at all"
  assert "selected" in a[0] and "selected" not in b[0]
  capsys.readouterr()
  evaluate.main(["--compare", str(ours), str(theirs), "--json", str(tmp_path / "c.json")])
  metrics = json.loads((tmp_path / "c.json").read_text())["data"]["mine/val"]["metrics"]
  assert metrics["oIoU"]["difference"] == 0 and "selection_accuracy" not in metrics
  page = tmp_path / "page.html"
  report.main([str(EXPORTED), *data, "--per_expression", str(theirs), "--out", str(page)])
  text = page.read_text()
  assert "of a given mask" in text and "Error analysis" not in text and "differs from" not in text


@pytest.mark.parametrize(
  "size", [(1, 1), (15, 20), (45, 60), (75, 100), (105, 140), (90, 61), (7, 200)]
)
def test_boundaries_on_the_host_are_those_on_the_device(size):
  mask = np.random.default_rng(sum(size)).random(size) < 0.97
  packed = boundary.pack(jnp.asarray(mask[None, None]))
  on_device = boundary.take_boundaries(packed, jnp.array([size], np.int32), *size)
  expected = boundary.pack(jnp.asarray(boundary.take_boundary(mask)[None, None]))
  np.testing.assert_array_equal(np.asarray(on_device), np.asarray(expected))
