"""`reproduce` from end to end on real photos: killed, resumed, and its table."""

import json
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny_run

from input_pipeline.common import untrusted_pickle
from mail_jax.reproduce import published

STEPS = 200
PHOTOS = 24


@pytest.fixture(scope="module")
def raw(realdata: pathlib.Path, tmp_path_factory) -> pathlib.Path:
  """The excerpt's raw files, with fewer photos in train."""
  root = tmp_path_factory.mktemp("raw")
  shutil.copytree(realdata / "refer", root / "refer", copy_function=os.link)
  refs = untrusted_pickle.load(str(realdata / "refer/refcoco/refs(unc).p"))
  photos = sorted({ref["image_id"] for ref in refs if ref["split"] == "train"})[:PHOTOS]
  kept = [ref for ref in refs if ref["split"] != "train" or ref["image_id"] in photos]
  path = root / "refer/refcoco/refs(unc).p"
  path.parent.chmod(0o755)
  path.unlink()
  path.write_bytes(pickle.dumps(kept, protocol=2))
  return root


def _words(raw: pathlib.Path, realdata: pathlib.Path, out: pathlib.Path) -> list[str]:
  return [
    *(sys.executable, "-m", "mail_jax.reproduce", "--root", str(raw), "--out", str(out)),
    *("--images", str(realdata / "coco/train2014"), "--recipe", tiny_run.__file__),
    *("--annotations", str(realdata / "coco/annotations/instances_train2014.json")),
    *("--train", "unc", "--across", "--instances", "bright_regions.BrightRegions"),
    *("--protocols", "original,oneref", f"--config.steps={STEPS}", "--config.save_every=20"),
    *("--config.eval_every=100", "--config.log_every=10"),
  ]


_PATHS = (str(tiny_run.CHECKOUT), str(pathlib.Path(tiny_run.__file__).parent))
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(_PATHS)}


def _finish(words: list[str]) -> str:
  """Runs the command to its end; returns what it printed."""
  done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
  assert done.returncode == 0, done.stderr
  return done.stdout


def _run_until(words: list[str], out: pathlib.Path, reached, how: signal.Signals) -> None:
  """Starts the command, and sends it a signal when something is reached."""
  process = subprocess.Popen(words, env=ENVIRONMENT)
  deadline = time.monotonic() + 300
  while not reached():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
  process.send_signal(how)
  process.wait(100)
  assert not (out / "table.html").exists()


@pytest.mark.slow
def test_killed_within_steps_and_between_them_it_resumes_and_writes_the_table(
  raw, realdata, tmp_path
):
  out = tmp_path / "out"
  words = _words(raw, realdata, out)
  part, log = out / "proposals.json.rows", out / "runs/unc,seed=0/metrics.jsonl"
  dry = _finish([*words, "--dry_run"])
  # A proposer, 4 data sets twice, a run, and 2 protocols with 2 kinds of masks.
  assert "14 of 14 steps to do" in dry and "left to do, about" in dry
  assert dry.count("python -m mail_jax.evaluate") == 4 and not out.exists()

  def proposed() -> bool:
    return part.is_file() and part.read_bytes().count(b"\n") > 12

  _run_until(words, out, proposed, signal.SIGKILL)
  _run_until(words, out, lambda: (out / "logs/train unc,seed=0.log").exists(), signal.SIGKILL)
  _run_until(
    words, out, lambda: log.is_file() and len(tiny_run.rows(log.parent)) > 4, signal.SIGTERM
  )
  steps = tiny_run.steps_kept(log.parent)
  assert steps and steps[-1] < STEPS
  _finish(words)
  assert f"resumed at step {steps[-1]}" in (out / "logs/train unc,seed=0.log").read_text()
  _check_table(out)
  before = {path: path.stat().st_mtime_ns for path in (out / "metrics").rglob("*.json*")}
  again = _finish(words)
  assert "0 of 14 steps to do" in again and "nothing is left to do" in again
  assert {path: path.stat().st_mtime_ns for path in before} == before


def _check_table(out: pathlib.Path) -> None:
  """Checks that the table has what `evaluate` wrote, for every split of the four data sets."""
  found = json.loads((out / "table.json").read_text())
  splits = {(row["set"], row["split"]) for row in found["rows"]}
  whole = {(name, split) for name in published.SETS for split in published.SPLITS[name]}
  assert splits == whole - {("refcocog_umd", "test")}  # of which the excerpt has nothing
  assert len(found["rows"]) == 4 * len(splits)
  for row in found["rows"]:
    path = out / "metrics/unc,seed=0" / row["masks"] / f"{row['protocol']}.json"
    written = json.loads(path.read_text())[f"{row['set']}/{row['split']}"]
    for name, value in row["metrics"].items():
      assert value["mean"] == value["seeds"][0] == written[name]
    assert row["metrics"]["oIoU"]["low"] <= written["oIoU"] <= row["metrics"]["oIoU"]["high"]
    assert row["steps"] == [written["step"]]
    trained_on = {"proposed": "nothing", "ground-truth": "ground-truth"}[row["masks"]]
    assert row["instances"]["trained_on"] == trained_on
  oracle = [
    [row["metrics"]["oracle_mIoU"]["mean"] for row in found["rows"] if row["masks"] == masks]
    for masks in ("ground-truth", "proposed")
  ]
  assert all(better > worse for better, worse in zip(*oracle, strict=True))
  page = (out / "table.html").read_text()
  assert all(title in page for title in published.SETS.values())
  assert "Not the published splits" in page and "an oracle" in page
  numbers = re.findall(r"\d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\]", (out / "table.md").read_text())
  assert len(numbers) == len(found["rows"])
