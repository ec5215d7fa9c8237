r"""Keeps what the compilers of TPUs and GPUs say of a step, per commit:

  PYTHONPATH=.libtpu python -m benchmarks.step_cost
  PYTHONPATH=.libtpu:.xla_gpu python -m benchmarks.step_cost --all --compare 3037758

Compiles a fixed set of cases at full effort (minutes each) and appends a row for each to
benchmarks/results/step_cost.jsonl; a row that is there is not compiled again. `--compare` prints
the rows of two commits side by side.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import subprocess
from typing import Any

import jax

from benchmarks import paired
from input_pipeline.common.errors import InputError, run_command
from mail_jax.config import load_config
from mail_jax.hardware import chips
from mail_jax.plan import ahead, command, estimate

RESULTS = pathlib.Path(__file__).parent / "results" / "step_cost.jsonl"


@dataclasses.dataclass(frozen=True)
class Case:
  """A program to compile.

  Attributes:
    config: a recipe.
    program: one of `programs.PROGRAMS`.
    topology: the slice.
    batch: per chip.
  """

  config: str
  program: str
  topology: str
  batch: int

  @property
  def name(self) -> str:
    """The name in the table."""
    return f"{self.config.partition(':')[2]} {self.program} {self.topology} {self.batch}"


_RECIPE, _LARGE, _HUGE = (
  "configs/refcoco.py:unc",
  "configs/scale.py:vit_l",
  "configs/scale.py:vit_h",
)
_BEIT3 = "configs/refcoco_beit3.py"
CASES = (
  Case(_RECIPE, "train", "v5e:2x2", 8),
  Case(_RECIPE, "train", "v5e:2x2", 32),
  Case(_RECIPE, "evaluate", "v5e:2x2", 8),
)
MORE = (
  Case(_RECIPE, "predict", "v5e:1x1", 1),
  *(Case(_RECIPE, "train", topology, 8) for topology in ("v5p:2x2x1", "v6e:2x2", "v4:2x2x1")),
  *(
    Case(config, "train", topology, 8)
    for topology in ("v5e:2x2", "v5p:2x2x1", "h100:8")
    for config in (_LARGE, _HUGE)
  ),
  *(
    Case(_RECIPE, "train", f"{slices}*{topology}", 8)
    for topology in ("v5e:16x16", "v5p:4x4x4")
    for slices in (2, 4)
  ),
  *(
    Case(f"{_BEIT3}:{name}", "train", topology, 8)
    for topology in ("v5e:4x4", "v5p:2x2x4", "h100:8")
    for name in ("base,unc", "base,unc,480", "large,unc")
  ),
  Case(_RECIPE, "train", "h100:1", 32),
  Case(_RECIPE, "train", "h200:1", 32),
  Case(_RECIPE, "train", "h200:1", 128),
  Case(_RECIPE, "train", "h100:4x8", 32),
)


def row(case: Case, plan: estimate.Plan, commit: str) -> dict[str, Any]:
  """Returns what is kept of a plan."""
  kept: dict[str, Any] = {
    "commit": commit,
    "date": datetime.date.today().isoformat(),
    "jax": jax.__version__,
    "compilers": ahead.compiler_versions(),
    "effort": plan.effort,
    **dataclasses.asdict(case),
  }
  cost = plan.estimate
  if cost is None:
    return kept | {"refused": plan.refused}
  return kept | {
    "mcycles": round(cost.whole.cycles / 1e6, 3),
    "ms": round((cost.whole.seconds or 0) * 1e3, 3),
    "tflop": round(cost.whole.flops / 1e12, 4),
    "products_share": round(cost.whole.products_share or 0, 4),
    "hbm_gb": round(cost.hbm_bytes / 1e9, 3),
    "arguments_gb": round(cost.memory.arguments / 1e9, 3),
    "temporaries_gb": round(cost.memory.temporaries / 1e9, 3),
    "sent_mb": round(cost.sent_bytes / 1e6, 1),
    "network_mb": round(cost.network_bytes / 1e6, 1),
    "bound_ms": {name: round(1e3 * seconds, 3) for name, seconds in cost.seconds.items()},
    "libraries": cost.libraries,
    "parts": {name: round(part.cycles / 1e6, 3) for name, part in cost.parts.items()},
    "parts_hbm_gb": {name: round(part.hbm_bytes / 1e9, 3) for name, part in cost.parts.items()},
  }


def measure(case: Case, commit: str) -> dict[str, Any]:
  """Compiles a case, and returns its row."""
  topology = chips.parse_topology(case.topology)
  config = command.for_program(load_config(case.config, []), case.program)
  config.batch_size = case.batch * topology.chips
  return row(case, estimate.make_plan(config, topology, estimate.Wanted(case.program)), commit)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of a file; none if it is not there."""
  return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def find(rows: list[dict[str, Any]], case: Case, commit: str) -> dict[str, Any] | None:
  """Returns the newest row of a case at a commit, given by the beginning of its hash."""
  wanted = dataclasses.asdict(case)
  same = [r for r in rows if wanted.items() <= r.items() and r["commit"].startswith(commit)]
  return same[-1] if same else None


def compare(rows: list[dict[str, Any]], old: str, new: str) -> str:
  """Formats the cases of a commit as a Markdown table, old -> new where the other has them too."""
  table = []
  for case in (*CASES, *MORE):
    before, after = find(rows, case, old), find(rows, case, new)
    if after is None:
      continue
    both = (after,) if before is None else (before, after)
    cells: dict[str, object] = {"case": case.name}
    for title, read_cell, digits in _COLUMNS:
      cells[title] = " -> ".join(
        "does not fit" if "refused" in one else f"{read_cell(one):.{digits}f}" for one in both
      )
    table.append(cells)
  return paired.table(table)


_COLUMNS = (
  ("Mcycles", lambda r: r["mcycles"], 1),
  ("ms", lambda r: r["ms"], 1),
  ("products, %", lambda r: 100 * r["products_share"], 0),
  ("encoder", lambda r: r["parts"].get("encoder", 0), 1),
  ("decoder", lambda r: r["parts"].get("decoder", 0), 1),
  ("masks", lambda r: r["parts"].get("masks", 0), 1),
  ("optimizer", lambda r: r["parts"].get("optimizer and average", 0), 1),
  ("HBM GB", lambda r: r["hbm_gb"], 1),
  ("least ms", lambda r: max(r["bound_ms"].values()) if "bound_ms" in r else float("nan"), 1),
  ("temporaries GB", lambda r: r["temporaries_gb"], 2),
)


def head() -> str:
  """Returns the commit of this checkout, with `+` if files differ from it."""

  def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()

  return git("rev-parse", "--short=7", "HEAD") + (
    "+" if git("status", "--porcelain", "-uno", "--", ":!benchmarks/results") else ""
  )


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--all", action="store_true", help="also other chips and larger encoders")
  parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
  parser.add_argument("--compare", metavar="COMMIT", help="print a table of its rows and the new")
  parser.add_argument("--results", type=pathlib.Path, default=RESULTS, metavar="FILE.jsonl")
  args = parser.parse_args(argv)
  commit = head()
  if args.compare and not any(r["commit"].startswith(args.compare) for r in read(args.results)):
    raise InputError(f"--compare {args.compare}: {args.results} has no row of this commit")
  cases = [c for c in (*CASES, *(MORE if args.all else ())) if args.only in c.name]
  for case in cases:
    if commit.endswith("+") or find(read(args.results), case, commit) is None:
      measured = measure(case, commit)
      with args.results.open("a") as file:
        file.write(json.dumps(measured) + "\n")
      print(json.dumps(measured), flush=True)
  if args.compare:
    print(compare(read(args.results), args.compare, commit))


if __name__ == "__main__":
  run_command(main)
