"""Recipes: those that come with mail_jax, by their names, and a user's own, by their files.

In a clone ours are the folder `configs/`. Installed, that folder is `mail_jax/configs/`: a package with the plain name
`configs` would be in other people's way.
"""

import argparse
import contextlib
import functools
import importlib.util
import pathlib
import runpy
import sys
from collections.abc import Iterator

from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError

PACKAGE = "configs"  # what recipes import from
_HERE = pathlib.Path(__file__).resolve().parent
FOLDER = next(f for f in (_HERE / PACKAGE, _HERE.parent / PACKAGE) if (f / "base.py").is_file())


def add_argument(parser: argparse.ArgumentParser) -> None:
  """Adds `--config` to a command; `--config.KEY=VALUE` is left to it."""
  parser.add_argument(
    "--config",
    required=True,
    metavar="RECIPE[:ARGUMENT]",
    help=f"{', '.join(names())}, or a file such as configs/demo.py; what comes after the colon is the recipe's own. "
    "--config.KEY=VALUE changes a value, such as --config.batch_size=16",
  )


def names() -> list[str]:
  """The recipes that come with mail_jax."""
  return sorted({path.stem for path in FOLDER.glob("*.py")} - {"__init__", "base"})


@functools.cache
def base() -> ConfigDict:
  """What every recipe starts from; not to be changed."""
  return make(str(FOLDER / "base.py")).lock()


def make(spec: str) -> ConfigDict:
  """Runs a recipe.

  Args:
    spec: `NAME`, one of `names()`, or `FILE.py`; `:ARGUMENT` behind it is given to its `get_config()`.

  Raises:
    InputError: no such recipe, or no `get_config` in it.
  """
  name, _, argument = spec.partition(":")
  path = _find(name)
  with _importable(path):
    # Leaves no compiled file beside it.
    recipe = runpy.run_path(str(path), run_name="recipe")
    if "get_config" not in recipe:
      raise InputError(f"--config {name}: the file defines no get_config()")
    return recipe["get_config"](argument) if argument else recipe["get_config"]()


def _find(name: str) -> pathlib.Path:
  if name in names():
    return FOLDER / f"{name}.py"
  if not pathlib.Path(name).is_file():
    raise InputError(
      f"--config {name}: no such file, and no recipe of mail_jax; there is {', '.join(names())}"
    )
  return pathlib.Path(name).resolve()


@contextlib.contextmanager
def _importable(path: pathlib.Path) -> Iterator[None]:
  """Lets a recipe say `from configs import base`.

  What it gets is the package that it is in, or else what Python finds under that name, or else ours.
  """
  found = sys.modules.get(PACKAGE) or importlib.util.find_spec(PACKAGE)
  origin = getattr(found, "__file__", None) or getattr(found, "origin", None)
  current = pathlib.Path(origin).resolve().parent if origin else None
  beside = path.parent.name == PACKAGE and (path.parent / "__init__.py").is_file()
  folder = path.parent if beside else current or FOLDER
  if folder == current:
    yield
    return
  others = {name: sys.modules.pop(name) for name in _loaded()}
  try:
    spec = importlib.util.spec_from_file_location(
      PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    yield
  finally:
    for name in _loaded():
      del sys.modules[name]
    sys.modules.update(others)


def _loaded() -> list[str]:
  return [name for name in sys.modules if name.partition(".")[0] == PACKAGE]
