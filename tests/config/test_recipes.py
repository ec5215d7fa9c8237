"""Recipes by name and by file, and recipes that start from another one."""

import sys

import pytest
import tiny_run

from input_pipeline import mixture
from input_pipeline.common.errors import InputError
from mail_jax.config import load_config, recipe, recipe_names, to_json

FOLDER = tiny_run.CHECKOUT / "configs"


def test_recipes_are_the_files_of_the_folder():
  files = {path.stem for path in FOLDER.glob("[a-z]*.py")} - {"base"}
  assert set(recipe_names()) == files and "demo" in files


@pytest.mark.parametrize("spec", ["demo", "demo:paper", "refcoco:umd,large", "scale:vit_h"])
def test_a_name_and_its_file_are_the_same_recipe(spec):
  name, _, argument = spec.partition(":")
  path = f"{FOLDER / name}.py{':' * bool(argument)}{argument}"
  assert to_json(load_config(spec)) == to_json(load_config(path))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_how_it_is_run_and_loads(name):
  assert f"configs/{name}.py" in (FOLDER / f"{name}.py").read_text().split('"""')[1]
  assert load_config(name, ["--config.seed=7"]).seed == 7


@pytest.mark.parametrize("name", ["nothing", "base", "demo.py", "configs/nothing.py", ""])
def test_an_unknown_recipe_is_told_the_known_ones(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match="the recipes are demo, grefcoco, phrasecut, ref") as caught:
    load_config(name)
  assert str(caught.value).startswith(f"--config {name}: not a file")


CUSTOM = """
from mail_jax.config import recipe

def get_config():
  c = recipe("base")
  c.steps = 3
  return c
"""


def test_a_custom_recipe_can_start_from_ours(tmp_path):
  (tmp_path / "mine.py").write_text(CUSTOM)
  config = load_config(str(tmp_path / "mine.py"))
  assert (config.steps, config.seed) == (3, 0)


def test_a_custom_recipe_can_start_from_another_file(tmp_path):
  (tmp_path / "mine.py").write_text(CUSTOM)
  text = CUSTOM.replace('"base"', f'"{tmp_path}/mine.py"').replace("steps = 3", "seed = 5")
  (tmp_path / "second.py").write_text(text)
  config = load_config(str(tmp_path / "second.py"))
  assert (config.steps, config.seed) == (3, 5)


def test_what_a_recipe_changes_does_not_reach_the_next_one():
  recipe("base").seed = 5
  assert recipe("base").seed == 0


def test_an_argument_reaches_the_recipe_that_another_one_starts_from():
  assert recipe("refcoco", "umd").dataset == "refcocog_umd"
  assert recipe("base", "paper").model.selection == "soft"
  with pytest.raises(
    InputError, match=r"configs/base\.py:papre: the presets are instance and paper"
  ):
    recipe("base", "papre")


@pytest.mark.parametrize(
  ("spec", "single"),
  [
    ("refcoco:mixed", "refcoco:umd"),
    ("refcoco:mixed,large", "refcoco:umd,large"),
    ("refcoco_beit3:base,mixed", "refcoco_beit3:base,umd"),
    ("refcoco_small:mixed", "refcoco_small"),
    ("grefcoco:mixed", "grefcoco"),
    ("grefcoco:mixed,large", "grefcoco:large"),
  ],
)
def test_mixed_recipes_are_those_of_one_data_set_with_others_and_clean(spec, single):
  config, other = load_config(spec), load_config(single)
  names = [part.name for part in mixture.several(config.dataset)]
  assert {"refcoco_unc", "refcoco+_unc", "refcocog_umd"} <= set(names)
  assert other.dataset in names and config.exclude == other.exclude == ("auto",)
  assert config.model == other.model
  assert config.max_tokens >= other.max_tokens


@pytest.mark.parametrize("importable", [False, True])
def test_recipes_ignore_a_package_of_the_same_name(tmp_path, monkeypatch, importable):
  package = tmp_path / "configs"
  package.mkdir()
  if importable:
    (package / "__init__.py").touch()
  text = (FOLDER / "base.py").read_text()
  assert "c.seed = 0" in text
  (package / "base.py").write_text(text.replace("c.seed = 0", "c.seed = 5"))
  (package / "mine.py").write_text(CUSTOM)
  monkeypatch.syspath_prepend(tmp_path)
  assert load_config("grefcoco").seed == 0
  assert load_config(str(package / "mine.py")).seed == 0


def test_a_recipe_leaves_no_module_behind_even_if_it_fails(tmp_path):
  (tmp_path / "mine.py").write_text(f"{CUSTOM}\nraise RuntimeError\n")
  before = set(sys.modules)
  with pytest.raises(RuntimeError):
    load_config(str(tmp_path / "mine.py"))
  load_config("demo")
  assert set(sys.modules) == before
