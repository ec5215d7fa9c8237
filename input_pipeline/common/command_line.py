"""What the commands share: their names, and parsers that show how each is called.

`python -m mail_jax.train` and `mail-jax train` are the same. Docstrings have examples in the first form; whoever called
the second is shown them in the second.
"""

import argparse
import sys
from typing import Any, NamedTuple

PROGRAM = "mail-jax"


class Command(NamedTuple):
  """A module with `main(argv)`, which is also `mail-jax NAME`.

  Attributes:
    module: what comes after `python -m`.
    summary: what it does, in a line.
    interrupted: what it says after Ctrl-C.
    several: whether it runs on several processes, of which one that fails takes the others along.
    dies: whether Ctrl-C ends the process as it is: nothing is half done, and a compiler listens to nothing for minutes.
  """

  module: str
  summary: str
  interrupted: str = "interrupted"
  several: bool = False
  dies: bool = False


# In the order of a newcomer's path.
COMMANDS = {
  "prepare": Command(
    "input_pipeline.prepare",
    "photos, expressions and instance masks to records",
    "interrupted: nothing was written",
  ),
  "own-data": Command("input_pipeline.custom", "check, draw and convert data of your own"),
  "instances": Command("input_pipeline.proposals", "judge instance masks; clean detectors' data"),
  "tokenizer": Command("input_pipeline.tokenizer", "train a SentencePiece model"),
  "convert-vilt": Command("mail_jax.pretrained.vilt", "weights of ViLT to a file to start from"),
  "train": Command("mail_jax.train", "train, or go on with a run", several=True),
  "evaluate": Command("mail_jax.evaluate", "metrics; whether two models differ", several=True),
  "report": Command("mail_jax.report", "a page about a run"),
  "predict": Command(
    "mail_jax.predict",
    "masks for photos and expressions",
    "interrupted; of several photos, the same command goes on",
  ),
  "app": Command("mail_jax.app", "a page to try a model in the browser", "ended"),
  "export": Command("mail_jax.export", "a model to share, and to run elsewhere"),
  "plan": Command("mail_jax.plan", "what training needs on TPUs that one does not own", dies=True),
}


def command_parser(module: str, description: str | None, **options: Any) -> argparse.ArgumentParser:
  """Returns the parser of a command.

  Args:
    module: what comes after `python -m`.
    description: the module's docstring, with examples.
    options: more of `argparse.ArgumentParser`.
  """
  return argparse.ArgumentParser(
    prog=as_called(f"python -m {module}"),
    description=as_called(description or ""),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    **options,
  )


def add_subparser(
  subparsers: Any, name: str, summary: str, description: str | None
) -> argparse.ArgumentParser:
  """Adds a command to a command, and returns its parser.

  Args:
    subparsers: what `add_subparsers` returned.
    name: the command.
    summary: a line, for the list of commands.
    description: what it does, with examples.
  """
  return subparsers.add_parser(
    name,
    help=summary,
    description=as_called(description or ""),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )


def as_called(text: str) -> str:
  """A text in which commands stand as the user called this one: as modules, or as `mail-jax NAME`."""
  if not sys.argv[0].startswith(f"{PROGRAM} "):
    return text
  for name, command in COMMANDS.items():
    text = text.replace(f"python -m {command.module}", f"{PROGRAM} {name}")
  return text
