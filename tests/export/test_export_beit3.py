"""A run that starts from BEiT-3 is evaluated, predicts, and is exported in every format."""

import pathlib

import beit3_weights
import exported_models
import numpy as np
import pytest
import tiny_run

from input_pipeline.preprocess.tokenizer import Beit3Tokenizer
from mail_jax.evaluate import command as evaluate
from mail_jax.export import command as export
from mail_jax.export import load
from mail_jax.predict.segmenter import Segmenter
from mail_jax.train import command as train

FORMATS = ("safetensors", "stablehlo", "saved_model")


@pytest.fixture(scope="module")
def run(shapes_data, tmp_path_factory) -> pathlib.Path:
  """Trains two steps from random weights, with everything that is particular to BEiT-3."""
  folder = tmp_path_factory.mktemp("beit3")
  vocab = beit3_weights.train_tokenizer()
  (folder / "beit3.spm").write_bytes(vocab)
  size = Beit3Tokenizer(vocab).vocab_size
  weights = beit3_weights.random_weights(width=32, depth=2, vocab=size, grid=3, positions=40)
  path = beit3_weights.save(folder / "beit3_tiny.pth", weights)
  options = {
    "init": f"beit3:{path}", "steps": 2, "save_every": 2, "eval_split": "", "model.scan": True,
    "model.experts": "multiway", "model.drop_path": 0.2, "model.depth": 2, "model.heads": 1,
    "model.patch_size": 16, "model.decoder_widths": (8, 8, 8, 4), "augment.scale": (0.8, 1.2),
  }  # fmt: skip
  overrides = [f"--config.{key}={value}" for key, value in options.items()]
  train.main(tiny_run.arguments(shapes_data, folder / "run", *overrides))
  return folder / "run"


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("exported") / "beit3"
  export.export(str(run), str(folder), FORMATS)
  return folder


@pytest.mark.parametrize("name", ["", "model.stablehlo", "saved_model"])
def test_every_format_computes_what_the_run_does(run, exported, name):
  ours, theirs = load.load(str(exported / name)), load.load(str(run))
  assert ours.tokenizer.kind == "beit3"
  assert ours.tokenizer.file_bytes() == (exported / "beit3.spm").read_bytes()
  batch = exported_models.random_batch(theirs.config, 3)
  exported_models.assert_alike(ours, theirs, batch)


@pytest.mark.extras
def test_onnx_computes_what_the_run_does(run, exported, tmp_path):
  pytest.importorskip("onnx", reason="needs onnx: make extras")
  pytest.importorskip("onnxruntime", reason="needs onnxruntime: make extras")
  export.export(str(exported), str(tmp_path / "onnx"), ("safetensors", "onnx"))
  ours, theirs = load.load(str(tmp_path / "onnx" / "model.onnx")), load.load(str(run))
  exported_models.assert_alike(ours, theirs, exported_models.random_batch(theirs.config, 3))


def test_it_predicts_and_is_evaluated(run, shapes_data, tmp_path, capsys):
  pixels = exported_models.save_photo(tmp_path / "photo.png")
  found = Segmenter(load.load(str(run)))(tmp_path / "photo.png", "the left star")
  assert found.mask.shape == pixels.shape[:2] and np.isfinite(found.probability).all()
  evaluate.main(["--checkpoint", str(run), "--data_dir", shapes_data, "--data", "shapes/val"])
  assert "mIoU" in capsys.readouterr().out
