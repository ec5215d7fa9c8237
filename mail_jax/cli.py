"""The commands of mail_jax as one program:

mail-jax prepare --dataset shapes --data_dir data
mail-jax train --config demo --data_dir data --workdir runs/demo
mail-jax train --help

Every command is also a module: `mail-jax train` is `python -m mail_jax.train`. Where the program is
not installed, it is `python -m mail_jax`. docs/start/install.md
"""

import argparse
import importlib
import signal
import sys

from input_pipeline.common import command_line
from input_pipeline.common.command_line import COMMANDS, PROGRAM
from mail_jax import __version__


def main(argv: list[str] | None = None) -> None:
  """Runs a command.

  Nothing slow is imported before the command is known.

  Args:
    argv: the command's name and its arguments; by default those of the process.
  """
  argv = sys.argv[1:] if argv is None else argv
  # `argparse` would parse the command's own options.
  if not argv or argv[0] not in COMMANDS:
    _parser().parse_args(argv or ["--help"])
    return
  command = COMMANDS[argv[0]]
  if command.several:
    from mail_jax.distributed.processes import run_command
  else:
    from input_pipeline.common.errors import run_command
  if command.killable:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
  with command_line.as_program():
    run_command(lambda: _load(command.module)(argv[1:]), command.interrupted)


def _load(module: str):
  """Returns the `main` of a command, which is a folder or a module."""
  command = importlib.import_module(module)
  if hasattr(command, "__path__"):
    command = importlib.import_module(f"{module}.command")
  return command.main


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog=PROGRAM,
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="mail-jax COMMAND --help lists the options of a command.",
  )
  parser.add_argument("--version", action="version", version=f"mail_jax {__version__}")
  subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
  for name, command in COMMANDS.items():
    subparsers.add_parser(name, help=command.summary, add_help=False)
  return parser


if __name__ == "__main__":
  main()
