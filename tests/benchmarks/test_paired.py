"""Turns, ratios and tables of the benchmarks."""

import json

import pytest

from benchmarks import paired


def test_runs_take_turns():
  calls = []

  def run(name):
    return lambda: calls.append(name) or float(len(calls))

  results = paired.interleave({"a": run("a"), "b": run("b")}, 3)
  assert calls == list("ababab")
  assert results == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}


def test_a_ratio_is_taken_round_by_round():
  # The second round of both was disturbed; the medians alone would say 30 / 2.
  assert paired.ratio([30.0, 3.0, 30.0], [10.0, 1.0, 2.0]) == pytest.approx(3.0)


def test_a_table_has_a_line_a_row_and_a_dash_for_nothing():
  rows = [{"what": "ours", "rate": 1234.5, "n": 7}, {"what": "peer", "rate": None, "n": 12345}]
  assert paired.table(rows).splitlines() == [
    "| what | rate | n |",
    "| --- | ---: | ---: |",
    "| ours | 1,234 | 7 |",
    "| peer | - | 12,345 |",
  ]


def test_the_machine_is_written_with_the_record(tmp_path):
  paired.write_json(None, {"rate": 1.5})
  paired.write_json(str(tmp_path / "r.json"), {"rate": 1.5})
  record = json.loads((tmp_path / "r.json").read_text())
  assert record["rate"] == 1.5
  assert "core" in record["machine"] and "numpy" in record["machine"]
