"""The table of what a step costs per commit, with made-up rows."""

import dataclasses
import json

import pytest

from benchmarks import step_cost
from input_pipeline.common.errors import InputError
from mail_jax.hardware import chips

FIRST, SECOND, THIRD = step_cost.CASES[:3]


def _row(case: step_cost.Case, commit: str, mcycles: float, **parts: float) -> dict:
  return {
    "commit": commit, **dataclasses.asdict(case), "mcycles": mcycles, "ms": mcycles / 1.5,
    "products_share": 0.25, "hbm_gb": 1.25, "temporaries_gb": 2.0, "parts": parts,
  }  # fmt: skip


def test_the_newest_row_of_a_commit_stands_beside_that_of_the_other():
  rows = [
    _row(FIRST, "aaaaaaa", 99.0),
    _row(FIRST, "aaaaaaa", 106.5, decoder=58.0),
    _row(SECOND, "aaaaaaa", 325.0),
    _row(FIRST, "bbbbbbb", 45.0, decoder=9.5, masks=1.0),
    _row(THIRD, "bbbbbbb", 30.0),
  ]
  table = step_cost.compare(rows, "aaaa", "bbbbbbb").splitlines()
  assert len(table) == 4  # the second case was not compiled at the newer commit
  assert "| 30.0 |" in table[3].replace("  ", "")
  cells = [cell.strip() for cell in table[2].strip("|").split("|")]
  assert cells[:3] == ["unc train v5e:2x2 8", "106.5 -> 45.0", "71.0 -> 30.0"]
  assert cells[4:7] == ["0.0 -> 0.0", "58.0 -> 9.5", "0.0 -> 1.0"]


def test_a_case_that_did_not_fit_is_told():
  refused = {"commit": "a", **dataclasses.asdict(FIRST), "refused": "RESOURCE_EXHAUSTED"}
  table = step_cost.compare([refused, _row(FIRST, "b", 45.0)], "a", "b")
  assert "| does not fit -> 45.0 |" in table


def test_a_commit_without_rows_is_told_before_anything_is_compiled(tmp_path):
  with pytest.raises(InputError, match=r"--compare 1234567: .* has no row of this commit"):
    step_cost.main(["--compare", "1234567", "--results", str(tmp_path / "none.jsonl")])


def test_cases_are_different_programs_on_slices_that_exist_and_kept_rows_are_of_them():
  cases = (*step_cost.CASES, *step_cost.MORE)
  assert len(set(cases)) == len({case.name for case in cases}) == len(cases)
  for case in cases:
    assert chips.parse_topology(case.topology).name == case.topology
  rows = [json.loads(line) for line in step_cost.RESULTS.read_text().splitlines()]
  assert {
    step_cost.Case(*(row[f.name] for f in dataclasses.fields(step_cost.Case))) for row in rows
  } <= set(cases)
  for row in rows:
    if "refused" not in row:
      assert sum(row["parts"].values()) == pytest.approx(row["mcycles"], abs=0.01)
