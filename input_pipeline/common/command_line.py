"""The commands: their names, and parsers whose help shows how each is called.

`python -m mail_jax.train` and `mail-jax train` are the same command. Docstrings have examples in
the first form; the help of the program `mail-jax` shows them in the second.
"""

import argparse
import contextlib
import contextvars
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

from input_pipeline.common.errors import InputError

PROGRAM = "mail-jax"


class Command(NamedTuple):
  """A module with `main(argv)`, which is also `mail-jax NAME`.

  Attributes:
    module: what comes after `python -m`.
    summary: what it does, in one line.
    interrupted: printed after Ctrl-C.
    several: whether it runs on several processes; if one fails, it ends the others.
    killable: whether Ctrl-C kills the process at once: it leaves nothing half done, and compilers
      ignore interrupts for minutes.
  """

  module: str
  summary: str
  interrupted: str = "interrupted"
  several: bool = False
  killable: bool = False


# In the order in which a newcomer needs them.
COMMANDS = {
  "prepare": Command(
    "input_pipeline.prepare",
    "convert images, expressions and instance masks to records",
    "interrupted: nothing was written",
  ),
  "custom": Command("input_pipeline.custom", "validate, draw and convert custom data"),
  "proposals": Command(
    "input_pipeline.proposals", "evaluate instance masks; clean a detector's training data"
  ),
  "tokenizer": Command("input_pipeline.tokenizer", "train a SentencePiece model"),
  "convert-vilt": Command("mail_jax.pretrained.vilt", "convert ViLT's weights to start from"),
  "convert-beit3": Command("mail_jax.pretrained.beit3", "convert BEiT-3's weights to start from"),
  "train": Command("mail_jax.train", "train a model, or resume a run", several=True),
  "sweep": Command(
    "mail_jax.sweep",
    "train with every combination of some settings",
    "interrupted; run the same command again to go on",
  ),
  "reproduce": Command(
    "mail_jax.reproduce",
    "make the paper's table, from raw files to a page",
    "interrupted; run the same command again to go on",
  ),
  "evaluate": Command(
    "mail_jax.evaluate", "compute metrics, or compare two evaluations", several=True
  ),
  "report": Command("mail_jax.report", "write an HTML report about a run"),
  "predict": Command(
    "mail_jax.predict",
    "predict masks for images and expressions",
    "interrupted; with several images, run the same command again to resume",
  ),
  "app": Command("mail_jax.app", "serve a web page to try a model", "stopped"),
  "serve": Command("mail_jax.serve", "serve a model over HTTP, for other programs", "stopped"),
  "export": Command("mail_jax.export", "export a model to share it or to run it elsewhere"),
  "plan": Command(
    "mail_jax.plan", "estimate memory and step time on TPUs, without TPUs", killable=True
  ),
}

_in_program: contextvars.ContextVar[bool] = contextvars.ContextVar("in_program", default=False)


@contextlib.contextmanager
def as_program() -> Iterator[None]:
  """Shows commands as `mail-jax NAME` in the help texts of parsers made inside the context."""
  token = _in_program.set(True)
  try:
    yield
  finally:
    _in_program.reset(token)


def command_parser(module: str, description: str | None, **options: Any) -> argparse.ArgumentParser:
  """Returns the parser of a command.

  Args:
    module: what comes after `python -m`.
    description: the module's docstring, with examples.
    **options: passed to `argparse.ArgumentParser`.
  """
  return argparse.ArgumentParser(
    prog=_as_called(f"python -m {module}"),
    description=_as_called(description or ""),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    **options,
  )


def add_subparser(
  subparsers: Any, name: str, summary: str, description: str | None
) -> argparse.ArgumentParser:
  """Adds a subcommand to a command and returns its parser.

  Args:
    subparsers: what `add_subparsers` returned.
    name: of the subcommand.
    summary: one line, for the list of subcommands.
    description: what it does, with examples.
  """
  return subparsers.add_parser(
    name,
    help=summary,
    description=_as_called(description or ""),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )


def _as_called(text: str) -> str:
  if not _in_program.get():
    return text
  for name, command in COMMANDS.items():
    text = text.replace(f"python -m {command.module}", f"{PROGRAM} {name}")
  return text


def bind(host: str, port: int) -> socket.socket:
  """Takes a port; nobody can connect until the socket listens.

  Args:
    host: an IPv4 or IPv6 address, or a name.
    port: 0 for a free one.

  Raises:
    InputError: it is in use, or the address is not one of this machine.
  """
  listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
  try:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
  except OSError as error:
    listener.close()
    raise InputError(
      f"--host {host} --port {port}: cannot listen there ({error}); if the port is in use, set "
      "another --port"
    ) from error
  return listener
