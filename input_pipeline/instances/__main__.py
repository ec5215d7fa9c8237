"""Commands about instance masks: `python -m input_pipeline.instances COMMAND --help`."""

import argparse

from input_pipeline.errors import run_command
from input_pipeline.instances import clean_split

_COMMANDS = {"clean-split": clean_split}


def main(argv: list[str] | None = None) -> None:
  """Runs one of the commands."""
  parser = argparse.ArgumentParser(prog="python -m input_pipeline.instances", description=__doc__)
  subparsers = parser.add_subparsers(dest="command", required=True)
  for module in _COMMANDS.values():
    module.add_parser(subparsers)
  args = parser.parse_args(argv)
  _COMMANDS[args.command].run(args)


if __name__ == "__main__":
  run_command(main)
