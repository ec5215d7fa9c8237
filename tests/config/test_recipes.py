"""Recipes by name and by file, and what they import where others have packages of the same name."""

import pathlib
import sys

import pytest
import tiny_run

from configs import base
from input_pipeline.common.errors import InputError
from mail_jax import recipes
from mail_jax.config import load_config, to_json

FOLDER = tiny_run.CHECKOUT / "configs"


def test_recipes_are_the_files_of_the_folder():
  files = {path.stem for path in FOLDER.glob("[a-z]*.py")} - {"base"}
  assert set(recipes.names()) == files and "demo" in files


@pytest.mark.parametrize("spec", ["demo", "demo:paper", "refcoco:umd,large", "scale:vit_h"])
def test_a_name_and_its_file_are_the_same_recipe(spec):
  name, _, argument = spec.partition(":")
  path = f"{FOLDER / name}.py{':' * bool(argument)}{argument}"
  assert to_json(load_config(spec)) == to_json(load_config(path))


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_says_how_it_is_run_and_loads(name):
  assert f"configs/{name}.py" in (FOLDER / f"{name}.py").read_text().split('"""')[1]
  assert load_config(name, ["--config.seed=7"]).seed == 7


@pytest.mark.parametrize("name", ["nothing", "base", "demo.py", "configs/nothing.py", ""])
def test_an_unknown_recipe_is_told_the_known_ones(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match="there is demo, grefcoco, phrasecut, refcoco") as caught:
    load_config(name)
  assert str(caught.value).startswith(f"--config {name}: no such file")


OWN = "from configs import base\n\ndef get_config():\n  c = base.get_config()\n  c.steps = 3\n  return c\n"


def _other_package(folder: pathlib.Path, seed: int) -> pathlib.Path:
  """A package `configs` whose `base` has another seed."""
  package = folder / "configs"
  package.mkdir(parents=True)
  (package / "__init__.py").touch()
  text = (FOLDER / "base.py").read_text()
  assert "c.seed = 0" in text
  (package / "base.py").write_text(text.replace("c.seed = 0", f"c.seed = {seed}"))
  (package / "mine.py").write_text(OWN)
  return package


@pytest.fixture
def none_imported():
  """As in a process that has imported no `configs` yet, and finds none: mail_jax is installed."""
  ours = [name for name in sys.modules if name.partition(".")[0] == "configs"]
  loaded = {name: sys.modules.pop(name) for name in ours}
  # Not by `monkeypatch`: what its `syspath_prepend` undoes would leave the shortened list behind.
  path, here = sys.path[:], {str(tiny_run.CHECKOUT), ""}
  sys.path[:] = [folder for folder in path if folder not in here]
  yield
  left = [name for name in sys.modules if name.partition(".")[0] == "configs"]
  sys.path[:] = path
  sys.modules.update(loaded)
  assert not left


def test_a_recipe_of_one_s_own_can_start_from_ours(tmp_path, none_imported):
  (tmp_path / "mine.py").write_text(OWN)
  config = load_config(str(tmp_path / "mine.py"))
  assert (config.steps, config.seed) == (3, 0)


def test_our_recipes_do_not_mind_a_package_of_the_same_name(tmp_path, none_imported, monkeypatch):
  _other_package(tmp_path, seed=5)
  monkeypatch.syspath_prepend(tmp_path)
  assert load_config("demo").seed == 0
  assert load_config("grefcoco").seed == 0  # imports another recipe


def test_a_recipe_of_another_clone_starts_from_what_lies_beside_it(tmp_path):
  package = _other_package(tmp_path, seed=5)
  assert load_config(str(package / "mine.py")).seed == 5
  # Nothing of it stays.
  assert sys.modules["configs.base"] is base
  assert load_config("demo").seed == 0


def test_a_folder_that_is_no_package_is_not_in_the_way(tmp_path, none_imported, monkeypatch):
  (tmp_path / "configs").mkdir()
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "mine.py").write_text(OWN)
  assert load_config(str(tmp_path / "mine.py")).steps == 3


def test_a_recipe_that_fails_leaves_no_package_behind(tmp_path):
  package = _other_package(tmp_path, seed=5)
  (package / "mine.py").write_text("from configs import base\nraise RuntimeError\n")
  with pytest.raises(RuntimeError):
    load_config(str(package / "mine.py"))
  assert sys.modules["configs.base"] is base
