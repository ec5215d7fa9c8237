"""All steps on real photos and expressions: half an hour on 2 cores."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import beit3_weights
import html_pages
import numpy as np
import pytest
import tiny_run
import vilt_weights
from PIL import Image

from input_pipeline import storage
from input_pipeline.preprocess.tokenizer import Beit3Tokenizer
from input_pipeline.sources import refer
from input_pipeline.tf import loader
from mail_jax.train import command as train

pytestmark = pytest.mark.slow

RECIPE = tiny_run.CHECKOUT / "configs" / "refcoco_small.py"
METRICS = {"expressions", "oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"}
PHOTOS = 4


def _run(module: str, *words: str, **options: str | pathlib.Path | list[str]) -> str:
  """Runs a command and returns its output; options can be repeated."""
  command = [sys.executable, "-m", module, *words]
  for name, values in options.items():
    for value in values if isinstance(values, list) else [values]:
      command += [f"--{name}", str(value)]
  done = subprocess.run(command, cwd=tiny_run.CHECKOUT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def data_dir(realdata, tmp_path_factory) -> str:
  """Prepares the four data sets of the family."""
  folder = str(tmp_path_factory.mktemp("data"))
  annotations = realdata / "coco/annotations/instances_train2014.json"
  for name in refer.LAYOUTS:
    # The excerpt has no instances.json of its own for the split of Google.
    own = {"annotations": annotations} if name == "refcocog_google" else {}
    _run(
      "input_pipeline.prepare",
      dataset=name,
      refer_root=realdata / "refer",
      images=realdata / "coco/train2014",
      instances=f"coco:{annotations}",
      data_dir=folder,
      **own,
    )
  return folder


@pytest.fixture(scope="module")
def workdir(data_dir, tmp_path_factory) -> pathlib.Path:
  """Trains a model that memorises the train split of RefCOCO."""
  folder = tmp_path_factory.mktemp("runs") / "refcoco_small"
  # Steps, not the recipe's minutes: a machine with other work to do must not learn less.
  length = ["--config.minutes=0", "--config.steps=700"]
  printed = _run("mail_jax.train", *length, config=RECIPE, data_dir=data_dir, workdir=folder)
  print(printed[-2000:])
  return folder


def test_every_data_set_is_prepared(data_dir):
  for name, layout in refer.LAYOUTS.items():
    counts = (storage.read_metadata(data_dir, name) or {})["counts"]
    assert counts["val"]["expressions"] > 0
    assert counts.keys() <= layout.splits.keys()


def test_it_learns_real_photos_and_answers_what_people_asked(workdir, data_dir, tmp_path):
  splits = [f"refcoco_unc/{split}" for split in ("train", "val", "testA", "testB")]
  printed = _run(
    "mail_jax.evaluate",
    checkpoint=workdir,
    step="last",
    data_dir=data_dir,
    data=splits,
    json=tmp_path / "metrics.json",
    overlays=tmp_path / "sheet.png",
  )
  print(printed)
  metrics = json.loads((tmp_path / "metrics.json").read_text())
  assert list(metrics) == splits
  counts = (storage.read_metadata(data_dir, "refcoco_unc") or {})["counts"]
  for name, row in metrics.items():
    assert row.keys() >= METRICS
    assert row["expressions"] == counts[name.partition("/")[2]]["expressions"]
  assert metrics["refcoco_unc/train"]["mIoU"] >= 0.75


def test_the_report_draws_real_photos_of_all_shapes(workdir, data_dir, tmp_path):
  splits = [f"refcoco_unc/{split}" for split in ("val", "testA", "testB")]
  page = tmp_path / "report.html"
  printed = _run("mail_jax.report", str(workdir), data_dir=data_dir, data=splits, out=page)
  assert f"wrote {page}" in printed
  text = page.read_text()
  sizes = html_pages.check_needs_nothing(text)
  assert any(width < height for width, height in sizes)
  assert any(width > height for width, height in sizes)
  assert len(text.encode()) < 10_000_000
  assert "the instance masks are the annotations themselves" in text


def test_real_photos_are_predicted_at_their_own_size(workdir, realdata, tmp_path):
  """Every other photo has COCO's instance masks, the rest has none."""
  annotations = realdata / "coco/annotations/instances_train2014.json"
  photos = sorted((realdata / "coco/train2014").glob("*.jpg"))[:PHOTOS]
  assert len(photos) == PHOTOS
  for number, photo in enumerate(photos):
    files = {name: tmp_path / f"{name}_{number}.png" for name in ("out", "mask")}
    printed = _run(
      "mail_jax.predict",
      checkpoint=workdir,
      step="last",
      image=photo,
      text="the leftmost one",
      instances=f"coco:{annotations}" if number % 2 else "none",
      **files,
    )
    assert f"{files['out']}: " in printed
    size = Image.open(photo).size
    assert Image.open(files["out"]).size == Image.open(files["mask"]).size == size
    assert set(np.unique(Image.open(files["mask"]))) <= {0, 255}


def test_an_epoch_of_the_full_recipe_from_a_converted_checkpoint_lowers_the_loss(
  data_dir, realdata, tmp_path
):
  """Full-size ViLT-B/32 with random weights; half an hour on 2 cores."""
  vocab = (realdata / "bert/vocab.txt").read_text(encoding="utf-8").splitlines()
  weights = vilt_weights.random_weights(width=768, depth=12, vocab=len(vocab))
  folder = vilt_weights.write_folder(tmp_path / "vilt", vilt_weights.as_new(weights), 12, vocab)
  _run("mail_jax.pretrained.vilt", checkpoint=folder, out=tmp_path / "vilt_b32.safetensors")
  overrides = {"config.init": f"vilt:{tmp_path / 'vilt_b32.safetensors'}"}
  _check_that_the_loss_falls("refcoco.py:unc", overrides, data_dir, tmp_path / "run")


def _check_that_the_loss_falls(
  recipe: str, overrides: dict[str, Any], data_dir: str, workdir: pathlib.Path
) -> None:
  """Trains for an epoch in batches of 8, and compares its first quarter with its last."""
  overrides = overrides | {
    "config.epochs": 1.0,
    "config.batch_size": 8,
    "config.log_every": 5,
    "config.optimizer.warmup_steps": 10,
    "config.model.dtype": "float32",
    "config.eval_split": "",
    "config.loader.threads": 2,
  }
  command = [f"--{key}={value}" for key, value in overrides.items()]
  config = str(tiny_run.CHECKOUT / "configs" / recipe)
  train.main(["--config", config, "--data_dir", data_dir, "--workdir", str(workdir), *command])
  losses = [row["loss"] for row in tiny_run.log(workdir) if "loss" in row]
  quarter = len(losses) // 4
  print(losses)
  assert np.mean(losses[-quarter:]) < 0.9 * np.mean(losses[:quarter])


def test_an_epoch_from_a_converted_beit3_lowers_the_loss(data_dir, tmp_path):
  """Random weights of BEiT-3's width, with 3 of its 12 blocks and at 224 pixels to save time."""
  expressions = loader.train_expressions(data_dir, "refcoco_unc")
  vocab = beit3_weights.train_tokenizer(1000, expressions)
  (tmp_path / "beit3.spm").write_bytes(vocab)
  size = Beit3Tokenizer(vocab).vocab_size
  weights = beit3_weights.as_new(beit3_weights.random_weights(width=768, depth=3, vocab=size))
  half = {name: value.astype(np.float16) for name, value in weights.items()}
  path = beit3_weights.save(tmp_path / "beit3_base_patch16_224.pth", half)
  _run("mail_jax.pretrained.beit3", checkpoint=path, out=tmp_path / "beit3.safetensors")
  overrides = {
    "config.init": f"beit3:{tmp_path / 'beit3.safetensors'}",
    "config.image_size": 224,
    "config.model.depth": 3,
  }
  _check_that_the_loss_falls("refcoco_beit3.py:base,unc", overrides, data_dir, tmp_path / "run")
