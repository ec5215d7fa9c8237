"""Per-expression rows: written, read again, and refused if malformed."""

import gzip
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from input_pipeline.common.errors import InputError
from mail_jax.evaluate import per_expression, protocols
from mail_jax.evaluate.segmentation import summarise

COUNTED = {
  "intersection": np.array([5, 0, 90], np.int32),
  "union": np.array([10, 0, 100], np.int32),
  "height": np.array([48, 48, 700], np.int32),
  "width": np.array([64, 64, 500], np.int32),
  "area": np.array([8, 0, 10_000], np.int32),
  "selected": np.array([1, 2, 0], np.int32),
  "selected_iou": np.array([0.5, 0, 0.1], np.float32),
  "oracle_iou": np.array([0.75, 0, 0.9], np.float32),
  "cut": np.array([False, True, False]),
}
SENTENCES = ("  The left  CUP ", "nobody", "die Tasse, ganz \u201elinks\u201c")
META = [
  {
    "index": i, "image_id": -7 * i, "file_name": f"{i}.jpg", "ref_id": 3 * i,
    "expression_index": 0, "expression": text,
  }
  for i, text in enumerate(SENTENCES)
]  # fmt: skip


def make(**more: np.ndarray) -> list[dict[str, Any]]:
  return per_expression.make("shapes/val", COUNTED | more, META, protocols.ORIGINAL, 2)


def test_a_row_has_its_origin_and_the_counts():
  rows = make()
  assert rows[0] == {
    "data": "shapes/val", "protocol": "original", "index": 0, "image_id": 0,
    "file_name": "0.jpg", "ref_id": 0, "expression_index": 0,
    "expression": "  The left  CUP ", "words": 3, "height": 48, "width": 64, "area": 8,
    "intersection": 5, "union": 10, "iou": 0.5,
    "selected": 1, "selected_iou": 0.5, "oracle_iou": 0.75, "cut": False,
  }  # fmt: skip
  given = {
    key: value for key, value in COUNTED.items() if not key.startswith(("sel", "ora", "cut"))
  }
  plain = per_expression.make("shapes/val", given, META, protocols.ORIGINAL)
  assert list(plain[0]) == list(per_expression.FIELDS)
  assert list(rows[0]) == [*per_expression.FIELDS, *list(per_expression.OPTIONAL)[:4]]
  assert [row["selected"] for row in rows] == [1, None, 0]
  assert [row["iou"] for row in rows] == [0.5, 1, 0.9]
  assert [row["words"] for row in rows] == [3, 1, 4]


def test_outputs_of_only_some_models_are_kept():
  (first, *_) = make(no_target_probability=np.array([0.25, 1, 0], np.float32))
  assert first["no_target_probability"] == 0.25


BOUNDARY = {
  "boundary_intersection": np.array([1, 0, 6], np.int32),
  "boundary_union": np.array([4, 0, 8], np.int32),
}


def test_boundaries_are_kept_where_they_were_counted(tmp_path):
  rows = make(**BOUNDARY)
  assert [row["boundary_iou"] for row in rows] == [0.25, 1, 0.75]
  for name, values in BOUNDARY.items():
    assert [row[name] for row in rows] == values.tolist()
  per_expression.write(tmp_path / "rows.jsonl", rows)
  columns = per_expression.columns(per_expression.read(tmp_path / "rows.jsonl"))
  assert dict(summarise(columns))["boundary_mIoU"] == pytest.approx(2 / 3)
  kinds = per_expression.breakdowns(columns, summarise)["by_size"]
  assert {kind: group["boundary_mIoU"] for kind, group in kinds.items()} == {
    "none": 1, "small": 0.25, "large": 0.75,
  }  # fmt: skip


def test_older_rows_without_boundaries_have_all_other_metrics(tmp_path):
  per_expression.write(tmp_path / "rows.jsonl", [make(**BOUNDARY)[0], *make()[1:]])
  actual = dict(summarise(per_expression.columns(per_expression.read(tmp_path / "rows.jsonl"))))
  assert "boundary_mIoU" not in actual and actual["mIoU"] == pytest.approx(0.8)


def test_rows_are_read_as_they_were_written_and_give_the_same_metrics(tmp_path):
  rows = make()
  per_expression.write(tmp_path / "rows.jsonl", rows)
  lines = (tmp_path / "rows.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == rows
  assert per_expression.read(tmp_path / "rows.jsonl") == rows
  actual = dict(summarise(per_expression.columns(rows)))
  assert actual["refs"] == 3 and actual["text_cut"] == pytest.approx(1 / 3)
  for name, value in summarise(COUNTED):
    assert actual[name] == pytest.approx(value, abs=1e-7)


def test_a_byte_order_mark_line_ends_and_encodings_are_no_difference(tmp_path):
  rows = make(**BOUNDARY)
  per_expression.write(tmp_path / "rows.jsonl", rows)
  text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
  files = {
    "windows.jsonl": b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "powershell.jsonl": text.replace("\n", "\r\n").encode("utf-16"),
    "packed.jsonl.gz": gzip.compress(text.encode()),
    "unended.jsonl": text.rstrip("\n").encode(),
  }
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
    assert per_expression.read(tmp_path / name) == rows


def test_rows_of_given_masks_have_no_columns_of_instances_or_all(tmp_path):
  path, names = tmp_path / "rows.jsonl", ("selected", "selected_iou", "oracle_iou", "cut")
  plain = [{key: row[key] for key in row if key not in names} for row in make()]
  per_expression.write(path, plain)
  assert per_expression.read(path) == plain
  metrics = dict(summarise(per_expression.columns(plain)))
  assert metrics["mIoU"] == pytest.approx(0.8)
  assert not {"selection_accuracy", "selected_mIoU", "oracle_mIoU", "text_cut"} & metrics.keys()
  for name in names:
    per_expression.write(path, [{key: row[key] for key in row if key != name} for row in make()])
    with pytest.raises(InputError, match=f"line 1: missing key '{name}'"):
      per_expression.read(path)


def broken(**changes: Any) -> str:
  return json.dumps(make()[0] | changes)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", r"rows\.jsonl: the file is empty"),
    ("\n", r"rows\.jsonl, line 1: invalid JSON"),
    (broken()[:-20], r"rows\.jsonl, line 1: invalid JSON .*write the file again"),
    (broken() + "\n[1]\n", r"rows\.jsonl, line 2: not a JSON object"),
    ('{"data": "shapes/val"}', r"rows\.jsonl, line 1: missing key 'protocol'"),
    (broken(area=True), r"line 1: area is True, which is not an integer"),
    (broken(area=1.5), r"line 1: area is 1\.5, which is not an integer"),
    (broken(expression=None), r"line 1: expression is None, which is not text"),
    (broken(cut=0), r"line 1: cut is 0, which is not true or false"),
    (broken(union=-1), r"line 1: union is -1; it cannot be negative"),
    (broken(union=4), r"line 1: the intersection, 5, is larger than the union, 4"),
    (broken(iou=1.5), r"line 1: iou is 1\.5; it must be between 0 and 1"),
    (broken(selected_iou=float("nan")), r"line 1: selected_iou is nan; it must be between"),
    (broken(no_target_probability="no"), r"no_target_probability is 'no', which is not a number"),
    (
      broken(boundary_union=4),
      r"line 1: missing key 'boundary_intersection'; write the file again",
    ),
    (
      broken(boundary_intersection=5, boundary_union=4, boundary_iou=1),
      r"line 1: the intersection of the boundaries, 5, is larger than the union, 4",
    ),
    (
      broken(boundary_intersection=1, boundary_union=4, boundary_iou=1.25),
      r"boundary_iou is 1\.25; it must be between 0 and 1",
    ),
    (
      broken(protocol="mine"),
      r"line 1: unknown protocol 'mine'; the protocols are original, lavt, cris, c3vg",
    ),
  ],
)
def test_what_is_wrong_with_a_file_is_named_with_its_line(tmp_path, text, message):
  path = tmp_path / "rows.jsonl"
  path.write_text(text)
  with pytest.raises(InputError, match=message) as caught:
    per_expression.read(path)
  assert "\n" not in str(caught.value)


def test_files_that_are_not_text_are_named(tmp_path):
  (tmp_path / "photo.jsonl").write_bytes(b"\xff\xd8\xff\xe0")
  messages = {"nowhere.jsonl": "No such file", "": "directory", "photo.jsonl": "not a text file"}
  for name, message in messages.items():
    with pytest.raises(InputError, match=message):
      per_expression.read(pathlib.Path(tmp_path / name))


def test_groups_have_the_metrics_of_their_expressions_alone():
  areas = np.array([0, 1, 1023, 1024, 9215, 9216, 10**6])
  columns = {"area": areas, "words": np.array([1, 2, 3, 5, 6, 10, 11])}
  actual = per_expression.breakdowns(columns, lambda part: [("areas", part["area"].tolist())])
  assert actual == {
    "by_size": {
      "none": {"areas": [0]},
      "small": {"areas": [1, 1023]},
      "medium": {"areas": [1024, 9215]},
      "large": {"areas": [9216, 10**6]},
    },
    "by_words": {
      "1-2": {"areas": [0, 1]},
      "3-5": {"areas": [1023, 1024]},
      "6-10": {"areas": [9215, 9216]},
      "11+": {"areas": [10**6]},
    },
  }


def test_empty_groups_are_left_out():
  columns = {"area": np.array([5]), "words": np.array([4])}
  actual = per_expression.breakdowns(columns, lambda part: [("expressions", len(part["area"]))])
  assert actual == {
    "by_size": {"small": {"expressions": 1}},
    "by_words": {"3-5": {"expressions": 1}},
  }
