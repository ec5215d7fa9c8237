"""The figures of `benchmarks.house`, on a tree of a few files."""

import json
import pathlib

import pytest
import tiny_run

from benchmarks import house

FILES = {
  "mail_jax/__init__.py": "",
  "mail_jax/config.py": (
    '"""Config."""\n\n\n'
    'def load():\n  """Loads it."""\n  from mail_jax.train import loop\n\n  return loop\n'
  ),
  "mail_jax/train/__init__.py": '"""Training."""\n',
  "mail_jax/train/loop.py": "from mail_jax import config\nfrom . import step\n\nconfig, step\n",
  "mail_jax/train/step.py": (
    "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n  from mail_jax.train import loop\n\n\n"
    "def take(a, b, c, d, e, f, g, h, *, i):\n"
    '  """The step."""\n\n\n'
    "class State:\n"
    "  def put(self, a, b, c, d, e, f, g, h, *more, **others):\n"
    '    """Puts it there."""\n\n'
    "  def _hidden(self):\n"
    '    """The hidden one."""\n\n'
    "  @property\n"
    "  def size(self):\n"
    '    """The number of arrays."""\n'
  ),
  "mail_jax/train/__main__.py": "from mail_jax.train import loop\n\nloop\n",
  "input_pipeline/records.py": "\n" * 70,
  "tests/test_step.py": "from mail_jax.train import step\n\nstep\n",
  "configs/base.py": "import input_pipeline.records\n",
  "README.md": "One two three.",
  "CHANGELOG.md": "One two three four.",
  "docs/reports/results.md": "One two.",
  "docs/performance.md": "One.",
  "docs/guides/train.md": "Five words are in here.",
}


@pytest.fixture
def tree(tmp_path) -> pathlib.Path:
  for name, text in FILES.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
  return tmp_path


def test_files_are_counted(tree):
  figures = house.measure(tree)
  assert figures["modules"] == 5
  assert figures["modules, with `__init__.py` and configs"] == 7
  assert figures["median lines"] == 8
  assert figures["files below 60 lines"] == 4
  assert figures["flat files in mail_jax"] == 2
  assert figures["flat files in input_pipeline"] == 1


def test_imports_in_functions_make_circles_and_those_for_types_do_not(tree):
  figures = house.measure(tree)
  assert figures["circles of files"] == [["mail_jax.config", "mail_jax.train.loop"]]
  assert figures["circles of folders"] == [["mail_jax.config", "mail_jax.train"]]


def test_importers_are_modules_outside_tests_and_commands_need_none(tree):
  assert house.measure(tree)["modules with at most one importer"] == [
    "input_pipeline.records",
    "mail_jax.config",
    "mail_jax.train.step",
  ]


def test_reports_and_the_changelog_are_words_of_their_own(tree):
  figures = house.measure(tree)
  assert (figures["words of docs outside reports"], figures["words of docs"]) == (8, 15)


def test_public_functions_are_judged_and_properties_are_not(tree):
  figures = house.measure(tree)
  assert figures["docstrings without a verb"] == ["mail_jax/train/step.py:7 take: The step."]
  assert figures["functions with more than 8 parameters"] == ["mail_jax/train/step.py:7 take: 9"]


@pytest.mark.parametrize(
  ("docstring", "expected"),
  [
    ("Returns the masks.", True),
    ("Decodes.", True),
    ("Samples the batch.", True),
    ("Samples of a batch.", False),
    ("Names and numbers.", False),
    ("Return the masks.", False),
    ("Masks of instances.", False),
    ("Whether it is finite.", False),
    ("Weights that average pixels.", False),
    ("`step` of the run.", False),
  ],
)
def test_a_verb_in_the_third_person_comes_first(docstring, expected):
  assert house.begins_with_verb(docstring) is expected


def test_fields_of_records_are_counted():
  fields = "".join(f"  f{i}: int\n" for i in range(9))
  text = f"@dataclasses.dataclass(frozen=True)\nclass A:\n{fields}"
  text += f"class B(nn.Module):\n{fields}class C:\n{fields}"
  module = house.Module("m", pathlib.PurePosixPath("m.py"), 1, house.ast.parse(text))
  assert house.long_records(module) == ["m.py:2 A: 9", "m.py:12 B: 9"]


def test_each_tree_is_a_column(tree, capsys):
  house.main(["--root", str(tree), f"{tree}/."])
  header, _, modules, *_ = capsys.readouterr().out.splitlines()
  assert header.count(str(tree)) == 2
  assert [cell.strip() for cell in modules.split("|")] == ["", "modules", "5", "5", ""]
  house.main(["--root", str(tree), "--json"])
  assert json.loads(capsys.readouterr().out)[str(tree)] == house.measure(tree)


def test_a_folder_without_the_packages_is_refused(tmp_path, capsys):
  with pytest.raises(SystemExit):
    house.main(["--root", str(tmp_path)])
  assert "no folder mail_jax/ in it" in capsys.readouterr().err


def test_this_tree_keeps_what_was_agreed():
  figures = house.measure(tiny_run.CHECKOUT)
  assert figures["circles of files"] == figures["circles of folders"] == []
  assert figures["flat files in mail_jax"] <= 6
  assert figures["flat files in input_pipeline"] <= 6
  assert figures["words of docs outside reports"] <= 15_000
