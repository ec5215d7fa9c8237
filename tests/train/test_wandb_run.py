"""Runs of Weights & Biases, read from its offline files; its failures never stop training."""

import json
import pathlib
import struct
import sys
import time
import types
from typing import Any

import numpy as np
import pytest
import tiny_run
from PIL import Image

from mail_jax.train import command as train
from mail_jax.train.logging import wandb
from mail_jax.train.logging.samples import Picture
from mail_jax.train.logging.wandb import WandbRun

PICTURE = np.zeros((40, 60, 3), np.uint8) + np.array([200, 10, 30], np.uint8)


@pytest.fixture
def offline(monkeypatch, tmp_path):
  """The real package, offline and without settings of the user."""
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))


def _records(file: pathlib.Path) -> list[Any]:
  """Records of a .wandb file: 7 bytes, then LevelDB's log in blocks of 32 KiB."""
  from wandb.proto import wandb_internal_pb2

  data, at, actual, parts = file.read_bytes(), 7, [], b""
  assert data[:4] == b":W&B"
  while at + 7 <= len(data):
    if 32768 - at % 32768 < 7:  # the end of a block is filled
      at += 32768 - at % 32768
      continue
    length, kind = struct.unpack_from("<HB", data, at + 4)
    parts += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # whole, or the last part
      actual.append(wandb_internal_pb2.Record.FromString(parts))
      parts = b""
  return actual


def _read(file: pathlib.Path, seconds: float = 60) -> list[Any]:
  """Returns all records, after the writing process has ended."""
  began = time.monotonic()
  while not any(record.HasField("exit") for record in _records(file)):
    assert time.monotonic() - began < seconds, "the run was not ended"
    time.sleep(0.1)
  return _records(file)


def _history(workdir: pathlib.Path) -> dict[int, dict[str, Any]]:
  rows: dict[int, dict[str, Any]] = {}
  for file in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
    for record in _read(file):
      if not record.HasField("history"):
        continue
      values: dict[str, Any] = {}
      for item in record.history.item:
        *parents, name = list(item.nested_key) or [item.key]
        inside = values
        for parent in parents:
          inside = inside.setdefault(parent, {})
        inside[name] = json.loads(item.value_json)
      rows.setdefault(values["_step"], {}).update(values)
  return rows


@pytest.mark.extras
def test_rows_pictures_and_config_arrive_and_a_resumed_run_is_the_same_one(offline, tmp_path):
  workdir, lines = tmp_path / "run", []
  workdir.mkdir()
  for step in (1, 2):
    run = WandbRun("team/project", str(workdir), {"model": {"width": 32}}, lines.append)
    run.row(step, {"loss": 0.5 / step, "lr": 1e-3, "seconds": {"step": 2.0}})
    run.row(step, {"val/mIoU": 0.25 * step, "seconds": {"step": 3.0}})
    run.pictures(step, [Picture("val/0", PICTURE, "the left cup")])
    run.close()
  files = sorted(workdir.glob("wandb/offline-run-*/*.wandb"))
  known = json.loads((workdir / "wandb.json").read_text())
  assert len(files) == 2
  assert {file.name for file in files} == {f"run-{known['id']}.wandb"}
  history = _history(workdir)
  for step in (1, 2):
    row = history[step]
    assert row["train/loss"] == 0.5 / step and row["val/mIoU"] == 0.25 * step
    assert row["train/lr"] == 1e-3 and row["seconds/step"] == 2.0
    shown = row["val/0"]
    assert shown["caption"] == "the left cup"
    (file,) = workdir.glob(f"wandb/offline-run-*/files/{shown['path']}")
    np.testing.assert_array_equal(np.asarray(Image.open(file)), PICTURE)
  (begun,) = [record.run for record in _read(files[0]) if record.HasField("run")][:1]
  assert (begun.entity, begun.project) == ("team", "project")
  config = {update.key: json.loads(update.value_json) for update in begun.config.update}
  assert config["model"] == {"width": 32}
  assert all("offline, in" in line for line in lines) and len(lines) == 2


@pytest.mark.parametrize("is_offline", [True, False])
def test_an_offline_start_repeats_the_rows_of_earlier_ones(is_offline, tmp_path, monkeypatch):
  """Uploading its folder replaces the history; online the service has it already."""
  sent = []

  def begin(run, options):
    log = lambda values, step: sent.append((step, values))  # noqa: E731
    return types.SimpleNamespace(
      id="x", offline=is_offline, url="", dir=str(tmp_path / "a" / "b"), log=log
    )

  monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
  monkeypatch.setattr(WandbRun, "_begin", begin)
  rows = [{"step": 3, "loss": 0.5, "lr": 1.0}, {"step": 4, "val/mIoU": 0.25}]
  run = WandbRun("project", str(tmp_path), {}, print, rows)
  run.row(5, {"loss": 0.4, "lr": 1.0})
  earlier = (
    [(3, {"train/loss": 0.5, "train/lr": 1.0}), (4, {"val/mIoU": 0.25})] if is_offline else []
  )
  assert sent == [*earlier, (5, {"train/loss": 0.4, "train/lr": 1.0})]


@pytest.mark.extras
@pytest.mark.slow
def test_a_whole_run_tells_it_what_is_in_its_log(offline, shapes_data, tmp_path):
  workdir = tmp_path / "run"
  words = ["--config.steps=8", "--config.eval_every=4", "--config.log.wandb=project"]
  train.main(tiny_run.arguments(shapes_data, workdir, *words, "--config.log.images=2"))
  history = _history(workdir)
  for row in tiny_run.rows(workdir):
    logged = history[row["step"]]
    for name in ("loss", "lr", "grad_norm"):
      assert name not in row or logged[f"train/{name}"] == row[name]
    assert "val/mIoU" not in row or logged["val/mIoU"] == row["val/mIoU"]
  assert {step for step, row in history.items() if "val/1" in row} == {4, 8}


class _Failing:
  """A replacement for the package that fails on request."""

  def __init__(self, fails: set[str]):
    self.fails, self.logged, self.begun = fails, [], []
    self.id, self.offline, self.url, self.dir = "abc", False, "https://host/run", "dir/files"

  def init(self, **options: Any) -> "_Failing":
    self.begun.append(options)
    if ("init" in self.fails and "mode" not in options) or "offline" in self.fails:
      raise OSError("no network\nand more")
    return self

  def Settings(self, **options: Any) -> dict[str, Any]:
    return options

  def Image(self, pixels: Any, caption: str) -> str:
    return caption

  def log(self, values: dict[str, Any], step: int) -> None:
    if "log" in self.fails:
      raise RuntimeError("the service has ended")
    self.logged.append((step, values))

  def finish(self, exit_code: int) -> None:
    if "finish" in self.fails:
      raise TimeoutError
    self.logged.append(("finish", exit_code))


@pytest.mark.parametrize(
  ("fails", "logged_steps", "words"),
  [
    (set(), 3, ["https://host/run"]),
    ({"init"}, 3, ["no network; logging this start offline", "https"]),
    ({"init", "offline"}, 0, ["start offline", "no network; W&B logging disabled"]),
    ({"log"}, 0, ["https", "the service has ended; W&B logging disabled, training continues"]),
    ({"finish"}, 2, ["https", "TimeoutError; W&B logging disabled"]),
  ],
  ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else "",
)
def test_whatever_fails_there_is_said_once_and_stops_nothing(
  fails, logged_steps, words, tmp_path, monkeypatch
):
  package, lines = _Failing(fails), []
  monkeypatch.setitem(sys.modules, "wandb", package)
  run = WandbRun("project", str(tmp_path), {}, lines.append)
  run.row(1, {"loss": 0.5, "lr": 0.1})
  run.pictures(1, [Picture("val/0", PICTURE, "a cup")])
  run.close(failed=True)
  assert len(package.logged) == logged_steps
  assert len(lines) == len(words)
  assert all(word in line and "\n" not in line for word, line in zip(words, lines, strict=True))
  assert "finish" in fails or not package.logged or package.logged[-1] == ("finish", 1)


def test_another_project_is_another_run(tmp_path, monkeypatch):
  package = _Failing(set())
  monkeypatch.setitem(sys.modules, "wandb", package)
  for project in ("one", "one", "two"):
    WandbRun(project, str(tmp_path), {}, lambda line: None).close()
  assert [begun.get("id") for begun in package.begun] == [None, "abc", None]
  assert package.begun[1]["resume"] == "allow"


def test_it_is_never_imported_where_it_is_not_asked_for(shapes_data, tmp_path, monkeypatch):
  class Bomb(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
      raise AssertionError(f"wandb.{name} was used")

  monkeypatch.setitem(sys.modules, "wandb", Bomb("wandb"))
  monkeypatch.setattr(wandb, "WandbRun", Bomb("run"))
  train.main(tiny_run.arguments(shapes_data, tmp_path, "--config.steps=1"))
  assert not (tmp_path / "wandb").exists()
