"""The attention that a model is run with: as in training if it runs here, or as chosen."""

import json
import shutil

import exported_models
import kept_models
import pytest

from input_pipeline.common.errors import InputError
from mail_jax.evaluate import command as evaluate
from mail_jax.export import load
from mail_jax.predict import command as predict


@pytest.fixture
def trained_with_cudnn(tmp_path):
  """A kept model, as if it came from a GPU."""
  folder = tmp_path / "model"
  shutil.copytree(kept_models.EXPORTED, folder)
  about = json.loads((folder / "config.json").read_text())
  about["config"]["model"] |= {"backend": "cudnn", "dtype": "bfloat16"}
  (folder / "config.json").write_text(json.dumps(about))
  return str(folder)


def test_an_attention_that_does_not_run_here_gives_way_and_another_can_be_chosen(
  trained_with_cudnn,
):
  model = load.load(trained_with_cudnn)
  assert (model.config.model.backend, model.model.options.backend) == ("auto", "xla")
  assert load.load(trained_with_cudnn, backend="xla").config.model.backend == "xla"
  assert load.load(trained_with_cudnn, backend="xla").fingerprint() == model.fingerprint()


@pytest.mark.parametrize("word", ["cudnn", "tpu"])
def test_a_chosen_attention_that_does_not_run_here_is_one_line(word, trained_with_cudnn, tmp_path):
  message = rf"--backend {word}: config\.model\.backend '{word}' does not run on cpu; set it to 'a"
  with pytest.raises(InputError, match=message):
    load.load(trained_with_cudnn, backend=word)
  model = ["--checkpoint", trained_with_cudnn, "--backend", word]
  with pytest.raises(InputError, match=message):
    evaluate.main([*model, "--data_dir", str(tmp_path), "--data", "shapes/val"])
  photo = tmp_path / "photo.png"
  exported_models.save_photo(photo)
  with pytest.raises(InputError, match=message):
    predict.main([*model, "--image", str(photo), "--text", "a", "--out", str(tmp_path / "o.png")])
