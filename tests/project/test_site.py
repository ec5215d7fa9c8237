"""What the site adds to the pages.

Config keys, commands, names of the Python API, a place in the menu.
"""

import pathlib
import re
import sys

import tiny_run

ROOT = tiny_run.CHECKOUT
sys.path.insert(0, str(ROOT / "docs"))

import hooks  # noqa: E402  # MkDocs loads it from docs/

from configs import base  # noqa: E402
from input_pipeline.common.command_line import COMMANDS  # noqa: E402

API = ROOT / "docs" / "reference" / "api.md"
SOURCE = """
def get_config():
  c = ConfigDict()
  c.seed = 0
  # Pixels; images
  # are square.
  c.size = 96
  c.log = ConfigDict()  # where it goes
  c.log.rules = (
    ("a", 1),  # the first
  )  # all of them
  return c
"""


def _leaves(config, inside="") -> list[str]:
  keys = []
  for key, value in config.items():
    path = inside + key
    keys += _leaves(value, f"{path}.") if hasattr(value, "items") else [path]
  return keys


def test_comments_of_keys_stand_above_or_behind():
  assert dict(hooks.config_keys(SOURCE)) == {
    "seed": "",
    "size": "Pixels; images are square.",
    "log": "where it goes",
    "log.rules": "the first all of them",
  }


def test_every_config_key_has_a_row_with_its_default():
  rows = [row for line in hooks.config_tables() for row in re.findall(r"^\| `([\w.]+)` \|", line)]
  assert sorted(rows) == sorted(_leaves(base.get_config()))
  assert "| `batch_size` | `64` | int |" in "\n".join(hooks.config_tables())


def test_every_command_has_a_section_with_its_arguments():
  text = "\n".join(hooks.command_sections())
  assert "python -m mail_jax" not in text
  for name in COMMANDS:
    assert f"\n## mail-jax {name}\n" in text
  assert re.search(r"^\| `--config [^|]*\| required \|", text, re.M)


def test_every_public_name_is_documented():
  assert not hooks.undocumented(API.read_text(encoding="utf-8"))


def test_a_name_without_a_docstring_is_found():
  page = API.read_text(encoding="utf-8")
  names = hooks.undocumented(
    page.replace("::: mail_jax.Segmenter", "") + "\n::: mail_jax.no_name\n"
  )
  assert {"mail_jax.Segmenter (not in the page)", "mail_jax.no_name (no such name)"} <= {*names}


def test_fields_are_documented_in_the_list_of_attributes_or_below():
  class Both:
    """Two.

    Attributes:
      a, b: listed.
    """

    a: int
    b: int
    c: int
    """Below."""
    d: int

    def method(self):
      pass

  assert list(hooks._undocumented_members(Both)) == ["method", "d"]


def test_links_to_files_outside_of_the_site_become_text():
  text = "[a](../../LICENSE), [b](../guides/train.md#x), [c](https://d.e), `[f](../../LICENSE)`"
  kept = "a, [b](../guides/train.md#x), [c](https://d.e), "
  assert hooks._only_inner_links(text, "reference", None).startswith(kept)
  linked = hooks._only_inner_links(text, "reference", "https://host/project/")
  assert linked.startswith("[a](https://host/project/blob/main/LICENSE), [b](../guides/train.md#x)")


def test_the_pages_that_are_filled_in_have_a_place_for_it():
  for name in ("config", "commands"):
    page = pathlib.Path(ROOT, "docs", "reference", f"{name}.md").read_text(encoding="utf-8")
    assert hooks._MARK in page.splitlines()


def test_a_notebook_opens_in_colab_once_the_repository_has_an_address():
  page = "[the notebook](../notebooks/quickstart.ipynb), [install](install.md)"
  assert hooks.link_colab(page, "start", None) == page
  assert hooks.link_colab(page, "start", "https://github.com/some/project/") == page.replace(
    "), [",
    ") ([open in Colab](https://colab.research.google.com/github/some/project/blob/main/docs/"
    "notebooks/quickstart.ipynb)), [",
  )
