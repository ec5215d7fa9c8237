"""Recipes, overrides and stored configs; errors name the known keys."""

import argparse

import pytest

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from input_pipeline.tf import loader
from mail_jax.checkpoints import checkpoint
from mail_jax.config import (
  add_config_argument,
  from_json,
  load_config,
  parse_overrides,
  to_json,
)
from mail_jax.train import data, resume

DEMO = "configs/demo.py"


@pytest.fixture(autouse=True)
def in_the_checkout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
  """Paths of recipes are relative to the checkout."""
  monkeypatch.chdir(request.config.rootpath)


@pytest.mark.parametrize(
  ("override", "value"),
  [
    ("steps=100", 100),
    ("optimizer.lr=1e-4", 1e-4),
    ("optimizer.lr=1", 1.0),
    ("model.mask_path=False", False),
    ("model.selection=soft", "soft"),
    ("model.decoder_widths=(8, 4, 2)", (8, 4, 2)),
    ("model.decoder_widths=[8, 4, 2]", (8, 4, 2)),
    ("dataset=refcoco+_unc", "refcoco+_unc"),
    ("eval_split=", ""),
    ("optimizer.lr_scale=(('encoder', 0.1), ('.*', 1.0))", (("encoder", 0.1), (".*", 1.0))),
  ],
)
@pytest.mark.parametrize("prefix", ["--config.", ""])
def test_override_sets_the_value_and_keeps_its_type(override, value, prefix):
  actual = load_config(DEMO, [prefix + override])
  for part in override.partition("=")[0].split("."):
    actual = actual[part]
  assert actual == value
  assert type(actual) is type(value)


def test_override_leaves_everything_else_as_it_was():
  changed, plain = to_json(load_config(DEMO, ["optimizer.lr=0.5"])), to_json(load_config(DEMO))
  assert plain["optimizer"].pop("lr") != changed["optimizer"].pop("lr")
  assert changed == plain


def test_argument_of_the_recipe_chooses_the_preset():
  assert load_config(DEMO).model.mask_tokens == "instance"
  assert load_config(f"{DEMO}:paper").model.mask_tokens == "stacked"


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("--config.stepz=3", r"--config\.stepz: unknown key 'stepz'; the keys are .*steps"),
    (
      "--config.model.depht=3",
      r"--config\.model\.depht: unknown key 'depht'; the keys are .*depth",
    ),
    ("--config.steps.per=3", r"--config\.steps\.per: unknown key 'per'; the keys are none"),
    ("--config.steps=many", r"--config\.steps: 'many' is not of type int"),
    ("--config.steps=1.5", r"--config\.steps: '1\.5' is not of type int"),
    ("--config.optimizer.lr=fast", r"--config\.optimizer\.lr: 'fast' is not of type float"),
    ("--config.optimizer.lr=True", r"--config\.optimizer\.lr: 'True' is not of type float"),
    ("--config.model.mask_path=1", r"--config\.model\.mask_path: '1' is not of type bool"),
    ("--config.model.mask_path=no", r"--config\.model\.mask_path: 'no' is not of type bool"),
    ("--config.model.decoder_widths=8", r"decoder_widths: '8' is not of type tuple"),
    ("--config.model=8", r"--config\.model: '8' is not of type ConfigDict"),
    ("--config.steps", r"--config\.steps: overrides are written --config\.KEY=VALUE"),
  ],
)
def test_wrong_override_is_named(override, message):
  with pytest.raises(InputError, match=message):
    load_config(DEMO, [override])


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--config.steps", "700"], "unrecognized argument: 700; write --config.steps=700"),
    (["--config.steps=1", "700"], "unrecognized argument: 700\n"),
    (["--steps=700"], "unrecognized argument: --steps=700\n"),
  ],
)
def test_a_word_that_is_no_override_is_named_with_the_way_out(words, message, capsys):
  parser = argparse.ArgumentParser()
  add_config_argument(parser)
  with pytest.raises(SystemExit):
    parse_overrides(parser, ["--config", "demo", *words])
  assert message in capsys.readouterr().err


def test_loaded_recipe_takes_no_new_key():
  with pytest.raises(AttributeError, match="depth"):
    load_config(DEMO).depth = 3


def test_missing_recipe_is_named():
  with pytest.raises(InputError, match=r"--config configs/dmo\.py: not a file"):
    load_config("configs/dmo.py")


def test_unknown_preset_is_named():
  with pytest.raises(InputError, match=r"configs/demo\.py:papre: the presets are instance and pap"):
    load_config(f"{DEMO}:papre")


def test_file_without_a_recipe_is_named(tmp_path):
  path = tmp_path / "empty.py"
  path.write_text("x = 1\n")
  with pytest.raises(InputError, match=r"empty\.py: the file defines no get_config"):
    load_config(str(path))


@pytest.mark.parametrize("spec", [DEMO, f"{DEMO}:paper"])
def test_recipe_survives_json(spec):
  config = load_config(spec, ["--config.optimizer.lr_scale=(('text', 0.0), ('.*', 1.0))"])
  again = from_json(to_json(config))
  assert again.to_dict() == config.to_dict()
  assert isinstance(again.model.decoder_widths, tuple)
  assert again.optimizer.lr_scale == (("text", 0.0), (".*", 1.0))


def test_a_recipe_knows_where_it_lies(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "recipe.py").write_text(
    "from ml_collections import ConfigDict\n\n"
    "def get_config():\n  return ConfigDict({'file': __file__})\n"
  )
  assert load_config("recipe.py").file == str((tmp_path / "recipe.py").resolve())
  assert [path.name for path in tmp_path.iterdir()] == ["recipe.py"]


def test_a_run_may_go_on_with_damaged_records_skipped_and_not_with_another_seed():
  tokenizer = SentencePieceTokenizer.train(["the left cup", "a red one", "that dog there"], 300)
  packed = checkpoint.pack_bytes(tokenizer.to_bytes())
  meta = {"config": to_json(load_config(DEMO)), "tokenizer": packed}
  skips = load_config(DEMO, ["loader.on_error=skip"])
  resume.check_resumable(meta, skips, tokenizer, "runs/demo")
  with pytest.raises(InputError, match=r"config\.seed = 0, not 1"):
    resume.check_resumable(meta, load_config(DEMO, ["seed=1"]), tokenizer, "runs/demo")


@pytest.mark.parametrize(
  ("part", "key"), [("loader", "on_error"), ("model", "scan"), ("loss", "bce")]
)
def test_a_stored_config_that_lacks_a_key_is_refused(part, key):
  stored = to_json(load_config(DEMO))
  del stored[part][key]
  with pytest.raises(
    InputError, match=rf"config\.{part}\.{key} is missing; the file is damaged or"
  ):
    from_json(stored)


@pytest.mark.parametrize("recipe", ["grefcoco", "phrasecut"])
def test_recipes_for_several_targets_have_a_gate_an_instance(recipe):
  config = load_config(f"configs/{recipe}.py")
  assert config.model.selection == "multi"
  assert config.model.no_target == (recipe == "grefcoco")
  assert load_config(f"configs/{recipe}.py:large").batch_size == 1024
  with pytest.raises(InputError, match=rf"configs/{recipe}\.py:unc: the .*argument.* large"):
    load_config(f"configs/{recipe}.py:unc")


def test_what_the_config_says_of_reading_reaches_the_loader(shapes_data, monkeypatch):
  calls = []

  def train_batches(found, tokenizer, shape, options, *, start_step, **_):
    calls.append((options, start_step))
    return iter([])

  monkeypatch.setattr(loader, "train_batches", train_batches)
  overrides = ["loader.cache=False", "loader.refs_per_image=3", "loader.threads=5"]
  config = load_config(DEMO, [*overrides, "vocab_size=300"])
  data.open_data(config, shapes_data).train(7)
  ((options, start_step),) = calls
  assert (options.refs_per_image, options.threads, options.cache) == (3, 5, False)
  assert start_step == 7


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("name", ["unc", "refcoco+", "umd", "google"])
def test_recipes_of_beit3_fit_its_weights(size, name):
  config = load_config(f"refcoco_beit3:{size},{name}")
  model = config.model
  assert (model.experts, model.patch_size, 2 ** len(model.decoder_widths)) == ("multiway", 16, 16)
  assert model.width == model.heads * 64 and config.image_size % 16 == 0
  assert load_config(f"refcoco_beit3:{size},{name},480").image_size == 480
  frozen = load_config(f"refcoco_beit3:{size},{name},480,frozen")
  assert frozen.image_size == 480 and 0.0 in dict(frozen.optimizer.lr_scale).values()
  for wrong in (f"{size},{name},400", f"huge,{name}", size):
    with pytest.raises(InputError, match="the arguments are base or large, then unc, refcoco"):
      load_config(f"refcoco_beit3:{wrong}")
