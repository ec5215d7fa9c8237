"""The parsers of all commands, and the examples in their help."""

import argparse
import contextlib
import importlib
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from input_pipeline.common.command_line import COMMANDS

Main = Callable[[list[str]], None]


class _ParsedError(Exception):
  """Stops a command after it has parsed its arguments."""


def main_of(module: str) -> Main:
  """Returns what `python -m MODULE` runs."""
  found = importlib.import_module(module)
  if hasattr(found, "__path__"):
    found = importlib.import_module(f"{module}.command")
  return found.main


@contextlib.contextmanager
def _stopped(seen: list[Any], parse: bool) -> Iterator[None]:
  """Commands end with `_ParsedError` where they would begin to work.

  What they parsed is in `seen`.
  """
  original, depth = argparse.ArgumentParser.parse_known_args, []

  def patched(self, args=None, namespace=None, **more):
    if not parse:
      seen.append(self)
      raise _ParsedError
    depth.append(self)
    try:
      found, rest = original(self, args, namespace, **more)
    finally:
      depth.pop()
    if not depth:
      if unknown := [word for word in rest if not word.startswith("--config.")]:
        self.error(f"unrecognized arguments: {unknown}")
      seen.append(found)
      raise _ParsedError
    return found, rest

  with (
    mock.patch.object(argparse.ArgumentParser, "parse_known_args", patched),
    mock.patch.object(sys, "argv", ["pytest"]),
    contextlib.suppress(_ParsedError),
  ):
    yield


def parsers() -> dict[str, argparse.ArgumentParser]:
  """Returns every parser with a help, by how its command is called."""
  found = {}
  for command in COMMANDS.values():
    found |= _with_inner(_parser(command.module, []))
  # `evaluate` reads its arguments otherwise where there is something to compare.
  compare = _parser("mail_jax.evaluate", ["--compare"])
  return found | {f"{compare.prog} --compare": compare}


def _parser(module: str, arguments: list[str]) -> argparse.ArgumentParser:
  seen: list[argparse.ArgumentParser] = []
  with _stopped(seen, parse=False):
    main_of(module)(arguments)
  return seen[0]


def _with_inner(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
  found = {parser.prog: parser}
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for inner in action.choices.values():
        found |= _with_inner(inner)
  return found


def parse(module: str, arguments: list[str]) -> argparse.Namespace:
  """Returns the parsed arguments of a command; SystemExit if it refuses them."""
  seen: list[argparse.Namespace] = []
  with _stopped(seen, parse=True):
    main_of(module)(arguments)
  return seen[0]


def examples(description: str | None) -> list[str]:
  """Returns the commands in a description, each on one line."""
  lines = (description or "").replace("\\\n", " ").splitlines()
  return [" ".join(line.split()) for line in lines if line.strip().startswith("python -m ")]


def split(example: str) -> tuple[str, list[str]]:
  """Returns the module of an example, and its arguments."""
  _, _, module, *arguments = shlex.split(example)
  return module, arguments
