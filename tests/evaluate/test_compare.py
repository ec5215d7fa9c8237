"""`evaluate --compare`: pairing of rows, the report, and errors."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from input_pipeline.common.errors import InputError
from mail_jax.evaluate import command as evaluate
from mail_jax.evaluate import compare, per_expression

Rows = list[dict[str, Any]]


def make_rows(seed: int, images: int = 40, data: str = "refcoco_unc/val") -> Rows:
  """Makes rows of two refs per image with two expressions each."""
  rng = np.random.default_rng(seed)
  rows = []
  for number in range(4 * images):
    union = 100 + number
    intersection = int(rng.integers(union + 1))
    row = {"data": data, "protocol": "original", "index": number, "image_id": number // 4}
    row |= {
      "file_name": f"{number // 4}.jpg",
      "ref_id": number // 2,
      "expression_index": number % 2,
    }
    row |= {"expression": f"the thing {number}", "words": 3, "height": 48, "width": 64, "area": 50}
    row |= {"intersection": intersection, "union": union, "iou": intersection / union}
    row |= {"selected": 0, "selected_iou": float(rng.random()), "oracle_iou": 0.9, "cut": False}
    rows.append(row)
  return rows


def test_metrics_and_wins_are_those_of_the_rows():
  a, b = make_rows(0), make_rows(1)
  actual = compare.compare(compare.pair(a, b[::-1]), resamples=2000)
  assert (actual["expressions"], actual["images"]) == (160, 40)
  for name, rows in (("a", a), ("b", b)):
    overall = sum(r["intersection"] for r in rows) / sum(r["union"] for r in rows)
    assert actual["metrics"]["oIoU"][name] == pytest.approx(overall, rel=1e-12)
    mean = sum(r["iou"] for r in rows) / len(rows)
    assert actual["metrics"]["mIoU"][name] == pytest.approx(mean, rel=1e-12)
    right = sum(r["selected_iou"] > 0.5 for r in rows) / len(rows)
    assert actual["metrics"]["selection_accuracy"][name] == pytest.approx(right, rel=1e-12)
  for numbers in actual["metrics"].values():
    assert numbers["difference"] == numbers["b"] - numbers["a"]
    assert numbers["low"] < numbers["difference"] < numbers["high"]
  wins = [sum(x["iou"] > y["iou"] for x, y in zip(*pair, strict=True)) for pair in ((a, b), (b, a))]
  assert actual["wins"] == {"a": wins[0], "b": wins[1], "neither": len(a) - sum(wins)}


def test_given_masks_are_compared_by_the_metrics_that_they_have():
  a = make_rows(0)
  b = [
    {key: row[key] for key in row if key not in ("selected", "selected_iou", "oracle_iou", "cut")}
    for row in make_rows(1)
  ]
  for pairs in (compare.pair(a, b), compare.pair(b, a)):
    metrics = compare.compare(pairs, resamples=100)["metrics"]
    assert metrics.keys() == {"oIoU", "mIoU", *(f"P@0.{n}" for n in range(5, 10))}


def with_boundaries(rows: Rows) -> Rows:
  numbers = np.random.default_rng(len(rows)).integers(1, 50, len(rows)).tolist()
  return [
    row | {"boundary_intersection": n, "boundary_union": 50, "boundary_iou": n / 50}
    for row, n in zip(rows, numbers, strict=True)
  ]


def test_boundaries_are_compared_where_both_have_them():
  a, b = with_boundaries(make_rows(0)), make_rows(1)
  old = compare.compare(compare.pair(a, b), resamples=10)
  assert "boundary_mIoU" not in old["metrics"] and "mIoU" in old["metrics"]
  pairs = compare.pair(a, with_boundaries(b)[::-1])
  actual = compare.compare(pairs, resamples=10)
  assert actual["metrics"].keys() - old["metrics"].keys() == {"boundary_mIoU"}
  numbers = actual["metrics"]["boundary_mIoU"]
  assert numbers["a"] == pytest.approx(sum(row["boundary_iou"] for row in a) / len(a))
  assert numbers["difference"] == 0 == numbers["low"]


def test_the_same_rows_do_not_differ_and_comparing_twice_gives_the_same_result():
  a, b = make_rows(0), make_rows(1)
  same = compare.compare(compare.pair(a, a))
  assert {n[key] for n in same["metrics"].values() for key in ("difference", "low", "high")} == {0}
  assert same["wins"] == {"a": 0, "b": 0, "neither": 160}
  once, again = (compare.compare(compare.pair(a, b)) for _ in range(2))
  assert once == again


def test_the_twenty_expressions_that_differ_most_come_first():
  a, b = make_rows(0), make_rows(1)
  shown = compare.most_different(compare.pair(a, b))
  differences = [abs(row["iou_b"] - row["iou_a"]) for row in shown]
  every = sorted((abs(x["iou"] - y["iou"]) for x, y in zip(a, b, strict=True)), reverse=True)
  assert differences == every[:20]
  for row in shown:
    assert row["expression"] == f"the thing {2 * row['ref_id'] + row['expression_index']}"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda rows: rows[:-2],
      r"B: 2 of the 160 expressions of A are missing, .*: refcoco_unc/val, image 39, ref 79,",
    ),
    (
      lambda rows: rows + make_rows(0, 1, "other/val"),
      r"A: 4 of the 164 expressions of B are missing, .*: other/val",
    ),
    (
      lambda rows: [*rows, rows[0]],
      r"B: duplicate row of refcoco_unc/val, image 0, ref 0, expression 0",
    ),
    (
      lambda rows: [rows[0] | {"expression": "x"}, *rows[1:]],
      r"expression is 'the thing 0' in A and 'x' in B",
    ),
    (
      lambda rows: [rows[0] | {"area": 51}, *rows[1:]],
      r"ref 0, expression 0: area is 50 in A and 51 in B",
    ),
    (
      lambda rows: [r | {"protocol": "lavt"} for r in rows],
      r"protocol is 'original' in A and .lavt. in B",
    ),
  ],
)
def test_rows_without_a_partner_are_named(change, message):
  with pytest.raises(InputError, match=message):
    compare.pair(make_rows(0), change(make_rows(1)))


def test_rows_of_several_protocols_are_rejected():
  rows = make_rows(0)
  rows[5]["protocol"] = "cris"
  with pytest.raises(InputError, match=r"A: the rows of refcoco_unc/val have several protocols"):
    compare.report(rows, rows, ("A", "B"))


def write(folder: pathlib.Path, name: str, seed: int) -> str:
  rows = make_rows(seed) + make_rows(seed + 7, images=10, data="refcoco_unc/testA")
  per_expression.write(folder / name, rows)
  return str(folder / name)


def test_the_command_prints_every_split_and_writes_the_fractions(tmp_path, capsys):
  files, out = (
    [write(tmp_path, name, seed) for name, seed in (("a", 0), ("b", 1))],
    tmp_path / "c.json",
  )
  evaluate.main(["--compare", *files, "--json", str(out)])
  printed, actual = capsys.readouterr().out, json.loads(out.read_text())
  assert list(actual["data"]) == ["refcoco_unc/val", "refcoco_unc/testA"]
  assert actual["resamples"] >= 2000 and len(actual["most_different"]) == 20
  lines = printed.splitlines()
  line = next(line for line in lines if line.startswith("mIoU"))
  numbers = actual["data"]["refcoco_unc/val"]["metrics"]["mIoU"]
  shown = [float(cell) for cell in line.split()[1:]]
  expected = [100 * numbers[key] for key in ("a", "b", "difference", "low", "high")]
  assert shown == pytest.approx(expected, abs=0.006)
  assert any(line.startswith("warning: refcoco_unc/testA: only 10 images") for line in lines)
  assert not any(line.startswith("warning: refcoco_unc/val") for line in lines)
  assert lines[-1] == f"wrote {out}"


def test_the_command_names_what_is_wrong_and_writes_nothing(tmp_path):
  good, out = write(tmp_path, "a", 0), tmp_path / "c.json"
  with pytest.raises(InputError, match=r"nowhere\.jsonl: No such file"):
    evaluate.main([f"--json={out}", "--compare", good, str(tmp_path / "nowhere.jsonl")])
  assert not out.exists()


def test_models_that_agree_everywhere_are_reported_as_such(tmp_path, capsys):
  files = [write(tmp_path, name, 0) for name in ("a", "b")]
  evaluate.main(["--compare", *files])
  assert "Every expression has the same IoU in both." in capsys.readouterr().out
