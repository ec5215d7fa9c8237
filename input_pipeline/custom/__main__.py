"""Runs `python -m input_pipeline.custom`."""

from input_pipeline.common.command_line import COMMANDS
from input_pipeline.common.errors import run_command
from input_pipeline.custom.command import main

if __name__ == "__main__":
  run_command(main, COMMANDS["custom"].interrupted)
