"""What `pip install` brings: every module that is in the repository, and nothing else."""

import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
import tiny_run

CHECKOUT = tiny_run.CHECKOUT
PACKAGES = {
  "mail_jax/": "mail_jax/",
  "input_pipeline/": "input_pipeline/",
  "configs/": "mail_jax/configs/",
}
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_{}(sys.argv[1]))"


def _tracked() -> list[str]:
  git = shutil.which("git")
  if git is None or not (CHECKOUT / ".git").exists():
    pytest.skip("needs git and a clone: it compares with `git ls-files`")
  listed = subprocess.run(
    [git, "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True
  )
  return listed.stdout.splitlines()


def _installed_as(path: str) -> str | None:
  """Where a file of the repository is installed; None where it is not."""
  for folder, place in PACKAGES.items():
    if path.startswith(folder):
      return place + path.removeprefix(folder)
  return None


def _build(kind: str, source: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
  out.mkdir(exist_ok=True)
  program = [sys.executable, "-c", BUILD.format(kind), str(out)]
  done = subprocess.run(program, cwd=source, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
  """A wheel of the tracked files, as they are now."""
  folder = tmp_path_factory.mktemp("package")
  for path in _tracked():
    if (CHECKOUT / path).is_file():
      (folder / "clone" / path).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(CHECKOUT / path, folder / "clone" / path)
  return _build("wheel", folder / "clone", folder / "wheel")


@pytest.fixture(scope="module")
def source(wheel) -> pathlib.Path:
  """A source distribution of the same."""
  return _build("sdist", wheel.parents[1] / "clone", wheel.parents[1] / "sdist")


def _expected() -> dict[str, bytes]:
  found = {
    place: (CHECKOUT / path).read_bytes() for path in _tracked() if (place := _installed_as(path))
  }
  assert len(found) > 100
  return found


def _content(wheel: pathlib.Path) -> dict[str, bytes]:
  with zipfile.ZipFile(wheel) as file:
    return {name: file.read(name) for name in file.namelist() if ".dist-info/" not in name}


def test_a_wheel_has_every_file_of_the_packages_and_nothing_else(wheel):
  actual, expected = _content(wheel), _expected()
  assert sorted(actual) == sorted(expected)
  assert actual == expected


def test_type_checkers_use_what_is_installed(wheel):
  assert {"mail_jax/py.typed", "input_pipeline/py.typed"} <= _content(wheel).keys()


def test_a_wheel_of_the_source_distribution_is_the_same(wheel, source, tmp_path):
  with tarfile.open(source) as file:
    file.extractall(tmp_path, filter="data")
  again = _build("wheel", next(tmp_path.iterdir()), tmp_path / "wheel")
  assert _content(again) == _content(wheel)


def test_a_source_distribution_has_nothing_that_is_not_in_the_repository(source):
  with tarfile.open(source) as file:
    names = {member.name.partition("/")[2] for member in file.getmembers() if member.isfile()}
  made = {
    name
    for name in names
    if name.partition("/")[0] in ("PKG-INFO", "setup.cfg", "mail_jax.egg-info")
  }
  tracked = set(_tracked())
  assert names - made <= tracked
  assert {path for path in tracked if _installed_as(path)} <= names
  assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= names
  assert not any(name.startswith(("tests/", "docs/", "benchmarks/")) for name in names)


def test_what_is_installed_says_what_it_is(wheel):
  with zipfile.ZipFile(wheel) as file:
    (info,) = {name.partition("/")[0] for name in file.namelist() if ".dist-info/" in name}
    metadata = file.read(f"{info}/METADATA").decode()
    scripts = file.read(f"{info}/entry_points.txt").decode()
    assert file.read(f"{info}/licenses/LICENSE") == (CHECKOUT / "LICENSE").read_bytes()
    packages = file.read(f"{info}/top_level.txt").decode().split()
  assert packages == ["input_pipeline", "mail_jax"]
  assert "\nLicense-Expression: Apache-2.0\n" in metadata
  assert "\nRequires-Python: <3.14,>=3.11\n" in metadata
  assert "mail-jax = mail_jax.cli:main" in scripts


# Runs where only what is installed can be found.
PROGRAM = """
from mail_jax.config import load_config
import mail_jax, input_pipeline, sys
assert load_config("demo:paper").model.selection == "soft"
assert load_config("grefcoco").dataset == "grefcoco_unc"
assert load_config("mine.py").steps == 3
print(mail_jax.__file__, input_pipeline.__file__, "configs" in sys.modules)
"""


def test_recipes_are_found_where_it_is_installed(wheel, tmp_path):
  installed, empty = tmp_path / "site", tmp_path / "empty"
  empty.mkdir()
  with zipfile.ZipFile(wheel) as file:
    file.extractall(installed)
  (empty / "mine.py").write_text(
    "from mail_jax.config import recipe\n"
    "def get_config():\n  c = recipe('base')\n  c.steps = 3\n  return c\n"
  )
  program = f"import sys; sys.path.insert(0, {str(installed)!r})\n{PROGRAM}"
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=empty, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.count(str(installed)) == 2 and done.stdout.endswith("False\n")
