"""`--help` of every command, and the program `mail-jax`."""

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tomllib

import help_pages
import pytest
import tiny_run

import mail_jax
from input_pipeline.common.command_line import COMMANDS
from mail_jax import cli

PARSERS = help_pages.parsers()
EXAMPLES = list(
  dict.fromkeys(line for p in PARSERS.values() for line in help_pages.examples(p.description))
)
CHECKOUT = tiny_run.CHECKOUT


def test_every_module_that_can_be_run_is_a_command():
  runnable = set()
  for package in ("mail_jax", "input_pipeline"):
    for path in (CHECKOUT / package).rglob("*.py"):
      if re.search(r"^if __name__ == .__main__.:", path.read_text(), re.M):
        name = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)
        runnable.add(name.removesuffix(".__main__"))
  assert runnable == {command.module for command in COMMANDS.values()} | {
    "mail_jax",
    "mail_jax.cli",
  }


@pytest.mark.parametrize("name", PARSERS)
def test_a_help_describes_the_command_and_has_an_example(name):
  text = PARSERS[name].description or ""
  assert len(text.splitlines()[0]) > 20
  shown = help_pages.examples(text)
  assert shown
  assert any(line.startswith(f"{PARSERS[name].prog} ") for line in shown)
  assert max(map(len, text.splitlines())) <= 100
  # In a docstring that is not raw, a backslash at the end of a line joins it with the next one.
  assert not re.search(r"\S {3,}\S", text)


@pytest.mark.parametrize("name", PARSERS)
def test_every_argument_has_a_help_and_names_its_default(name):
  for action in PARSERS[name]._actions:
    if isinstance(action, argparse._SubParsersAction):
      assert all(choice.help for choice in action._choices_actions)
      continue
    text = action.help or ""
    label = action.option_strings or action.dest
    assert re.search(r"[a-z]{2}", re.sub(r"\(default.*?\)", "", text)), label
    has_default = action.default not in (None, False, [], "", argparse.SUPPRESS)
    assert not has_default or "default" in text or action.default == 0, label


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_valid(example):
  help_pages.parse(*help_pages.split(example))


def test_an_invalid_argument_is_refused(capsys):
  with pytest.raises(SystemExit):
    help_pages.parse("mail_jax.train", ["--config", "demo", "--data", "data"])
  assert "error:" in capsys.readouterr().err


def _help(run, arguments, monkeypatch, capsys) -> str:
  monkeypatch.setattr(sys, "argv", ["pytest"])
  monkeypatch.setenv("COLUMNS", "1000")
  with pytest.raises(SystemExit) as ended:
    run([*arguments, "--help"])
  assert ended.value.code == 0
  return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_sub_command_has_the_help_of_its_module_under_its_own_name(name, monkeypatch, capsys):
  theirs = _help(help_pages.main_of(COMMANDS[name].module), [], monkeypatch, capsys)
  ours = _help(cli.main, [name], monkeypatch, capsys)
  assert ours.startswith(f"usage: mail-jax {name} [-h]")
  assert "python -m" not in ours
  for other, command in COMMANDS.items():
    theirs = theirs.replace(f"python -m {command.module}", f"mail-jax {other}")
  assert ours == theirs


def test_subcommands_are_reached(monkeypatch, capsys):
  text = _help(cli.main, ["custom", "validate"], monkeypatch, capsys)
  assert text.startswith("usage: mail-jax custom validate [-h]")
  assert "\nmail-jax custom validate mine.jsonl\n" in text


def test_the_list_of_commands_is_printed_without_slow_imports():
  program = (
    "import sys; from mail_jax import cli\ntry: cli.main(['--help'])\nfinally: print(*sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True
  )
  *text, modules = done.stdout.splitlines()
  for name, command in COMMANDS.items():
    assert re.search(rf"^ +{name}\s+{re.escape(command.summary)}$", "\n".join(text), re.M)
  heavy = {"jax", "flax", "numpy", "PIL", "tensorflow", "tokenizers", "pycocotools"}
  assert not heavy & set(modules.split())


def test_the_version_is_printed(capsys):
  with pytest.raises(SystemExit) as ended:
    cli.main(["--version"])
  assert ended.value.code == 0
  assert capsys.readouterr().out == f"mail_jax {mail_jax.__version__}\n"
  assert f"\n## [{mail_jax.__version__}]" in (CHECKOUT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("arguments", [["trian"], ["--config", "demo"], ["--nothing"]])
def test_an_unknown_command_is_refused(arguments, capsys):
  with pytest.raises(SystemExit) as ended:
    cli.main(arguments)
  assert ended.value.code == 2
  assert "mail-jax: error: " in capsys.readouterr().err


def test_wrong_input_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(sys, "argv", ["pytest"])
  monkeypatch.chdir(tmp_path)
  for words, reason in (
    ("custom validate no.jsonl", "no such file"),
    ("train --config no --workdir w --data_dir d", "not a file and not a recipe"),
  ):
    with pytest.raises(SystemExit) as ended:
      cli.main(words.split())
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and reason in line.lower()


def test_the_program_is_installed_under_its_name():
  project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
  (script,) = project["scripts"].items()
  entry = importlib.metadata.EntryPoint(*script, "console_scripts")
  assert script[0] == "mail-jax" and entry.load() is cli.main
