"""Models exported by the first version can still be read, and predict the same."""

import shutil

import exported_models
import kept_models
import numpy as np
import pytest

from mail_jax.export import command as export
from mail_jax.export import load
from mail_jax.predict.segmenter import Segmenter

INPUTS = ("image", "instances", "num_instances", "tokens", "num_tokens")


@pytest.fixture(params=["run", "exported"])
def model(request, tmp_path) -> load.LoadedModel:
  """Loads a copy of a kept model, so that the original cannot change."""
  kept = {"run": kept_models.RUN, "exported": kept_models.EXPORTED}[request.param]
  shutil.copytree(kept, tmp_path / "kept")
  return load.load(str(tmp_path / "kept"))


def test_a_kept_model_says_what_it_said(model):
  with np.load(kept_models.EXPECTED) as expected:
    output = exported_models.run(model, {name: expected[name] for name in INPUTS})
    np.testing.assert_allclose(output.logits, expected["logits"], atol=1e-4)
    np.testing.assert_allclose(output.selection_logits, expected["selection_logits"], atol=1e-4)
    assert np.abs(expected["logits"]).max() > 0.01
    tokens = model.tokenizer([kept_models.SENTENCE], model.config.max_tokens)[0]
    np.testing.assert_array_equal(tokens, expected["sentence_tokens"])
  assert model.step == 4
  assert model.metrics["mIoU"] >= 0


def test_a_kept_model_predicts_and_is_exported_again(model, tmp_path):
  shape = Segmenter(model)(
    exported_models.save_photo(tmp_path / "photo.png"), "the star"
  ).mask.shape
  assert shape == (61, 90)
  export.export(str(tmp_path / "kept"), str(tmp_path / "again"))
  assert load.load(str(tmp_path / "again")).step == 4


def test_what_is_kept_is_small():
  files = [path for path in kept_models.DATA.rglob("*") if path.is_file()]
  assert len(files) > 5
  assert sum(path.stat().st_size for path in files) < 500_000
