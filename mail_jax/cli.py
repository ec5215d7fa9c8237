"""The commands of mail_jax as one program.

mail-jax prepare --dataset shapes --data_dir data
mail-jax train --config demo --data_dir data --workdir runs/demo
mail-jax train --help

Every command is also a module: `mail-jax train` is `python -m mail_jax.train`. docs/start/install.md
"""

import argparse
import importlib
import signal
import sys

from input_pipeline.common.command_line import COMMANDS, PROGRAM
from mail_jax import __version__


def main(argv: list[str] | None = None) -> None:
  """Runs the command that is named first; what stands behind its name is its own.

  Nothing that takes long is imported before a command is chosen.
  """
  argv = sys.argv[1:] if argv is None else argv
  # `argparse` would take options behind the command for its own.
  if not argv or argv[0] not in COMMANDS:
    _parser().parse_args(argv or ["--help"])
    return
  name, command = argv[0], COMMANDS[argv[0]]
  sys.argv = [f"{PROGRAM} {name}", *argv[1:]]
  if command.several:
    from mail_jax.distributed.processes import run_command
  else:
    from input_pipeline.common.errors import run_command
  if command.dies:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
  run_command(lambda: _load(command.module)(argv[1:]), command.interrupted)


def _load(module: str):
  """The `main` of a module, or of a package that has commands of its own."""
  found = importlib.import_module(module)
  if hasattr(found, "__path__"):
    found = importlib.import_module(f"{module}.command")
  return found.main


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog=PROGRAM,
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="mail-jax COMMAND --help says what a command takes.",
  )
  parser.add_argument("--version", action="version", version=f"mail_jax {__version__}")
  subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
  for name, command in COMMANDS.items():
    subparsers.add_parser(name, help=command.summary, add_help=False)
  return parser
